//! Commands about results: report, compare, replay, export-run, bisect.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab_protocol::Record;
use scenarios::compare;
use scenarios::evidence::archive;
use scenarios::evidence::cast::{Recording, markers};
use scenarios::report::book::Book;
use scenarios::report::{junit, markdown, screen};
use scenarios::scenario;

use super::run::progress;
use super::scenario::say;
use crate::scenario_run::arms::{self, Arm};
use crate::scenario_run::bisect::{self, Search};
use crate::scenario_run::merge;
use crate::scenario_run::one;
use crate::scenario_run::results::RESULTS;

/// Forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For a terminal
    Text,
    /// `report.json` itself
    Json,
    /// For a summary of continuous integration, at most 60 KB
    Markdown,
    /// JUnit XML
    Junit,
}

/// Arguments of `elab compare`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArguments {
    /// The one that is known: results, a program or a hypervisor image
    pub a: PathBuf,
    /// The one in question
    pub b: PathBuf,
    /// What programs or images are made to run
    #[arg(long, default_value = "demo", value_name = "SCENARIO")]
    pub scenario: String,
    /// Runs of each
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `elab bisect`.
#[derive(Clone, Debug, clap::Args)]
pub struct BisectArguments {
    /// A scenario file, or the name of one that comes with the program
    pub scenario: String,
    /// A revision at which it passes
    #[arg(long, value_name = "REVISION")]
    pub good: String,
    /// A revision at which it fails
    #[arg(long, default_value = "HEAD", value_name = "REVISION")]
    pub bad: String,
    /// Runs at each revision
    #[arg(long, short = 'n', default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repetitions: u32,
    /// What builds the program
    #[arg(
        long,
        default_value = "cargo build --release --package elab",
        value_name = "COMMAND"
    )]
    pub build: String,
    /// What it builds
    #[arg(long, default_value = "target/release/elab", value_name = "FILE")]
    pub program: PathBuf,
}

/// `elab report`.
///
/// # Errors
/// When there are no such results.
pub fn report(path: Option<PathBuf>, form: Form) -> Result<ExitCode> {
    let path = path.unwrap_or_else(|| Path::new(RESULTS).join("latest"));
    let book = book(&path)?;
    let text = match form {
        Form::Text => screen::summary(&book),
        Form::Json => serde_json::to_string_pretty(&book).context("cannot write JSON")? + "\n",
        Form::Markdown => markdown::text(&book),
        Form::Junit => junit::xml(&book).map_err(anyhow::Error::msg)?,
    };
    say(&text)?;
    Ok(ExitCode::from(book.verdict.exit_code()))
}

/// `elab report merge`.
///
/// # Errors
/// When the results do not go together.
pub fn merge(folders: &[PathBuf], into: &Path) -> Result<ExitCode> {
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let book = merge::merge(folders, into, command)?;
    say(&screen::summary(&book))?;
    println!("report: {}", into.join("report.html").display());
    Ok(ExitCode::from(book.counted().exit_code()))
}

pub(super) fn book(path: &Path) -> Result<Book> {
    arms::book(path)?.with_context(|| {
        format!(
            "{} holds no results; `elab run` makes some, below {RESULTS}",
            path.display()
        )
    })
}

/// `elab compare`.
///
/// # Errors
/// When there is nothing to compare, or a run leaves no report.
pub fn compare(arguments: &CompareArguments) -> Result<ExitCode> {
    let [a, b] = match (arms::book(&arguments.a)?, arms::book(&arguments.b)?) {
        (Some(a), Some(b)) => {
            progress(
                "these runs were made one after the other: what drifted between them is in the difference",
            );
            [a, b]
        }
        (None, None) => {
            let (a, b) = (Arm::of(&arguments.a)?, Arm::of(&arguments.b)?);
            let (_, variants) = scenario::find(&arguments.scenario)?;
            let [variant] = &variants[..] else {
                bail!(
                    "{} has a matrix; compare one combination at a time",
                    arguments.scenario
                );
            };
            arms::run(
                [&a, &b],
                &arguments.scenario,
                &variant.scenario,
                arguments.repetitions,
                &progress,
            )?
        }
        _ => bail!("compare results with results, or programs and images with one another"),
    };
    let comparison = compare::compare(&a, &b);
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&comparison).context("cannot write JSON")?
        );
    } else {
        let names = [&arguments.a, &arguments.b].map(|path| path.display().to_string());
        print!("{}", compare::summary(&comparison, [&names[0], &names[1]]));
    }
    Ok(ExitCode::from(comparison.outcome.exit_code()))
}

/// `elab export-run`.
///
/// # Errors
/// When there is no such run, or the file cannot be written.
pub fn export(run: &Path, file: Option<PathBuf>) -> Result<ExitCode> {
    if !run.join(one::RUN_FILE).is_file() {
        bail!(
            "{} is no folder of a run: it has no {}",
            run.display(),
            one::RUN_FILE
        );
    }
    let file = file.unwrap_or_else(|| {
        let name = run.file_name().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!("{name}.tar.gz"))
    });
    archive::pack(run, &file).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// `elab replay`.
///
/// # Errors
/// When there is no such run.
pub fn replay(run: &Path, play: bool, speed: f64) -> Result<ExitCode> {
    let scratch = tempfile::tempdir().context("no temporary folder can be made")?;
    let folder = if run.is_dir() {
        run.to_owned()
    } else {
        archive::unpack(run, scratch.path())
            .with_context(|| format!("cannot open {}", run.display()))?;
        scratch.path().to_owned()
    };
    let (then, now, records) = one::judge_again(&folder)?;
    if play {
        play_session(&folder, &records, speed)?;
    }
    println!("{} run {}, seed {}", then.scenario, then.number, then.seed);
    for step in &then.steps {
        println!(
            "{:>9.2} s  {}: {} {}",
            step.start_ms / 1000.0,
            step.name,
            step.state,
            step.detail
        );
    }
    for check in &now.checks {
        let mark = if check.passed { "ok  " } else { "FAIL" };
        println!("{mark}  {:<14} {}", check.name, check.detail);
    }
    for reason in &now.reasons {
        println!("{reason}");
    }
    println!(
        "by its evidence: {}; its report says: {}",
        now.verdict.word(),
        then.verdict.word()
    );
    Ok(ExitCode::from(now.verdict.exit_code()))
}

/// Shows the session's terminal as it was, with what happened in the window's title line below it.
fn play_session(folder: &Path, records: &[Record], speed: f64) -> Result<()> {
    let recording = Recording::read(&folder.join("session.output.jsonl"))
        .context("the run has no recording of a session")?;
    let mut out = stdout().lock();
    let mut marks = markers(records).into_iter().peekable();
    let below = recording.rows + 1;
    let mut last = recording.output.first().map_or(0, |(t_ns, _)| *t_ns);
    write!(out, "\x1b[2J\x1b[H")?;
    for (t_ns, text) in &recording.output {
        let wait = Duration::from_nanos(t_ns - last).div_f64(speed);
        // Nothing is lost by not watching a long rest.
        std::thread::sleep(wait.min(Duration::from_secs(2)));
        last = *t_ns;
        while let Some((_, mark)) = marks.next_if(|(at, _)| at <= t_ns) {
            // Saved and restored around it, so that the session's own cursor stays.
            write!(
                out,
                "\x1b7\x1b[{below};1H\x1b[2K{:>8.2} s  {mark}\x1b8",
                *t_ns as f64 / 1e9
            )?;
        }
        write!(out, "{text}")?;
        out.flush()?;
    }
    writeln!(out, "\x1b[0m\x1b[{};1H", below + 1)?;
    Ok(())
}

/// `elab bisect`.
///
/// # Errors
/// When git refuses, or the search leads nowhere.
pub fn bisect(arguments: &BisectArguments) -> Result<ExitCode> {
    // A file of the user's is not in the revisions that are searched.
    let scenario = match Path::new(&arguments.scenario).canonicalize() {
        Ok(path) if path.is_file() => path.display().to_string(),
        _ => arguments.scenario.clone(),
    };
    let search = Search {
        good: arguments.good.clone(),
        bad: arguments.bad.clone(),
        build: arguments.build.clone(),
        program: arguments.program.clone(),
        scenario,
        runs: arguments.repetitions,
    };
    let found = bisect::run(Path::new("."), &search, &progress)?;
    println!("{found}");
    Ok(ExitCode::SUCCESS)
}
