//! A book of scenarios as a terminal shows it: one screenful for one scenario, a table for many.

use std::fmt::Write;

use super::book::{Book, ScenarioReport};
use super::terminal::{bar, wrap};
use crate::verdict::Verdict;

const WIDTH: usize = 96;

/// The book, at most 100 columns wide.
#[must_use]
pub fn summary(book: &Book) -> String {
    let mut out = String::new();
    for (index, scenario) in book.scenarios.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        one(&mut out, scenario);
    }
    if book.scenarios.len() > 1 {
        out.push('\n');
        table(&mut out, book);
    }
    out
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{}", text.trim_end()).expect("a String takes any text");
}

fn one(out: &mut String, scenario: &ScenarioReport) {
    line(
        out,
        &format!("{}: {}", scenario.title(), scenario.verdict.word()),
    );
    for text in wrap(&scenario.headline, WIDTH) {
        line(out, &text);
    }
    for held in scenario.held() {
        line(out, &held);
    }
    if !scenario.figures.is_empty() {
        line(out, "");
        line(
            out,
            &format!(
                "{:<30} {:>10} {:>10} {:>10}   {}",
                "figure", "median", "p95", "worst", "unit"
            ),
        );
        for values in scenario.figures.values() {
            let spread = values.spread;
            line(
                out,
                &format!(
                    "{:<30} {:>10.1} {:>10.1} {:>10.1}   {}",
                    values.title, spread.median, spread.p95, spread.max, values.unit
                ),
            );
        }
    }
    waterfall(out, scenario);
    for text in super::outage::lines(scenario) {
        line(out, &text);
    }
    line(out, "");
    for limit in &scenario.limits {
        let mark = if limit.passed { "ok  " } else { "FAIL" };
        line(
            out,
            &format!(
                "{mark}  {:<36} {:>14}   limit {}",
                limit.title,
                limit.found(),
                limit.words()
            ),
        );
    }
    checks(out, scenario);
    for run in scenario
        .runs
        .iter()
        .filter(|run| run.verdict != Verdict::Passed)
    {
        line(out, "");
        line(
            out,
            &format!(
                "run {}: {}, seed {}",
                run.number,
                run.verdict.word(),
                run.seed
            ),
        );
        for reason in &run.reasons {
            for text in wrap(reason, WIDTH - 2) {
                line(out, &format!("  {text}"));
            }
        }
        line(out, &format!("  again: {}", run.command));
    }
}

/// Each check once, over all runs.
fn checks(out: &mut String, scenario: &ScenarioReport) {
    let mut names: Vec<&str> = Vec::new();
    for check in scenario.runs.iter().flat_map(|run| &run.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    for name in names {
        let all: Vec<_> = scenario
            .runs
            .iter()
            .flat_map(|run| &run.checks)
            .filter(|check| check.name == name)
            .collect();
        let held = all.iter().filter(|check| check.passed).count();
        let (mark, detail) = match all.iter().find(|check| !check.passed) {
            Some(wrong) => ("FAIL", wrong.detail.as_str()),
            None => ("ok  ", all[0].detail.as_str()),
        };
        let count = if all.len() == 1 {
            String::new()
        } else {
            format!("{held} of {}; ", all.len())
        };
        let text: String = detail.chars().take(WIDTH - 24).collect();
        line(out, &format!("{mark}  {name:<14} {count}{text}"));
    }
}

/// Where the longest silence of the worst run went.
fn waterfall(out: &mut String, scenario: &ScenarioReport) {
    let worst = scenario
        .runs
        .iter()
        .filter_map(|run| Some((run, run.measured.as_ref()?)))
        .flat_map(|(run, measured)| measured.migrations.iter().map(move |one| (run, one)))
        .filter(|(_, one)| one.valid && one.error.is_empty() && !one.phases.is_empty())
        .max_by(|(_, a), (_, b)| {
            let gap = |one: &super::Migration| one.udp_gap_ms.unwrap_or(0.0);
            gap(a).total_cmp(&gap(b))
        });
    let Some((run, one)) = worst else { return };
    let whole = one.udp_gap_ms.unwrap_or(0.0).max(0.001);
    line(out, "");
    line(
        out,
        &format!(
            "Where the longest UDP gap went (run {}, migration {}, {} to {}):",
            run.number, one.number, one.from, one.to
        ),
    );
    for phase in &one.phases {
        line(out, &bar(&phase.name, phase.ms, whole));
    }
    let rest = one.unattributed_ms.unwrap_or(whole);
    line(out, &bar("unattributed", rest, whole));
}

fn table(out: &mut String, book: &Book) {
    line(
        out,
        &format!(
            "{:<40} {:>5} {:>14} {:>9}",
            "scenario", "runs", "verdict", "seconds"
        ),
    );
    for scenario in &book.scenarios {
        let seconds: f64 = scenario.runs.iter().map(|run| run.seconds).sum();
        line(
            out,
            &format!(
                "{:<40} {:>5} {:>14} {seconds:>9.1}",
                scenario.title(),
                scenario.runs.len(),
                scenario.verdict.word()
            ),
        );
    }
}
