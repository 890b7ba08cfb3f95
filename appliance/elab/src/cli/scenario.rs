//! Commands about scenarios: run, check, list, schema.

use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scenarios::history::History;
use scenarios::report::book::{Book, ScenarioReport};
use scenarios::report::run::RunReport;
use scenarios::report::screen;
use scenarios::scenario::file::Pattern;
use scenarios::scenario::{self, Scenario, Variant, figure, library};

use super::gate;
use super::history::{self, HISTORY};
use super::run::progress;
use crate::assembly;
use crate::interrupt::{self, Interrupts};
use crate::run_folder::RUNS;
use crate::scenario_run::many::{self, Job, Weight};
use crate::scenario_run::one::{self, Order};
use crate::scenario_run::results::{self, RESULTS, Retention};
use crate::scenario_run::shard::{self, Shard};

/// Arguments of `elab run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArguments {
    /// Scenario files, or names of scenarios that come with the program (`elab list`)
    #[arg(value_name = "SCENARIO", required_unless_present = "tag")]
    pub scenarios: Vec<String>,
    /// All scenarios that come with the program and have this tag
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
    /// Run each so often instead of as often as it says
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: Option<u32>,
    /// Seed of the first run; the next has the next number
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Replace a value of the scenario, as steps.move.migrate.times=5
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub settings: Vec<String>,
    /// Runs beside one another, at most; those that are measured have the machine to themselves all the same
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Run only this share of the runs, as 2/4; other machines that are told the same words run the others, and
    /// `elab report merge` joins the results
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Divide runs by how long they took in this history, which must be the same for all shares; a file that is not
    /// there knows nothing
    #[arg(long, value_name = "FILE", requires = "shard")]
    pub times: Option<PathBuf>,
    /// Append the runs to this history (`elab history` shows it)
    #[arg(long, value_name = "FILE", default_value = HISTORY)]
    pub history: PathBuf,
    /// What may fail for a while without failing the whole (TOML); an entry past its day is an error
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,
    /// Ask before each step
    #[arg(long)]
    pub step: bool,
    /// Stop at events like this, as migration-phase or migration-phase:pre-copy; the lab runs on, and can be looked at
    #[arg(long = "break", value_name = "EVENT[:VALUE]", value_parser = pattern)]
    pub breakpoints: Vec<Pattern>,
    /// Keep disks and captures of runs that passed, too
    #[arg(long)]
    pub keep: bool,
    /// Capture the hosts' ports even where the scenario does not ask for it
    #[arg(long)]
    pub capture: bool,
    /// Boot hosts by QEMU's own kernel loader instead of firmware and GRUB from the ISO
    #[arg(long)]
    pub fast_boot: bool,
    /// Use this bootable image (an ISO, or an ELF with --fast-boot) instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Boot h1 from this image, as of the last release: guests move between versions
    #[arg(long, value_name = "FILE")]
    pub old_image: Option<PathBuf>,
    /// Also write the report's JSON here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Arguments of a run's own process.
#[derive(Clone, Debug, clap::Args)]
pub struct RunOneArguments {
    /// File of the scenario
    pub file: PathBuf,
    /// Values that replace those of the file
    #[arg(long = "set")]
    pub settings: Vec<String>,
    /// The combination of the matrix in words
    #[arg(long, default_value = "")]
    pub variant: String,
    /// Name of the lab
    #[arg(long)]
    pub name: String,
    /// Number of the run
    #[arg(long)]
    pub number: u32,
    /// Seed
    #[arg(long)]
    pub seed: u64,
    /// The line that runs it again
    #[arg(long)]
    pub again: String,
    /// See `elab run`
    #[arg(long)]
    pub step: bool,
    /// See `elab run`
    #[arg(long = "break", value_parser = pattern)]
    pub breakpoints: Vec<Pattern>,
    /// See `elab run`
    #[arg(long)]
    pub keep: bool,
    /// See `elab run`
    #[arg(long)]
    pub capture: bool,
    /// See `elab run`
    #[arg(long)]
    pub fast_boot: bool,
    /// See `elab run`
    #[arg(long)]
    pub image: Option<PathBuf>,
    /// See `elab run`
    #[arg(long)]
    pub old_image: Option<PathBuf>,
}

/// A breakpoint in words: the event's kind, and for some kinds what it must say.
fn pattern(text: &str) -> Result<Pattern, String> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    let field = match kind {
        "migration-phase" => "phase",
        "migration-round" => "round",
        "mark" => "text",
        "lease" => "change",
        _ => "state",
    };
    let value = match (value, field) {
        ("", _) => String::new(),
        (value, "round") => format!("round = {value}\n"),
        (value, field) => format!("{field} = {value:?}\n"),
    };
    scenario::pattern(&format!("event = {kind:?}\n{value}"))
}

/// A scenario file to be run: its text and what it holds.
struct Chosen {
    /// As it was named: file or name.
    word: String,
    text: String,
    variants: Vec<Variant>,
}

fn choose(arguments: &RunArguments) -> Result<Vec<Chosen>> {
    let mut words = arguments.scenarios.clone();
    if let Some(tag) = &arguments.tag {
        let before = words.len();
        for included in library::ALL {
            let variants = scenario::parse(included.name, included.text)?;
            if variants
                .iter()
                .any(|variant| variant.scenario.tags.contains(tag))
            {
                words.push(included.name.into());
            }
        }
        if words.len() == before {
            bail!("no scenario has the tag \"{tag}\"; `elab list` shows them");
        }
    }
    words
        .into_iter()
        .map(|word| {
            let (text, mut variants) = scenario::find(&word)?;
            if !arguments.settings.is_empty() {
                let settings = arguments.settings.clone();
                let scenario = scenario::parse_with(&word, &text, &settings)?;
                variants = vec![Variant {
                    scenario,
                    words: settings.join(" "),
                    settings,
                }];
            }
            Ok(Chosen {
                word,
                text,
                variants,
            })
        })
        .collect()
}

/// `elab run`.
///
/// # Errors
/// When a scenario is wrong, or the machine cannot run it.
pub fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let begun = Instant::now();
    let interrupts = Interrupts::take()?;
    let chosen = choose(arguments)?;
    let quarantine = gate::quarantine(arguments.quarantine.as_deref())?;
    let first = chosen.first().context("there is nothing to run")?;
    let name = match chosen.len() {
        1 => first.variants[0].scenario.name.get_ref().clone(),
        _ => arguments.tag.clone().unwrap_or_else(|| "several".into()),
    };
    results::sweep(Path::new(RUNS))?;
    let folder = results::begin(Path::new(RESULTS), &name, Retention::default())?;
    // Built once and before the first run, not by each.
    let image = image(arguments)?;
    let mut jobs = Vec::new();
    for one in &chosen {
        jobs_of(one, arguments, &folder, &image, &mut jobs)?;
    }
    if let Some(shard) = arguments.shard {
        keep(shard, arguments.times.as_deref(), &chosen, &mut jobs)?;
        if jobs.is_empty() {
            // Of few runs and many shards, some have none: that is no failure.
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
            println!("no run is in this share");
            return Ok(ExitCode::SUCCESS);
        }
    }
    progress(&format!(
        "{} runs; results go to {}",
        jobs.len(),
        folder.display()
    ));
    let mut told = |job: &Job, report: &RunReport| {
        progress(&format!(
            "{} run {}: {} after {:.0} s",
            job.title,
            job.number,
            report.verdict.word(),
            report.seconds
        ));
    };
    let reports = many::run(
        &jobs,
        &folder,
        arguments.jobs.into(),
        &interrupts,
        &mut told,
    );
    let reports = match reports {
        Err(_) if interrupts.came() => return Ok(ExitCode::from(interrupt::EXIT_CODE)),
        other => other?,
    };
    let scenarios = gather(&chosen, &jobs, reports);
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let mut book = Book::new(
        command,
        results::unix_s(),
        begun.elapsed().as_secs_f64(),
        scenarios,
    );
    quarantine.mark(&mut book);
    book.write(&folder)
        .with_context(|| format!("cannot write the report into {}", folder.display()))?;
    history::append(&book, &arguments.history)?;
    if let Some(path) = &arguments.json {
        std::fs::copy(folder.join("report.json"), path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", screen::summary(&book));
    println!("report: {}", folder.join("report.html").display());
    Ok(ExitCode::from(book.counted().exit_code()))
}

/// Leaves the runs of a share, by the times that they are expected to take.
fn keep(shard: Shard, times: Option<&Path>, chosen: &[Chosen], jobs: &mut Vec<Job>) -> Result<()> {
    let history = match times {
        Some(file) if file.exists() => history::read(&[file.to_owned()])?,
        _ => History::default(),
    };
    let variants: Vec<&Variant> = chosen.iter().flat_map(|one| &one.variants).collect();
    let limits: Vec<Duration> = jobs
        .iter()
        .map(|job| variants[job.scenario].scenario.timeout.0)
        .collect();
    let measured: Vec<Option<Duration>> = jobs
        .iter()
        .map(|job| history.expected(&job.title, &job.variant))
        .collect();
    let times = shard::expected(&limits, &measured);
    let mine = shard.of(&times);
    let seconds = |all: bool| -> f64 {
        let chosen = times.iter().zip(&mine).filter(|(_, mine)| all || **mine);
        chosen.map(|(time, _)| time.as_secs_f64()).sum()
    };
    // Shares that print the same total were divided by the same times.
    progress(&format!(
        "this share: {} of {} runs, {:.0} s of {:.0} s; {} were measured before",
        mine.iter().filter(|mine| **mine).count(),
        jobs.len(),
        seconds(false),
        seconds(true),
        measured.iter().flatten().count()
    ));
    let mut mine = mine.into_iter();
    jobs.retain(|_| mine.next().unwrap_or(false));
    Ok(())
}

fn image(arguments: &RunArguments) -> Result<PathBuf> {
    let choices = assembly::Choices {
        name: String::new(),
        hosts: 0,
        host_memory_mib: 0,
        fast_boot: arguments.fast_boot,
        image: arguments.image.clone(),
        first_image: None,
        seed: 0,
        capture: false,
        guests: Vec::new(),
    };
    let artifacts = assembly::artifacts(&choices, &progress)?;
    Ok(artifacts.boot.path().to_owned())
}

/// The jobs of a scenario file, variant by variant.
fn jobs_of(
    chosen: &Chosen,
    arguments: &RunArguments,
    folder: &Path,
    image: &Path,
    jobs: &mut Vec<Job>,
) -> Result<()> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let name = chosen.variants[0].scenario.name.get_ref();
    // What is run is kept beside its results.
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, &chosen.text)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let before = jobs.last().map_or(0, |job: &Job| job.scenario + 1);
    for (position, variant) in chosen.variants.iter().enumerate() {
        let scenario = &variant.scenario;
        let times = arguments.repetitions.unwrap_or(scenario.repetitions);
        for number in 1..=times {
            let first = arguments.seed.unwrap_or(scenario.seed);
            let seed = first.wrapping_add(u64::from(number) - 1);
            let lab = match chosen.variants.len() {
                1 => format!("{name}-{number}"),
                _ => format!("{name}-{}{number}", letter(position)),
            };
            let again = again(chosen, variant, seed, arguments);
            let mut words: Vec<String> = vec!["run-one".into(), file.display().to_string()];
            for (option, value) in [
                ("--variant", variant.words.clone()),
                ("--name", lab.clone()),
                ("--number", number.to_string()),
                ("--seed", seed.to_string()),
                ("--again", again.clone()),
                ("--image", image.display().to_string()),
            ] {
                words.extend([option.to_owned(), value]);
            }
            if let Some(old) = &arguments.old_image {
                words.extend(["--old-image".to_owned(), old.display().to_string()]);
            }
            for setting in &variant.settings {
                words.extend(["--set".to_owned(), setting.clone()]);
            }
            for (option, given) in [
                ("--step", arguments.step),
                ("--keep", arguments.keep),
                ("--capture", arguments.capture),
                ("--fast-boot", arguments.fast_boot),
            ] {
                if given {
                    words.push(option.into());
                }
            }
            for pattern in &arguments.breakpoints {
                words.extend(["--break".to_owned(), breakpoint_words(pattern)]);
            }
            jobs.push(Job {
                scenario: before + position,
                arguments: words,
                name: lab,
                title: name.clone(),
                variant: variant.words.clone(),
                number,
                seed,
                command: again,
                weight: Weight::of(scenario, cpus),
            });
        }
    }
    Ok(())
}

/// Tells the variants of a scenario apart in names of folders: `a`, `b`, ..., `z`, `ba`, ...
fn letter(position: usize) -> String {
    let last = char::from(b'a' + u8::try_from(position % 26).unwrap_or(0));
    match position / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", letter(more)),
    }
}

fn breakpoint_words(pattern: &Pattern) -> String {
    let kind = pattern.event.get_ref();
    let value = pattern
        .phase
        .and_then(|phase| serde_json::to_value(phase).ok())
        .and_then(|value| value.as_str().map(str::to_owned))
        .or_else(|| pattern.round.map(|round| round.to_string()))
        .or_else(|| pattern.text.clone())
        .or_else(|| pattern.change.clone())
        .or_else(|| pattern.state.clone());
    match value {
        Some(value) => format!("{kind}:{value}"),
        None => kind.clone(),
    }
}

/// A line for the shell that makes a run again.
fn again(chosen: &Chosen, variant: &Variant, seed: u64, arguments: &RunArguments) -> String {
    let mut words = vec!["elab run".to_owned(), quoted(&chosen.word)];
    for setting in &variant.settings {
        words.push(format!("--set {}", quoted(setting)));
    }
    words.push(format!("-n 1 --seed {seed}"));
    if arguments.fast_boot {
        words.push("--fast-boot".into());
    }
    if let Some(image) = &arguments.image {
        words.push(format!("--image {}", quoted(&image.display().to_string())));
    }
    if let Some(old) = &arguments.old_image {
        words.push(format!(
            "--old-image {}",
            quoted(&old.display().to_string())
        ));
    }
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The reports of the runs under their scenarios.
fn gather(chosen: &[Chosen], jobs: &[Job], reports: Vec<RunReport>) -> Vec<ScenarioReport> {
    let variants: Vec<&Variant> = chosen.iter().flat_map(|one| &one.variants).collect();
    let mut runs: Vec<Vec<RunReport>> = vec![Vec::new(); variants.len()];
    for (job, report) in jobs.iter().zip(reports) {
        runs[job.scenario].push(report);
    }
    variants
        .into_iter()
        .zip(runs)
        // A share may have no run of some.
        .filter(|(_, runs)| !runs.is_empty())
        .map(|(variant, runs)| ScenarioReport::new(&variant.scenario, &variant.words, runs))
        .collect()
}

/// A run's own process.
///
/// # Errors
/// When the lab could not be had.
pub fn run_one(arguments: RunOneArguments) -> Result<ExitCode> {
    let interrupts = Interrupts::take()?;
    let text = std::fs::read_to_string(&arguments.file)
        .with_context(|| format!("cannot read {}", arguments.file.display()))?;
    let file = arguments.file.display().to_string();
    let order = Order {
        scenario: scenario::parse_with(&file, &text, &arguments.settings)?,
        text,
        settings: arguments.settings,
        variant: arguments.variant,
        name: arguments.name,
        number: arguments.number,
        seed: arguments.seed,
        command: arguments.again,
        fast_boot: arguments.fast_boot,
        image: arguments.image,
        old_image: arguments.old_image,
        keep: arguments.keep,
        capture: arguments.capture,
        step: arguments.step,
        breakpoints: arguments.breakpoints,
    };
    let report = one::run(&order, &interrupts, &progress)?;
    Ok(ExitCode::from(report.verdict.exit_code()))
}

/// `elab check`.
///
/// # Errors
/// When no file is wrong but the output cannot be written.
pub fn check(files: &[PathBuf]) -> Result<ExitCode> {
    let mut wrong = false;
    for file in files {
        match scenario::read(file) {
            Ok((_, variants)) => {
                let scenario = &variants[0].scenario;
                println!(
                    "{}: ok, {} steps, {} combinations, {} runs",
                    file.display(),
                    scenario.steps.get_ref().len(),
                    variants.len(),
                    variants.len() * scenario.repetitions as usize
                );
            }
            Err(error) => {
                wrong = true;
                eprintln!("{error}");
            }
        }
    }
    Ok(ExitCode::from(if wrong { 2 } else { 0 }))
}

/// `elab list`.
///
/// # Errors
/// When a scenario that comes with the program is wrong.
pub fn list(json: bool, figures: bool) -> Result<ExitCode> {
    if figures {
        let lines = figure::ALL
            .iter()
            .map(|one| format!("{:<22} {:<4} {}\n", one.name, one.unit, one.meaning));
        return say(&lines.collect::<String>());
    }
    let mut all: Vec<Scenario> = Vec::new();
    for included in library::ALL {
        let variants = scenario::parse(included.name, included.text)?;
        all.extend(variants.into_iter().map(|variant| variant.scenario).take(1));
    }
    if json {
        let list: Vec<_> = all
            .iter()
            .map(|one| {
                serde_json::json!({
                    "name": one.name.get_ref(),
                    "why": one.why.get_ref().trim(),
                    "tags": one.tags,
                    "hosts": one.pool.hosts.get_ref(),
                    "guests": one.guests.get_ref().len(),
                    "repetitions": one.repetitions,
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&list).context("cannot write JSON")?;
        return say(&format!(
            "{text}
"
        ));
    }
    let lines = all.iter().map(|one| {
        let (name, why) = (one.name.get_ref(), one.why.get_ref().trim());
        format!("{name}  [{}]\n    {why}\n", one.tags.join(", "))
    });
    say(&lines.collect::<String>())
}

/// `elab schema`.
///
/// # Errors
/// Never in practice: a schema is JSON.
pub fn schema() -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(&scenario::schema()).context("cannot write JSON")?;
    say(&format!("{text}\n"))
}

/// Prints a text. A reader that has had enough, such as `head`, is no error.
pub(super) fn say(text: &str) -> Result<ExitCode> {
    match stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
