//! The summary that a terminal shows.

use std::fmt::Write;

use super::Report;

/// The report in a screenful, at most 100 columns wide.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    for line in wrap(&report.headline, 96) {
        line_to(&mut out, &line);
    }
    line_to(&mut out, "");
    line_to(
        &mut out,
        &format!(
            "{:<22} {:>10} {:>10} {:>10}   {}",
            "over all migrations", "median", "p95", "worst", "unit"
        ),
    );
    for one in &report.summary {
        let spread = one.spread;
        line_to(
            &mut out,
            &format!(
                "{:<22} {:>10.1} {:>10.1} {:>10.1}   {}",
                one.name, spread.median, spread.p95, spread.max, one.unit
            ),
        );
    }
    if let Some(worst) = worst(report) {
        line_to(&mut out, "");
        line_to(
            &mut out,
            &format!(
                "Where the longest UDP gap went (migration {}, {} to {}):",
                worst.number, worst.from, worst.to
            ),
        );
        let gap = worst.udp_gap_ms.unwrap_or(0.0).max(0.001);
        for phase in &worst.phases {
            line_to(&mut out, &bar(&phase.name, phase.ms, gap));
        }
        line_to(
            &mut out,
            &bar("unattributed", worst.unattributed_ms.unwrap_or(gap), gap),
        );
    }
    line_to(&mut out, "");
    for one in &report.expectations {
        let mark = if one.passed { "ok  " } else { "FAIL" };
        line_to(
            &mut out,
            &format!(
                "{mark}  {:<34} {:>14}   limit {}",
                one.name, one.value, one.limit
            ),
        );
    }
    let void = report.migrations.iter().filter(|one| !one.valid).count();
    if void > 0 {
        line_to(&mut out, "");
        line_to(
            &mut out,
            &format!(
                "In {void} migrations the probe itself was late; their UDP gap is void and left out."
            ),
        );
    }
    out
}

pub(super) fn worst(report: &Report) -> Option<&super::Migration> {
    let gap = |one: &&super::Migration| one.udp_gap_ms.unwrap_or(0.0);
    report
        .migrations
        .iter()
        .filter(|one| one.error.is_empty() && one.valid)
        .max_by(|a, b| gap(a).total_cmp(&gap(b)))
}

fn line_to(out: &mut String, line: &str) {
    writeln!(out, "{}", line.trim_end()).expect("a String takes any text");
}

pub(super) fn bar(name: &str, ms: f64, whole: f64) -> String {
    const WIDTH: f64 = 50.0;
    let cells = (ms / whole * WIDTH).round().clamp(0.0, WIDTH) as usize;
    format!("  {name:<18} {ms:>8.1} ms  {}", "█".repeat(cells))
}

pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
