//! `elab tui`: joins this terminal with a lab, a demo that it starts, or a finished run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tui::config::{Config, sample};
use tui::theme::Theme;

use super::Which;
use crate::interrupt::Interrupts;
use crate::run_folder::RUNS;

/// Name of the run that `--demo` starts.
const DEMO: &str = "tui-demo";
/// Images may have to be built first.
const DEMO_PATIENCE: Duration = Duration::from_secs(900);
/// How often it is looked whether the demo's log is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Arguments of `elab tui`.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["demo", "replay"]))]
pub struct TuiArguments {
    /// Which lab
    #[command(flatten)]
    pub which: Which,
    /// Start a demo with ten migrations and watch it
    #[arg(long)]
    pub demo: bool,
    /// Look at a finished run: a run folder, or its name
    #[arg(long, value_name = "RUN")]
    pub replay: Option<PathBuf>,
    /// Look only: no command is sent
    #[arg(long)]
    pub readonly: bool,
    /// Draw with ASCII characters only
    #[arg(long)]
    pub ascii: bool,
    /// Let the mouse select; hold shift to mark text
    #[arg(long)]
    pub mouse: bool,
    /// Keys and looks
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print a configuration file with every setting and key at its default
    #[arg(long)]
    pub print_config: bool,
}

/// Shows the terminal interface until its user leaves.
pub(super) fn run(arguments: &TuiArguments) -> Result<ExitCode> {
    if arguments.print_config {
        print!("{}", sample());
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.readonly |= arguments.readonly;
    config.ascii |= arguments.ascii;
    config.mouse |= arguments.mouse;
    // See no-color.org: any value but an empty one.
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        config.theme = Theme::Mono;
    }

    let interrupts = Interrupts::take()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    interrupts.on_interrupt(move || flag.store(true, Ordering::Relaxed));
    interrupts.before_exit(tui::give_back_for_good);

    let runs = PathBuf::from(RUNS);
    let folder = if arguments.demo {
        start_demo(&runs, &stop)?
    } else if let Some(replay) = &arguments.replay {
        find_run(&runs, replay)?
    } else {
        let folder = runs.join(&arguments.which.name);
        if !folder.join("events.jsonl").exists() {
            bail!(
                "there is no lab \"{}\" here; `elab up` starts one, `elab tui --demo` a demo, `elab tui --replay RUN` shows a finished run",
                arguments.which.name
            );
        }
        folder
    };
    let options = tui::Options {
        folder,
        runs,
        config,
    };
    let left = tui::run(&options, &stop)?;
    for (words, output) in &left.running {
        println!("elab {words} goes on; it prints into {}", output.display());
    }
    if left.down {
        println!("the lab has been told to end");
    }
    Ok(ExitCode::SUCCESS)
}

/// A run by its folder or its name.
fn find_run(runs: &Path, wanted: &Path) -> Result<PathBuf> {
    [wanted.to_owned(), runs.join(wanted)]
        .into_iter()
        .find(|folder| folder.join("events.jsonl").exists())
        .with_context(|| {
            format!(
                "{} is no run: neither a folder with an events.jsonl nor a name in {}",
                wanted.display(),
                runs.display()
            )
        })
}

/// Starts a demo in the background and waits until its log begins.
fn start_demo(runs: &Path, stop: &AtomicBool) -> Result<PathBuf> {
    let folder = runs.join(DEMO);
    let output = runs.join(format!("{DEMO}.log"));
    std::fs::create_dir_all(runs).with_context(|| format!("cannot make {}", runs.display()))?;
    let log = File::create(&output).with_context(|| format!("cannot make {}", output.display()))?;
    // An earlier demo's log would be taken for this one's.
    match std::fs::remove_file(folder.join("events.jsonl")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", folder.display()));
        }
        _ => {}
    }
    let elab = std::env::current_exe().context("cannot find this program")?;
    let mut demo = Program::new(elab)
        .args(["demo", "--name", DEMO, "--migrations", "10"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the demo's output")?)
        .stderr(log)
        .spawn()
        .context("cannot start the demo")?;
    eprintln!("starting a demo; its output goes to {}", output.display());
    let mut said =
        File::open(&output).with_context(|| format!("cannot read {}", output.display()))?;
    let deadline = Instant::now() + DEMO_PATIENCE;
    while !folder.join("events.jsonl").exists() {
        if let Some(status) = demo.try_wait().context("cannot wait for the demo")? {
            pass_on(&mut said);
            bail!("the demo ended early ({status}); see {}", output.display());
        }
        // Images may be built first, which takes a while.
        pass_on(&mut said);
        if stop.load(Ordering::Relaxed) || Instant::now() > deadline {
            end(&mut demo);
            bail!("the demo had not begun; see {}", output.display());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(folder)
}

/// Prints what was written since.
fn pass_on(said: &mut File) {
    // Whoever does not see it finds it in the file.
    let _ = std::io::copy(said, &mut std::io::stderr());
}

/// Ends a demo that has not begun. One that is gone needs nothing.
fn end(demo: &mut Child) {
    let _ = demo.kill();
    let _ = demo.wait();
}
