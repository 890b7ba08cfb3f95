//! The page of a release: one file, without scripts, drawn with the pieces of the page of results.

use std::fmt::Write;

use super::super::book::ScenarioReport;
use super::super::chart::{escape, legend, waterfall};
use super::super::page::{Dots, METHOD, STYLE, environment, shown, strips, table};
use super::super::{Migration, Report};
use super::{Release, Row};
use crate::history::calendar;
use crate::measure::statistics::quantile;

macro_rules! draw {
    ($out:expr, $($part:tt)*) => {
        write!($out, $($part)*).expect("a String takes any text")
    };
}

pub(super) fn page(release: &Release) -> String {
    let mut out = String::new();
    let (class, word) = shown(release.book.verdict);
    draw!(
        out,
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>elab {name}: what its users will notice</title><style>{STYLE}</style></head><body><main>
<p class="kicker">elab {name}, {day} <span class="{class}">{word}</span></p>
<h1>{headline}</h1>
"#,
        name = escape(&release.name),
        day = calendar::day(release.book.unix_s),
        headline = escape(&release.headline()),
    );
    figures(&mut out, release);
    for scenario in &release.book.scenarios {
        section(&mut out, release, scenario);
    }
    out.push_str("<h2>Known limits</h2><ul>");
    for limit in release.known_limits() {
        draw!(out, "<li>{}</li>", escape(&limit));
    }
    draw!(
        out,
        "</ul><h2>How this was measured</h2>{METHOD}<h2>How to get each number again</h2>"
    );
    again(&mut out, release);
    out.push_str("<h2>Hashes</h2><p>SHA-256 of what was run and of all raw data. Every figure follows from the event logs.</p>");
    table(
        &mut out,
        &["file", "sha256"],
        release
            .hashes
            .iter()
            .map(|(file, hash)| vec![escape(file), format!("<code>{}</code>", escape(hash))]),
    );
    machine(&mut out, release);
    out.push_str("</main></body></html>\n");
    out
}

/// Every figure against its limit and against the last releases.
fn figures(out: &mut String, release: &Release) {
    let rows = Row::all(release.book);
    let comparisons = release.comparisons(&rows);
    out.push_str("<h2>Each scenario</h2>");
    let mut head = vec!["", "scenario", "figure", "found", "limit"];
    let names: Vec<String> = release
        .earlier
        .iter()
        .map(|earlier| escape(&earlier.name))
        .collect();
    head.extend(names.iter().map(String::as_str));
    let mut last = String::new();
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let class = match row.limit {
                Some(limit) if !limit.passed => "fail",
                Some(_) => "pass",
                None => "soft",
            };
            let title = row.scenario.title();
            let mut cells = vec![
                format!(r#"<span class="{class}">{}</span>"#, row.verdict_in_words()),
                if title == last {
                    String::new()
                } else {
                    escape(&title)
                },
                escape(&row.title),
                escape(&row.found()),
                escape(&row.limit_in_words()),
            ];
            last = title;
            let before = comparisons.iter().map(|one| escape(&row.before(one)));
            cells.extend(before);
            cells
        })
        .collect();
    table(out, &head, lines.into_iter());
    if release.earlier.is_empty() {
        out.push_str("<p class=\"soft\">There is no earlier release to compare with: this one is the base of the next.</p>");
    }
}

fn section(out: &mut String, release: &Release, scenario: &ScenarioReport) {
    let (class, word) = shown(scenario.verdict);
    draw!(
        out,
        r#"<section><p class="kicker">{} <span class="{class}">{word}</span></p><h2 class="headline">{}</h2><p class="why">{}</p>"#,
        escape(&scenario.title()),
        escape(&scenario.headline),
        escape(&scenario.why)
    );
    all_runs(out, release, scenario);
    interruptions(out, scenario);
    out.push_str("</section>");
}

/// This release's values above those of the last ones, figure by figure.
fn all_runs(out: &mut String, release: &Release, scenario: &ScenarioReport) {
    let mut rows: Vec<Dots> = Vec::new();
    let mut drawn: Vec<String> = Vec::new();
    for row in Row::of_scenario(scenario) {
        let Some(samples) = row.samples.filter(|_| row.unit == "ms") else {
            continue;
        };
        if drawn.contains(&row.figure) {
            continue;
        }
        let title = crate::scenario::figure::find(&row.figure).map_or("", |one| one.title);
        let limit = row.limit.and_then(|limit| limit.at_most);
        let median = |samples: &[f64]| quantile(samples, 0.5).unwrap_or(f64::NAN);
        rows.push(Dots {
            label: title.to_owned(),
            samples,
            median: median(samples),
            limit,
        });
        for earlier in &release.earlier {
            if let Some(samples) = earlier.of_figure(&scenario.title(), &row.figure) {
                rows.push(Dots {
                    label: format!("with {}", earlier.name),
                    samples,
                    median: median(samples),
                    limit,
                });
            }
        }
        drawn.push(row.figure);
    }
    if rows.is_empty() {
        return;
    }
    out.push_str("<h3>Every run</h3><p>One dot a migration or run, those of earlier releases below; the bar is the median, the dashed line the limit.</p>");
    strips(out, &rows);
}

/// Where the time went in the middle one of all interruptions, and in the worst.
fn interruptions(out: &mut String, scenario: &ScenarioReport) {
    let mut all: Vec<&Migration> = scenario
        .runs
        .iter()
        .filter_map(|run| run.measured.as_ref())
        .flat_map(|measured| &measured.migrations)
        .filter(|one| !one.phases.is_empty() && one.udp_gap_ms.is_some())
        .collect();
    let gap = |one: &Migration| one.udp_gap_ms.unwrap_or(0.0);
    all.sort_by(|a, b| gap(a).total_cmp(&gap(b)));
    let (Some(worst), Some(middle)) = (all.last(), all.get((all.len().max(1) - 1) / 2)) else {
        return;
    };
    let migrations = match all.len() {
        1 => vec![(*worst).clone()],
        _ => vec![(*middle).clone(), (*worst).clone()],
    };
    let drawn = Report {
        migrations,
        ..Report::default()
    };
    draw!(
        out,
        "<h3>Where the interruption went</h3><p>The longest network gap of a migration, cut into phases: above the median one of {}, below the worst.</p><figure>{}</figure>{}",
        all.len(),
        waterfall(&drawn),
        legend()
    );
}

/// One line for the shell that makes each run again.
fn again(out: &mut String, release: &Release) {
    table(
        out,
        &["scenario", "run", "verdict", "command"],
        release.book.runs().map(|run| {
            let (class, word) = shown(run.verdict);
            vec![
                escape(&run.scenario),
                run.number.to_string(),
                format!(r#"<span class="{class}">{word}</span>"#),
                format!("<code>{}</code>", escape(&run.command)),
            ]
        }),
    );
    draw!(
        out,
        "<p>All of it: <code>{}</code>. This page: <code>{}</code>. A run is judged again from its evidence by <code>elab replay FOLDER</code>.</p>",
        escape(&release.book.command),
        escape(&release.command)
    );
}

fn machine(out: &mut String, release: &Release) {
    let machine = &release.book.machine;
    draw!(
        out,
        r#"<p class="foot">Built from {} as elab {}; run on {}</p>"#,
        escape(commit(&release.commit)),
        escape(&machine.elab),
        environment(machine),
    );
}

pub(super) fn commit(commit: &str) -> &str {
    if commit.is_empty() {
        "an unknown commit"
    } else {
        commit
    }
}
