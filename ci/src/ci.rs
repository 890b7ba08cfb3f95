//! The sets of checks that continuous integration runs. A set is a list of steps; a runner's log, its summary page and a
//! person's terminal tell the same of them.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xshell::Shell;

use crate::{cargo, nested, setup};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// What a change must pass within minutes.
    Quick,
    /// What a change must pass before it is landed.
    Full,
    /// What is worth a night.
    Nightly,
}

impl Set {
    /// The set of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "quick" => Some(Self::Quick),
            "full" => Some(Self::Full),
            "nightly" => Some(Self::Nightly),
            _ => None,
        }
    }
}

struct Step {
    name: &'static str,
    /// The smallest set that contains it.
    from: Set,
    run: fn(&Shell, &[String]) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "set up",
        from: Set::Quick,
        run: |sh, _| setup::run(sh),
    },
    Step {
        name: "formatting",
        from: Set::Quick,
        run: |sh, _| cargo::format(sh),
    },
    Step {
        name: "clippy",
        from: Set::Quick,
        run: |sh, _| cargo::clippy(sh),
    },
    Step {
        name: "clippy, bare machine",
        from: Set::Quick,
        run: |sh, _| cargo::clippy_bare(sh),
    },
    Step {
        name: "building tests inside the crates",
        from: Set::Quick,
        run: |sh, _| cargo::build_tests(sh, cargo::UNIT_TESTS),
    },
    Step {
        name: "tests inside the crates",
        from: Set::Quick,
        run: |sh, _| cargo::tests(sh, cargo::UNIT_TESTS),
    },
    Step {
        name: "what the tests boot",
        from: Set::Full,
        run: |sh, _| cargo::artifacts(sh),
    },
    Step {
        name: "building tests of whole machines",
        from: Set::Full,
        run: |sh, _| cargo::build_tests(sh, cargo::WHOLE_TESTS),
    },
    Step {
        name: "tests of programs and machines",
        from: Set::Full,
        run: |sh, _| cargo::tests(sh, cargo::WHOLE_TESTS),
    },
    Step {
        name: "a lab under nested KVM",
        from: Set::Nightly,
        run: |sh, arguments| match nested::is_due(arguments) {
            true => nested::run(sh),
            false => Ok(()),
        },
    },
    Step {
        name: "scenarios",
        from: Set::Nightly,
        run: cargo::scenarios,
    },
];

/// A step that was run.
struct Done {
    name: &'static str,
    took: Duration,
    passed: bool,
}

/// Runs the steps of a set up to the first that fails; `arguments` are for the scenarios.
pub fn run(sh: &Shell, set: Set, arguments: &[String]) -> Result<()> {
    let mut done = Vec::new();
    let mut ended = Ok(());
    for step in STEPS.iter().filter(|step| step.from <= set) {
        let began = Instant::now();
        ended = (step.run)(sh, arguments);
        done.push(Done {
            name: step.name,
            took: began.elapsed(),
            passed: ended.is_ok(),
        });
        if ended.is_err() {
            break;
        }
    }
    let table = table(&done);
    eprint!("{table}");
    // GitHub shows what is appended to this file on the page of the run (docs.github.com, "Workflow commands").
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY") {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(table.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    ended
}

/// What was run, in Markdown that reads well on a terminal, too.
fn table(done: &[Done]) -> String {
    let mut out = format!("\n| {:<32} | {:>8} | result |\n", "step", "time");
    out.push_str("|----------------------------------|---------:|--------|\n");
    for step in done {
        let result = if step.passed { "passed" } else { "FAILED" };
        line(&mut out, step.name, step.took, result);
    }
    let passed = done.iter().all(|step| step.passed);
    let result = if passed { "passed" } else { "FAILED" };
    line(
        &mut out,
        "all",
        done.iter().map(|step| step.took).sum(),
        result,
    );
    out.push('\n');
    out
}

fn line(out: &mut String, name: &str, took: Duration, result: &str) {
    let time = format!("{:.0} s", took.as_secs_f64());
    // Writing to a string cannot fail.
    let _ = writeln!(out, "| {name:<32} | {time:>8} | {result} |");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_contains_the_one_before() {
        let names = |set| -> Vec<_> {
            let steps = STEPS.iter().filter(|step| step.from <= set);
            steps.map(|step| step.name).collect()
        };
        let (quick, full, nightly) = (names(Set::Quick), names(Set::Full), names(Set::Nightly));
        assert!(full.starts_with(&quick) && full.len() > quick.len());
        assert!(nightly.starts_with(&full) && nightly.len() > full.len());
    }

    #[test]
    fn the_summary_names_the_step_that_failed() {
        let step = |name, passed| Done {
            name,
            took: Duration::from_millis(61_400),
            passed,
        };
        let table = table(&[step("lint", true), step("scenarios", false)]);
        assert!(
            table.contains("| lint                             |     61 s | passed |"),
            "{table}"
        );
        assert!(
            table.contains("| scenarios                        |     61 s | FAILED |"),
            "{table}"
        );
        assert!(
            table.contains("| all                              |    123 s | FAILED |"),
            "{table}"
        );
    }
}
