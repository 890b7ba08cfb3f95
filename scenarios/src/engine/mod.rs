//! Runs a scenario on a lab.
//!
//! The engine is one loop that takes what the lab's event log says and what its own actions report, in order of arrival; it never
//! sleeps to wait for something. Actions that take time run on threads of their own and report their end to the loop. Of a
//! lab it knows what [`Lab`] says and nothing else, so a test can be one.
//!
//! It drives and judges nothing: what came of a run is decided by [`crate::verdict`] from the event log, and could be
//! decided again by anyone.

mod actions;
pub mod factor;
mod health;
mod pattern;
mod reconnect;
mod sessions;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use lab_protocol::{Command, Event, ProbeKind, Record};
use serde_json::Value;

use crate::scenario::{
    file::{Pattern, Scenario},
    step::Step,
};
use crate::session::{Access, Stream};

pub use pattern::matches;

/// A step without `within` has so long, on a machine of factor 1.
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// What the engine asks of a lab.
pub trait Lab: Send + Sync {
    /// Carries out a command, however long that takes.
    ///
    /// # Errors
    /// In words for people.
    fn execute(&self, command: &Command) -> Result<Value, String>;
    /// Hands every record that is logged from now on to `hear`, in order.
    fn subscribe(&self, hear: Box<dyn FnMut(&Record) + Send>);
    /// Appends to the event log, at this moment.
    fn record(&self, source: &str, event: Event);
    /// Nanoseconds on the lab's clock.
    fn now_ns(&self) -> u64;
    /// Opens a TCP connection to a guest.
    ///
    /// # Errors
    /// When the guest does not answer in some seconds.
    fn connect(&self, guest: &str, port: u16) -> io::Result<Stream>;
    /// How to log in to a guest.
    ///
    /// # Errors
    /// In words for people.
    fn access(&self, guest: &str) -> Result<Access, String>;
    /// Starts a probe of a guest; its samples go to the event log. The number stops it.
    ///
    /// # Errors
    /// When the guest does not take the probe's connection, or the lab has ended.
    fn start_probe(&self, guest: &str, kind: ProbeKind, interval: Duration) -> io::Result<u64>;
    /// Stops a probe: what it has measured is in the log when this returns.
    ///
    /// # Errors
    /// When the lab has ended.
    fn stop_probe(&self, probe: u64) -> io::Result<()>;
    /// Where evidence goes.
    fn folder(&self) -> &Path;
}

/// Someone who is told something; the run goes on when they return.
pub type Hear<T> = Box<dyn FnMut(&T) + Send>;

/// How a run is to be driven.
pub struct Drive {
    /// Deadlines are multiplied by this; see [`factor`].
    pub factor: f64,
    /// Seed of the typists.
    pub seed: u64,
    /// Asked before each step, with its description, where someone wants to go step by step.
    pub before_step: Option<Hear<str>>,
    /// At each record like one of these, `at_break` is asked before anything else is done.
    pub breakpoints: Vec<Pattern>,
    /// Asked at breakpoints. The lab runs on meanwhile.
    pub at_break: Option<Hear<Record>>,
    /// Told what happens.
    pub progress: Hear<str>,
}

/// How the driving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every step was done.
    Completed,
    /// A step failed, or a session could not be opened.
    Failed(String),
    /// An event that a step waits for did not come.
    Missed(String),
    /// The run was told to end.
    Interrupted,
}

/// What reaches the loop.
enum Input {
    Record(Record),
    Done {
        step: usize,
        result: Result<String, String>,
    },
    Interrupted,
}

/// Tells a running engine to end.
#[derive(Clone)]
pub struct Interrupter(Sender<Input>);

impl Interrupter {
    /// It ends its sessions and returns soon.
    pub fn interrupt(&self) {
        // An engine that has ended needs no telling.
        let _ = self.0.send(Input::Interrupted);
    }
}

/// Why the loop stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GaveUp {
    Deadline,
    Interrupted,
}

/// A run in progress.
pub struct Engine {
    lab: Arc<dyn Lab>,
    scenario: Arc<Scenario>,
    drive: Drive,
    inbox: Receiver<Input>,
    sender: Sender<Input>,
    /// Every record since the engine began.
    records: Vec<Record>,
    /// Results of actions that have ended, by step.
    results: Vec<Option<Result<String, String>>>,
    interrupted: bool,
}

impl Engine {
    /// An engine for a lab whose guests are up.
    #[must_use]
    pub fn new(lab: Arc<dyn Lab>, scenario: Arc<Scenario>, drive: Drive) -> Self {
        let (sender, inbox) = mpsc::channel();
        let to_loop = sender.clone();
        lab.subscribe(Box::new(move |record| {
            // Samples are for the reports, and many.
            if !matches!(record.event, Event::ProbeSamples { .. } | Event::Key { .. }) {
                let _ = to_loop.send(Input::Record(record.clone()));
            }
        }));
        let steps = scenario.steps.get_ref().len();
        Self {
            lab,
            scenario,
            drive,
            inbox,
            sender,
            records: Vec::new(),
            results: vec![None; steps],
            interrupted: false,
        }
    }

    /// Something that can end it early, from any thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.sender.clone())
    }

    /// Opens the sessions, does the steps, closes the sessions.
    pub fn run(mut self) -> Ended {
        let mut sessions = match sessions::Sessions::open(&mut self) {
            Ok(sessions) => sessions,
            Err(_) if self.interrupted => return Ended::Interrupted,
            Err(error) => return Ended::Failed(error),
        };
        let ended = self.steps();
        let closed = sessions.close(&mut self);
        match (ended, closed) {
            (Ended::Completed, Err(error)) => Ended::Failed(error),
            (ended, _) => ended,
        }
    }

    fn steps(&mut self) -> Ended {
        let scenario = Arc::clone(&self.scenario);
        let mut since = 0;
        for (index, step) in scenario.steps.get_ref().iter().enumerate() {
            match self.step(index, step, since) {
                Ok(began) => since = began,
                Err(ended) => return ended,
            }
        }
        self.wait_for_background()
    }

    /// Does a step; gives the position in the records at which it began.
    fn step(&mut self, index: usize, step: &Step, since: usize) -> Result<usize, Ended> {
        let name = describe(index, step);
        let deadline = self.deadline(step);
        if let Some(ask) = &mut self.drive.before_step {
            ask(&name);
        }
        let mut began = self.records.len();
        if let Some(pattern) = &step.when {
            self.report(index, &name, "waiting", "");
            let found = self.wait(deadline, |engine| {
                let position = engine.records[since..]
                    .iter()
                    .position(|record| matches(pattern, record))?;
                Some(since + position + 1)
            });
            began = match found {
                Ok(position) => position,
                Err(GaveUp::Interrupted) => return Err(Ended::Interrupted),
                Err(GaveUp::Deadline) => {
                    let words = format!("no event \"{}\" in time", pattern.event.get_ref());
                    self.report(index, &name, "missed", &words);
                    return Err(Ended::Missed(format!("{name}: {words}")));
                }
            };
        } else if let Some(after) = step.after {
            self.pause(after.0)?;
        }
        self.report(index, &name, "started", "");
        (self.drive.progress)(&name);
        if let Some(time) = step.wait {
            self.pause(time.0)?;
            self.report(index, &name, "done", "");
            return Ok(began);
        }
        self.start_action(index, step, &name);
        if !step.background {
            self.wait_for_step(index, step, &name, deadline)?;
        }
        Ok(began)
    }

    fn deadline(&self, step: &Step) -> Instant {
        let time = step.within.map_or(STEP_DEADLINE, |within| within.0);
        Instant::now() + time.mul_f64(self.drive.factor)
    }

    fn wait_for_step(
        &mut self,
        index: usize,
        step: &Step,
        name: &str,
        deadline: Instant,
    ) -> Result<(), Ended> {
        let result = match self.wait(deadline, |engine| engine.results[index].take()) {
            Ok(result) => result,
            Err(GaveUp::Interrupted) => return Err(Ended::Interrupted),
            Err(GaveUp::Deadline) => Err("not done in time".into()),
        };
        if !step.background {
            self.report_end(index, name, &result);
        }
        match result {
            Ok(detail) => {
                if !detail.is_empty() && step.mark.is_none() {
                    (self.drive.progress)(&format!("{name}: {detail}"));
                }
                Ok(())
            }
            Err(error) => Err(Ended::Failed(format!("{name}: {error}"))),
        }
    }

    fn report_end(&self, index: usize, name: &str, result: &Result<String, String>) {
        match result {
            Ok(detail) => self.report(index, name, "done", detail),
            Err(error) => self.report(index, name, "failed", error),
        }
    }

    fn wait_for_background(&mut self) -> Ended {
        let scenario = Arc::clone(&self.scenario);
        for (index, step) in scenario.steps.get_ref().iter().enumerate() {
            if step.background && step.wait.is_none() {
                let (name, deadline) = (describe(index, step), self.deadline(step));
                if let Err(ended) = self.wait_for_step(index, step, &name, deadline) {
                    return ended;
                }
            }
        }
        Ended::Completed
    }

    /// Lets time pass, hearing what happens meanwhile.
    fn pause(&mut self, time: Duration) -> Result<(), Ended> {
        match self.wait(Instant::now() + time, |_| None::<()>) {
            Err(GaveUp::Interrupted) => Err(Ended::Interrupted),
            _ => Ok(()),
        }
    }

    /// Takes what arrives until `look` finds what it looks for.
    fn wait<T>(
        &mut self,
        deadline: Instant,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, GaveUp> {
        loop {
            if self.interrupted {
                return Err(GaveUp::Interrupted);
            }
            if let Some(found) = look(self) {
                return Ok(found);
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .ok_or(GaveUp::Deadline)?;
            match self.inbox.recv_timeout(left) {
                Ok(input) => self.take(input),
                Err(_) => return look(self).ok_or(GaveUp::Deadline),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Record(record) => {
                let stop = self
                    .drive
                    .breakpoints
                    .iter()
                    .any(|pattern| matches(pattern, &record));
                if let Some(ask) = self.drive.at_break.as_mut().filter(|_| stop) {
                    ask(&record);
                }
                if let Event::MigrationEnded {
                    vm,
                    migration,
                    error,
                } = &record.event
                {
                    let words = self.migration_words(record.t_ns, vm, *migration, error);
                    (self.drive.progress)(&words);
                }
                self.records.push(record);
            }
            Input::Done { step, result } => {
                let scenario = Arc::clone(&self.scenario);
                // Nobody waits for it now: the log has its end at its time.
                if let Some(one) = scenario
                    .steps
                    .get_ref()
                    .get(step)
                    .filter(|one| one.background)
                {
                    self.report_end(step, &describe(step, one), &result);
                }
                self.results[step] = Some(result);
            }
            Input::Interrupted => self.interrupted = true,
        }
    }

    /// What became of a migration that ended at `t_ns`.
    fn migration_words(&self, t_ns: u64, vm: &str, number: u32, error: &str) -> String {
        let requested = self
            .records
            .iter()
            .rev()
            .find_map(|record| match &record.event {
                Event::MigrationRequested { migration, to, .. } if *migration == number => {
                    Some((to.as_str(), t_ns.saturating_sub(record.t_ns) as f64 / 1e9))
                }
                _ => None,
            });
        match (requested, error) {
            (Some((to, seconds)), "") => {
                format!("migration {number}: {vm} is on {to}, {seconds:.2} s")
            }
            _ => format!("migration {number} of {vm}: {error}"),
        }
    }

    fn report(&self, index: usize, name: &str, state: &str, detail: &str) {
        self.lab.record(
            SOURCE,
            Event::Step {
                step: u32::try_from(index + 1).unwrap_or(u32::MAX),
                name: name.into(),
                state: state.into(),
                detail: detail.into(),
            },
        );
    }
}

/// Who speaks in the event log.
pub const SOURCE: &str = "scenario";

/// A step in words.
fn describe(index: usize, step: &Step) -> String {
    let what = actions::words(step);
    match &step.name {
        Some(name) => format!("step {} \"{name}\": {what}", index + 1),
        None => format!("step {}: {what}", index + 1),
    }
}
