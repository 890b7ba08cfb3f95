//! The page of a book: one file that needs nothing else, for people. It says in words what happened, shows every run, and
//! leads to the worst.

use std::fmt::Write;
use std::path::Path;

use super::book::{Book, ScenarioReport};
use super::chart::{escape, legend, waterfall};
use super::run::RunReport;
use super::{Report, player};
use crate::evidence::cast::Recording;
use crate::evidence::fingerprint::Fingerprint;
use crate::measure::read_log;
use crate::measure::statistics::quantile;
use crate::verdict::Verdict;

pub(super) const STYLE: &str = include_str!("style.css");
const WIDTH: f64 = 1000.0;
/// More bars than this are not read; the worst are shown.
const BARS_MAX: usize = 24;
/// Figures that are drawn run by run, where a scenario has them.
const DRAWN: [&str; 8] = [
    "longest-echo",
    "udp-gap",
    "vcpu-pause",
    "total",
    "run-echo-worst",
    "run-udp-gap",
    "run-disk-gap",
    "evacuation",
];

macro_rules! draw {
    ($out:expr, $($part:tt)*) => {
        write!($out, $($part)*).expect("a String takes any text")
    };
}

/// The page. `folder` is where the runs' folders lie: recordings of the worst run are taken from there.
pub(super) fn page(book: &Book, folder: &Path) -> String {
    let mut out = String::new();
    let (class, word) = shown(book.verdict);
    let title = match book.scenarios.as_slice() {
        [one] => format!("elab: {}", one.title()),
        many => format!("elab: {} scenarios", many.len()),
    };
    draw!(
        out,
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title><style>{STYLE}</style></head><body><main>
<p class="kicker">{} <span class="{class}">{word}</span></p>
"#,
        escape(&title),
        escape(&title),
    );
    if book.scenarios.len() > 1 {
        contents(&mut out, book);
    }
    let mut players = false;
    for scenario in &book.scenarios {
        section(&mut out, scenario, book.scenarios.len() > 1);
        players |= worst(&mut out, scenario, folder);
    }
    draw!(out, "<h2>How this was measured</h2>{METHOD}");
    machine(&mut out, book);
    if players {
        out.push_str(&player::script());
    }
    out.push_str("</main></body></html>\n");
    out
}

pub(super) const METHOD: &str = r#"<ul>
<li>Requests and keys leave on a fixed schedule that never waits for an answer, and each latency counts from the moment its request was due. A stall therefore shows at its full length.</li>
<li><b>vCPU pause</b>: from the guest's last instruction at the source to its first at the destination. <b>UDP gap</b>: the longest time between two answers to the probe, from a migration's request until a second after its end. <b>Longest echo</b>: from when a key was due until the screen showed it. The three stand together because each hides what the others show.</li>
<li>A gap in which the probe itself was late by more than a quarter is void, not slow. A scenario whose fault never met what it should disturb is inconclusive, not passed.</li>
<li>Checkers look at the evidence alone: event log, consoles, disks. They can be asked again with <code>elab replay</code>.</li>
<li>Medians and percentiles are by nearest rank; means are not used. Every value is drawn. All figures follow from <code>events.jsonl</code> in each run's folder.</li>
<li>Limits are those of the scenario file beside this page. They belong to the machine named below and say nothing about another.</li>
</ul>"#;

pub(super) fn shown(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Passed => ("pass", "passed"),
        Verdict::Inconclusive => ("soft", "inconclusive"),
        Verdict::Failed => ("fail", "failed"),
    }
}

fn anchor(scenario: &ScenarioReport) -> String {
    scenario
        .title()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect()
}

fn contents(out: &mut String, book: &Book) {
    let passed = book
        .scenarios
        .iter()
        .filter(|one| one.verdict == Verdict::Passed)
        .count();
    draw!(
        out,
        "<h1>{passed} of {} scenarios passed, {} runs in {:.0} s.</h1>",
        book.scenarios.len(),
        book.runs().count(),
        book.seconds
    );
    out.push_str(r#"<div class="wide"><table><thead><tr><th></th><th>scenario</th><th>runs</th><th>longest echo</th><th>UDP gap</th><th>vCPU pause</th></tr></thead><tbody>"#);
    for one in &book.scenarios {
        let (class, word) = shown(one.verdict);
        let median = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| one.figures.get(*name))
                .map_or_else(
                    || "–".to_owned(),
                    |values| format!("{:.0} ms", values.spread.median),
                )
        };
        draw!(
            out,
            r##"<tr><td><span class="{class}">{word}</span></td><td><a href="#{}">{}</a></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>"##,
            anchor(one),
            escape(&one.title()),
            one.runs.len(),
            median(["longest-echo", "run-echo-worst"]),
            median(["udp-gap", "run-udp-gap"]),
            median(["vcpu-pause", "vcpu-pause"]),
        );
    }
    out.push_str("</tbody></table></div>");
}

fn section(out: &mut String, scenario: &ScenarioReport, one_of_many: bool) {
    let (class, word) = shown(scenario.verdict);
    if one_of_many {
        draw!(
            out,
            r#"<section id="{}"><p class="kicker">{} <span class="{class}">{word}</span></p><h2 class="headline">{}</h2>"#,
            anchor(scenario),
            escape(&scenario.title()),
            escape(&scenario.headline)
        );
    } else {
        draw!(out, "<section><h1>{}</h1>", escape(&scenario.headline));
    }
    draw!(out, r#"<p class="why">{}</p>"#, escape(&scenario.why));
    for held in scenario.held() {
        draw!(out, r#"<p class="soft">{}</p>"#, escape(&held));
    }
    cards(out, scenario);
    dots(out, scenario);
    echoes(out, scenario);
    bars(out, scenario);
    limits(out, scenario);
    checks(out, scenario);
    runs(out, scenario);
    out.push_str("</section>");
}

fn cards(out: &mut String, scenario: &ScenarioReport) {
    let of = |name: &str| scenario.figures.get(name);
    out.push_str(r#"<div class="cards">"#);
    for (values, label) in [
        (
            of("longest-echo").or(of("run-echo-worst")),
            "longest echo of a key",
        ),
        (of("udp-gap").or(of("run-udp-gap")), "network gap"),
        (of("vcpu-pause"), "virtual CPU pause"),
    ] {
        let Some(values) = values else { continue };
        let spread = values.spread;
        let note = match values.samples.len() {
            1 => "one value".to_owned(),
            several => format!(
                "median of {several}; p95 {:.0}, worst {:.0}",
                spread.p95, spread.max
            ),
        };
        draw!(
            out,
            r#"<div class="card"><b>{:.0} {}</b><span>{label}</span><small>{note}</small></div>"#,
            spread.median,
            values.unit
        );
    }
    let runs = scenario.runs.len();
    let passed = scenario
        .runs
        .iter()
        .filter(|run| run.verdict == Verdict::Passed)
        .count();
    draw!(
        out,
        r#"<div class="card"><b>{passed} of {runs}</b><span>runs in which every check held</span><small>{} checks</small></div></div>"#,
        scenario
            .runs
            .iter()
            .map(|run| run.checks.len())
            .sum::<usize>()
    );
}

/// A row of dots: values in milliseconds, their median, and the limit of the figure.
pub(super) struct Dots<'a> {
    pub(super) label: String,
    pub(super) samples: &'a [f64],
    pub(super) median: f64,
    pub(super) limit: Option<f64>,
}

/// Every value as a dot: one row a figure.
fn dots(out: &mut String, scenario: &ScenarioReport) {
    let of = |name: &&str| -> Option<Dots> {
        let values = scenario.figures.get(*name)?;
        let limit = scenario.limits.iter().find(|limit| limit.figure == *name);
        (values.unit == "ms").then(|| Dots {
            label: values.title.clone(),
            samples: &values.samples,
            median: values.spread.median,
            limit: limit.and_then(|limit| limit.at_most),
        })
    };
    let rows: Vec<Dots> = DRAWN.iter().filter_map(of).collect();
    if !rows.is_empty() {
        out.push_str("<h3>Every run</h3><p>One dot a migration or run; the bar is the median, the dashed line the limit of the figure.</p>");
        strips(out, &rows);
    }
}

/// Rows of dots, all on one scale.
pub(super) fn strips(out: &mut String, rows: &[Dots]) {
    const LEFT: f64 = 210.0;
    const ROW: f64 = 34.0;
    let all = rows.iter().flat_map(|row| row.samples);
    let limits = rows.iter().filter_map(|row| row.limit);
    let most = all.copied().chain(limits).fold(10.0_f64, f64::max);
    let least = 1.0_f64;
    // Decades: a pause of 8 ms and a migration of 2 s are read on one scale.
    let x = |ms: f64| {
        let share = (ms.max(least) / least).log10() / (most * 1.1 / least).log10();
        LEFT + share * (WIDTH - LEFT - 16.0)
    };
    let height = rows.len() as f64 * ROW + 30.0;
    draw!(
        out,
        r#"<figure><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Every value of each figure as a dot">"#
    );
    let mut tick = 1.0;
    while tick <= most * 1.1 {
        draw!(
            out,
            r#"<line class="grid" x1="{0:.1}" x2="{0:.1}" y1="4" y2="{1:.1}"/><text class="small middle" x="{0:.1}" y="{2:.1}">{3}</text>"#,
            x(tick),
            height - 26.0,
            height - 10.0,
            if tick >= 1000.0 {
                format!("{:.0} s", tick / 1000.0)
            } else {
                format!("{tick:.0} ms")
            }
        );
        tick *= 10.0;
    }
    for (number, row) in rows.iter().enumerate() {
        let middle = number as f64 * ROW + ROW / 2.0 + 2.0;
        draw!(
            out,
            r#"<text class="end" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 10.0,
            middle + 4.0,
            escape(&row.label)
        );
        if let Some(limit) = row.limit {
            draw!(
                out,
                r#"<line class="felt" x1="{0:.1}" x2="{0:.1}" y1="{1:.1}" y2="{2:.1}"><title>limit {limit} ms</title></line>"#,
                x(limit),
                middle - 13.0,
                middle + 13.0
            );
        }
        for (index, value) in row.samples.iter().enumerate() {
            // Neighbours are set apart in a fixed pattern, so that equal values do not hide one another.
            let shift = [0.0, -5.0, 5.0, -9.0, 9.0][index % 5];
            draw!(
                out,
                r#"<circle class="key" cx="{:.1}" cy="{:.1}" r="3.4"><title>{value:.1} ms</title></circle>"#,
                x(*value),
                middle + shift
            );
        }
        draw!(
            out,
            r#"<line class="median" x1="{0:.1}" x2="{0:.1}" y1="{1:.1}" y2="{2:.1}"><title>median {3:.1} ms</title></line>"#,
            x(row.median),
            middle - 11.0,
            middle + 11.0,
            row.median
        );
    }
    out.push_str("</svg></figure>");
}

/// How many of the keys were echoed within which time.
fn echoes(out: &mut String, scenario: &ScenarioReport) {
    const LEFT: f64 = 58.0;
    const TOP: f64 = 12.0;
    const BOTTOM: f64 = 210.0;
    let mut all: Vec<f64> = scenario
        .runs
        .iter()
        .flat_map(|run| &run.echoes_ms)
        .copied()
        .collect();
    if all.len() < 20 {
        return;
    }
    all.sort_by(f64::total_cmp);
    let most = all[all.len() - 1].max(100.0);
    let x = |ms: f64| LEFT + (ms.max(1.0).log10() / most.log10()) * (WIDTH - LEFT - 16.0);
    // From half of the keys on: the tail is the question, and its scale is of tails.
    let y = |share: f64| {
        let tail = (1.0 - share).max(0.5 / all.len() as f64);
        let decades = (all.len() as f64 * 2.0).log10();
        TOP + (BOTTOM - TOP) * (1.0 - (-tail.log10()) / decades)
    };
    draw!(
        out,
        r#"<h3>Echo of every key</h3><p>{} keys. The higher the curve, the fewer keys waited longer; half of them took {:.0} ms at most, 99 % {:.0} ms.</p><figure><svg viewBox="0 0 {WIDTH} 250" role="img" aria-label="Share of keys echoed within a time">"#,
        all.len(),
        quantile(&all, 0.5).unwrap_or(0.0),
        quantile(&all, 0.99).unwrap_or(0.0)
    );
    for (share, label) in [
        (0.0, "0 %"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
    ] {
        if (1.0 - share) * all.len() as f64 >= 1.0 {
            draw!(
                out,
                r#"<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{0:.1}" y2="{0:.1}"/><text class="small end" x="{1:.1}" y="{2:.1}">{label}</text>"#,
                y(share),
                LEFT - 6.0,
                y(share) + 4.0
            );
        }
    }
    for (ms, label) in [
        (1.0, "1 ms"),
        (10.0, "10 ms"),
        (100.0, "100 ms"),
        (1000.0, "1 s"),
        (10_000.0, "10 s"),
    ] {
        if ms <= most {
            let class = if ms == 100.0 { "grid felt" } else { "grid" };
            draw!(
                out,
                r#"<line class="{class}" x1="{0:.1}" x2="{0:.1}" y1="{TOP}" y2="{BOTTOM}"/><text class="small middle" x="{0:.1}" y="{1:.1}">{label}</text>"#,
                x(ms),
                BOTTOM + 18.0
            );
        }
    }
    draw!(
        out,
        r#"<path class="curve" d="M{:.1} {:.1}"#,
        x(all[0]),
        y(0.0)
    );
    // A thousand corners draw any curve.
    let step = (all.len() / 1000).max(1);
    for (rank, value) in all.iter().enumerate().step_by(step) {
        draw!(
            out,
            " H{:.1} V{:.1}",
            x(*value),
            y((rank + 1) as f64 / all.len() as f64)
        );
    }
    draw!(out, r#" H{:.1}"/></svg></figure>"#, x(most));
}

/// Where each interruption went, the worst first.
fn bars(out: &mut String, scenario: &ScenarioReport) {
    let mut migrations: Vec<super::Migration> = scenario
        .runs
        .iter()
        .filter_map(|run| run.measured.as_ref())
        .flat_map(|measured| measured.migrations.clone())
        .filter(|one| !one.phases.is_empty())
        .collect();
    if migrations.is_empty() {
        return;
    }
    let gap = |one: &super::Migration| one.udp_gap_ms.unwrap_or(0.0);
    migrations.sort_by(|a, b| gap(b).total_cmp(&gap(a)));
    let count = migrations.len();
    let middle = migrations[count / 2].clone();
    let mut note = String::new();
    if count > BARS_MAX {
        migrations.truncate(BARS_MAX - 1);
        migrations.push(middle);
        note = format!(
            " The {} worst of {count}, and below them the median one.",
            BARS_MAX - 1
        );
    }
    let drawn = Report {
        migrations,
        ..Report::default()
    };
    draw!(
        out,
        "<h3>Where each interruption went</h3><p>The longest network gap of each migration, cut into phases.{note}</p><figure>{}</figure>{}",
        waterfall(&drawn),
        legend()
    );
}

pub(super) fn table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    out.push_str(r#"<div class="wide"><table><thead><tr>"#);
    for cell in head {
        draw!(out, "<th>{cell}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            draw!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

fn mark(passed: bool) -> String {
    if passed {
        r#"<span class="pass">held</span>"#.into()
    } else {
        r#"<span class="fail">missed</span>"#.into()
    }
}

fn limits(out: &mut String, scenario: &ScenarioReport) {
    if scenario.limits.is_empty() {
        return;
    }
    out.push_str("<h3>Limits</h3>");
    table(
        out,
        &["", "figure", "found", "limit"],
        scenario.limits.iter().map(|one| {
            vec![
                mark(one.passed),
                escape(&one.title),
                escape(&one.found()),
                escape(&one.words()),
            ]
        }),
    );
}

fn checks(out: &mut String, scenario: &ScenarioReport) {
    let mut names: Vec<&str> = Vec::new();
    for check in scenario.runs.iter().flat_map(|run| &run.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    if names.is_empty() {
        return;
    }
    out.push_str("<h3>Checks</h3>");
    table(
        out,
        &["", "check", "runs", "what was found"],
        names.into_iter().map(|name| {
            let all: Vec<_> = scenario
                .runs
                .iter()
                .flat_map(|run| &run.checks)
                .filter(|check| check.name == name)
                .collect();
            let wrong = all.iter().find(|check| !check.passed);
            let held = all.iter().filter(|check| check.passed).count();
            vec![
                mark(wrong.is_none()),
                escape(name),
                format!("{held} of {}", all.len()),
                escape(&wrong.unwrap_or(&all[0]).detail),
            ]
        }),
    );
}

fn runs(out: &mut String, scenario: &ScenarioReport) {
    out.push_str("<h3>Runs</h3>");
    table(
        out,
        &["", "run", "seed", "took", "folder", "again", "why"],
        scenario.runs.iter().map(|run| {
            let (class, word) = shown(run.verdict);
            vec![
                format!(r#"<span class="{class}">{word}</span>"#),
                run.number.to_string(),
                run.seed.to_string(),
                format!("{:.0} s", run.seconds),
                format!(r#"<a href="{0}/report.html">{0}</a>"#, escape(&run.folder)),
                format!("<code>{}</code>", escape(&run.command)),
                escape(&run.reasons.join("; ")),
            ]
        }),
    );
}

/// The worst run: what was done, and its session to look at. Gives whether there is a player.
fn worst(out: &mut String, scenario: &ScenarioReport, folder: &Path) -> bool {
    let Some(run) = scenario.worst_run() else {
        return false;
    };
    let place = folder.join(&run.folder);
    let recording = Recording::read(&place.join("session.output.jsonl")).ok();
    let records = read_log(&place.join("events.jsonl")).unwrap_or_default();
    draw!(
        out,
        "<h3>{} {}</h3>",
        if scenario.runs.len() > 1 {
            "The worst run: number"
        } else {
            "Run"
        },
        run.number
    );
    steps(out, run);
    let Some(recording) = recording else {
        return false;
    };
    out.push_str("<p>The session as its user saw it; the list jumps to what happened.</p>");
    let figure = player::figure(&recording, &records);
    out.push_str(&figure);
    !figure.is_empty()
}

fn steps(out: &mut String, run: &RunReport) {
    table(
        out,
        &["at", "step", "took", "outcome"],
        run.steps.iter().map(|step| {
            let took = step.end_ms.map_or_else(
                || "–".to_owned(),
                |end| format!("{:.2} s", (end - step.start_ms) / 1000.0),
            );
            let outcome = if step.detail.is_empty() {
                step.state.clone()
            } else {
                format!("{}: {}", step.state, step.detail)
            };
            vec![
                format!("{:.2} s", step.start_ms / 1000.0),
                escape(&step.name),
                took,
                escape(&outcome),
            ]
        }),
    );
}

/// What a run was made on, as the end of a sentence.
pub(super) fn environment(machine: &Fingerprint) -> String {
    format!(
        "{} × {} with {} MiB, Linux {}, QEMU {} with {}, {:.1} times slower than the reference machine, load {:.1} when it began.",
        machine.cpus,
        escape(&machine.cpu),
        machine.memory_mib,
        escape(&machine.kernel),
        escape(&machine.qemu),
        escape(&machine.accelerator),
        machine.factor,
        machine.load,
    )
}

fn machine(out: &mut String, book: &Book) {
    let machine = &book.machine;
    draw!(
        out,
        r#"<p class="foot">elab {} on {} Hypervisor image sha256 <code>{}</code>.<br>Made by <code>{}</code>.</p>"#,
        escape(&machine.elab),
        environment(machine),
        escape(machine.image.get(..16).unwrap_or(&machine.image)),
        escape(&book.command)
    );
}
