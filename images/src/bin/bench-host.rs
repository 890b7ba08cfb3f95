//! Measures what needs no lab: exits of the hypervisor, in virtual time.

use anyhow::Result;
use images::standalone;

fn main() -> Result<()> {
    println!("exit and return, in virtual time: one instruction is one nanosecond");
    for cost in standalone::exit_costs()? {
        println!("  {:<24} {:>8} ns", cost.name, cost.ns);
    }
    Ok(())
}
