//! A book as Markdown, for a summary of continuous integration or a comment: short enough for either.

use std::fmt::Write;

use super::book::Book;
use crate::verdict::Verdict;

/// Comments of common forges end at 64 KiB; what is longer is refused as a whole.
pub const BYTES_MAX: usize = 60_000;

/// The text, never longer than [`BYTES_MAX`].
#[must_use]
pub fn text(book: &Book) -> String {
    let mut out = String::new();
    let passed = book
        .scenarios
        .iter()
        .filter(|one| one.verdict == Verdict::Passed)
        .count();
    line(
        &mut out,
        &format!(
            "## elab: {passed} of {} scenarios passed\n\n| | scenario | runs | longest echo | UDP gap | vCPU pause |\n|---|---|---:|---:|---:|---:|",
            book.scenarios.len()
        ),
    );
    for one in &book.scenarios {
        let figure = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| one.figures.get(*name))
                .map_or_else(
                    || "–".to_owned(),
                    |values| {
                        format!(
                            "{:.0} (worst {:.0}) ms",
                            values.spread.median, values.spread.max
                        )
                    },
                )
        };
        line(
            &mut out,
            &format!(
                "| {} | {} | {} | {} | {} | {} |",
                one.verdict.word(),
                cell(&one.title()),
                one.runs.len(),
                figure(["longest-echo", "run-echo-worst"]),
                figure(["udp-gap", "run-udp-gap"]),
                figure(["vcpu-pause", "vcpu-pause"]),
            ),
        );
    }
    for one in &book.scenarios {
        let mut part = format!(
            "\n### {}: {}\n\n{}\n",
            cell(&one.title()),
            one.verdict.word(),
            cell(&one.headline)
        );
        for held in one.held() {
            line(&mut part, &format!("\n**{}**", cell(&held)));
        }
        if !one.limits.is_empty() {
            part.push_str("\n| | figure | found | limit |\n|---|---|---:|---:|\n");
            for limit in &one.limits {
                let mark = if limit.passed { "ok" } else { "**missed**" };
                line(
                    &mut part,
                    &format!(
                        "| {mark} | {} | {} | {} |",
                        limit.title,
                        limit.found(),
                        limit.words()
                    ),
                );
            }
        }
        for run in one.runs.iter().filter(|run| run.verdict != Verdict::Passed) {
            line(
                &mut part,
                &format!(
                    "\nRun {} ({}): {}\n\n    {}",
                    run.number,
                    run.verdict.word(),
                    cell(&run.reasons.join("; ")),
                    run.command
                ),
            );
        }
        if out.len() + part.len() > BYTES_MAX - TAIL {
            line(&mut out, "\n… the rest is in `report.html`.");
            break;
        }
        out.push_str(&part);
    }
    let machine = &book.machine;
    let mut foot = format!(
        "\n_{} × {}, QEMU {} with {}, elab {}; {:.0} s._\n",
        machine.cpus,
        cell(&machine.cpu),
        cell(&machine.qemu),
        machine.accelerator,
        machine.elab,
        book.seconds
    );
    foot.truncate(TAIL / 2);
    out.push_str(&foot);
    out
}

/// Room that is kept for what ends the text.
const TAIL: usize = 1000;

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a String takes any text");
}

/// Text inside a cell: bars and line ends would end it; very long text is for the page.
pub(super) fn cell(text: &str) -> String {
    const LONGEST: usize = 1500;
    let text: String = text.chars().take(LONGEST).collect();
    text.replace('|', "\\|")
        .replace(['\n', '\r'], " ")
        .replace('<', "&lt;")
}
