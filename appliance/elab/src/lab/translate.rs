//! What hosts say, in the words of the event log.

use std::sync::Arc;

use host_protocol::pool::PoolMark as Mark;
use host_protocol::{Command, HostEvent, HostStatus, StopReason, VmId, VmState};
use lab_protocol::{Event, Phase, PoolMark, Role};

use super::Inner;
use super::hosts::LOST_POWER;
use crate::control::Heard;
use crate::entropy::hex;

impl Inner {
    /// A host's connection has brought something.
    pub(crate) fn hear(self: &Arc<Self>, host: &str, heard: Heard) {
        match heard {
            Heard::Console {
                vm,
                stay,
                position,
                bytes,
            } => self.console_output(host, vm, (stay, position), &bytes),
            Heard::Status {
                asked_ns,
                heard_ns,
                status,
            } => {
                let vms: Vec<_> = status.vms.iter().map(|vm| vm.id).collect();
                let first = self.lock().hosts[host].status.is_none();
                self.note_status(host, asked_ns, heard_ns, status);
                if first {
                    self.attach_consoles(host, vms);
                }
            }
            Heard::Event {
                t_ns,
                error_ns,
                number,
                event,
            } => {
                if !self.is_news(host, number, &event) {
                    return;
                }
                if let HostEvent::Vm {
                    vm,
                    state: VmState::Starting,
                } = event
                {
                    self.attach_consoles(host, [vm]);
                }
                if let Some(event) = self.translate(host, event) {
                    if let Event::Pool {
                        mark: PoolMark::Restarted,
                        vm: Some(vm),
                        ..
                    } = &event
                    {
                        self.was_restarted(vm);
                    }
                    self.journal.record_mapped(t_ns, error_ns, host, event);
                }
            }
        }
    }

    /// Whether an event has not been heard before, over an earlier connection.
    fn is_news(&self, host: &str, number: u64, event: &HostEvent) -> bool {
        self.update(|state| {
            let Some(entry) = state.hosts.get_mut(host) else {
                return true;
            };
            if matches!(event, HostEvent::Booted { .. }) {
                entry.events_heard = number;
                return true;
            }
            let known = number != 0 && number <= entry.events_heard;
            entry.events_heard = entry.events_heard.max(number);
            !known
        })
    }

    /// Takes note of an event and puts it into the lab's words; `None` for one about a VM the lab does not know.
    fn translate(&self, host: &str, event: HostEvent) -> Option<Event> {
        let host = host.to_owned();
        self.update(|state| {
            Some(match event {
                HostEvent::Booted { version, .. } => Event::HostBooted { host, version },
                HostEvent::Pool {
                    mark,
                    vm,
                    about,
                    text,
                } => {
                    let vm = vm.and_then(|vm| {
                        let (name, entry) = state.vm_by_id(vm)?;
                        // Why it is off, as long as it is.
                        let explains = matches!(mark, Mark::Restart | Mark::NotRestarted);
                        if explains && entry.state == VmState::Halted {
                            entry.stopped = Some(text.clone());
                        }
                        Some(name.to_owned())
                    });
                    let mark = mark_of(mark);
                    Event::Pool {
                        host,
                        mark,
                        vm,
                        about,
                        text,
                    }
                }
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
                    let without_power = state.hosts_without_power();
                    let (vm, entry) = state.vm_by_id(vm)?;
                    let words = stop_words(&reason);
                    if entry.host.as_ref() == Some(&host) {
                        match (&reason, &entry.migration) {
                            // It is the destination's, which has not said yet that it runs.
                            (StopReason::Migrated, Some(migration)) => {
                                entry.host = Some(migration.to.clone());
                                entry.state = VmState::Starting;
                                if without_power.contains(&migration.to) {
                                    entry.state = VmState::Halted;
                                    entry.stopped = Some(LOST_POWER.into());
                                }
                            }
                            _ => {
                                entry.state = VmState::Halted;
                                entry.stopped = Some(words.clone());
                            }
                        }
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

    /// A host says how things are there; what it said before that has been heard.
    fn note_status(&self, host: &str, asked_ns: u64, heard_ns: u64, status: HostStatus) {
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
        let (since_ns, unheard) = self.update(|state| {
            let unheard = state.reconcile(host, &status);
            let since_ns = state.hosts.get_mut(host).map_or(0, |entry| {
                entry.status = Some(status);
                std::mem::replace(&mut entry.heard_until_ns, asked_ns)
            });
            (since_ns, unheard)
        });
        // It happened at some time between.
        let error_ns = (heard_ns - since_ns.min(heard_ns)).div_ceil(2);
        for event in unheard
            .into_iter()
            .flat_map(|unheard| unheard.report(host, since_ns, heard_ns))
        {
            let t_ns = heard_ns - error_ns;
            self.journal.record_mapped(t_ns, error_ns, host, event);
        }
    }

    /// Has the output of these VMs' consoles sent from now on; what comes twice by that is told apart.
    fn attach_consoles(&self, host: &str, vms: impl IntoIterator<Item = VmId>) {
        let Some(connection) = self.lock().hosts[host].connection.clone() else {
            return;
        };
        for vm in vms {
            // A connection that has ended says so itself.
            let _ = connection.tell(Command::AttachConsole(vm));
        }
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
        StopReason::Suspended => "suspended".into(),
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

fn mark_of(mark: Mark) -> PoolMark {
    match mark {
        Mark::Suspected => PoolMark::Suspected,
        Mark::DeclaredDead => PoolMark::DeclaredDead,
        Mark::Liveset => PoolMark::Liveset,
        Mark::Fenced => PoolMark::Fenced,
        Mark::Restart => PoolMark::Restart,
        Mark::Restarted => PoolMark::Restarted,
        Mark::NotRestarted => PoolMark::NotRestarted,
        Mark::Protection => PoolMark::Protection,
        Mark::SelfFenced => PoolMark::SelfFenced,
        Mark::PermitLapsed => PoolMark::PermitLapsed,
        Mark::PermitBack => PoolMark::PermitBack,
        Mark::Note => PoolMark::Note,
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
