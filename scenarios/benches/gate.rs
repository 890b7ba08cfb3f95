//! How often a gate is wrong: false alarms when nothing has changed, and additional pauses that it finds.
//!
//! `cargo bench --package scenarios --bench gate`. Its matter are real runs of the demo, two arms drawn from them again and again with
//! replacement, and for the second question a stop that lasts longer. It takes no lab, so it can be asked again in a minute; what it does
//! not show is how runs of two evenings differ, for which a gate interleaves.

use std::path::Path;

use scenarios::compare::Outcome;
use scenarios::gate::quarantine::Quarantine;
use scenarios::gate::{Trial, decide};
use scenarios::history::{Entry, History};
use scenarios::report::book::{Book, ScenarioReport};
use scenarios::report::run::RunReport;
use scenarios::scenario::{self, Scenario, library};

/// A stop that lasts longer is in all of these.
const LONGER: [&str; 4] = ["longest-echo", "udp-gap", "vcpu-pause", "total"];
const GATES: u64 = 100;

fn main() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/demo-runs.jsonl");
    let history = History::read(&[file]).expect("it comes with the source");
    let text = library::find("demo")
        .expect("it comes with the program")
        .text;
    let scenario = scenario::parse("demo", text)
        .expect("it is right")
        .remove(0)
        .scenario;
    println!("{} runs; {GATES} gates of each kind", history.entries.len());
    println!(
        "{:>14} {:>12} {:>8} {:>14} {:>8}",
        "runs an arm", "longer, ms", "worse", "inconclusive", "passed"
    );
    for runs in [10, 20] {
        for longer in [0.0, 10.0, 20.0, 30.0] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut counts = [0; 3];
            for _ in 0..GATES {
                let outcome = gate(&history.entries, &scenario, runs, longer, &mut random);
                counts[match outcome {
                    Outcome::Worse => 0,
                    Outcome::Inconclusive | Outcome::NotComparable => 1,
                    Outcome::Better | Outcome::Equivalent => 2,
                }] += 1;
            }
            println!(
                "{runs:>14} {longer:>12} {:>8} {:>14} {:>8}",
                counts[0], counts[1], counts[2]
            );
        }
    }
}

fn gate(
    runs: &[Entry],
    scenario: &Scenario,
    arm: usize,
    longer: f64,
    random: &mut fastrand::Rng,
) -> Outcome {
    let none = Quarantine::default();
    let mut trial =
        || Trial::of(&[0.0, longer].map(|more| book(runs, scenario, arm, more, random)));
    let first = trial();
    let second = first.needs_confirming("demo", &none).then(&mut trial);
    decide("demo", &first, second.as_ref(), &none).outcome
}

fn book(
    runs: &[Entry],
    scenario: &Scenario,
    arm: usize,
    longer: f64,
    random: &mut fastrand::Rng,
) -> Book {
    let reports = (0..arm)
        .map(|_| report(&runs[random.usize(..runs.len())], longer))
        .collect();
    let report = ScenarioReport::new(scenario, "", reports);
    Book::new(String::new(), 0, 0.0, vec![report])
}

fn report(entry: &Entry, longer: f64) -> RunReport {
    let mut figures = entry.figures.clone();
    for name in LONGER {
        for value in figures.get_mut(name).into_iter().flatten() {
            *value += longer;
        }
    }
    RunReport {
        schema: 1,
        scenario: entry.scenario.clone(),
        variant: entry.variant.clone(),
        settings: Vec::new(),
        number: entry.number,
        seed: entry.seed,
        command: entry.command.clone(),
        verdict: entry.verdict,
        reasons: Vec::new(),
        checks: Vec::new(),
        figures,
        steps: Vec::new(),
        seconds: entry.seconds,
        folder: String::new(),
        machine: entry.machine.clone(),
        measured: None,
        echoes_ms: Vec::new(),
    }
}
