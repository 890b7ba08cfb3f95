//! The page: one file, no scripts, nothing loaded from elsewhere.

use lab_protocol::ProbeKind;

use super::{
    Report, Series,
    chart::{anatomy, escape, legend, strip, waterfall},
    figure,
};

const STYLE: &str = include_str!("style.css");

pub(super) fn page(report: &Report, series: &[(ProbeKind, Series)]) -> String {
    let machine = &report.machine;
    let verdict = if report.passed {
        ("pass", "all expectations met")
    } else {
        ("fail", "expectations missed")
    };
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>elab: what the user noticed</title><style>{STYLE}</style></head><body><main>
<p class="kicker">Live migration under a live session <span class="{class}">{verdict}</span></p>
<h1>{headline}</h1>
{cards}
<h2>The whole run</h2>
<p>How long each answer took. Grey: the 1&nbsp;kHz probe, its slowest answer in each column. Dots: the keys of the typing user. Shaded: migrations.</p>
<figure>{strip}</figure>
{anatomy}
<h2>Where each interruption went</h2>
<figure>{waterfall}</figure>
{legend}
<h2>Expectations</h2>
{expectations}
<h2>Figures over all migrations</h2>
{figures}
<h2>Each migration</h2>
{migrations}
<h2>Probes</h2>
{probes}
<h2>How this was measured</h2>
{method}
<p class="foot">elab {elab} on {cpu}, hosts run by QEMU {qemu} with {accel}.</p>
</main></body></html>
"#,
        class = verdict.0,
        verdict = verdict.1,
        headline = escape(&report.headline),
        cards = cards(report),
        strip = strip(report, series),
        anatomy = match anatomy(report, series) {
            empty if empty.is_empty() => String::new(),
            picture => format!("<h2>The longest interruption</h2><figure>{picture}</figure>"),
        },
        waterfall = waterfall(report),
        legend = legend(),
        expectations = expectations(report),
        figures = figures(report),
        migrations = migrations(report),
        probes = probes(report),
        method = METHOD,
        elab = escape(&machine.elab),
        cpu = escape(&machine.cpu),
        qemu = escape(&machine.qemu),
        accel = escape(&machine.accel),
    )
}

const METHOD: &str = r#"<ul>
<li>Requests leave on a fixed schedule that never waits for an answer, and a latency counts from the moment the request was due. A stall therefore shows at its full length.</li>
<li><b>Gap</b>: the longest time between two answers that follow one another. A 1 kHz probe resolves 1 ms. The longest one may fall into pre-copy; the longest that touches the pause is called the switch-over. The quiet figure beside it is the same probe's longest gap in a stretch of the same length just before the migration.</li>
<li><b>Longest echo</b>: from the moment a key was due until the screen showed it, for the keys due from the request of the migration until one second after its end.</li>
<li><b>Pause</b>: from the stop of the virtual CPUs at the source to the guest's first instruction at the destination. Hosts stamp marks with their own clocks; these are mapped to the lab's clock by ping exchanges, whose bound is printed as the clock error.</li>
<li>A gap in which the probe itself was late by more than a quarter is void and left out, not counted as slow.</li>
<li>Medians and percentiles are by nearest rank. Raw samples lie beside this page under <code>samples/</code>, all events in <code>events.jsonl</code>, every figure in <code>report.json</code>.</li>
</ul>"#;

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"))
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let rows: String = rows
        .map(|row| {
            let cells: String = row.iter().map(|cell| format!("<td>{cell}</td>")).collect();
            format!("<tr>{cells}</tr>")
        })
        .collect();
    format!(
        r#"<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"#
    )
}

fn cards(report: &Report) -> String {
    let median = |name| report.figure(name).map(|one| one.spread.median);
    let card = |value: String, label: &str, note: String| {
        format!(
            r#"<div class="card"><b>{value}</b><span>{label}</span><small>{note}</small></div>"#
        )
    };
    let ms =
        |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0} ms"));
    let quiet = |value: Option<f64>| {
        value.map_or_else(String::new, |value| format!("{value:.0} ms when quiet"))
    };
    let typist = &report.typist;
    let equal = match typist.content_equal {
        Some(true) => "equal",
        Some(false) => "DIFFERS",
        None => "–",
    };
    let cards = [
        card(
            ms(median(figure::LONGEST_ECHO)),
            "longest echo of a key",
            quiet(typist.baseline_echo_ms.map(|one| one.median)),
        ),
        card(
            ms(median(figure::UDP_GAP)),
            "network gap",
            quiet(median(figure::BASELINE_GAP)),
        ),
        card(
            ms(median(figure::PAUSE)),
            "virtual CPU pause",
            String::new(),
        ),
        card(
            typist.lost.to_string(),
            "keys lost",
            format!("of {}", typist.keys),
        ),
        card(
            equal.to_owned(),
            "document and typing",
            format!("{} compared", typist.documents),
        ),
    ];
    format!(r#"<div class="cards">{}</div>"#, cards.concat())
}

fn expectations(report: &Report) -> String {
    table(
        &["", "expected", "found", "limit"],
        report.expectations.iter().map(|one| {
            let mark = if one.passed {
                r#"<span class="pass">met</span>"#
            } else {
                r#"<span class="fail">missed</span>"#
            };
            vec![
                mark.to_owned(),
                escape(&one.name),
                escape(&one.value),
                escape(&one.limit),
            ]
        }),
    )
}

fn figures(report: &Report) -> String {
    table(
        &["", "median", "p95", "worst", "unit", "every value"],
        report.summary.iter().map(|one| {
            let every: Vec<String> = one
                .samples
                .iter()
                .map(|value| format!("{value:.0}"))
                .collect();
            vec![
                escape(&one.name),
                format!("{:.1}", one.spread.median),
                format!("{:.1}", one.spread.p95),
                format!("{:.1}", one.spread.max),
                escape(&one.unit),
                every.join(" "),
            ]
        }),
    )
}

fn migrations(report: &Report) -> String {
    table(
        &[
            "",
            "way",
            "total ms",
            "pause ms",
            "UDP gap ms",
            "at the switch-over ms",
            "quiet ms",
            "TCP gap ms",
            "longest echo ms",
            "rounds",
            "pages",
            "zero pages",
            "MB",
            "unattributed ms",
            "clock error ms",
            "outcome",
        ],
        report.migrations.iter().map(|one| {
            vec![
                one.number.to_string(),
                format!("{} → {}", escape(&one.from), escape(&one.to)),
                format!("{:.0}", one.total_ms),
                number(one.pause_ms),
                number(one.udp_gap_ms),
                number(one.switchover_gap_ms),
                number(one.udp_baseline_gap_ms),
                number(one.tcp_gap_ms),
                number(one.longest_echo_ms),
                one.rounds.len().to_string(),
                one.pages.to_string(),
                one.zero_pages.to_string(),
                format!("{:.1}", one.bytes as f64 / 1e6),
                number(one.unattributed_ms),
                format!("{:.2}", one.clock_error_ms),
                if one.error.is_empty() {
                    "moved".to_owned()
                } else {
                    escape(&one.error)
                },
            ]
        }),
    )
}

fn probes(report: &Report) -> String {
    table(
        &[
            "probe",
            "every ms",
            "sent",
            "lost",
            "doubled",
            "reordered",
            "gap ms",
            "quiet gap ms",
            "quiet median ms",
            "own lateness ms",
            "samples",
        ],
        report.probes.iter().map(|one| {
            vec![
                escape(&one.name),
                format!("{:.0}", one.interval_ms),
                one.sent.to_string(),
                one.lost.to_string(),
                one.duplicated.to_string(),
                one.reordered.to_string(),
                number(one.gap_ms),
                number(one.baseline_gap_ms),
                number(one.baseline_median_ms),
                format!("{:.1}", one.late_max_ms),
                format!("<code>{}</code>", escape(&one.samples)),
            ]
        }),
    )
}
