//! What a lab knows of itself.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host_protocol::{HostStatus, VmConfig, VmId, VmState};
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
    pub(crate) spec: HostSpec,
    pub(crate) power: Power,
    /// Counts power-ons; what belongs to an earlier one is over.
    pub(crate) cycle: u32,
    pub(crate) process: Option<Arc<Process>>,
    pub(crate) connection: Option<Connection>,
    pub(crate) status: Option<HostStatus>,
    /// Why it went off by itself, if it did.
    pub(crate) died: Option<String>,
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
    /// Where it runs, or was last.
    pub(crate) host: Option<String>,
    pub(crate) state: VmState,
    /// Why it is off.
    pub(crate) stopped: Option<String>,
    pub(crate) migration: Option<Move>,
    /// The migration that marks belong to: the one under way, or the last one, whose late marks may still come.
    pub(crate) last_migration: u32,
    pub(crate) console: Vec<u8>,
}

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) stopping: bool,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) vms: BTreeMap<String, Vm>,
    pub(crate) migrations: u32,
    pub(crate) storage: Option<Arc<Process>>,
    pub(crate) storage_paused: bool,
    pub(crate) storage_ready: bool,
}

impl State {
    pub(crate) fn new(specs: &[HostSpec], vms: Vec<VmConfig>) -> Self {
        let host = |spec: &HostSpec| Host {
            spec: spec.clone(),
            power: Power::Off,
            cycle: 0,
            process: None,
            connection: None,
            status: None,
            died: None,
        };
        let vm = |config: VmConfig| Vm {
            config,
            host: None,
            state: VmState::Halted,
            stopped: None,
            migration: None,
            last_migration: 0,
            console: Vec::new(),
        };
        Self {
            stopping: false,
            hosts: specs
                .iter()
                .map(|spec| (spec.name.clone(), host(spec)))
                .collect(),
            vms: vms
                .into_iter()
                .map(|config| (config.name.clone(), vm(config)))
                .collect(),
            migrations: 0,
            storage: None,
            storage_paused: false,
            storage_ready: false,
        }
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
    pub(crate) fn add_console(&mut self, bytes: &[u8]) {
        self.console.extend_from_slice(bytes);
        let excess = self.console.len().saturating_sub(CONSOLE_KEPT);
        self.console.drain(..excess);
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
