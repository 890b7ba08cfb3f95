//! The storage server: a child process on the storage network.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab_protocol::Event;
use lab_protocol::command::DiskFault;
use lab_protocol::event::OperationCounters;
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::Inner;
use super::state::{GaveUp, State};
use crate::network::{PREFIX, STORAGE};
use crate::process::Process;

/// Port of the switch and socket below the run folder.
const PORT: &str = "nfs";
const LINK_SOCKET: &str = "nfs-storage.sock";
/// Opening the export takes no time worth mentioning, starting a process on a busy machine may.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// A server that runs takes a fault at once.
const FAULT_PATIENCE: Duration = Duration::from_secs(5);
/// A server that is told to end has so long to write back.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What the server reports, as far as the lab takes note of it.
#[derive(Debug, Deserialize)]
struct Report {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    t_ns: u64,
    #[serde(flatten)]
    event: Said,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Said {
    Ready {},
    Lease {
        path: String,
        epoch: u64,
        owner: String,
        change: String,
    },
    StorageFailed {
        path: String,
        error: String,
    },
    DiskFault {
        fault: String,
    },
    Statistics {
        operations: Vec<OperationCounters>,
        read_bytes: u64,
        written_bytes: u64,
    },
    Warning {
        message: String,
    },
    #[serde(other)]
    Other,
}

/// How to start the server.
#[derive(Clone, Debug)]
pub struct StorageProgram {
    /// The program.
    pub program: PathBuf,
    /// Arguments before ours, which are those of `nfs-sr serve`.
    pub arguments: Vec<String>,
    /// The folder it exports as `/export`.
    pub export: PathBuf,
}

impl Inner {
    pub(crate) fn start_storage(self: &Arc<Self>) -> Result<()> {
        let Some(program) = &self.storage_program else {
            bail!("this lab has no storage server");
        };
        if self
            .lock()
            .storage
            .as_ref()
            .is_some_and(|process| process.ending().is_none())
        {
            bail!("the storage server is running already");
        }
        let known = self.switch.ports()?;
        if !known
            .iter()
            .any(|port| port.network == STORAGE.name && port.port == PORT)
        {
            self.switch
                .listen(STORAGE.name, PORT, &self.folder.file(LINK_SOCKET))?;
        }
        let log = self.folder.file("nfs-sr.log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let (events, stdout) = io::pipe().context("cannot make a pipe")?;
        let (stdin, faults) = io::pipe().context("cannot make a pipe")?;
        let mac = STORAGE
            .endpoint_mac(1)
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        let mut command = Command::new(&program.program);
        command
            .current_dir(self.folder.path())
            .args(&program.arguments)
            .arg(&program.export)
            .args([
                "--no-tcp",
                "--switch",
                LINK_SOCKET,
                "--mac",
                &mac,
                "--address",
            ])
            .arg(format!("{}/{PREFIX}", STORAGE.lab_address()))
            .args([
                "--mtu",
                &STORAGE.mtu.to_string(),
                "--faults",
                "--statistics",
            ])
            .stdin(stdin)
            .stdout(stdout)
            .stderr(log);
        let inner = Arc::downgrade(self);
        let process = Process::start("nfs-sr", command, move |ending| {
            if let Some(inner) = inner.upgrade() {
                inner.storage_ended(ending);
            }
        })
        .with_context(|| format!("cannot start {}", program.program.display()))?;
        self.folder.add_process("nfs-sr", process.pid())?;
        self.update(|state| {
            state.storage = Some(Arc::new(process));
            state.storage_paused = false;
            state.storage_ready = false;
            state.storage_faults = Some(Arc::new(faults));
        });
        self.storage_state("started");
        let inner = Arc::downgrade(self);
        // Ends when the server has closed its standard output.
        std::thread::Builder::new()
            .name("nfs-sr events".into())
            .spawn(move || {
                for line in BufReader::new(events).lines().map_while(Result::ok) {
                    if let Some(inner) = inner.upgrade() {
                        inner.hear_storage(&line);
                    }
                }
            })
            .context("cannot start a thread")?;
        let ready = self.wait(START_PATIENCE, |state| state.storage_ready.then_some(()));
        match ready {
            Ok(()) => Ok(()),
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => {
                let log = fs::read_to_string(self.folder.file("nfs-sr.log")).unwrap_or_default();
                bail!("the storage server did not become ready: {}", log.trim())
            }
        }
    }

    /// The server has reported something: a line of JSON.
    fn hear_storage(&self, line: &str) {
        let Ok(report) = serde_json::from_str::<Report>(line) else {
            self.message("warning", format!("the storage server says: {line}"));
            return;
        };
        let t_ns = self.clock.of_monotonic(report.t_ns);
        let event = match report.event {
            Said::Ready {} => {
                self.update(|state| state.storage_ready = true);
                Event::StorageState {
                    state: "ready".into(),
                }
            }
            Said::Lease {
                path,
                epoch,
                owner,
                change,
            } => {
                self.update(|state| state.note_lease(&path, &owner, &change));
                Event::Lease {
                    path,
                    epoch,
                    owner,
                    change,
                }
            }
            Said::StorageFailed { path, error } => Event::Message {
                level: "error".into(),
                text: format!("storage failed: {path}: {error}"),
            },
            Said::DiskFault { fault } => {
                let state = format!("disk: {fault}");
                self.update(|state| state.storage_fault = Some(fault));
                Event::StorageState { state }
            }
            Said::Statistics {
                operations,
                read_bytes,
                written_bytes,
            } => Event::StorageStatistics {
                operations,
                read_bytes,
                written_bytes,
            },
            Said::Warning { message } => Event::Message {
                level: "warning".into(),
                text: message,
            },
            Said::Other => return,
        };
        self.journal.record(t_ns, "storage", event);
    }

    fn storage_ended(&self, ending: &str) {
        // Taken out of the state first when the lab itself ends it.
        let by_itself = self.update(|state| !state.stopping && state.storage.take().is_some());
        if by_itself {
            self.storage_state("died");
            self.message(
                "error",
                format!("the storage server ended ({ending}); see nfs-sr.log in the run folder"),
            );
        }
    }

    fn storage_state(&self, state: &str) {
        self.record(Event::StorageState {
            state: state.into(),
        });
    }

    pub(crate) fn pause_storage(&self, pause: bool) -> Result<()> {
        let process = self.lock().storage.clone();
        let process = process.context("the storage server is not running")?;
        let (signal, word) = if pause {
            (Signal::SIGSTOP, "paused")
        } else {
            (Signal::SIGCONT, "resumed")
        };
        self.storage_state(word);
        process.signal(signal)?;
        self.update(|state| state.storage_paused = pause);
        Ok(())
    }

    /// Has the server's disk fail, or be well; returns when it does.
    pub(crate) fn fault_storage(&self, fault: DiskFault) -> Result<()> {
        let faults = self.update(|state| {
            state.storage_fault = None;
            state.storage.as_ref().and(state.storage_faults.clone())
        });
        let faults = faults.context("the storage server is not running")?;
        writeln!(&*faults, "{}", fault.name()).context("the storage server does not listen")?;
        let taken = |state: &mut State| {
            (state.storage_fault.as_deref() == Some(fault.name())).then_some(())
        };
        match self.wait(FAULT_PATIENCE, taken) {
            Ok(()) => Ok(()),
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => bail!("the storage server does not answer; is it paused?"),
        }
    }

    /// As by a power cut.
    pub(crate) fn kill_storage(&self) -> Result<()> {
        let process = self.update(|state| state.storage.take());
        let process = process.context("the storage server is not running")?;
        self.storage_state("killed");
        process.signal(Signal::SIGKILL)?;
        match process.wait(END_PATIENCE) {
            Some(_) => Ok(()),
            None => bail!("the storage server does not end although killed"),
        }
    }
}
