//! The storage server: a child process on the storage network.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab_protocol::Event;
use nix::sys::signal::Signal;

use super::Inner;
use crate::network::{PREFIX, STORAGE};
use crate::process::Process;

/// Port of the switch and socket below the run folder.
const PORT: &str = "nfs";
const LINK_SOCKET: &str = "nfs-storage.sock";
/// A server that is told to end has so long to write back.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How to start the server.
#[derive(Clone, Debug)]
pub struct StorageProgram {
    /// The program.
    pub program: PathBuf,
    /// Arguments before ours.
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
        let mut command = Command::new(&program.program);
        command
            .current_dir(self.folder.path())
            .args(&program.arguments)
            .arg("--export")
            .arg(&program.export)
            .arg("--link")
            .arg(LINK_SOCKET)
            .arg("--address")
            .arg(format!("{}/{PREFIX}", STORAGE.lab_address()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
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
        });
        self.storage_state("started");
        Ok(())
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
