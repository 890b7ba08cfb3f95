//! `elab gate`: may a change pass? And the list of what does not count for a while.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use scenarios::gate::quarantine::Quarantine;
use scenarios::gate::{self, Decision, Trial};
use scenarios::history::calendar;
use scenarios::scenario::{self, Scenario};

use super::run::progress;
use crate::scenario_run::arms::{self, Arm};
use crate::scenario_run::results;

/// Arguments of `elab gate`.
#[derive(Clone, Debug, clap::Args)]
pub struct GateArguments {
    /// The last release: its program, or its hypervisor image (.iso, .elf)
    pub base: PathBuf,
    /// The change, likewise; this program with the image that belongs to it if none is given
    pub candidate: Option<PathBuf>,
    /// What they are made to run; may be given several times
    #[arg(
        long = "scenario",
        default_value = "demo",
        value_name = "SCENARIO",
        num_args = 1
    )]
    pub scenarios: Vec<String>,
    /// Runs of each
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(5..=1000))]
    pub repetitions: u32,
    /// What does not count for a while (TOML); an entry past its day is an error
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `elab gate`.
///
/// # Errors
/// When a scenario or the list is wrong, or a run leaves no report.
pub fn gate(arguments: &GateArguments) -> Result<ExitCode> {
    // Wrong lists and scenarios are told before hours of runs.
    let quarantine = quarantine(arguments.quarantine.as_deref())?;
    let scenarios: Vec<(&String, Scenario)> = arguments
        .scenarios
        .iter()
        .map(|word| Ok((word, one_scenario(word)?)))
        .collect::<Result<_>>()?;
    let base = Arm::of(&arguments.base)?;
    let candidate = match &arguments.candidate {
        Some(path) => Arm::of(path)?,
        None => {
            Arm::Program(std::env::current_exe().context("cannot find this program's own file")?)
        }
    };
    let mut decisions = Vec::new();
    for (word, scenario) in &scenarios {
        let decision = decide(
            [&base, &candidate],
            word,
            scenario,
            arguments.repetitions,
            &quarantine,
        )?;
        decisions.push(decision);
    }
    let outcome = gate::outcome(&decisions);
    if arguments.json {
        let text = serde_json::to_string_pretty(&decisions).context("cannot write JSON")?;
        println!("{text}");
    } else {
        print!("{}", gate::summary(&decisions));
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

fn decide(
    both: [&Arm; 2],
    word: &str,
    scenario: &Scenario,
    runs: u32,
    quarantine: &Quarantine,
) -> Result<Decision> {
    let name = scenario.name.get_ref();
    let first = Trial::of(&arms::run(both, word, scenario, runs, &progress)?);
    eprint!(
        "{}",
        scenarios::compare::summary(&first.comparison, ["base", name])
    );
    let mut second = None;
    if first.needs_confirming(name, quarantine) {
        progress("something looks worse; all is run once more, with other seeds");
        let mut other = scenario.clone();
        other.seed = scenario.seed.wrapping_add(u64::from(runs));
        let trial = Trial::of(&arms::run(both, word, &other, runs, &progress)?);
        eprint!(
            "{}",
            scenarios::compare::summary(&trial.comparison, ["base", name])
        );
        second = Some(trial);
    }
    Ok(gate::decide(name, &first, second.as_ref(), quarantine))
}

fn one_scenario(word: &str) -> Result<Scenario> {
    let (_, mut variants) = scenario::find(word)?;
    match variants.len() {
        1 => Ok(variants.remove(0).scenario),
        _ => bail!("{word} has a matrix; a gate takes one combination at a time"),
    }
}

/// The list of a file as it holds today; empty without a file.
///
/// # Errors
/// When it is wrong, or an entry is past its day.
pub(super) fn quarantine(file: Option<&Path>) -> Result<Quarantine> {
    let Some(file) = file else {
        return Ok(Quarantine::default());
    };
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let today = calendar::date(results::unix_s() / 86_400);
    let list = Quarantine::parse(&file.display().to_string(), &text, today)?;
    Ok(list)
}
