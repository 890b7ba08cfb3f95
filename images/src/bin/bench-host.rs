//! Measures what needs no lab: exits of the hypervisor in virtual time, and the session guest's boot directly under
//! QEMU, the yardstick for its boot on a host.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use images::guest::{self, PlainQemu};
use images::standalone;

const BOOTS: usize = 5;

fn main() -> Result<()> {
    println!("exit and return, in virtual time: one instruction is one nanosecond");
    for cost in standalone::exit_costs()? {
        println!("  {:<24} {:>8} ns", cost.name, cost.ns);
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    let guest = guest::build(&cache, &|line| eprintln!("{line}"))?;
    let mut boots = (0..BOOTS)
        .map(|_| Ok(PlainQemu::boot(&guest)?.boot_time()))
        .collect::<Result<Vec<Duration>>>()?;
    boots.sort();
    println!(
        "session guest directly under QEMU, start to session ready: median {:.2} s of {BOOTS}, {:.2} to {:.2} s",
        boots[BOOTS / 2].as_secs_f64(),
        boots[0].as_secs_f64(),
        boots[BOOTS - 1].as_secs_f64()
    );
    Ok(())
}
