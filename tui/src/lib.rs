//! The terminal interface of a lab: see the pool, watch the session, break things, and see how long its user notices.
//!
//! A client of the lab protocol: it reads a run's event log, and what else lies in the run's folder, and sends
//! commands to the lab's socket. It knows nothing of hosts, QEMU or the switch. `app` holds state and changes it, purely; `view` draws
//! it, purely; this file joins them with a terminal. Figures come from `scenarios::measure`, so that screen and report agree.

#![forbid(unsafe_code)]

pub mod app;
mod beside;
pub mod command;
pub mod config;
pub mod keys;
mod lab_link;
pub mod log;
pub mod model;
pub mod run_folder;
pub mod screen;
mod shell_link;
mod terminal;
pub mod theme;
pub mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use lab_protocol::Command;

use app::{App, Effect, Input, Mode};
use beside::Beside;
use config::Config;
use lab_link::LabLink;
use log::Log;
use run_folder::Recordings;
use terminal::Screen;

pub use terminal::give_back_for_good;

/// Ten frames a second at most, and none when nothing has changed.
const FRAME: Duration = Duration::from_millis(100);

/// What is to be shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run's folder.
    pub folder: PathBuf,
    /// Where runs lie.
    pub runs: PathBuf,
    /// Settings.
    pub config: Config,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The lab was told to end. Else, if there is one, it stays up.
    pub down: bool,
    /// Commands that go on without the screen, and where they print.
    pub running: Vec<(String, PathBuf)>,
}

/// Shows a run until its user leaves, the terminal is gone, or `stop` is set. A lab that runs is shown live, a finished one
/// is replayed.
///
/// # Errors
/// When the folder holds no run, the settings contradict each other, or the terminal refuses.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Left> {
    let (inputs, incoming) = channel();
    let mut shown = Shown::open(options, &options.folder, &inputs)?;
    let mut screen = Screen::take(options.config.mouse).context("cannot take over the terminal")?;
    terminal::read_input(inputs.clone()).context("cannot start a thread")?;
    let ended = show(options, &mut shown, &mut screen, &inputs, &incoming, stop);
    // Drawing fails, too, when nobody is there to see it.
    if ended.is_err() && terminal::is_gone()? {
        return Ok(Left::default());
    }
    ended
}

fn show(
    options: &Options,
    shown: &mut Shown,
    screen: &mut Screen,
    inputs: &Sender<Input>,
    incoming: &Receiver<Input>,
    stop: &AtomicBool,
) -> Result<Left> {
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut dirty = true;
    let mut drawn = Instant::now() - FRAME;
    let mut beside: BTreeMap<String, Beside> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) && !terminal::is_gone()? {
        if dirty && drawn.elapsed() >= FRAME {
            draw(screen, &mut shown.app)?;
            drawn = Instant::now();
            dirty = false;
        }
        let patience = if shown.app.is_behind() {
            Duration::ZERO
        } else if dirty {
            FRAME.saturating_sub(drawn.elapsed())
        } else {
            FRAME
        };
        let mut effects = Vec::new();
        let mut typed = false;
        let mut next = incoming.recv_timeout(patience).ok();
        while let Some(input) = next {
            typed |= match &input {
                Input::Answer { .. } | Input::Progress { .. } => false,
                // The answer to one's own key is seen at once, a flood of output at the next frame.
                Input::ShellPrinted { .. } => shown.app.shell_waits_ns().is_some(),
                _ => true,
            };
            effects.extend(shown.app.update(input, now()));
            dirty = true;
            next = incoming.try_recv().ok();
        }
        dirty |= shown.follow(now())?;
        for effect in effects {
            dirty = true;
            match effect {
                Effect::Send(command) => shown.send(command),
                Effect::ListRuns => list_runs(&options.runs, &mut shown.app, now()),
                Effect::Open(folder) => shown.switch_to(options, &folder, inputs, now()),
                Effect::OpenReport(path) => open_report(&path, &mut shown.app),
                Effect::SaveRecording { from_ns, to_ns } => shown.save_recording(from_ns, to_ns),
                Effect::Run(words) => match beside::start(&words, &options.runs, inputs.clone()) {
                    Ok(started) => {
                        beside.insert(words.join(" "), started);
                    }
                    Err(error) => {
                        let failed = Input::Answer {
                            words: words.join(" "),
                            result: Err(error.to_string()),
                        };
                        shown.app.update(failed, now());
                    }
                },
                Effect::CancelRun(words) => {
                    if let Some(running) = beside.get(&words) {
                        running.cancel();
                    }
                }
                Effect::OpenShell { rows, columns } => {
                    let size = (rows, columns);
                    match shell_link::open(&shown.folder, size, began, inputs.clone()) {
                        Ok(shell) => shown.shell = Some(shell),
                        Err(error) => {
                            let ended = Input::ShellEnded(format!("{error:#}"));
                            shown.app.update(ended, now());
                        }
                    }
                }
                Effect::TypeShell(bytes) => {
                    if let Some(shell) = &shown.shell {
                        shell.type_keys(bytes);
                    }
                }
                Effect::Leave { down } => {
                    let jobs = shown.app.jobs.iter();
                    let running = jobs.filter_map(|job| beside.remove_entry(&job.words));
                    return Ok(Left {
                        running: running.map(|(words, one)| (words, one.output)).collect(),
                        down: shown.leave(down),
                    });
                }
            }
        }
        if typed {
            // Answered at once, not at the next frame.
            draw(screen, &mut shown.app)?;
            drawn = Instant::now();
            dirty = false;
        }
    }
    Ok(Left::default())
}

fn draw(screen: &mut Screen, app: &mut App) -> Result<()> {
    screen
        .terminal
        .draw(|frame| view::draw(app, frame))
        .context("cannot draw")?;
    Ok(())
}

/// Where a replay begins: just before the first thing that was done to the lab, or at its end.
fn replay_start(log: &Log) -> u64 {
    const BEFORE_NS: u64 = 2_000_000_000;
    let is_done = |line: &usize| match log.kind(*line) {
        Some(b"migration-requested" | b"link-fault") => true,
        Some(b"host-power") => log.contains(*line, r#""state":"pulled""#),
        _ => false,
    };
    (0..log.len())
        .find(is_done)
        .and_then(|line| log.record(line))
        .map_or_else(
            || log.last_t_ns(),
            |record| record.t_ns.saturating_sub(BEFORE_NS),
        )
}

fn list_runs(base: &Path, app: &mut App, now_ns: u64) {
    match run_folder::list(base, SystemTime::now()) {
        Ok(runs) => {
            app.update(Input::Runs(runs), now_ns);
        }
        Err(error) => app.say(
            app::Level::Failed,
            format!("cannot read {}: {error}", base.display()),
        ),
    }
}

/// Shows a report in the desktop's browser; says where it is, for there may be no desktop.
fn open_report(path: &Path, app: &mut App) {
    let opened = process::Command::new("xdg-open")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // The desktop's program goes on by itself; a thread waits for its end.
    if let Ok(mut child) = opened {
        std::thread::spawn(move || child.wait());
    }
    app.say(app::Level::Note, format!("report: {}", path.display()));
}

/// A run on the screen.
struct Shown {
    app: App,
    folder: PathBuf,
    link: Option<LabLink>,
    recordings: Recordings,
    /// One's own shell in the guest.
    shell: Option<scenarios::session::Shell>,
}

impl Shown {
    fn open(options: &Options, folder: &Path, answers: &Sender<Input>) -> Result<Self> {
        let mut log = Log::open(&folder.join("events.jsonl"))?;
        let status = lab_link::ask(folder, &Command::Status).ok();
        let uptime = status.and_then(|status| status["uptime_ns"].as_u64());
        let mode = match uptime {
            // Our clock begins now.
            Some(uptime) => Mode::Live {
                ahead_ns: i128::from(uptime),
            },
            None => {
                log.read_to_end().context("cannot read the event log")?;
                Mode::Replay {
                    at_ns: replay_start(&log),
                    playing: false,
                }
            }
        };
        let link = match mode {
            Mode::Live { .. } => {
                Some(LabLink::start(folder, answers.clone()).context("cannot start a thread")?)
            }
            Mode::Replay { .. } => None,
        };
        let mut shown = Self {
            app: App::new(&options.config, log, mode)?,
            folder: folder.to_owned(),
            link,
            recordings: Recordings::new(folder),
            shell: None,
        };
        shown.app.fold();
        Ok(shown)
    }

    /// Reads what was appended; says whether anything is to be drawn.
    fn follow(&mut self, now_ns: u64) -> Result<bool> {
        let grown = self.app.log.follow().context("cannot read the event log")?;
        let printed = self
            .recordings
            .follow(&mut self.app.screens)
            .context("cannot read the run's recordings")?;
        if !self.app.joinable && self.link.is_some() {
            self.app.joinable = self.folder.join(shell_link::CONFIGURATION).exists();
        }
        let moving = matches!(
            self.app.mode,
            Mode::Live { .. } | Mode::Replay { playing: true, .. }
        );
        let said = self.app.toast.is_some();
        self.app.update(Input::Tick, now_ns);
        if printed.console {
            self.app.console_printed();
        }
        // A message that has been shown for long enough goes, also when nothing else happens.
        let changed = grown || printed.any() || said != self.app.toast.is_some();
        Ok(changed || self.app.is_behind() || moving)
    }

    fn send(&mut self, command: Command) {
        match &self.link {
            Some(link) => link.send(command),
            None => self.app.say(
                app::Level::Note,
                "this is a finished run; nothing can be done to it",
            ),
        }
    }

    /// Shows another run, or says why it cannot.
    fn switch_to(
        &mut self,
        options: &Options,
        folder: &Path,
        answers: &Sender<Input>,
        now_ns: u64,
    ) {
        match Self::open(options, folder, answers) {
            Ok(mut other) => {
                if let Mode::Live { ahead_ns } = &mut other.app.mode {
                    *ahead_ns -= i128::from(now_ns);
                }
                // What runs beside the screen belongs to no run.
                other.app.jobs = std::mem::take(&mut self.app.jobs);
                *self = other;
            }
            Err(error) => self.app.say(app::Level::Failed, format!("{error:#}")),
        }
    }

    fn save_recording(&mut self, from_ns: u64, to_ns: u64) {
        match run_folder::save_recording(&self.folder, from_ns, to_ns) {
            Ok(file) => self
                .app
                .say(app::Level::Done, format!("recorded: {}", file.display())),
            Err(error) => self
                .app
                .say(app::Level::Failed, format!("nothing was recorded: {error}")),
        }
    }

    /// Ends the lab if that is wanted; says whether it was told. One that has just ended by itself is as well down.
    fn leave(&self, down: bool) -> bool {
        down && lab_link::ask(&self.folder, &Command::Down).is_ok()
    }
}
