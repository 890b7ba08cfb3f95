//! The report of scenarios and all their runs: what `report.json` of a results folder holds, and the source of every other
//! form of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::run::RunReport;
use super::{junit, markdown, page};
use crate::evidence::fingerprint::Fingerprint;
use crate::measure::statistics::Spread;
use crate::scenario::file::{Expect, Statistic};
use crate::scenario::{Scenario, figure};
use crate::verdict::Verdict;

/// Version of this form; fields are only added within a version.
pub const SCHEMA: u32 = 1;

/// The report of one `elab run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The worst of the scenarios.
    pub verdict: Verdict,
    /// The line that was typed.
    pub command: String,
    /// When it began, seconds since 1970.
    pub unix_s: u64,
    /// How long it took.
    pub seconds: f64,
    /// What it ran on.
    pub machine: Fingerprint,
    /// The scenarios, each combination of a matrix by itself.
    pub scenarios: Vec<ScenarioReport>,
}

/// A scenario and its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Its name.
    pub name: String,
    /// Its combination of the matrix in words.
    pub variant: String,
    /// Why it exists.
    pub why: String,
    /// The worst of its runs and limits.
    pub verdict: Verdict,
    /// The result in a sentence or two.
    pub headline: String,
    /// Each limit and whether it was kept.
    pub limits: Vec<Limit>,
    /// Each figure over all runs, by name.
    pub figures: BTreeMap<String, Values>,
    /// The runs.
    pub runs: Vec<RunReport>,
    /// Until when its failures do not count, whose that is and where it is discussed; empty when they do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quarantined: String,
}

/// A limit, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// The figure's name.
    pub figure: String,
    /// As reports print it, with its statistic.
    pub title: String,
    /// Its unit.
    pub unit: String,
    /// What was found; `None` when nothing was measured.
    pub value: Option<f64>,
    /// The most it may be.
    pub at_most: Option<f64>,
    /// The least it may be.
    pub at_least: Option<f64>,
    /// Whether that holds.
    pub passed: bool,
    /// As of [`ScenarioReport`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quarantined: String,
}

/// All values of a figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// As reports print it.
    pub title: String,
    /// Its unit.
    pub unit: String,
    /// Middle, tail, worst.
    #[serde(flatten)]
    pub spread: Spread,
    /// Every value, run by run.
    pub samples: Vec<f64>,
}

impl Book {
    /// The report of scenarios that have been run.
    #[must_use]
    pub fn new(command: String, unix_s: u64, seconds: f64, scenarios: Vec<ScenarioReport>) -> Self {
        let verdict = scenarios.iter().map(|one| one.verdict).max();
        let machine = scenarios
            .iter()
            .flat_map(|one| &one.runs)
            .map(|run| run.machine.clone())
            .next()
            .unwrap_or_default();
        Self {
            schema: SCHEMA,
            verdict: verdict.unwrap_or(Verdict::Inconclusive),
            command,
            unix_s,
            seconds,
            machine,
            scenarios,
        }
    }

    /// Writes `report.json` and what is drawn from it into a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join("report.json"), serde_json::to_vec_pretty(self)?)?;
        fs::write(folder.join("report.html"), page::page(self, folder))?;
        fs::write(folder.join("report.md"), markdown::text(self))?;
        let junit = junit::xml(self).map_err(io::Error::other)?;
        fs::write(folder.join("junit.xml"), junit)
    }

    /// The worst verdict of what is not in quarantine.
    #[must_use]
    pub fn counted(&self) -> Verdict {
        let verdicts = self.scenarios.iter().map(ScenarioReport::counted);
        verdicts.max().unwrap_or(Verdict::Inconclusive)
    }

    /// All runs.
    pub fn runs(&self) -> impl Iterator<Item = &RunReport> {
        self.scenarios.iter().flat_map(|one| &one.runs)
    }
}

impl ScenarioReport {
    /// The report of a scenario's runs.
    #[must_use]
    pub fn new(scenario: &Scenario, variant: &str, runs: Vec<RunReport>) -> Self {
        let figures = gather(&runs);
        let limits: Vec<Limit> = scenario
            .expect
            .iter()
            .map(|expect| limit(expect, &figures))
            .collect();
        let verdict = judge(&runs, limits.iter());
        let mut report = Self {
            name: scenario.name.get_ref().clone(),
            variant: variant.into(),
            why: scenario.why.get_ref().trim().into(),
            verdict,
            headline: String::new(),
            limits,
            figures,
            runs,
            quarantined: String::new(),
        };
        report.headline = headline(&report);
        report
    }

    /// The verdict without what is in quarantine.
    #[must_use]
    pub fn counted(&self) -> Verdict {
        if !self.quarantined.is_empty() {
            return Verdict::Passed;
        }
        let counting = |limit: &&Limit| limit.quarantined.is_empty();
        judge(&self.runs, self.limits.iter().filter(counting))
    }

    /// What is in quarantine and did not hold, and until when.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        let whole = (!self.quarantined.is_empty() && self.verdict != Verdict::Passed)
            .then(|| format!("in quarantine {}", self.quarantined));
        let limits = self.limits.iter().filter(|limit| !limit.passed);
        let limits = limits
            .filter(|limit| !limit.quarantined.is_empty())
            .map(|limit| format!("{} is in quarantine {}", limit.title, limit.quarantined));
        whole.into_iter().chain(limits).collect()
    }

    /// Has in quarantine what is so in `other`, a report of the same scenario.
    pub fn hold_as(&mut self, other: &Self) {
        self.quarantined.clone_from(&other.quarantined);
        for limit in &mut self.limits {
            let same = other.limits.iter().find(|one| one.figure == limit.figure);
            limit.quarantined = same.map_or_else(String::new, |one| one.quarantined.clone());
        }
    }

    /// Name and variant.
    #[must_use]
    pub fn title(&self) -> String {
        title(&self.name, &self.variant)
    }

    /// The run with the longest pause for its user: the one to look at.
    #[must_use]
    pub fn worst_run(&self) -> Option<&RunReport> {
        let felt = |run: &&RunReport| {
            let of = |name: &str| {
                run.figures
                    .get(name)
                    .and_then(|values| values.iter().copied().reduce(f64::max))
            };
            (
                run.verdict,
                of("longest-echo").or(of("run-echo-worst")).unwrap_or(0.0),
            )
        };
        self.runs.iter().max_by(|a, b| {
            let (a, b) = (felt(a), felt(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
    }
}

/// The worst of runs and limits.
fn judge<'a>(runs: &[RunReport], mut limits: impl Iterator<Item = &'a Limit>) -> Verdict {
    let of_runs = runs.iter().map(|run| run.verdict).max();
    // A run that proves nothing has no figures that could.
    let of_limits = if limits.all(|limit| limit.passed) {
        Verdict::Passed
    } else if of_runs == Some(Verdict::Inconclusive) {
        Verdict::Inconclusive
    } else {
        Verdict::Failed
    };
    of_runs.unwrap_or(Verdict::Inconclusive).max(of_limits)
}

/// Name and variant of a scenario.
pub(crate) fn title(name: &str, variant: &str) -> String {
    if variant.is_empty() {
        name.to_owned()
    } else {
        format!("{name} ({variant})")
    }
}

fn gather(runs: &[RunReport]) -> BTreeMap<String, Values> {
    let mut figures = BTreeMap::new();
    for one in &figure::ALL {
        let samples: Vec<f64> = runs
            .iter()
            .filter_map(|run| run.figures.get(one.name))
            .flatten()
            .copied()
            .collect();
        if let Some(spread) = Spread::of(&samples) {
            figures.insert(
                one.name.to_owned(),
                Values {
                    title: one.title.into(),
                    unit: one.unit.into(),
                    spread,
                    samples,
                },
            );
        }
    }
    figures
}

fn limit(expect: &Expect, figures: &BTreeMap<String, Values>) -> Limit {
    let name = expect.figure.get_ref();
    let (title, unit) = figure::find(name).map_or(("", ""), |one| (one.title, one.unit));
    let values = figures.get(name);
    let value = values.map(|values| match expect.statistic {
        Statistic::Median => values.spread.median,
        Statistic::P95 => values.spread.p95,
        Statistic::Worst => values.spread.max,
    });
    let single = values.is_none_or(|values| values.samples.len() < 2);
    let statistic = match expect.statistic {
        _ if single => "",
        Statistic::Median => ", median",
        Statistic::P95 => ", p95",
        Statistic::Worst => ", worst",
    };
    let holds = |value: f64| {
        expect.at_most.is_none_or(|most| value <= most)
            && expect.at_least.is_none_or(|least| value >= least)
    };
    Limit {
        figure: name.clone(),
        title: format!("{title}{statistic}"),
        unit: unit.into(),
        value,
        at_most: expect.at_most,
        at_least: expect.at_least,
        passed: value.is_some_and(holds),
        quarantined: String::new(),
    }
}

impl Limit {
    /// The limit in words.
    #[must_use]
    pub fn words(&self) -> String {
        let figure = |value: f64| {
            let digits = usize::from(value.fract() != 0.0);
            format!("{value:.digits$} {}", self.unit)
        };
        match (self.at_least, self.at_most) {
            (Some(least), Some(most)) => format!("{} to {}", figure(least), figure(most)),
            (Some(least), None) => format!("≥ {}", figure(least)),
            (None, Some(most)) => format!("≤ {}", figure(most)),
            (None, None) => String::new(),
        }
    }

    /// What was found, in words.
    #[must_use]
    pub fn found(&self) -> String {
        self.value.map_or_else(
            || "not measured".to_owned(),
            |value| format!("{value:.1} {}", self.unit),
        )
    }
}

/// What happened, in words, for someone who reads nothing else.
fn headline(report: &ScenarioReport) -> String {
    let runs = report.runs.len();
    let failed: Vec<&RunReport> = report
        .runs
        .iter()
        .filter(|run| run.verdict == Verdict::Failed)
        .collect();
    if let Some(first) = failed.first() {
        let of = if runs == 1 {
            String::new()
        } else {
            format!(
                "{} of {runs} runs failed. Run {}: ",
                failed.len(),
                first.number
            )
        };
        let why = first
            .reasons
            .first()
            .map_or("no reason given", String::as_str);
        return format!("{of}{}.", why.trim_end_matches('.'));
    }
    let unproven: Vec<&RunReport> = report
        .runs
        .iter()
        .filter(|run| run.verdict == Verdict::Inconclusive)
        .collect();
    if let Some(first) = unproven.first() {
        let why = first
            .reasons
            .first()
            .map_or("no reason given", String::as_str);
        return format!(
            "{} of {runs} runs prove nothing: {}.",
            unproven.len(),
            why.trim_end_matches('.')
        );
    }
    let mut sentences = Vec::new();
    let moving = report.figures.get("longest-echo");
    let whole = report.figures.get("run-echo-worst");
    // What was felt most may have had nothing to do with a migration.
    let elsewhere = whole
        .filter(|whole| moving.is_none_or(|moving| whole.spread.max > moving.spread.max * 1.05));
    if let Some(whole) = elsewhere {
        sentences.push(format!(
            "The longest wait for an echo was {:.0} ms",
            whole.spread.max
        ));
    }
    if let Some(echo) = moving {
        let spread = echo.spread;
        let tail = match echo.samples.len() {
            1 => String::new(),
            several => format!(
                " (median of {several} migrations; p95 {:.0}, worst {:.0})",
                spread.p95, spread.max
            ),
        };
        let words = if elsewhere.is_some() {
            "while the guest moved it was"
        } else {
            "While the guest moved, typing stood still for"
        };
        sentences.push(format!("{words} {:.0} ms{tail}", spread.median));
    }
    if let Some(echo) = report.figures.get("outage-echo")
        && let Some(boot) = report.figures.get("outage-boot")
    {
        sentences.push(format!(
            "after the pull of its host the user saw the next key {:.1} s later, {:.1} s of which the guest took to boot (medians)",
            echo.spread.median / 1e3,
            boot.spread.median / 1e3
        ));
    }
    if let Some(pause) = report.figures.get("vcpu-pause")
        && let Some(gap) = report.figures.get("udp-gap")
        && elsewhere.is_none()
    {
        sentences.push(format!(
            "its CPU stood still for {:.0} ms and the network was silent for {:.0} ms (medians)",
            pause.spread.median, gap.spread.median
        ));
    }
    let checked = report.runs.iter().flat_map(|run| &run.checks).count();
    let has_keys = report
        .runs
        .iter()
        .flat_map(|run| &run.checks)
        .any(|check| check.name == "keys");
    let with_host = report.figures.get("keys-lost-with-host");
    let lost = match with_host.filter(|figure| figure.spread.max > 0.0) {
        Some(figure) if has_keys => format!(
            "{:.0} keys were lost with their host (median), no other was, and every document saved is what was typed",
            figure.spread.median
        ),
        _ if has_keys => "No key was lost, and every document is what was typed".into(),
        _ => "Every check held".to_owned(),
    };
    let mut text = sentences.join("; ");
    if !text.is_empty() {
        text.push_str(". ");
    }
    text.push_str(&format!(
        "{lost} ({checked} checks in {runs} {}).",
        if runs == 1 { "run" } else { "runs" }
    ));
    let missed: Vec<&Limit> = report.limits.iter().filter(|limit| !limit.passed).collect();
    if let Some(first) = missed.first() {
        text.push_str(&format!(
            " Beyond its limit: {} {} (limit {}){}",
            first.title,
            first.found(),
            first.words(),
            if missed.len() > 1 {
                format!(", and {} more.", missed.len() - 1)
            } else {
                ".".into()
            }
        ));
    }
    text
}
