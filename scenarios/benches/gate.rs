//! How often a gate is wrong: false alarms when nothing has changed, and longer pauses that it finds.
//!
//! `cargo bench --package scenarios --bench gate`. Its matter are real runs of the demo, arms drawn from them again and again with
//! replacement: of one image, and of one that takes 30 ms more for its stop. `cargo xtask bench gate` makes them anew. Other lengths are
//! asked about by adding them to the figures in which a longer stop shows. It takes no lab, so it can be asked again in minutes; what it
//! does not show is how runs of two evenings differ, for which a gate interleaves.

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

/// The runs from which an arm is drawn, and what is added to their figures.
#[derive(Clone, Copy)]
struct Arm<'a> {
    runs: &'a [Entry],
    longer_ms: f64,
}

fn main() {
    let unchanged = runs("demo-runs.jsonl");
    let slower = runs("demo-runs-longer-stop.jsonl");
    let text = library::find("demo")
        .expect("it comes with the program")
        .text;
    let scenario = scenario::parse("demo", text)
        .expect("it is right")
        .remove(0)
        .scenario;
    println!(
        "{} runs of one image, {} of one whose stop takes 30 ms more; {GATES} gates of each kind",
        unchanged.len(),
        slower.len()
    );
    println!(
        "{:<28} {:>12} {:>8} {:>14} {:>8}",
        "candidate", "runs an arm", "worse", "inconclusive", "passed"
    );
    let base = Arm {
        runs: &unchanged,
        longer_ms: 0.0,
    };
    let mut candidates = vec![("the same".to_owned(), base)];
    for longer_ms in [10.0, 20.0, 30.0] {
        let words = format!("figures {longer_ms} ms longer");
        candidates.push((words, Arm { longer_ms, ..base }));
    }
    if !slower.is_empty() {
        let real = Arm {
            runs: &slower,
            longer_ms: 0.0,
        };
        candidates.push(("image 30 ms slower".to_owned(), real));
    }
    for (words, candidate) in candidates {
        for count in [10, 20] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut counts = [0; 3];
            for _ in 0..GATES {
                let outcome = gate([base, candidate], &scenario, count, &mut random);
                counts[match outcome {
                    Outcome::Worse => 0,
                    Outcome::Inconclusive | Outcome::NotComparable => 1,
                    Outcome::Better | Outcome::Equivalent => 2,
                }] += 1;
            }
            println!(
                "{words:<28} {count:>12} {:>8} {:>14} {:>8}",
                counts[0], counts[1], counts[2]
            );
        }
    }
}

/// The runs of a file; none without it.
fn runs(file: &str) -> Vec<Entry> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches")
        .join(file);
    if !file.exists() {
        return Vec::new();
    }
    History::read(&[file]).expect("it is a history").entries
}

fn gate(arms: [Arm; 2], scenario: &Scenario, count: usize, random: &mut fastrand::Rng) -> Outcome {
    let none = Quarantine::default();
    let mut trial = || Trial::of(&arms.map(|arm| book(arm, scenario, count, random)));
    let first = trial();
    let second = first.needs_confirming("demo", &none).then(&mut trial);
    decide("demo", &first, second.as_ref(), &none).outcome
}

fn book(arm: Arm, scenario: &Scenario, count: usize, random: &mut fastrand::Rng) -> Book {
    let reports = (0..count)
        .map(|_| report(&arm.runs[random.usize(..arm.runs.len())], arm.longer_ms))
        .collect();
    let report = ScenarioReport::new(scenario, "", reports);
    Book::new(String::new(), 0, 0.0, vec![report])
}

fn report(entry: &Entry, longer_ms: f64) -> RunReport {
    let mut figures = entry.figures.clone();
    for name in LONGER {
        for value in figures.get_mut(name).into_iter().flatten() {
            *value += longer_ms;
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
