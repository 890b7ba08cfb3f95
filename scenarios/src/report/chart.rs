//! The pictures of the page, as SVG text. Colours come from the page's style by class, so that light, dark and print agree; the
//! palette tells apart under the common kinds of colour blindness (Okabe and Ito, 2008), and no meaning rests on colour alone.

use std::fmt::Write;

use lab_protocol::ProbeKind;

use super::{Migration, Report, Series, terminal};
use crate::measure::{Window, attribution::PIECES};

const WIDTH: f64 = 1000.0;

/// Text inside markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

macro_rules! draw {
    ($out:expr, $($part:tt)*) => {
        write!($out, $($part)*).expect("a String takes any text")
    };
}

fn open(out: &mut String, height: f64, label: &str) {
    draw!(
        out,
        r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}">"#,
        escape(label)
    );
}

fn of(series: &[(ProbeKind, Series)], kind: ProbeKind) -> Option<&Series> {
    series
        .iter()
        .find(|(one, _)| *one == kind)
        .map(|(_, series)| series)
}

/// How long each answer took over the whole run, migrations shaded.
pub(super) fn strip(report: &Report, series: &[(ProbeKind, Series)]) -> String {
    const TOP: f64 = 26.0;
    const BOTTOM: f64 = 250.0;
    const LEFT: f64 = 58.0;
    let ends = series
        .iter()
        .flat_map(|(_, one)| [one.samples.first(), one.samples.last()])
        .flatten();
    let (Some(start), Some(end)) = (
        ends.clone().map(|one| one.due_ns).min(),
        ends.map(|one| one.due_ns).max(),
    ) else {
        return String::new();
    };
    let span = (end - start).max(1) as f64;
    let x = |t_ns: u64| LEFT + (t_ns.saturating_sub(start)) as f64 / span * (WIDTH - LEFT - 8.0);
    // Three decades and a bit, from 0.5 ms to 2 s: what is quicker or slower sits on the border.
    let y = |ms: f64| {
        BOTTOM - (ms.clamp(0.5, 2000.0) / 0.5).log10() / 4000_f64.log10() * (BOTTOM - TOP)
    };

    let mut out = String::new();
    open(
        &mut out,
        290.0,
        "Time to each answer over the run; each migration is a shaded band",
    );
    for one in &report.migrations {
        let [from, to] = one.window_ms.map(|ms| x((ms * 1e6) as u64));
        draw!(
            out,
            r#"<rect class="band" x="{from:.1}" y="{TOP}" width="{:.1}" height="{:.1}"/>"#,
            (to - from).max(1.5),
            BOTTOM - TOP
        );
        let label = if one.error.is_empty() {
            one.number.to_string()
        } else {
            format!("{} failed", one.number)
        };
        draw!(
            out,
            r#"<text class="small middle" x="{:.1}" y="{:.1}">{label}</text>"#,
            (from + to) / 2.0,
            TOP - 8.0
        );
    }
    for (ms, label) in [
        (1.0, "1 ms"),
        (10.0, "10 ms"),
        (100.0, "100 ms"),
        (1000.0, "1 s"),
    ] {
        let class = if ms == 100.0 { "grid felt" } else { "grid" };
        draw!(
            out,
            r#"<line class="{class}" x1="{LEFT}" x2="{WIDTH}" y1="{0:.1}" y2="{0:.1}"/>"#,
            y(ms)
        );
        draw!(
            out,
            r#"<text class="small end" x="{:.1}" y="{:.1}">{label}</text>"#,
            LEFT - 6.0,
            y(ms) + 4.0
        );
    }
    draw!(
        out,
        r#"<text class="small" x="{:.1}" y="{:.1}">slower than this is felt</text>"#,
        LEFT + 4.0,
        y(100.0) - 5.0
    );

    if let Some(udp) = of(series, ProbeKind::Udp) {
        envelope(&mut out, udp, &x, &y, BOTTOM);
    }
    if let Some(keys) = of(series, ProbeKind::Typist) {
        for sample in &keys.samples {
            match sample.latency_ns().map(|ns| ns as f64 / 1e6) {
                Some(ms) => {
                    let class = if ms > 100.0 { "key slow" } else { "key" };
                    draw!(
                        out,
                        r#"<circle class="{class}" cx="{:.1}" cy="{:.1}" r="2.2"/>"#,
                        x(sample.due_ns),
                        y(ms)
                    );
                }
                None => draw!(
                    out,
                    r#"<text class="lost middle" x="{:.1}" y="{TOP}">×</text>"#,
                    x(sample.due_ns)
                ),
            }
        }
    }
    let seconds = span / 1e9;
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0]
        .into_iter()
        .find(|step| seconds / step <= 12.0)
        .unwrap_or(3600.0);
    let mut t = 0.0;
    while t <= seconds {
        draw!(
            out,
            r#"<text class="small middle" x="{:.1}" y="270">{t:.0} s</text>"#,
            x(start + (t * 1e9) as u64)
        );
        t += step;
    }
    out.push_str("</svg>");
    out
}

/// The slowest answer in each column of the picture, so that no stall is thinned away.
fn envelope(
    out: &mut String,
    series: &Series,
    x: &dyn Fn(u64) -> f64,
    y: &dyn Fn(f64) -> f64,
    bottom: f64,
) {
    let mut columns: Vec<(i64, f64)> = Vec::new();
    for sample in &series.samples {
        let column = x(sample.due_ns) as i64;
        let ms = sample.latency_ns().map_or(2000.0, |ns| ns as f64 / 1e6);
        match columns.last_mut() {
            Some((last, worst)) if *last == column => *worst = worst.max(ms),
            _ => columns.push((column, ms)),
        }
    }
    let (Some(first), Some(last)) = (columns.first(), columns.last()) else {
        return;
    };
    draw!(out, r#"<path class="probe" d="M{} {bottom:.1}"#, first.0);
    for (column, ms) in &columns {
        draw!(out, " L{column} {:.1}", y(*ms));
    }
    draw!(out, r#" L{} {bottom:.1} Z"/>"#, last.0);
}

/// The longest interruption as the probes saw it, its phases shaded: the picture that explains the figure.
pub(super) fn anatomy(report: &Report, series: &[(ProbeKind, Series)]) -> String {
    const TOP: f64 = 20.0;
    const BOTTOM: f64 = 230.0;
    const LEFT: f64 = 58.0;
    let Some((one, udp)) = terminal::worst(report).zip(of(series, ProbeKind::Udp)) else {
        return String::new();
    };
    let Some((start, gap)) = one.gap_start_ms.zip(one.udp_gap_ms) else {
        return String::new();
    };
    let margin = (gap * 0.6).max(20.0);
    let (from, to) = ((start - margin).max(0.0), start + gap + margin);
    let x = |ms: f64| LEFT + (ms - from) / (to - from) * (WIDTH - LEFT - 8.0);
    let highest = (gap * 1.15).max(10.0);
    let y = |ms: f64| BOTTOM - ms.min(highest) / highest * (BOTTOM - TOP);

    let mut out = String::new();
    open(
        &mut out,
        280.0,
        "Time to each answer around the longest interruption, its phases shaded",
    );
    let mut at = start;
    for phase in &one.phases {
        let width = x(at + phase.ms) - x(at);
        draw!(
            out,
            r#"<rect class="{}" x="{:.1}" y="{TOP}" width="{width:.1}" height="{:.1}" opacity="0.35"><title>{}: {:.1} ms</title></rect>"#,
            class_of(&phase.name),
            x(at),
            BOTTOM - TOP,
            escape(&phase.name),
            phase.ms
        );
        at += phase.ms;
    }
    let mut grid = 0.0;
    let step = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        .into_iter()
        .find(|step| highest / step <= 6.0)
        .unwrap_or(5000.0);
    while grid <= highest {
        draw!(
            out,
            r#"<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{0:.1}" y2="{0:.1}"/>"#,
            y(grid)
        );
        draw!(
            out,
            r#"<text class="small end" x="{:.1}" y="{:.1}">{grid:.0} ms</text>"#,
            LEFT - 6.0,
            y(grid) + 4.0
        );
        grid += step;
    }
    let window = Window {
        start_ns: (from * 1e6) as u64,
        end_ns: (to * 1e6) as u64,
    };
    for sample in udp.due_in(window) {
        let at = x(sample.due_ns as f64 / 1e6);
        match sample.latency_ns() {
            Some(ns) => draw!(
                out,
                r#"<circle class="dot" cx="{at:.1}" cy="{:.1}" r="1.8"/>"#,
                y(ns as f64 / 1e6)
            ),
            None => draw!(
                out,
                r#"<text class="lost middle" x="{at:.1}" y="{TOP}">×</text>"#
            ),
        }
    }
    if let Some(keys) = of(series, ProbeKind::Typist) {
        for sample in keys.due_in(window) {
            if let Some(ns) = sample.latency_ns() {
                let (at, up) = (x(sample.due_ns as f64 / 1e6), y(ns as f64 / 1e6));
                draw!(
                    out,
                    r#"<circle class="key" cx="{at:.1}" cy="{up:.1}" r="5"><title>a key: {:.1} ms</title></circle>"#,
                    ns as f64 / 1e6
                );
            }
        }
    }
    let mut tick = ((from - start) / step).ceil() * step;
    while start + tick <= to {
        draw!(
            out,
            r#"<text class="small middle" x="{:.1}" y="250">{tick:+.0}</text>"#,
            x(start + tick)
        );
        tick += step;
    }
    draw!(
        out,
        r#"<text class="small middle" x="{:.1}" y="272">milliseconds from the last answer before the pause; each dot is one request, by when it was due</text>"#,
        WIDTH / 2.0
    );
    out.push_str("</svg>");
    out
}

/// Every migration as a bar, as long as its silence, cut into phases.
pub(super) fn waterfall(report: &Report) -> String {
    const LEFT: f64 = 110.0;
    const ROW: f64 = 18.0;
    let rows: Vec<&Migration> = report
        .migrations
        .iter()
        .filter(|one| !one.phases.is_empty())
        .collect();
    let longest = rows
        .iter()
        .filter_map(|one| one.udp_gap_ms)
        .fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 70.0) / longest;
    let mut out = String::new();
    open(
        &mut out,
        rows.len() as f64 * ROW + 6.0,
        "Each migration's interruption, cut into phases",
    );
    for (row, one) in rows.iter().enumerate() {
        let top = row as f64 * ROW + 2.0;
        draw!(
            out,
            r#"<text class="small end" x="{:.1}" y="{:.1}">{}: {} → {}</text>"#,
            LEFT - 8.0,
            top + 12.0,
            one.number,
            escape(&one.from),
            escape(&one.to)
        );
        let mut at = LEFT;
        let rest = one.unattributed_ms.unwrap_or(0.0);
        let pieces = one
            .phases
            .iter()
            .map(|phase| (phase.name.as_str(), phase.ms))
            .chain([("unattributed", rest)]);
        for (name, ms) in pieces.filter(|(_, ms)| *ms > 0.0) {
            draw!(
                out,
                r#"<rect class="{}" x="{at:.1}" y="{top:.1}" width="{:.2}" height="{:.1}"><title>{}: {ms:.1} ms</title></rect>"#,
                class_of(name),
                ms * scale,
                ROW - 4.0,
                escape(name)
            );
            at += ms * scale;
        }
        let void = if one.valid { "" } else { " (void: probe late)" };
        draw!(
            out,
            r#"<text class="small" x="{:.1}" y="{:.1}">{:.0} ms{void}</text>"#,
            at + 6.0,
            top + 12.0,
            one.udp_gap_ms.unwrap_or(0.0)
        );
    }
    out.push_str("</svg>");
    out
}

/// What the colours of phases mean.
pub(super) fn legend() -> String {
    let mut out = String::from(r#"<ul class="legend">"#);
    let rest = ("unattributed", "what no mark explains");
    for (name, meaning) in PIECES.iter().chain([&rest]) {
        draw!(
            out,
            r#"<li><svg viewBox="0 0 12 12"><rect class="{}" width="12" height="12"/></svg><b>{name}</b> {meaning}</li>"#,
            class_of(name)
        );
    }
    out.push_str("</ul>");
    out
}

fn class_of(name: &str) -> String {
    PIECES
        .iter()
        .position(|(piece, _)| *piece == name)
        .map_or_else(|| "rest".to_owned(), |index| format!("p{index}"))
}
