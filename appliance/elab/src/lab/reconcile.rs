//! Brings the lab's view of its VMs up to date with what a host says of itself.
//!
//! Events tell what changes while a connection lasts. Of what happens while a host cannot be reached, the host keeps what became
//! of VMs and of the pool, and tells it to a lab that comes back and names the last that it has heard. That may be too little, as
//! after many events; so each status, and above all the first on a new connection, is held against what the events have told.

use host_protocol::{HostStatus, VmState};
use lab_protocol::Event;

use super::state::State;

/// What a status tells that no event has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unheard {
    /// A VM is on this host, in this state.
    Here { vm: String, state: VmState },
    /// A VM that was on this host is not there any more.
    Gone { vm: String },
}

/// Why a VM is off whose end nobody has told.
pub(super) const END_UNHEARD: &str =
    "it is no longer on its host, which could not be heard when it ended";

impl State {
    /// The storage server says that the lease of a disk changed, or how it found it when it started.
    pub(super) fn note_lease(&mut self, path: &str, owner: &str, change: &str) {
        match change {
            "acquired" | "transferred" | "held" => {
                self.leases.insert(path.into(), owner.into());
            }
            "released" | "expired" | "broken" | "free" => {
                self.leases.remove(path);
            }
            _ => {}
        }
    }

    /// Whether the storage server gave a disk of this VM to another host: what `host` says of the VM then is out of date.
    fn is_anothers(&self, vm: &str, host: &str) -> bool {
        let disks = self.vms.get(vm).map(|vm| vm.config.disks.as_slice());
        disks
            .unwrap_or_default()
            .iter()
            .filter(|disk| !disk.read_only)
            .filter_map(|disk| self.leases.get(&disk.path))
            .any(|owner| owner != host)
    }

    /// Takes over what a host's status says; gives what was not known.
    pub(super) fn reconcile(&mut self, host: &str, status: &HostStatus) -> Vec<Unheard> {
        let names: Vec<String> = self.vms.keys().cloned().collect();
        let mut unheard = Vec::new();
        for name in names {
            let anothers = self.is_anothers(&name, host);
            let Some(vm) = self.vms.get_mut(&name) else {
                continue;
            };
            let believed_here = vm.host.as_deref() == Some(host);
            let lives = matches!(vm.state, VmState::Running | VmState::Paused);
            let listed = status.vms.iter().find(|listed| listed.id == vm.config.id);
            match listed.map(|listed| listed.state) {
                // Its events and its command tell the rest.
                Some(VmState::Starting | VmState::Halted) => {}
                // The stopped half of a migration is not where the VM is.
                Some(VmState::Paused) if lives && !believed_here => {}
                Some(_) if anothers => {}
                Some(state) => {
                    let known = believed_here && lives;
                    vm.host = Some(host.into());
                    vm.state = state;
                    vm.stopped = None;
                    if !known {
                        unheard.push(Unheard::Here { vm: name, state });
                    }
                }
                None if believed_here && vm.state != VmState::Halted && !vm.is_busy() => {
                    vm.state = VmState::Halted;
                    vm.stopped = Some(END_UNHEARD.into());
                    unheard.push(Unheard::Gone { vm: name });
                }
                None => {}
            }
        }
        unheard
    }
}

impl Unheard {
    /// It in the words of the log: the event, and a sentence for people.
    pub(super) fn report(self, host: &str, since_ns: u64, until_ns: u64) -> [Event; 2] {
        let between = format!(
            "between {:.1} and {:.1} s, while {host} could not be heard",
            since_ns as f64 / 1e9,
            until_ns as f64 / 1e9
        );
        let host = host.to_owned();
        let (event, text) = match self {
            Self::Here { vm, state } => {
                let state = super::translate::state_word(state).to_owned();
                let text = format!("VM \"{vm}\" is {state} on {host} now; that began {between}");
                (Event::VmState { vm, host, state }, text)
            }
            Self::Gone { vm } => {
                let text = format!("VM \"{vm}\" is no longer on {host}; it ended {between}");
                let reason = END_UNHEARD.into();
                (Event::VmStopped { vm, host, reason }, text)
            }
        };
        let level = "warning".into();
        [event, Event::Message { level, text }]
    }
}

#[cfg(test)]
mod tests {
    use host_protocol::{DiskConfig, VmStatus};

    use super::*;
    use crate::lab::state::Move;
    use crate::lab::test_lab;

    /// A VM whose disk is `d`, on a host.
    fn on(host: Option<&str>, state: VmState) -> State {
        let mut config = test_lab::vm("guest", 1);
        config.disks.push(DiskConfig {
            path: "d".into(),
            read_only: false,
        });
        let mut known = State::new(&[], vec![config]);
        let vm = known.vms.get_mut("guest").unwrap();
        vm.host = host.map(str::to_owned);
        vm.state = state;
        known
    }

    fn status(vm: Option<VmState>) -> HostStatus {
        let listed = |state| VmStatus {
            id: [1; 16],
            name: "guest".into(),
            state,
            memory_mib: 1,
            cpu_ns: 0,
            exits: 0,
        };
        HostStatus {
            memory_total: 0,
            memory_free: 0,
            storage_up: true,
            vms: vm.map(listed).into_iter().collect(),
        }
    }

    fn whereabouts(state: &State) -> (Option<&str>, VmState) {
        let vm = &state.vms["guest"];
        (vm.host.as_deref(), vm.state)
    }

    fn here(state: VmState) -> Vec<Unheard> {
        let vm = "guest".into();
        vec![Unheard::Here { vm, state }]
    }

    use VmState::{Halted, Paused, Running, Starting};

    #[test]
    fn a_vm_is_where_a_host_has_it() {
        for (believed, state) in [
            (Some("h1"), Running),
            (Some("h1"), Paused),
            (Some("h1"), Halted),
            // Handed over to h2, which has not been heard since.
            (Some("h2"), Starting),
            (None, Halted),
        ] {
            let mut lab = on(believed, state);
            lab.note_lease("d", "h2", "transferred");
            let news = lab.reconcile("h2", &status(Some(Running)));
            assert_eq!(news, here(Running), "{believed:?} {state:?}");
            assert_eq!(whereabouts(&lab), (Some("h2"), Running));
            assert_eq!(lab.reconcile("h2", &status(Some(Running))), []);
        }
    }

    #[test]
    fn a_host_that_has_missed_the_hand_over_is_not_believed() {
        let mut lab = on(Some("h2"), Running);
        lab.note_lease("d", "h2", "transferred");
        for state in [Running, Paused, Starting, Halted] {
            assert_eq!(lab.reconcile("h1", &status(Some(state))), [], "{state:?}");
            assert_eq!(whereabouts(&lab), (Some("h2"), Running));
        }
        // Of a disk that is nobody's, the last word counts.
        lab.note_lease("d", "h2", "refused");
        assert_eq!(lab.reconcile("h1", &status(Some(Running))), []);
        lab.note_lease("d", "h2", "expired");
        assert_eq!(lab.reconcile("h1", &status(Some(Running))), here(Running));
    }

    #[test]
    fn a_stop_between_running_and_running_is_no_news() {
        let mut lab = on(Some("h1"), Running);
        for state in [Paused, Running] {
            assert_eq!(lab.reconcile("h1", &status(Some(state))), []);
            assert_eq!(whereabouts(&lab), (Some("h1"), state));
        }
    }

    #[test]
    fn a_vm_that_is_gone_is_halted_unless_a_command_is_about_to_tell() {
        for state in [Running, Paused, Starting] {
            let mut lab = on(Some("h1"), state);
            lab.vms.get_mut("guest").unwrap().starting = true;
            assert_eq!(lab.reconcile("h1", &status(None)), []);
            lab.vms.get_mut("guest").unwrap().starting = false;
            lab.vms.get_mut("guest").unwrap().migration = Some(Move {
                from: "h1".into(),
                to: "h2".into(),
            });
            assert_eq!(lab.reconcile("h1", &status(None)), []);
            lab.vms.get_mut("guest").unwrap().migration = None;
            assert_eq!(lab.reconcile("h2", &status(None)), []);
            let vm = "guest".into();
            assert_eq!(
                lab.reconcile("h1", &status(None)),
                [Unheard::Gone { vm }],
                "{state:?}"
            );
            assert_eq!(lab.vms["guest"].stopped.as_deref(), Some(END_UNHEARD));
            assert_eq!(lab.reconcile("h1", &status(None)), []);
        }
    }
}
