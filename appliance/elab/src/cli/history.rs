//! `elab history`: how figures went from commit to commit.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use scenarios::history::trend::Trend;
use scenarios::history::{self, Entry, History, calendar};
use scenarios::scenario::figure;

use super::run::progress;
use super::scenario::say;
use crate::scenario_run::{arms, origin};

/// The history of this working folder. It lies beside the results, and retention does not touch it.
pub const HISTORY: &str = ".elab/history.jsonl";
/// Figures that are shown where a scenario has them, and none is asked for.
const SHOWN: [&str; 6] = [
    "longest-echo",
    "udp-gap",
    "vcpu-pause",
    "total",
    "run-echo-p95",
    "outage-echo",
];

/// Arguments of `elab history`.
#[derive(Clone, Debug, clap::Args)]
pub struct HistoryArguments {
    /// Only these scenarios
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// A file of history; several are read as one
    #[arg(long = "file", value_name = "FILE", default_value = HISTORY)]
    pub files: Vec<PathBuf>,
    /// Figures to show (`elab list --figures`) instead of the usual ones
    #[arg(long = "figure", value_name = "FIGURE", value_parser = known_figure)]
    pub figures: Vec<String>,
    /// Only the latest commits of each scenario
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub last: u16,
    /// Print JSON: all figures with every value
    #[arg(long)]
    pub json: bool,
    /// First append the runs of this folder of results, as those of other machines
    #[arg(long = "add", value_name = "RESULTS")]
    pub add: Vec<PathBuf>,
    /// The commit that added results were made from
    #[arg(long, value_name = "COMMIT", requires = "add")]
    pub commit: Option<String>,
}

fn known_figure(text: &str) -> Result<String, String> {
    match figure::find(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("no such figure; `elab list --figures` shows them".into()),
    }
}

/// `elab history`.
///
/// # Errors
/// When a file cannot be read, or holds nothing of what is asked for.
pub fn history(arguments: &HistoryArguments) -> Result<ExitCode> {
    for results in &arguments.add {
        let [file] = &arguments.files[..] else {
            bail!("results are added to one file: give --file once");
        };
        add(results, arguments.commit.as_deref(), file)?;
    }
    let history = read(&arguments.files)?;
    let wanted: Vec<Entry> = history
        .entries
        .into_iter()
        .filter(|entry| {
            arguments.scenarios.is_empty() || arguments.scenarios.contains(&entry.scenario)
        })
        .collect();
    if wanted.is_empty() && !arguments.scenarios.is_empty() {
        bail!(
            "the history has no run of {}",
            arguments.scenarios.join(", ")
        );
    }
    let mut trends = Trend::all(&wanted);
    for trend in &mut trends {
        let old = trend.points.len().saturating_sub(arguments.last.into());
        trend.points.drain(..old);
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&trends).context("cannot write JSON")?;
        return say(&format!("{text}\n"));
    }
    let figures: Vec<&str> = match &arguments.figures[..] {
        [] => SHOWN.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let text: String = trends.iter().map(|trend| show(trend, &figures)).collect();
    say(&text)
}

/// Reads files of history, and says which lines could not be.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn read(files: &[PathBuf]) -> Result<History> {
    let history = History::read(files).context(
        "each `elab run` appends to its --history; `elab history --add RESULTS` adds older ones",
    )?;
    for line in &history.left_out {
        progress(&format!("left out: {line}"));
    }
    Ok(history)
}

fn add(results: &Path, commit: Option<&str>, file: &Path) -> Result<()> {
    let book = arms::book(results)?
        .with_context(|| format!("{} is no folder of results", results.display()))?;
    let entries = Entry::of_book(&book, commit.unwrap_or_default());
    history::append(file, &entries).with_context(|| format!("cannot write {}", file.display()))
}

/// Appends the runs of a book to a history.
///
/// # Errors
/// When it cannot be written.
pub(super) fn append(book: &scenarios::report::book::Book, file: &Path) -> Result<()> {
    let entries = Entry::of_book(book, &origin::commit());
    history::append(file, &entries)
        .with_context(|| format!("cannot append to the history {}", file.display()))
}

/// A trend for a terminal of 80 columns.
fn show(trend: &Trend, figures: &[&str]) -> String {
    let machine = &trend.machine;
    let mut out = format!(
        "{}\n  on {} × {}, {}, QEMU {}, Linux {}\n",
        trend.title(),
        machine.cpus,
        machine.cpu,
        machine.accelerator,
        machine.qemu.split(' ').next().unwrap_or_default(),
        machine.kernel
    );
    let mut line = |text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", text.trim_end());
    };
    for name in figures {
        let has = |point: &&scenarios::history::trend::Point| point.figures.contains_key(*name);
        if !trend.points.iter().any(|point| has(&point)) {
            continue;
        }
        let (title, unit) = figure::find(name).map_or((*name, ""), |one| (one.title, one.unit));
        line(format!("\n  {title}, {unit}   {}", trend.sparkline(name)));
        line(format!(
            "    {:<18} {:<8} {:<10} {:>6} {:>9} {:>9} {:>9} {:>6}",
            "commit", "image", "first", "passed", "median", "p95", "worst", "values"
        ));
        for point in trend.points.iter().filter(has) {
            let found = &point.figures[*name];
            let commit = match &point.commit[..] {
                "" => "unknown",
                commit => commit,
            };
            line(format!(
                "    {commit:<18} {:<8} {} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>6}",
                point.image.get(..8).unwrap_or("unknown"),
                calendar::day(point.unix_s),
                format!("{}/{}", point.verdicts[0], point.runs()),
                found.spread.median,
                found.spread.p95,
                found.spread.max,
                found.samples.len()
            ));
        }
    }
    line(String::new());
    out
}
