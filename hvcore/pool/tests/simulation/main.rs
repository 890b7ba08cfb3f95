//! Thousands of pools that live through everything, in virtual time; a seed reproduces each of them.
//!
//! `POOL_SEEDS` says how many runs (default 10,000), `POOL_FIRST_SEED` where to begin, `POOL_THREADS` how many at once. With
//! `POOL_HISTORY` set, each run prints what was done to its pools, and what they told people.

mod cases;
mod controls;
mod found;
mod storage;
mod world;

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cases::{CASES, Case, Outcome, Setup, run};

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

fn case_of(seed: u64) -> Case {
    CASES[(seed % CASES.len() as u64) as usize]
}

#[test]
fn pools_keep_their_promises() {
    let seeds = knob("POOL_SEEDS", 10_000);
    let first = knob("POOL_FIRST_SEED", 0);
    let threads = knob("POOL_THREADS", 1);
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Outcome::default());
    let failed = Mutex::new(Vec::new());
    let spent = Mutex::new(0.0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    match run(case_of(seed), seed, &Setup::default()) {
                        Ok(outcome) => add(&mut total.lock().unwrap(), &outcome),
                        Err(why) => {
                            failed.lock().unwrap().push((seed, why));
                            stop.store(failed.lock().unwrap().len() >= 20, Ordering::Relaxed);
                        }
                    }
                }
                *spent.lock().unwrap() += cpu_seconds();
            });
        }
    });
    let total = total.into_inner().unwrap();
    let spent = spent.into_inner().unwrap();
    let runs = next.into_inner().min(first + seeds) - first;
    println!("{runs} runs in {spent:.1} s of CPU time");
    println!(
        "{:.0} simulated host-seconds, {:.1} us of CPU time each; {} restarts",
        total.host_seconds,
        spent * 1e6 / total.host_seconds,
        total.restarts
    );
    print_times("from pull to detection", total.detections);
    print_times("from pull to decision", total.decisions);
    let failed = failed.into_inner().unwrap();
    for (seed, why) in &failed {
        println!(
            "seed {seed} ({:?}): {why}\n  POOL_HISTORY=1 POOL_FIRST_SEED={seed} POOL_SEEDS=1 cargo test -p pool --test simulation pools -- --nocapture",
            case_of(*seed)
        );
    }
    assert!(failed.is_empty(), "{} runs failed", failed.len());
}

/// CPU time of this thread: the machine may have more to do.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}

fn add(total: &mut Outcome, one: &Outcome) {
    total.decisions.extend(&one.decisions);
    total.detections.extend(&one.detections);
    total.host_seconds += one.host_seconds;
    total.restarts += one.restarts;
}

fn print_times(what: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] / world::MS;
    if !times.is_empty() {
        println!(
            "{what}: median {} ms, p95 {}, max {}, of {}",
            at(0.5),
            at(0.95),
            at(1.0),
            times.len()
        );
    }
}
