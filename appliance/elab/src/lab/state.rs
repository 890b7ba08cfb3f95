//! What a lab knows of itself.

use std::collections::BTreeMap;
use std::io::PipeWriter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_protocol::{HostStatus, VmConfig, VmId, VmState};
use lab_protocol::Restart;
use serde::Serialize;

use super::{HostSpec, Inner};
use crate::control::Connection;
use crate::process::Process;

/// So much console output of a VM is kept for those who attach later.
const CONSOLE_KEPT: usize = 64 * 1024;

/// Whether a host has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// No process.
    Off,
    /// Running.
    On,
    /// Stopped in its tracks.
    Frozen,
}

/// A host now.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) power: Power,
    /// Counts power-ons; what belongs to an earlier one is over.
    pub(crate) cycle: u32,
    /// Nobody has reached it in this cycle.
    pub(crate) booting: bool,
    pub(crate) process: Option<Arc<Process>>,
    pub(crate) connection: Option<Connection>,
    pub(crate) status: Option<HostStatus>,
    /// What happened there before this has been heard.
    pub(crate) heard_until_ns: u64,
    /// The highest number of an event that was heard in this cycle.
    pub(crate) events_heard: u64,
    /// Why it went off by itself, if it did.
    pub(crate) died: Option<String>,
    /// Why it cannot be spoken with in this cycle, if that is known.
    pub(crate) refused: Option<String>,
}

/// A migration under way.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) from: String,
    pub(crate) to: String,
}

/// A VM now.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) config: VmConfig,
    /// How it is restarted when its host fails.
    pub(crate) restart: Restart,
    /// What was prepared for going on from its last checkpoint.
    pub(crate) restart_point: Option<host_protocol::pool::RestartPoint>,
    /// Where it runs, or was last.
    pub(crate) host: Option<String>,
    pub(crate) state: VmState,
    /// Why it is off.
    pub(crate) stopped: Option<String>,
    pub(crate) migration: Option<Move>,
    /// A command to start it is under way.
    pub(crate) starting: bool,
    /// The migration that marks belong to: the one under way, or the last one, whose late marks may still come.
    pub(crate) last_migration: u32,
    pub(crate) console: Vec<u8>,
    /// How far each host's share of the console has been taken.
    pub(crate) console_taken: BTreeMap<String, ConsolePosition>,
}

/// A position in what a VM has printed during one stay on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsolePosition {
    /// The host's power cycle, and the VM's stay in it.
    pub(crate) stay: (u32, u32),
    pub(crate) position: u64,
}

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) stopping: bool,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Who holds the lease of a disk, as the storage server said last.
    pub(crate) leases: BTreeMap<String, String>,
    pub(crate) migrations: u32,
    /// What each host is told after its boot, once availability is on.
    pub(crate) pool: Option<host_protocol::pool::PoolSetup>,
    /// Held by whoever tells hosts of the pool, so that what is older never comes after what is newer.
    pub(crate) pool_turn: Arc<Mutex<()>>,
    pub(crate) storage: Option<Arc<Process>>,
    pub(crate) storage_paused: bool,
    pub(crate) storage_ready: bool,
    /// Where the storage server is told how its disk fails, and what it has taken of that.
    pub(crate) storage_faults: Option<Arc<PipeWriter>>,
    pub(crate) storage_fault: Option<String>,
}

impl State {
    pub(crate) fn new(specs: &[HostSpec], vms: Vec<VmConfig>) -> Self {
        let host = || Host {
            power: Power::Off,
            cycle: 0,
            booting: false,
            process: None,
            connection: None,
            status: None,
            heard_until_ns: 0,
            events_heard: 0,
            died: None,
            refused: None,
        };
        Self {
            stopping: false,
            hosts: specs
                .iter()
                .map(|spec| (spec.name.clone(), host()))
                .collect(),
            vms: vms
                .into_iter()
                .map(|config| (config.name.clone(), Vm::halted(config)))
                .collect(),
            leases: BTreeMap::new(),
            migrations: 0,
            pool: None,
            pool_turn: Arc::default(),
            storage: None,
            storage_paused: false,
            storage_ready: false,
            storage_faults: None,
            storage_fault: None,
        }
    }

    pub(crate) fn hosts_without_power(&self) -> Vec<String> {
        let off = |(_, host): &(&String, &Host)| host.power == Power::Off;
        let names = self.hosts.iter().filter(off);
        names.map(|(name, _)| name.clone()).collect()
    }

    /// The VM with this identity.
    pub(crate) fn vm_by_id(&mut self, id: VmId) -> Option<(&str, &mut Vm)> {
        self.vms
            .iter_mut()
            .find(|(_, vm)| vm.config.id == id)
            .map(|(name, vm)| (name.as_str(), vm))
    }
}

impl Vm {
    /// One that has not run in this lab.
    pub(crate) fn halted(config: VmConfig) -> Self {
        Self {
            config,
            restart: Restart::default(),
            restart_point: None,
            host: None,
            state: VmState::Halted,
            stopped: None,
            migration: None,
            starting: false,
            last_migration: 0,
            console: Vec::new(),
            console_taken: BTreeMap::new(),
        }
    }

    /// A command is under way that will tell where it is.
    pub(crate) fn is_busy(&self) -> bool {
        self.starting || self.migration.is_some()
    }

    /// Takes in console output of a host, and gives the part of it that is new.
    pub(crate) fn add_console<'a>(
        &mut self,
        host: &str,
        from: ConsolePosition,
        bytes: &'a [u8],
    ) -> &'a [u8] {
        let known = match self.console_taken.get(host) {
            Some(taken) if taken.stay == from.stay => taken.position.saturating_sub(from.position),
            _ => 0,
        };
        let known = usize::try_from(known).map_or(bytes.len(), |known| known.min(bytes.len()));
        let new = &bytes[known..];
        if !new.is_empty() {
            let taken = ConsolePosition {
                position: from.position + bytes.len() as u64,
                ..from
            };
            self.console_taken.insert(host.into(), taken);
        }
        self.console.extend_from_slice(new);
        let excess = self.console.len().saturating_sub(CONSOLE_KEPT);
        self.console.drain(..excess);
        new
    }

    /// Whether the console has shown `text`.
    pub(crate) fn has_shown(&self, text: &str) -> bool {
        let text = text.as_bytes();
        text.is_empty()
            || self
                .console
                .windows(text.len())
                .any(|window| window == text)
    }
}

/// Why waiting ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GaveUp {
    /// The lab is ending.
    Stopping,
    /// The deadline has passed.
    Deadline,
}

impl Inner {
    /// The state. A thread that panicked while holding it has printed why; the state itself is plain data.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes whoever waits.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `look` finds what it looks for.
    pub(crate) fn wait<T>(
        &self,
        patience: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, GaveUp> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if state.stopping {
                return Err(GaveUp::Stopping);
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .ok_or(GaveUp::Deadline)?;
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(crate) fn tell_to_stop(&self) {
        self.update(|state| state.stopping = true);
    }

    pub(crate) fn wait_until_told_to_stop(&self) {
        let mut state = self.lock();
        while !state.stopping {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::test_lab;

    #[test]
    fn console_output_that_comes_again_is_taken_once() {
        let mut state = State::new(&[], vec![test_lab::vm("guest", 1)]);
        let vm = state.vms.get_mut("guest").unwrap();
        let at = |stay, position| ConsolePosition {
            stay: (1, stay),
            position,
        };
        assert_eq!(vm.add_console("h1", at(1, 0), b"boot\n"), b"boot\n");
        // Attached anew: all that the host has kept comes once more, then what it prints.
        assert_eq!(vm.add_console("h1", at(1, 2), b"ot\nlogin:"), b"login:");
        assert_eq!(vm.add_console("h1", at(1, 0), b"boot\n"), b"");
        assert_eq!(vm.add_console("h1", at(1, 11), b" root"), b" root");
        // Each stay has positions of its own, wherever it is.
        assert_eq!(vm.add_console("h2", at(1, 0), b"moved\n"), b"moved\n");
        assert_eq!(vm.add_console("h1", at(2, 0), b"back\n"), b"back\n");
        assert_eq!(vm.console, b"boot\nlogin: rootmoved\nback\n");
    }
}
