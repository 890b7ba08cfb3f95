//! What hosts say, in the words of the event log.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use host_protocol::{Command, HostEvent, HostStatus, Reply, StopReason, VmState};
use lab_protocol::{Event, Phase, Role};

use super::Inner;
use super::state::{GaveUp, Power};
use crate::control::{Connection, Heard};
use crate::entropy::hex;

/// Time between two readings of the hosts' status.
const STATUS_EVERY: Duration = Duration::from_secs(1);
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// A host's connection has brought something.
    pub(crate) fn hear(self: &Arc<Self>, host: &str, heard: Heard) {
        match heard {
            Heard::Console { vm, bytes } => self.console_output(vm, &bytes),
            Heard::Event {
                t_ns,
                error_ns,
                event,
            } => {
                if let Some(event) = self.translate(host, event) {
                    self.journal.record_mapped(t_ns, error_ns, host, event);
                }
            }
        }
    }

    /// Takes note of an event and puts it into the lab's words; `None` for one about a VM the lab does not know.
    fn translate(&self, host: &str, event: HostEvent) -> Option<Event> {
        let host = host.to_owned();
        self.update(|state| {
            Some(match event {
                HostEvent::Booted { version, .. } => Event::HostBooted { host, version },
                HostEvent::Storage { up } => Event::StorageState {
                    state: format!(
                        "{host} {} the storage server",
                        if up { "regained" } else { "lost" }
                    ),
                },
                HostEvent::Vm { vm, state: now } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    // While a VM moves, the destination reports that it is being built there.
                    if now != VmState::Starting {
                        entry.state = now;
                        if now == VmState::Running {
                            entry.host = Some(host.clone());
                            entry.stopped = None;
                        }
                    }
                    Event::VmState {
                        vm: vm.into(),
                        host,
                        state: state_word(now).into(),
                    }
                }
                HostEvent::FirstInstruction { vm } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    entry.host = Some(host.clone());
                    entry.state = VmState::Running;
                    entry.stopped = None;
                    Event::FirstInstruction {
                        vm: vm.into(),
                        host,
                    }
                }
                HostEvent::FirstFrame { vm } => {
                    let (vm, _) = state.vm_by_id(vm)?;
                    Event::FirstFrame {
                        vm: vm.into(),
                        host,
                    }
                }
                HostEvent::CaughtUp { vm } => {
                    let (vm, _) = state.vm_by_id(vm)?;
                    Event::CaughtUp {
                        vm: vm.into(),
                        host,
                    }
                }
                HostEvent::Stopped { vm, reason } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    let words = stop_words(&reason);
                    if reason != StopReason::Migrated && entry.host.as_ref() == Some(&host) {
                        entry.state = VmState::Halted;
                        entry.stopped = Some(words.clone());
                    }
                    Event::VmStopped {
                        vm: vm.into(),
                        host,
                        reason: words,
                    }
                }
                HostEvent::Rebooted { vm, cause } => {
                    let (vm, _) = state.vm_by_id(vm)?;
                    Event::VmRebooted {
                        vm: vm.into(),
                        host,
                        cause,
                    }
                }
                HostEvent::Migration {
                    vm,
                    role,
                    phase,
                    detail,
                } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    Event::MigrationPhase {
                        vm: vm.into(),
                        migration: entry.last_migration,
                        host,
                        role: role_of(role),
                        phase: phase_of(phase),
                        detail,
                    }
                }
                HostEvent::Round { vm, round } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    Event::MigrationRound {
                        vm: vm.into(),
                        migration: entry.last_migration,
                        round: round.number,
                        pages: round.pages,
                        zero_pages: round.zero_pages,
                        bytes: round.bytes,
                        duration_ns: round.duration_ns,
                        dirty_after: round.dirty_after,
                    }
                }
                HostEvent::MemoryHash { vm, role, hash } => {
                    let (vm, entry) = state.vm_by_id(vm)?;
                    Event::MemoryHash {
                        vm: vm.into(),
                        migration: entry.last_migration,
                        role: role_of(role),
                        hash: hex(&hash),
                    }
                }
            })
        })
    }

    /// Reads every host's status about once a second, until the lab ends.
    pub(crate) fn poll_status(self: &Arc<Self>) -> Result<()> {
        let inner = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("status".into())
            .spawn(move || {
                while let Some(inner) = inner.upgrade() {
                    if inner.wait(STATUS_EVERY, |_| None::<()>) == Err(GaveUp::Stopping) {
                        return;
                    }
                    inner.read_status();
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }

    fn read_status(&self) {
        let connections: Vec<(String, Connection)> = {
            let state = self.lock();
            let reachable = |host: &&super::state::Host| host.power == Power::On;
            state
                .hosts
                .values()
                .filter(reachable)
                .filter_map(|host| Some((host.spec.name.clone(), host.connection.clone()?)))
                .collect()
        };
        for (host, connection) in connections {
            // A host that does not answer is noticed by its connection.
            if let Ok(Reply::Status(status)) = connection.call(Command::Status, STATUS_PATIENCE) {
                self.note_status(&host, status);
            }
        }
    }

    fn note_status(&self, host: &str, status: HostStatus) {
        self.record(Event::HostStatus {
            host: host.into(),
            memory_total: status.memory_total,
            memory_free: status.memory_free,
            storage_up: status.storage_up,
        });
        for vm in &status.vms {
            self.record(Event::VmStatus {
                vm: vm.name.clone(),
                host: host.into(),
                cpu_ns: vm.cpu_ns,
                exits: vm.exits,
            });
        }
        self.update(|state| {
            if let Some(entry) = state.hosts.get_mut(host) {
                entry.status = Some(status);
            }
        });
    }
}

/// The state in the words of the log.
pub(crate) fn state_word(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Halted => "halted",
    }
}

fn stop_words(reason: &StopReason) -> String {
    match reason {
        StopReason::PowerOff => "the guest powered itself off".into(),
        StopReason::Destroyed => "destroyed".into(),
        StopReason::Migrated => "migrated".into(),
        StopReason::Misbehaved(words) => format!("the guest misbehaved: {words}"),
        StopReason::LeaseLost(words) => format!("the lease of its disk was lost: {words}"),
    }
}

fn role_of(role: host_protocol::Role) -> Role {
    match role {
        host_protocol::Role::Source => Role::Source,
        host_protocol::Role::Destination => Role::Destination,
    }
}

fn phase_of(phase: host_protocol::Phase) -> Phase {
    use host_protocol::Phase as Host;
    match phase {
        Host::SetUp => Phase::SetUp,
        Host::PreCopy => Phase::PreCopy,
        Host::Drain => Phase::Drain,
        Host::LastPages => Phase::LastPages,
        Host::DeviceState => Phase::DeviceState,
        Host::LeaseHandOver => Phase::LeaseHandOver,
        Host::Resume => Phase::Resume,
        Host::Forward => Phase::Forward,
        Host::Finished => Phase::Finished,
        Host::Aborted => Phase::Aborted,
    }
}
