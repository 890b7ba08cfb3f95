//! A release as Markdown, for its page on a forge. What is drawn is only on the page.

use std::fmt::Write;

use super::super::markdown::{BYTES_MAX, cell};
use super::html::commit;
use super::{Release, Row};
use crate::history::calendar;

/// The text, never longer than a forge takes.
pub(super) fn text(release: &Release) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes any text");
    line(format!(
        "# elab {}, {}\n\n{}\n",
        release.name,
        calendar::day(release.book.unix_s),
        cell(&release.headline())
    ));
    let rows = Row::all(release.book);
    let comparisons = release.comparisons(&rows);
    let (mut head, mut below) = (
        "| | scenario | figure | found | limit |".to_owned(),
        "|---|---|---|---:|---:|".to_owned(),
    );
    for earlier in &release.earlier {
        head.push_str(&format!(" {} |", cell(&earlier.name)));
        below.push_str("---|");
    }
    line(format!("{head}\n{below}"));
    for row in &rows {
        let mark = match row.limit {
            Some(limit) if !limit.passed => "**missed**",
            Some(_) => "held",
            None => "",
        };
        let mut text = format!(
            "| {mark} | {} | {} | {} | {} |",
            cell(&row.scenario.title()),
            cell(&row.title),
            row.found(),
            row.limit_in_words()
        );
        for before in comparisons.iter().map(|one| row.before(one)) {
            text.push_str(&format!(" {} |", cell(&before)));
        }
        line(text);
    }
    line("\n## Known limits\n".into());
    for limit in release.known_limits() {
        line(format!("- {}", cell(&limit)));
    }
    let machine = &release.book.machine;
    line(format!(
        "\n## How to get each number again\n\nBuilt from {}, hypervisor image sha256 `{}`. Run on {} × {}, Linux {}, QEMU {} with {}:\n\n    {}\n\nEach run by itself, and the hashes of all raw data, are in `release.html`.",
        commit(&release.commit),
        machine.image,
        machine.cpus,
        cell(&machine.cpu),
        machine.kernel,
        cell(&machine.qemu),
        machine.accelerator,
        release.book.command
    ));
    if out.len() > BYTES_MAX {
        const REST: &str = "\n\n… the rest is in `release.html`.\n";
        let mut end = BYTES_MAX - REST.len();
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(out[..end].rfind('\n').unwrap_or(end));
        out.push_str(REST);
    }
    out
}
