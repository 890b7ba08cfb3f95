//! The report that goes with a release: what its users will notice, beside the last two releases and the limits, and how anybody gets
//! each number again.
//!
//! It is drawn from the results of one `elab run` and the history of earlier ones. Both are files, so it can be drawn again, and it
//! knows nothing that is not in them.

mod html;
mod markdown;

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use sha2::{Digest, Sha256};

use super::book::{Book, Limit, ScenarioReport};
use crate::compare::{self, Comparison, Outcome, Pair};
use crate::history::Entry;
use crate::scenario::figure;
use crate::verdict::Verdict;

/// Figures that a scenario without limits is told by.
const USUAL: [&str; 4] = ["longest-echo", "udp-gap", "vcpu-pause", "run-echo-p95"];
/// With which the release is compared, at most.
pub const EARLIER: usize = 2;

/// A release.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    /// How it is called.
    pub name: String,
    /// What it was built from.
    pub commit: String,
    /// Its results.
    pub book: &'a Book,
    /// The last releases, the newest first.
    pub earlier: Vec<Earlier>,
    /// What does not count for a while, in words.
    pub quarantined: Vec<String>,
    /// SHA-256 of the image and of all raw data.
    pub hashes: Vec<(String, String)>,
    /// The line that was typed for this report.
    pub command: String,
}

/// An earlier release, as the history knows it.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// How it is called.
    pub name: String,
    /// Values of each figure by scenario and figure, of runs on a machine that can be compared.
    pub values: BTreeMap<(String, String), Vec<f64>>,
    /// Why there are none, if there are none.
    pub reason: String,
}

impl Earlier {
    /// The release made from a commit, for comparison with a book.
    #[must_use]
    pub fn of(name: &str, entries: &[&Entry], book: &Book) -> Self {
        let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        let mut reason = String::new();
        for entry in entries {
            if let Some(difference) = entry.machine.differs(&book.machine) {
                reason = format!("not comparable: {difference}");
                continue;
            }
            for (figure, samples) in &entry.figures {
                let key = (entry.title(), figure.clone());
                values.entry(key).or_default().extend(samples);
            }
        }
        if !values.is_empty() {
            reason.clear();
        }
        Self {
            name: name.into(),
            values,
            reason,
        }
    }

    fn of_figure(&self, scenario: &str, figure: &str) -> Option<&[f64]> {
        let values = self.values.get(&(scenario.to_owned(), figure.to_owned()))?;
        (!values.is_empty()).then_some(values)
    }

    /// This release against that one, over all figures that are told.
    fn compared(&self, rows: &[Row]) -> Comparison {
        let pairs = rows.iter().filter_map(|row| -> Option<Pair> {
            let before = self.of_figure(&row.scenario.title(), &row.figure)?;
            Some((row.key(), &row.unit, before, row.samples?))
        });
        compare::of_values(pairs)
    }
}

/// A line of the table: a figure of a scenario, and its limit.
struct Row<'a> {
    scenario: &'a ScenarioReport,
    figure: String,
    title: String,
    unit: String,
    limit: Option<&'a Limit>,
    samples: Option<&'a [f64]>,
}

impl<'a> Row<'a> {
    fn all(book: &'a Book) -> Vec<Self> {
        book.scenarios.iter().flat_map(Self::of_scenario).collect()
    }

    fn of_scenario(scenario: &'a ScenarioReport) -> Vec<Self> {
        let row = |name: &str, limit: Option<&'a Limit>| {
            let values = scenario.figures.get(name);
            let (title, unit) = figure::find(name).map_or((name, ""), |one| (one.title, one.unit));
            Self {
                scenario,
                figure: name.to_owned(),
                title: limit.map_or_else(|| title.to_owned(), |limit| limit.title.clone()),
                unit: unit.to_owned(),
                limit,
                samples: values.map(|values| &values.samples[..]),
            }
        };
        let limits = scenario.limits.iter();
        let limited: Vec<Self> = limits
            .map(|limit| row(&limit.figure, Some(limit)))
            .collect();
        let measured = |name: &&str| scenario.figures.contains_key(*name);
        let is_limited = |name: &&str| limited.iter().any(|row| row.figure == **name);
        let usual: Vec<Self> = USUAL
            .iter()
            .copied()
            .filter(|name| measured(name) && !is_limited(name))
            .map(|name| row(name, None))
            .collect();
        limited.into_iter().chain(usual).collect()
    }

    /// Tells the row apart in a comparison.
    fn key(&self) -> String {
        format!("{}: {}", self.scenario.title(), self.title)
    }

    fn found(&self) -> String {
        match (self.limit, self.samples) {
            (Some(limit), _) => limit.found(),
            (None, Some(samples)) => in_words(samples, &self.unit),
            (None, None) => "not measured".into(),
        }
    }

    fn limit_in_words(&self) -> String {
        self.limit.map_or_else(|| "–".to_owned(), Limit::words)
    }

    fn verdict_in_words(&self) -> &'static str {
        match self.limit {
            Some(limit) if limit.passed => "held",
            Some(_) => "missed",
            None => "no limit",
        }
    }

    /// The earlier release's median and what became of it.
    fn before(&self, (earlier, comparison): &(&Earlier, Comparison)) -> String {
        let key = self.key();
        let found = comparison.figures.iter().find(|one| one.title == key);
        match found {
            Some(one) => format!(
                "{:.1} {}: {} (p = {:.3})",
                one.a.0,
                self.unit,
                now_is(one.outcome),
                one.p
            ),
            None if !earlier.reason.is_empty() => earlier.reason.clone(),
            None => "not measured then".into(),
        }
    }
}

/// What this release is, against an earlier one.
fn now_is(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Better => "better now",
        Outcome::Worse => "WORSE now",
        Outcome::Equivalent => "the same",
        Outcome::Inconclusive | Outcome::NotComparable => "cannot be told",
    }
}

fn in_words(samples: &[f64], unit: &str) -> String {
    let median = crate::measure::statistics::quantile(samples, 0.5).unwrap_or(f64::NAN);
    format!("{median:.1} {unit}")
}

impl Release<'_> {
    /// Writes `release.html` and `release.md` into a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("release.html"), html::page(self))?;
        fs::write(folder.join("release.md"), markdown::text(self))
    }

    /// This release against each of the last.
    fn comparisons(&self, rows: &[Row]) -> Vec<(&Earlier, Comparison)> {
        let earlier = self.earlier.iter();
        earlier.map(|one| (one, one.compared(rows))).collect()
    }

    /// What happened, for someone who reads nothing else.
    fn headline(&self) -> String {
        let scenarios = &self.book.scenarios;
        let passed = scenarios
            .iter()
            .filter(|one| one.verdict == Verdict::Passed)
            .count();
        let mut text = format!("{passed} of {} scenarios passed.", scenarios.len());
        let Some(first) = self.told_first() else {
            return text;
        };
        text.push_str(&format!(" {}", first.headline));
        let rows = Row::all(self.book);
        let of_first = || {
            rows.iter()
                .filter(|row| row.scenario.title() == first.title())
        };
        let Some(row) = of_first()
            .find(|row| row.figure == "longest-echo")
            .or(of_first().next())
        else {
            return text;
        };
        let title = figure::find(&row.figure).map_or("", |one| one.title);
        // Corrected for all figures, as in the table below it.
        for (earlier, comparison) in self.comparisons(&rows) {
            let key = row.key();
            if let Some(one) = comparison.figures.iter().find(|one| one.title == key) {
                text.push_str(&format!(
                    " The {title} was {:.0} {} with {}: {} (p = {:.3}).",
                    one.a.0,
                    row.unit,
                    earlier.name,
                    now_is(one.outcome),
                    one.p
                ));
            }
        }
        text
    }

    /// The scenario that the headline is about: one that failed, or else the one in which the guest moved most.
    fn told_first(&self) -> Option<&ScenarioReport> {
        self.book.scenarios.iter().max_by_key(|one| {
            let moves = one
                .figures
                .get("longest-echo")
                .map_or(0, |values| values.samples.len());
            (one.verdict, moves)
        })
    }

    /// What a reader must know beside the numbers.
    fn known_limits(&self) -> Vec<String> {
        let mut all = vec![
            match self.book.machine.accelerator.as_str() {
                "kvm" => "The hosts ran under KVM's nested virtualization: a pause on bare metal is another.".into(),
                _ => "The hosts were emulated: a pause on hardware is shorter, by how much these figures do not say.".into(),
            },
            "Both hosts, the guest, the storage server and the client shared the CPUs named below; what disturbed one disturbed all.".into(),
            format!("Figures of earlier releases are compared only where CPU, kernel, QEMU and accelerator are the same; a difference counts from 10 ms and 10 % on, and with p ≤ 0.05 after Holm's correction over {} figures.", Row::all(self.book).len()),
        ];
        for one in &self.book.scenarios {
            let why = match one.verdict {
                Verdict::Passed => continue,
                Verdict::Inconclusive => "proves nothing this time",
                Verdict::Failed => "failed",
            };
            all.push(format!("{} {why}: {}", one.title(), one.headline));
        }
        all.extend(self.quarantined.iter().cloned());
        all
    }
}

/// SHA-256 of the raw data of results: the report, the scenarios, and the event log of each run.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn hashes(book: &Book, folder: &Path) -> io::Result<Vec<(String, String)>> {
    let mut names = vec!["report.json".to_owned()];
    for scenario in &book.scenarios {
        let file = format!("{}.toml", scenario.name);
        if !names.contains(&file) {
            names.push(file);
        }
        let logs = scenario.runs.iter();
        names.extend(logs.map(|run| format!("{}/events.jsonl", run.folder)));
    }
    let mut all = vec![("hypervisor image".to_owned(), book.machine.image.clone())];
    for name in names {
        match fs::read(folder.join(&name)) {
            Ok(bytes) => {
                let hash = Sha256::digest(bytes);
                all.push((
                    name,
                    hash.iter().map(|byte| format!("{byte:02x}")).collect(),
                ));
            }
            // Evidence may have been left behind: the line says so instead of a hash.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                all.push((name, "not kept".into()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
