//! What came of a run. Checkers look at the evidence alone (event log, consoles, file systems) and never at what the engine believes,
//! so anyone can decide again from the files in a run's folder.

mod clocks;
mod console;
mod copies;
pub mod file_system;
mod migrations;
mod session;
mod sometimes;

use lab_protocol::{Event, Record};
use serde::{Deserialize, Serialize};

use crate::measure;
use crate::report::Report;
use crate::scenario::Scenario;
use file_system::FileSystem;

/// What a run or a scenario came to; the worse is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything held.
    Passed,
    /// It proves nothing either way.
    Inconclusive,
    /// Something did not hold.
    Failed,
}

impl Verdict {
    /// As a program's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Inconclusive => 4,
        }
    }

    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Inconclusive => "inconclusive",
            Self::Failed => "FAILED",
        }
    }
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, as scenario files switch it off.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was looked at, and what was wrong with it.
    pub detail: String,
}

impl Check {
    fn new(name: &str, wrong: Option<String>, looked_at: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            passed: wrong.is_none(),
            detail: wrong.unwrap_or_else(|| looked_at.into()),
        }
    }
}

/// What a run has left.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was run.
    pub scenario: &'a Scenario,
    /// Its event log.
    pub records: &'a [Record],
    /// The guests' consoles: name and text.
    pub consoles: &'a [(String, String)],
    /// What was found on the guests' disks after the end.
    pub file_systems: &'a [(String, FileSystem)],
}

/// A run, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What it came to.
    pub verdict: Verdict,
    /// Why it is not "passed", in sentences.
    pub reasons: Vec<String>,
    /// Every check that applied.
    pub checks: Vec<Check>,
}

/// Looks at one thing; `None` where there is nothing to look at.
type Checker = fn(&Evidence<'_>) -> Option<Check>;

/// Judges a run by its evidence; limits of figures are another matter, those are judged over all runs.
#[must_use]
pub fn judge(evidence: &Evidence<'_>, measured: &Report) -> Judgement {
    let wanted = &evidence.scenario.checks;
    let mut checks = Vec::new();
    let all: [(bool, Checker); 12] = [
        (wanted.outcomes, migrations::outcomes),
        (wanted.document, session::document),
        (wanted.keys, session::keys),
        (wanted.session, session::session),
        (wanted.probes, session::probes),
        (wanted.one_copy, copies::one_copy),
        (wanted.one_writer, copies::one_writer),
        (wanted.memory, migrations::memory),
        (wanted.disk, session::disk),
        (wanted.console, console::console),
        (wanted.file_system, file_system::file_system),
        (wanted.clocks, clocks::clocks),
    ];
    for (wanted, check) in all {
        if wanted {
            checks.extend(check(evidence));
        }
    }
    let mut reasons: Vec<String> = checks
        .iter()
        .filter(|check| !check.passed)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    let failed = !reasons.is_empty();
    reasons.extend(sometimes::unproven(evidence));
    let late = measured.migrations.iter().filter(|one| !one.valid).count();
    if late > 0 && late == measured.migrations.len() {
        reasons.push("the UDP probe itself was late in every migration: its gaps are void".into());
    }
    let verdict = match (failed, reasons.is_empty()) {
        (true, _) => Verdict::Failed,
        (false, false) => Verdict::Inconclusive,
        (false, true) => Verdict::Passed,
    };
    Judgement {
        verdict,
        reasons,
        checks,
    }
}

/// The guests that someone types in.
fn typed_in(scenario: &Scenario) -> impl Iterator<Item = &str> {
    scenario
        .sessions
        .iter()
        .filter(|session| session.typist)
        .map(|session| session.guest.get_ref().as_str())
}

/// The records of a guest's session.
fn session_of<'a>(
    evidence: &Evidence<'a>,
    guest: &str,
) -> impl Iterator<Item = &'a Record> + use<'a> {
    let first = evidence.scenario.guests.get_ref().first();
    let source = if first.is_some_and(|first| first.name.get_ref() == guest) {
        "session".to_owned()
    } else {
        format!("session/{guest}")
    };
    evidence
        .records
        .iter()
        .filter(move |record| record.source == source)
}

/// A moment on the run's clock, as reports print it.
fn at(t_ns: u64) -> String {
    format!("{:.3} s", t_ns as f64 / 1e9)
}

/// The migrations in a log.
fn migrations_of(records: &[Record]) -> Vec<measure::migration::Migration> {
    measure::migration::Migration::all(records)
}

/// Whether the log has any event like this.
fn any(records: &[Record], mut is: impl FnMut(&Event) -> bool) -> bool {
    records.iter().any(|record| is(&record.event))
}
