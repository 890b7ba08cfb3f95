//! What a pool costs as it grows: CPU time of all hosts together, the simulation of their network and storage included,
//! for each second of one host.
//!
//! A heartbeat goes from each host to each other one and tells what was heard of every host, so the cost of a host grows with the
//! square of their number. The statefile has room for 256 hosts, which bounds a pool; a thousand would need pools of pools.
//! Numbers of hosts can be named on the command line, after `--`.

#[path = "../tests/simulation/storage.rs"]
#[allow(dead_code, reason = "a part of the simulation is enough")]
mod storage;
#[path = "../tests/simulation/world/mod.rs"]
#[allow(dead_code, reason = "a part of the simulation is enough")]
mod world;

use pool::{Safeguards, Timing};
use world::{SECOND, Shape, World};

/// Virtual host-seconds that are measured, about.
const HOST_SECONDS: usize = 2000;

fn main() {
    println!("hosts  us of CPU time for a host-second");
    for hosts in sizes() {
        let shape = Shape {
            hosts,
            vms: 1,
            safeguards: Safeguards::default(),
            timing: Timing::default(),
        };
        let mut world = World::new(&shape, fastrand::Rng::with_seed(1));
        for host in 0..hosts {
            world.boot(host);
        }
        let formed = world.now + 5 * SECOND;
        world.run_until(formed);
        let begun = cpu_seconds();
        let seconds = (HOST_SECONDS / hosts).max(3) as u64;
        world.run_until(formed + seconds * SECOND);
        let spent = cpu_seconds() - begun;
        println!(
            "{hosts:5}  {:.0}",
            spent * 1e6 / (hosts as f64 * seconds as f64)
        );
    }
    println!(
        "a pool has at most {} hosts: as many slots as one READ brings",
        statefile::SLOTS
    );
}

/// Those named on the command line, or all.
fn sizes() -> Vec<usize> {
    let named: Vec<_> = std::env::args()
        .filter_map(|word| word.parse().ok())
        .collect();
    if named.is_empty() {
        vec![2, 4, 8, 16, 32, 64, 128, 256]
    } else {
        named
    }
}

/// CPU time of this thread: the machine may have more to do.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}
