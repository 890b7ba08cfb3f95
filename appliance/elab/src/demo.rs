//! The demo: the scenario `demo` with what the command line says of it, and the report of what its user noticed.
//!
//! A front end and no driver of its own: what the engine can do and check, the demo does and checks. Its exit code is about
//! correctness alone; `elab run demo` judges the scenario's limits as well.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use scenarios::report::run::RunReport;
use scenarios::report::summary;
use scenarios::scenario::{self, library};
use scenarios::verdict::Verdict;

use crate::cli::{DemoArguments, ExpectationFailed, Inconclusive};
use crate::interrupt::Interrupts;
use crate::run_folder::RUNS;
use crate::scenario_run::one::{self, Order};

/// The scenario.
const SCENARIO: &str = "demo";

/// Runs the demo and reports.
///
/// # Errors
/// When the lab or the session fails, or an expectation is not met.
pub fn run(
    arguments: &DemoArguments,
    interrupts: &Interrupts,
    progress: &dyn Fn(&str),
) -> Result<ExitCode> {
    let text = library::find(SCENARIO)
        .context("the program has lost its demo")?
        .text;
    let settings = settings(arguments);
    let scenario = scenario::parse_with(SCENARIO, text, &settings)?;
    let order = Order {
        seed: arguments.build.seed.unwrap_or(scenario.seed),
        scenario,
        text: text.to_owned(),
        settings,
        variant: String::new(),
        name: arguments.which.name.clone(),
        number: 1,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        fast_boot: arguments.build.fast_boot,
        image: arguments.build.image.clone(),
        old_image: None,
        // Whoever asks for a capture wants to have it.
        keep: arguments.build.capture,
        capture: arguments.build.capture,
        step: false,
        breakpoints: Vec::new(),
    };
    let report = one::run(&order, interrupts, progress)?;
    let folder = Path::new(RUNS).join(&order.name);
    if let Some(path) = &arguments.json {
        std::fs::copy(folder.join("report.json"), path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(measured) = &report.measured {
        print!("{}", summary(measured));
    }
    println!("report: {}", folder.join("report.html").display());
    verdict(&report)
}

/// The command line as values of the scenario.
fn settings(arguments: &DemoArguments) -> Vec<String> {
    let [quiet, pause, rest] = if arguments.quick {
        ["3s", "1s", "2s"]
    } else {
        ["8s", "2s", "5s"]
    };
    let mut settings = vec![
        format!("pool.memory=\"{}MiB\"", arguments.build.host_memory),
        format!("guests.session.load.dirty_mib_s={}", arguments.dirty),
        format!("sessions.session.probes.udp_hz={}", arguments.probe_hz),
    ];
    let times = arguments.migrations;
    if times == 0 {
        // A session on a guest that stays proves nothing of moving, and is not asked to.
        settings.push(format!("steps=[{{wait=\"{quiet}\"}}, {{wait=\"{rest}\"}}]"));
        settings.push("sometimes=[]".into());
        return settings;
    }
    let verify = arguments.verify;
    settings.extend([
        format!("steps.quiet.wait=\"{quiet}\""),
        // One that fails leaves the guest where it was: the next is tried all the same, and the report has the failure.
        format!(
            "steps.move.migrate={{guest=\"session\", times={times}, pause=\"{pause}\", verify={verify}, outcome=\"either\"}}"
        ),
        format!("steps.move.within=\"{}min\"", u64::from(times) + 1),
        format!("steps.rest.wait=\"{rest}\""),
        format!("timeout=\"{}min\"", u64::from(times) + 4),
    ]);
    settings
}

/// What was expected for correctness decides; how fast it was is shown, and is another question on another machine.
fn verdict(report: &RunReport) -> Result<ExitCode> {
    let expectations = report
        .measured
        .iter()
        .flat_map(|measured| &measured.expectations);
    let mut missed: Vec<_> = expectations
        .filter(|expectation| expectation.correctness && !expectation.passed)
        .map(|expectation| {
            format!(
                "{}: {}, expected {}",
                expectation.name, expectation.value, expectation.limit
            )
        })
        .collect();
    let reasons = || report.reasons.join("; ");
    match report.verdict {
        Verdict::Failed if missed.is_empty() => missed.push(reasons()),
        Verdict::Inconclusive if missed.is_empty() => return Err(Inconclusive(reasons()).into()),
        _ => {}
    }
    if missed.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(ExpectationFailed(missed.join("; ")).into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Action, Cli};

    fn scenario_of(words: &[&str]) -> scenario::Scenario {
        let cli = Cli::parse_from([&["elab", "demo"], words].concat());
        let Action::Demo(arguments) = cli.command else {
            panic!("not a demo");
        };
        let text = library::find(SCENARIO).unwrap().text;
        scenario::parse_with(SCENARIO, text, &settings(&arguments))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_the_command_line_says_is_in_the_scenario() {
        let plain = scenario_of(&[]);
        let migrate = plain.steps.get_ref()[1].migrate.as_ref().unwrap();
        assert_eq!((migrate.times, migrate.verify), (1, false));
        assert_eq!(plain.guests.get_ref()[0].load.dirty_mib_s, 2);
        let words = [
            "--quick",
            "--migrations=20",
            "--dirty=0",
            "--probe-hz=1000",
            "--verify",
            "--host-memory=512",
        ];
        let other = scenario_of(&words);
        let steps = other.steps.get_ref();
        let migrate = steps[1].migrate.as_ref().unwrap();
        assert_eq!((migrate.times, migrate.verify), (20, true));
        assert_eq!(steps[0].wait.unwrap().0.as_secs(), 3);
        assert_eq!(other.guests.get_ref()[0].load.dirty_mib_s, 0);
        assert_eq!(other.sessions[0].probes.udp_hz, 1000);
        assert_eq!(other.pool.memory.get_ref().bytes, 512 << 20);
        let still = scenario_of(&["--migrations=0"]);
        assert!(still.steps.get_ref().iter().all(|one| one.wait.is_some()));
        assert!(still.sometimes.is_empty());
        assert!(scenario_of(&["--migrations=1000"]).timeout.0.as_secs() > 60_000);
    }
}
