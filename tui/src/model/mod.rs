//! What is known of a lab, folded from its event log, one record after the other.
//!
//! Nothing here knows of terminals, files or sockets. The same records always make the same model, so a finished run
//! is replayed by folding its log up to the moment that is looked at.

mod disks;
mod migrations;
mod probes;
mod statistics;

use std::collections::{BTreeMap, BTreeSet};

use lab_protocol::{Event, PoolMark, Record};

pub use disks::{Disk, Repository};
pub use migrations::Migrations;
pub use migrations::Shade;
pub use probes::{Column, Probes, Typed, probe_name};
pub use statistics::{Operation, Port, Statistics};

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `power-on`, `power-off`, `pulled`, `frozen`, `thawed` or `died`, as the log has it.
    pub power: String,
    /// Version of the image, once it is up.
    pub version: Option<String>,
    /// Bytes of memory for guests.
    pub memory_total: u64,
    /// Bytes that are free.
    pub memory_free: u64,
    /// Whether the host reaches its storage; `None` before it has said so.
    pub storage_up: Option<bool>,
}

impl Host {
    /// Whether it has power and is not frozen.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.power.as_str(), "power-on" | "thawed")
    }

    /// Whether it stands still with power.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.power == "frozen"
    }

    /// Its state in one word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self.power.as_str() {
            "power-on" | "thawed" if self.version.is_some() => "up",
            "power-on" | "thawed" => "booting",
            "power-off" | "" => "off",
            other => other,
        }
    }
}

/// A VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vm {
    /// `starting`, `running`, `paused` or `halted`.
    pub state: String,
    /// Where it runs, or was last.
    pub host: String,
    /// Why it no longer runs.
    pub stopped: Option<String>,
    /// Share of one physical CPU that it used between its last two reports, in percent.
    pub cpu_percent: Option<f64>,
    /// Exits to the hypervisor a second, between its last two reports.
    pub exits_per_s: Option<f64>,
    /// Reboots seen.
    pub reboots: u32,
    last: Option<Counters>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counters {
    t_ns: u64,
    host: String,
    cpu_ns: u64,
    exits: u64,
}

impl Vm {
    /// Whether it is there at all.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state.as_str(), "starting" | "running" | "paused")
    }

    /// Its state in one word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self.state.as_str() {
            "" => "off",
            _ if self.is_suspended() => "suspended",
            state => state,
        }
    }

    /// Whether its memory lies in the repository, to go on from there.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        !self.is_alive() && self.stopped.as_deref() == Some("suspended")
    }

    fn count(&mut self, t_ns: u64, host: &str, cpu_ns: u64, exits: u64) {
        let now = Counters {
            t_ns,
            host: host.into(),
            cpu_ns,
            exits,
        };
        // The counters of another host, or of a VM started anew, begin at another number.
        let before = self.last.replace(now).filter(|last| {
            last.host == host && last.t_ns < t_ns && last.cpu_ns <= cpu_ns && last.exits <= exits
        });
        if let Some(before) = before {
            let span_ns = (t_ns - before.t_ns) as f64;
            self.cpu_percent = Some((cpu_ns - before.cpu_ns) as f64 / span_ns * 100.0);
            self.exits_per_s = Some((exits - before.exits) as f64 / span_ns * 1e9);
        }
    }
}

/// A lease on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Counts owners.
    pub epoch: u64,
    /// Who holds it, or held it last.
    pub owner: String,
    /// What happened to it last.
    pub change: String,
    /// When.
    pub t_ns: u64,
}

impl Lease {
    /// Whether its owner has it now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(
            self.change.as_str(),
            "acquired" | "transferred" | "held" | "shared" | "refused"
        )
    }
}

/// Everything known of a lab at one moment.
#[derive(Clone, Debug, Default)]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// What runs the hosts' CPUs: `tcg` or `kvm`.
    pub accelerator: String,
    /// QEMU's version.
    pub qemu: String,
    /// Version of the program that ran it.
    pub version: String,
    /// Time of the latest record.
    pub now_ns: u64,
    /// Why it ended, once it has.
    pub stopped: Option<String>,
    /// Hosts by name.
    pub hosts: BTreeMap<String, Host>,
    /// VMs by name.
    pub vms: BTreeMap<String, Vm>,
    /// The storage server: `started`, `ready`, `paused`, ...
    pub storage: String,
    /// How its disk fails, if it does.
    pub disk_fault: Option<String>,
    /// Faults by directed link; healthy links are not there.
    pub links: BTreeMap<String, String>,
    /// What disks take, by repository.
    pub repositories: BTreeMap<String, Repository>,
    /// Leases by path of the disk.
    pub leases: BTreeMap<String, Lease>,
    /// Migrations.
    pub migrations: Migrations,
    /// What the probes saw.
    pub probes: Probes,
    /// Rates of the switch and the storage server.
    pub statistics: Statistics,
    /// What people marked, with the time.
    pub marks: Vec<(u64, String)>,
    /// Whether the session is open, or why it was lost.
    pub session: Option<Result<String, String>>,
    /// Result of the last comparison of the document.
    pub document: Option<(bool, String)>,
    /// What failures the pool can bear, in its own words; `None` while its hosts protect no VM.
    pub protection: Option<String>,
    /// What the hosts' pool said last, and when.
    pub pool: Option<(u64, String)>,
    /// Records folded so far.
    pub records: u64,
}

impl Lab {
    /// Takes the next record.
    pub fn apply(&mut self, record: &Record) {
        self.records += 1;
        self.now_ns = self.now_ns.max(record.t_ns);
        self.migrations.apply(record);
        self.probes.apply(record);
        self.statistics.apply(record);
        match &record.event {
            Event::LabStarted {
                name,
                version,
                accelerator,
                qemu,
                ..
            } => {
                self.name.clone_from(name);
                self.version.clone_from(version);
                self.accelerator.clone_from(accelerator);
                self.qemu.clone_from(qemu);
            }
            Event::LabStopped { reason } => self.stopped = Some(reason.clone()),
            Event::HostPower { host, state } => self.host_power(host, state),
            Event::HostBooted { host, version } => {
                self.host(host).version = Some(version.clone());
            }
            Event::HostStatus {
                host,
                memory_total,
                memory_free,
                storage_up,
            } => {
                let host = self.host(host);
                host.memory_total = *memory_total;
                host.memory_free = *memory_free;
                host.storage_up = Some(*storage_up);
            }
            Event::StorageState { state } => self.storage_state(state),
            Event::RepositoryUse {
                repository,
                free_bytes,
                disks,
            } => {
                let repository = self.repositories.entry(repository.clone()).or_default();
                repository.free_bytes = *free_bytes;
                repository.disks.clone_from(disks);
                self.know_vms();
            }
            Event::Lease {
                path,
                epoch,
                owner,
                change,
            } => {
                let lease = Lease {
                    epoch: *epoch,
                    owner: owner.clone(),
                    change: change.clone(),
                    t_ns: record.t_ns,
                };
                self.leases.insert(path.clone(), lease);
            }
            Event::LinkFault { link, fault } if fault == "healed" => {
                self.links.remove(link);
            }
            Event::LinkFault { link, fault } => {
                self.links.insert(link.clone(), fault.clone());
            }
            Event::SessionOpen { vm } => self.session = Some(Ok(vm.clone())),
            Event::SessionLost { reason, .. } => self.session = Some(Err(reason.clone())),
            Event::DocumentChecked { equal, detail, .. } => {
                self.document = Some((*equal, detail.clone()));
            }
            Event::Mark { text } => self.marks.push((record.t_ns, text.clone())),
            Event::Pool { mark, text, .. } => {
                if *mark == PoolMark::Protection {
                    self.protection = Some(text.clone());
                }
                self.pool = Some((record.t_ns, text.clone()));
            }
            other => self.apply_to_vm(record.t_ns, other),
        }
    }

    fn apply_to_vm(&mut self, t_ns: u64, event: &Event) {
        match event {
            Event::VmState { vm, host, state } => {
                // What a migration builds at its destination is not the VM before it runs there.
                let arriving = self.migrations.under_way(vm);
                if state != "running" && arriving.is_some_and(|one| one.to == *host) {
                    return;
                }
                let vm = self.vm(vm);
                vm.state.clone_from(state);
                vm.host.clone_from(host);
                if state != "halted" {
                    vm.stopped = None;
                }
            }
            Event::VmStatus {
                vm,
                host,
                cpu_ns,
                exits,
            } => self.vm(vm).count(t_ns, host, *cpu_ns, *exits),
            // A source reports that the VM is gone there; that says nothing of where it is now.
            Event::VmStopped { vm, host, reason } if self.vm(vm).host == *host => {
                let migrated_away = self.migrations.is_leaving(vm, host);
                let vm = self.vm(vm);
                if !migrated_away {
                    vm.state = "halted".into();
                    vm.stopped = Some(reason.clone());
                }
            }
            Event::VmRebooted { vm, .. } => self.vm(vm).reboots += 1,
            Event::FirstInstruction { vm, host } => {
                let vm = self.vm(vm);
                vm.host.clone_from(host);
                vm.state = "running".into();
                vm.stopped = None;
            }
            _ => {}
        }
    }

    /// The server's own state, or "h1 lost the storage server".
    fn storage_state(&mut self, state: &str) {
        match state.split_once(' ') {
            Some((host, rest)) if self.hosts.contains_key(host) => {
                let up = rest.starts_with("regained");
                self.host(host).storage_up = Some(up);
            }
            _ => match state.strip_prefix("disk: ") {
                Some("clear") => self.disk_fault = None,
                Some(fault) => self.disk_fault = Some(fault.into()),
                None => {
                    // One that is started anew has a disk that is well.
                    if state == "started" {
                        self.disk_fault = None;
                    }
                    self.storage = state.into();
                }
            },
        }
    }

    fn host_power(&mut self, name: &str, state: &str) {
        let host = self.host(name);
        host.power = state.into();
        if !matches!(state, "frozen" | "thawed") {
            host.version = None;
            host.storage_up = None;
            host.memory_free = 0;
            host.memory_total = 0;
        }
    }

    /// VMs that nobody has started yet are known by their disks: those that were imported or cloned.
    fn know_vms(&mut self) {
        let disks = self.repositories.values().flat_map(|one| &one.disks);
        let names: BTreeSet<String> = disks
            .filter(|disk| !disk.of.is_empty() && !disk.of.contains(['@', ' ']))
            .map(|disk| disk.of.clone())
            .collect();
        self.vms
            .retain(|name, vm| !vm.state.is_empty() || names.contains(name));
        for name in names {
            self.vms.entry(name).or_default();
        }
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.entry(name.into()).or_default()
    }

    fn vm(&mut self, name: &str) -> &mut Vm {
        self.vms.entry(name.into()).or_default()
    }

    /// The fault of a link in either direction: `h1:mgmt` finds `h1:mgmt>` and `h1:mgmt<`.
    #[must_use]
    pub fn link_fault(&self, host: &str, network: &str) -> Option<&str> {
        ["", ">", "<"].iter().find_map(|arrow| {
            self.links
                .get(&format!("{host}:{network}{arrow}"))
                .map(String::as_str)
        })
    }

    /// Whether the pool can bear what it was asked to bear; `None` while it has not said so.
    #[must_use]
    pub fn is_protected(&self) -> Option<bool> {
        let words = self.protection.as_ref()?;
        let failures = words
            .split_whitespace()
            .find_map(|word| word.parse::<u32>().ok())?;
        // What follows says what is too much.
        Some(failures > 0 && !words.contains(';'))
    }

    /// Names of the hosts in order.
    #[must_use]
    pub fn host_names(&self) -> Vec<&str> {
        self.hosts.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(t_ms: u64, event: Event) -> Record {
        Record {
            schema: 1,
            seq: 0,
            t_ns: t_ms * 1_000_000,
            error_ns: 0,
            source: "lab".into(),
            event,
        }
    }

    fn lab(events: Vec<(u64, Event)>) -> Lab {
        let mut lab = Lab::default();
        for (t, event) in events {
            lab.apply(&record(t, event));
        }
        lab
    }

    fn power(host: &str, state: &str) -> Event {
        Event::HostPower {
            host: host.into(),
            state: state.into(),
        }
    }

    fn running(host: &str) -> Event {
        Event::VmState {
            vm: "session".into(),
            host: host.into(),
            state: "running".into(),
        }
    }

    #[test]
    fn a_pulled_host_is_pulled_whatever_it_was() {
        let lab = lab(vec![
            (0, power("h1", "power-on")),
            (
                5,
                Event::HostBooted {
                    host: "h1".into(),
                    version: "1".into(),
                },
            ),
            (9, power("h1", "pulled")),
        ]);
        assert_eq!(lab.hosts["h1"].word(), "pulled");
        assert!(!lab.hosts["h1"].is_running());
    }

    #[test]
    fn a_vm_that_moved_is_where_it_ran_first() {
        let lab = lab(vec![
            (0, running("h1")),
            (
                1,
                Event::MigrationRequested {
                    vm: "session".into(),
                    migration: 1,
                    from: "h1".into(),
                    to: "h2".into(),
                },
            ),
            (
                2,
                Event::FirstInstruction {
                    vm: "session".into(),
                    host: "h2".into(),
                },
            ),
            (
                3,
                Event::VmStopped {
                    vm: "session".into(),
                    host: "h1".into(),
                    reason: "migrated to h2".into(),
                },
            ),
        ]);
        let vm = &lab.vms["session"];
        assert_eq!((vm.host.as_str(), vm.is_alive()), ("h2", true));
    }

    #[test]
    fn a_vm_that_arrives_is_still_where_it_runs() {
        let at_h2 = |state: &str| Event::VmState {
            vm: "session".into(),
            host: "h2".into(),
            state: state.into(),
        };
        let requested = Event::MigrationRequested {
            vm: "session".into(),
            migration: 1,
            from: "h1".into(),
            to: "h2".into(),
        };
        let mut lab = lab(vec![
            (0, running("h1")),
            (1, requested),
            (2, at_h2("starting")),
        ]);
        let vm = |lab: &Lab| {
            (
                lab.vms["session"].host.clone(),
                lab.vms["session"].state.clone(),
            )
        };
        assert_eq!(vm(&lab), ("h1".into(), "running".into()));
        lab.apply(&record(3, at_h2("running")));
        assert_eq!(vm(&lab), ("h2".into(), "running".into()));
    }

    #[test]
    fn what_the_pool_can_bear_is_in_its_own_words() {
        let said = |mark, text: &str| Event::Pool {
            host: "h1".into(),
            mark,
            vm: None,
            about: None,
            text: text.into(),
        };
        let lab = lab(vec![
            (
                0,
                said(PoolMark::Protection, "the pool can bear 1 host failures"),
            ),
            (1, said(PoolMark::Suspected, "h2 is silent")),
        ]);
        assert_eq!(
            lab.protection.as_deref(),
            Some("the pool can bear 1 host failures")
        );
        assert_eq!(lab.pool, Some((1_000_000, "h2 is silent".into())));
    }

    #[test]
    fn cpu_is_a_share_of_the_time_between_reports_of_one_host() {
        let status = |host: &str, cpu_ms: u64| Event::VmStatus {
            vm: "session".into(),
            host: host.into(),
            cpu_ns: cpu_ms * 1_000_000,
            exits: cpu_ms * 10,
        };
        let mut lab = lab(vec![(0, status("h1", 100)), (1000, status("h1", 350))]);
        assert_eq!(lab.vms["session"].cpu_percent, Some(25.0));
        assert_eq!(lab.vms["session"].exits_per_s, Some(2500.0));
        lab.apply(&record(2000, status("h2", 5000)));
        assert_eq!(lab.vms["session"].cpu_percent, Some(25.0), "other counters");
    }

    #[test]
    fn a_vm_that_came_back_ends_where_it_once_left() {
        let mut lab = lab(vec![
            (0, running("h1")),
            (
                1,
                Event::MigrationRequested {
                    vm: "session".into(),
                    migration: 1,
                    from: "h1".into(),
                    to: "h2".into(),
                },
            ),
            (
                2,
                Event::MigrationPhase {
                    vm: "session".into(),
                    migration: 1,
                    host: "h1".into(),
                    role: lab_protocol::Role::Source,
                    phase: lab_protocol::Phase::Drain,
                    detail: String::new(),
                },
            ),
            (3, running("h2")),
            (
                4,
                Event::MigrationEnded {
                    vm: "session".into(),
                    migration: 1,
                    error: String::new(),
                },
            ),
            (5, running("h1")),
        ]);
        lab.apply(&record(
            6,
            Event::VmStopped {
                vm: "session".into(),
                host: "h1".into(),
                reason: "destroyed".into(),
            },
        ));
        assert!(!lab.vms["session"].is_alive());
    }

    #[test]
    fn a_disks_fault_is_no_state_of_the_server() {
        let state = |words: &str| Event::StorageState {
            state: words.into(),
        };
        let mut lab = lab(vec![(0, state("ready")), (1, state("disk: full"))]);
        let known = |lab: &Lab| (lab.storage.clone(), lab.disk_fault.clone());
        assert_eq!(known(&lab), ("ready".into(), Some("full".into())));
        lab.apply(&record(2, state("disk: clear")));
        assert_eq!(known(&lab), ("ready".into(), None));
        lab.apply(&record(3, state("disk: eio-read")));
        lab.apply(&record(4, state("started")));
        assert_eq!(known(&lab), ("started".into(), None));
    }

    #[test]
    fn a_healed_link_has_no_fault() {
        let fault = |text: &str| Event::LinkFault {
            link: "h1:mgmt<".into(),
            fault: text.into(),
        };
        let mut lab = lab(vec![(0, fault("cut"))]);
        assert_eq!(lab.link_fault("h1", "mgmt"), Some("cut"));
        lab.apply(&record(1, fault("healed")));
        assert_eq!(lab.link_fault("h1", "mgmt"), None);
    }
}
