//! Several runs: each a process of its own, as many beside one another as CPUs and memory allow.
//!
//! A run that is measured (its scenario has limits) has the machine to itself, because a neighbour is a disturbance.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use scenarios::report::book::SCHEMA;
use scenarios::report::run::RunReport;
use scenarios::scenario::Scenario;
use scenarios::verdict::Verdict;

use super::one::RUN_FILE;
use super::results;
use crate::interrupt::Interrupts;
use crate::process::Process;
use crate::run_folder::RUNS;

const MIB: u64 = 1 << 20;
/// What a lab takes beside its hosts.
const LAB_MIB: u64 = 256;
/// Of the machine's memory, what runs may take.
const SHARE: f64 = 0.8;

/// One run to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// Position of its scenario in the book.
    pub scenario: usize,
    /// Words of the command line of its process, after the program.
    pub arguments: Vec<String>,
    /// Name of its lab, and of its folder in the results.
    pub name: String,
    /// The scenario's name.
    pub title: String,
    /// The combination of the matrix in words.
    pub variant: String,
    /// Number of the run, from 1.
    pub number: u32,
    /// Of all that is left to chance.
    pub seed: u64,
    /// A line for the shell that runs it again.
    pub command: String,
    /// What it takes.
    pub weight: Weight,
}

/// What a run takes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// CPUs, at most what there are.
    pub cpus: usize,
    /// Memory.
    pub mib: u64,
}

impl Weight {
    /// Of a run of a scenario, on a machine of so many CPUs.
    #[must_use]
    pub fn of(scenario: &Scenario, cpus: usize) -> Self {
        let hosts = usize::from(*scenario.pool.hosts.get_ref());
        let memory = scenario.pool.memory.get_ref().bytes / MIB;
        let measured = !scenario.expect.is_empty();
        Self {
            cpus: if measured { cpus } else { hosts.min(cpus) },
            mib: hosts as u64 * memory + LAB_MIB,
        }
    }
}

/// What is free of the machine.
#[derive(Debug)]
struct Room {
    cpus: usize,
    mib: u64,
    running: usize,
    jobs: usize,
}

impl Room {
    /// Whether a run fits; one alone always does.
    fn fits(&self, weight: Weight) -> bool {
        self.running == 0
            || (self.running < self.jobs && weight.cpus <= self.cpus && weight.mib <= self.mib)
    }

    fn take(&mut self, weight: Weight) {
        self.running += 1;
        self.cpus = self.cpus.saturating_sub(weight.cpus);
        self.mib = self.mib.saturating_sub(weight.mib);
    }

    fn give_back(&mut self, weight: Weight) {
        self.running -= 1;
        self.cpus += weight.cpus;
        self.mib += weight.mib;
    }
}

/// Runs all jobs, beginning in their order; gives their reports in that order. `told` hears of each that has ended.
///
/// # Errors
/// When a process cannot be started. A run that fails is a report like any other.
pub fn run(
    jobs: &[Job],
    results: &Path,
    parallel: usize,
    interrupts: &Interrupts,
    told: &mut dyn FnMut(&Job, &RunReport),
) -> Result<Vec<RunReport>> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut room = Room {
        cpus,
        mib: memory_mib(),
        running: 0,
        jobs: parallel,
    };
    let (ended, endings) = mpsc::channel();
    interrupts.on_interrupt({
        let ended = ended.clone();
        move || {
            // The loop below ends the processes.
            let _ = ended.send(Told::Interrupted);
        }
    });
    let mut running: BTreeMap<usize, Process> = BTreeMap::new();
    let mut reports: Vec<Option<RunReport>> = vec![None; jobs.len()];
    let mut next = 0;
    let mut interrupted = false;
    while next < jobs.len() || !running.is_empty() {
        while !interrupted && next < jobs.len() && room.fits(jobs[next].weight) {
            room.take(jobs[next].weight);
            let process = start(&jobs[next], next, parallel > 1, &ended)?;
            running.insert(next, process);
            next += 1;
        }
        if running.is_empty() {
            break;
        }
        match wait(&endings) {
            Told::Interrupted => {
                interrupted = true;
                for process in running.values() {
                    // It ends its lab in order; what cannot be signalled has ended.
                    let _ = process.signal(Signal::SIGTERM);
                }
            }
            Told::Ended(index, ending) => {
                running.remove(&index);
                room.give_back(jobs[index].weight);
                let report = collect(&jobs[index], results, &ending)?;
                told(&jobs[index], &report);
                reports[index] = Some(report);
            }
        }
    }
    anyhow::ensure!(!interrupted, "interrupted");
    Ok(reports.into_iter().flatten().collect())
}

enum Told {
    Ended(usize, String),
    Interrupted,
}

fn wait(endings: &Receiver<Told>) -> Told {
    // A sender is held by the caller, so the channel cannot close.
    endings.recv().unwrap_or(Told::Interrupted)
}

fn start(job: &Job, index: usize, name_lines: bool, ended: &Sender<Told>) -> Result<Process> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(&job.arguments).stdout(Stdio::null());
    let (lines, stderr) = std::io::pipe().context("cannot make a pipe")?;
    command.stderr(stderr);
    let name = job.name.clone();
    std::thread::Builder::new()
        .name(format!("output of {name}"))
        .spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                match line.strip_prefix("elab: ").filter(|_| name_lines) {
                    Some(rest) => eprintln!("elab: [{name}] {rest}"),
                    None => eprintln!("{line}"),
                }
            }
        })
        .context("cannot start a thread")?;
    let ended = ended.clone();
    Process::start(&job.name, command, move |ending| {
        let _ = ended.send(Told::Ended(index, ending.clone()));
    })
    .with_context(|| format!("cannot start run {}", job.name))
}

/// Takes a run's folder to the results and reads its report; writes one for a run that left none.
fn collect(job: &Job, results: &Path, ending: &str) -> Result<RunReport> {
    let from = PathBuf::from(RUNS).join(&job.name);
    let to = results.join(&job.name);
    if from.exists() {
        results::take_run(&from, &to)?;
    }
    let path = to.join(RUN_FILE);
    let mut report = std::fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<RunReport>(&text).ok())
        .unwrap_or_else(|| lost(job, ending));
    report.folder.clone_from(&job.name);
    Ok(report)
}

/// The report of a run that could not make its own.
fn lost(job: &Job, ending: &str) -> RunReport {
    RunReport {
        schema: SCHEMA,
        scenario: job.title.clone(),
        variant: job.variant.clone(),
        settings: Vec::new(),
        number: job.number,
        seed: job.seed,
        command: job.command.clone(),
        verdict: Verdict::Failed,
        reasons: vec![format!(
            "the run left no report ({ending}); its messages say why"
        )],
        checks: Vec::new(),
        figures: BTreeMap::new(),
        steps: Vec::new(),
        seconds: 0.0,
        folder: String::new(),
        machine: scenarios::evidence::fingerprint::Fingerprint::default(),
        measured: None,
        echoes_ms: Vec::new(),
    }
}

/// What runs may take of the machine's memory.
fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available: u64 = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    (available as f64 / 1024.0 * SHARE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_share_the_machine_by_weight_and_one_alone_always_fits() {
        let mut room = Room {
            cpus: 2,
            mib: 4000,
            running: 0,
            jobs: 4,
        };
        let weight = |cpus, mib| Weight { cpus, mib };
        assert!(room.fits(weight(8, 100_000)));
        room.take(weight(1, 1000));
        assert!(room.fits(weight(1, 3000)));
        assert!(!room.fits(weight(2, 1000)));
        assert!(!room.fits(weight(1, 3001)));
        room.take(weight(1, 1000));
        assert!(!room.fits(weight(1, 1000)));
        room.give_back(weight(1, 1000));
        assert!(room.fits(weight(1, 1000)));
    }
}
