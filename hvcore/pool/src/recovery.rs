//! The coordinator's work: keeping the table true, and getting lost VMs to run again.
//!
//! Nothing is done before every member has reported in the coordinator's own generation: what an earlier coordinator has begun is then
//! known, and what its orders are is void. A VM that nobody reports is lost. Its leases are taken for the host that has
//! room for it (so nothing that its old host still does reaches its disks), and when its turn has come the table says that this host
//! shall start it. The table is the order: it can be repeated, lost, or overtaken, and a host follows the newest.
//!
//! Lists of commands with answers were left out: a coordinator can die between any two of them.

use alloc::{collections::BTreeMap, vec, vec::Vec};

use crate::{
    action::{LeaseAnswer, LeaseCall, LeaseFile, Token},
    capacity::{self, Plan, Shortage},
    config::{HostId, VmIndex},
    event::{Event, NotRestarted, RestartCause},
    peer::{MS, Peers as _},
    pool::Pool,
    table::Place,
    wire::{Standing, VmReport},
};

/// Attempts to start a VM before somebody must look at it.
const MAX_ATTEMPTS: u16 = 5;
/// Between two attempts, and between two requests for a lease that is not to be had.
const RETRY_NS: u64 = 500 * MS;

/// What the coordinator is doing. Lost with the generation.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    work: BTreeMap<VmIndex, Work>,
    /// Since when a VM that should be somewhere is not reported, by the steady clock.
    absent: BTreeMap<VmIndex, u64>,
    /// Since when a VM is starting.
    starting: BTreeMap<VmIndex, u64>,
    /// What is asked about the leases of VMs of which nothing is known, or that are not where they were.
    inquiries: BTreeMap<VmIndex, Inquiry>,
    protection: Option<(u8, Option<Shortage>)>,
    /// The table that was planned for last.
    planned: Option<(u64, u32)>,
}

/// A look at the lease of a VM's first disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inquiry {
    Asked(Token),
    /// It has failed.
    Again {
        not_before: u64,
    },
    Answered,
}

/// A lost VM.
#[derive(Debug)]
struct Work {
    cause: RestartCause,
    target: Option<HostId>,
    disks: Vec<Disk>,
    fenced: bool,
    /// Since when it is its turn.
    turn: Option<u64>,
    not_before: u64,
    /// A member was found to hold its leases without having reported it, and was given time to.
    asked_twice: bool,
    told: Option<NotRestarted>,
}

/// The lease of one of its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// To be taken at this epoch, not before that time.
    Due {
        epoch: u64,
        not_before: u64,
    },
    Asked(Token),
    Taken,
}

impl Work {
    fn new(cause: RestartCause, not_before: u64) -> Self {
        Self {
            cause,
            target: None,
            disks: Vec::new(),
            fenced: false,
            turn: None,
            not_before,
            asked_twice: false,
            told: None,
        }
    }
}

impl Recovery {
    /// What was planned was planned for other VMs.
    pub fn plan_anew(&mut self) {
        self.planned = None;
    }
}

impl Pool {
    /// The coordinator's part of [`Pool::poll`].
    pub(crate) fn recover(&mut self) {
        let coordinates = self.standing == Standing::Member
            && self.table.author == self.me
            && self.table.generation != 0
            && !self.permit.is_lapsed()
            && self.proposal.announcing().is_none();
        if !coordinates || !self.all_have_reported() {
            return;
        }
        let before = self.table.vms.clone();
        self.fold_reports();
        self.look_at_leases();
        self.find_absent();
        self.place_lost();
        self.take_leases();
        self.start_in_turn();
        if self.table.vms != before {
            self.table.version += 1;
            self.hurry();
            self.follow_table();
        }
        self.watch_protection();
    }

    fn all_have_reported(&self) -> bool {
        let generation = self.table.generation;
        self.peers.others(self.me).all(|(host, peer)| {
            let incarnation = self.table.incarnation(host);
            incarnation == 0 || peer.report_in(generation, incarnation).is_some()
        })
    }

    /// What members say of VMs.
    fn reports(&self) -> Vec<(HostId, VmIndex, VmReport)> {
        let generation = self.table.generation;
        let mine = self.vms.iter().map(|(vm, report)| (self.me, *vm, *report));
        let theirs = self.peers.others(self.me).flat_map(|(host, peer)| {
            let report = peer.report_in(generation, self.table.incarnation(host));
            let vms = report.map(|report| report.vms.as_slice());
            vms.unwrap_or_default()
                .iter()
                .map(move |(vm, report)| (host, *vm, *report))
        });
        mine.chain(theirs).collect()
    }

    /// Whether a member has a VM, running or starting.
    fn has(&self, host: HostId, vm: VmIndex) -> bool {
        let is_there = |report: &VmReport| matches!(report, VmReport::Running | VmReport::Starting);
        if host == self.me {
            return self.vms.get(&vm).is_some_and(is_there);
        }
        let incarnation = self.table.incarnation(host);
        self.peers[host.index()]
            .report_in(self.table.generation, incarnation)
            .is_some_and(|report| {
                report
                    .vms
                    .iter()
                    .any(|(of, report)| *of == vm && is_there(report))
            })
    }

    /// Brings the table to what members report.
    fn fold_reports(&mut self) {
        let steady = self.clocks.steady();
        for (host, vm, report) in self.reports() {
            let place = self.table.vms[vm.index()];
            let elsewhere = place
                .host()
                .is_some_and(|of| of != host && self.has(of, vm));
            let new = match (report, place) {
                // On its way from one host to another: the first that reports it stays until it no longer does.
                (VmReport::Running | VmReport::Starting, _) if elsewhere => continue,
                (VmReport::Running, Place::Running(at)) if at == host => continue,
                (VmReport::Running, _) => {
                    if matches!(place, Place::Lost { .. } | Place::Starting { .. }) {
                        self.tell(Event::Restarted { vm, host });
                    }
                    Place::Running(host)
                }
                (VmReport::Starting, Place::Lost { attempts }) => Place::Starting {
                    host,
                    attempt: attempts,
                },
                (VmReport::Off, _) if place.host() == Some(host) => Place::Off,
                (VmReport::Failed(of), Place::Starting { host: at, attempt })
                    if at == host && of == attempt =>
                {
                    self.after_failure(vm, attempt)
                }
                _ => continue,
            };
            self.recovery.starting.remove(&vm);
            if !matches!(new, Place::Lost { .. }) {
                self.recovery.work.remove(&vm);
            }
            if matches!(new, Place::Starting { .. }) {
                self.recovery.starting.insert(vm, steady);
            }
            self.table.vms[vm.index()] = new;
        }
    }

    /// An attempt to start a VM has failed.
    fn after_failure(&mut self, vm: VmIndex, attempts: u16) -> Place {
        if attempts >= MAX_ATTEMPTS {
            let why = NotRestarted::TooManyAttempts(attempts);
            self.tell(Event::NotRestarted { vm, why });
            return Place::Failed;
        }
        let not_before = self.clocks.steady() + RETRY_NS * u64::from(attempts);
        let work = Work::new(RestartCause::StartFailed, not_before);
        self.recovery.work.insert(vm, work);
        Place::Lost { attempts }
    }

    /// VMs that are nowhere, or take too long to start.
    fn find_absent(&mut self) {
        let steady = self.clocks.steady();
        let timing = self.config.timing;
        let version = self.table.version;
        let places: Vec<_> = self.table.places().collect();
        for (vm, place) in places {
            let Some(host) = place.host() else {
                self.recovery.absent.remove(&vm);
                continue;
            };
            if let Place::Starting { attempt, .. } = place {
                let since = *self.recovery.starting.entry(vm).or_insert(steady);
                if steady - since >= timing.start_ms * MS {
                    self.recovery.starting.remove(&vm);
                    self.table.vms[vm.index()] = self.after_failure(vm, attempt);
                    continue;
                }
            }
            let up_to_date = host == self.me
                || self.peers[host.index()]
                    .report
                    .as_ref()
                    .is_some_and(|report| report.version == version);
            if self.has(host, vm) || !up_to_date {
                if self.recovery.absent.remove(&vm).is_some() {
                    self.recovery.inquiries.remove(&vm);
                }
                continue;
            }
            let since = *self.recovery.absent.entry(vm).or_insert(steady);
            if matches!(place, Place::Running(_)) && self.config.safeguards.leases_tell_where {
                // It has left; where to, the lease knows before anybody reports it.
                self.inquire(vm);
            }
            if steady - since >= timing.grace_ms * MS {
                self.recovery.absent.remove(&vm);
                self.recovery.starting.remove(&vm);
                self.table.vms[vm.index()] = match place {
                    Place::Starting { attempt, .. } => self.after_failure(vm, attempt),
                    _ => {
                        let work = Work::new(RestartCause::Vanished, steady);
                        self.recovery.work.insert(vm, work);
                        Place::Lost { attempts: 0 }
                    }
                };
            }
        }
    }

    /// Asks the storage server who had the VMs of which nothing is known.
    fn look_at_leases(&mut self) {
        let unknown: Vec<_> = self
            .table
            .places()
            .filter(|(_, place)| *place == Place::Unknown)
            .map(|(vm, _)| vm)
            .collect();
        for vm in unknown {
            self.inquire(vm);
        }
    }

    /// Asks whose a VM's lease is, once.
    fn inquire(&mut self, vm: VmIndex) {
        let due = match self.recovery.inquiries.get(&vm) {
            None => true,
            Some(Inquiry::Again { not_before }) => self.clocks.steady() >= *not_before,
            Some(Inquiry::Asked(_) | Inquiry::Answered) => false,
        };
        if due {
            let token = self.ask(LeaseFile::Disk(vm, 0), LeaseCall::Look);
            self.recovery.inquiries.insert(vm, Inquiry::Asked(token));
        }
    }

    /// The lease of a VM's disk was seen. Whoever shuts a VM down gives it back, and whoever loses power does not. A VM that has left one
    /// host for another that is not in the liveset is lost: that one was found dead after it had taken the lease.
    fn on_lease_seen(&mut self, vm: VmIndex, answer: &LeaseAnswer) {
        let owner = match answer {
            LeaseAnswer::State { owner, .. } => owner.as_str(),
            // Nothing was asked for, so it was ours before.
            LeaseAnswer::Granted { .. } => self.config.host_name(self.me),
            LeaseAnswer::Missing => "",
            LeaseAnswer::Failed => {
                let not_before = self.clocks.steady() + RETRY_NS;
                let again = Inquiry::Again { not_before };
                self.recovery.inquiries.insert(vm, again);
                return;
            }
        };
        self.recovery.inquiries.insert(vm, Inquiry::Answered);
        let gone = self
            .host_named(owner)
            .is_some_and(|host| self.table.incarnation(host) == 0);
        // It may have been reported meanwhile.
        let cause = match self.table.vms[vm.index()] {
            Place::Unknown if owner.is_empty() => None,
            Place::Unknown => Some(RestartCause::LeaseHeld),
            Place::Running(_) if gone && self.recovery.absent.remove(&vm).is_some() => {
                Some(RestartCause::HostGone)
            }
            _ => return,
        };
        self.table.vms[vm.index()] = match cause {
            None => Place::Off,
            Some(cause) => {
                let work = Work::new(cause, self.clocks.steady());
                self.recovery.work.insert(vm, work);
                Place::Lost { attempts: 0 }
            }
        };
        self.table.version += 1;
        self.hurry();
    }

    fn host_named(&self, name: &str) -> Option<HostId> {
        (0_u16..)
            .zip(&self.config.hosts)
            .find(|(_, host)| host.name == name)
            .map(|(id, _)| HostId(id))
    }

    fn lost(&self) -> Vec<(VmIndex, u16)> {
        self.table
            .places()
            .filter_map(|(vm, place)| match place {
                Place::Lost { attempts } => Some((vm, attempts)),
                _ => None,
            })
            .collect()
    }

    /// Finds a host for each lost VM.
    fn place_lost(&mut self) {
        let steady = self.clocks.steady();
        let mut free = capacity::free(&self.config, &self.table);
        let mut without = Vec::new();
        for (vm, _) in self.lost() {
            let work = self
                .recovery
                .work
                .entry(vm)
                .or_insert_with(|| Work::new(RestartCause::HostGone, steady));
            match work.target {
                Some(host) => {
                    let memory = self.config.vms[vm.index()].memory_mib;
                    free[host.index()] = free[host.index()].saturating_sub(memory);
                }
                None if steady >= work.not_before => without.push(vm),
                None => {}
            }
        }
        if without.is_empty() {
            return;
        }
        for (vm, host) in capacity::assign(&self.config, &without, &mut free) {
            let policy = &self.config.vms[vm.index()];
            let Some(work) = self.recovery.work.get_mut(&vm) else {
                continue;
            };
            work.target = host;
            work.disks = vec![
                Disk::Due {
                    epoch: 0,
                    not_before: 0
                };
                usize::from(policy.disks)
            ];
            let why = NotRestarted::NoRoom {
                needed_mib: policy.memory_mib,
                largest_free_mib: free.iter().copied().max().unwrap_or(0),
            };
            if host.is_none() && work.told.replace(why).is_none() {
                self.tell(Event::NotRestarted { vm, why });
            }
        }
    }

    /// Takes the leases of lost VMs for the hosts that are to start them.
    fn take_leases(&mut self) {
        let steady = self.clocks.steady();
        for (vm, _) in self.lost() {
            let Some(work) = self.recovery.work.get_mut(&vm) else {
                continue;
            };
            let Some(owner) = work.target else { continue };
            let mut due = Vec::new();
            for (number, disk) in (0_u8..).zip(&mut work.disks) {
                match *disk {
                    Disk::Due { .. } if !self.config.safeguards.fence_first => *disk = Disk::Taken,
                    Disk::Due { epoch, not_before } if steady >= not_before => {
                        due.push((number, epoch));
                    }
                    _ => {}
                }
            }
            for (number, expected_epoch) in due {
                let call = LeaseCall::Take {
                    expected_epoch,
                    owner,
                };
                let token = self.ask(LeaseFile::Disk(vm, number), call);
                if let Some(work) = self.recovery.work.get_mut(&vm) {
                    work.disks[usize::from(number)] = Disk::Asked(token);
                }
            }
        }
    }

    /// The storage server has answered about the lease of a disk.
    pub(crate) fn on_disk_lease(&mut self, token: Token, answer: LeaseAnswer) {
        let inquiries = self.recovery.inquiries.iter();
        let mut asked = inquiries.filter(|(_, inquiry)| **inquiry == Inquiry::Asked(token));
        if let Some((vm, _)) = asked.next() {
            return self.on_lease_seen(*vm, &answer);
        }
        let found = self.recovery.work.iter().find_map(|(vm, work)| {
            let disk = work
                .disks
                .iter()
                .position(|disk| *disk == Disk::Asked(token))?;
            Some((*vm, disk, work.target))
        });
        let Some((vm, disk, target)) = found else {
            return;
        };
        let later = self.clocks.steady() + RETRY_NS;
        let new = match answer {
            LeaseAnswer::Granted { .. } | LeaseAnswer::State { epoch: 0, .. } => Disk::Taken,
            LeaseAnswer::State { epoch, owner } => {
                let holder = self.host_named(&owner);
                // A member that has the VM keeps it. One that has taken its leases just now, as the end of a migration whose
                // source was lost, has its report on the way.
                let lives = holder.is_some_and(|host| self.table.incarnation(host) != 0);
                let theirs =
                    lives && holder.is_some_and(|host| Some(host) != target && self.has(host, vm));
                let work = self.recovery.work.get_mut(&vm);
                let wait = lives
                    && work.is_some_and(|work| !core::mem::replace(&mut work.asked_twice, true));
                if theirs && let Some(host) = holder {
                    self.tell(Event::NotRestarted {
                        vm,
                        why: NotRestarted::HeldBy(host),
                    });
                }
                let not_before = if theirs || wait { later } else { 0 };
                Disk::Due { epoch, not_before }
            }
            LeaseAnswer::Missing | LeaseAnswer::Failed => Disk::Due {
                epoch: 0,
                not_before: later,
            },
        };
        let Some(work) = self.recovery.work.get_mut(&vm) else {
            return;
        };
        work.disks[disk] = new;
        if !work.fenced && work.disks.iter().all(|disk| *disk == Disk::Taken) {
            work.fenced = true;
            self.tell(Event::Fenced { vm });
        }
    }

    /// Lets those start whose leases are taken, in the order that was asked for.
    fn start_in_turn(&mut self) {
        let steady = self.clocks.steady();
        let lost = self.lost();
        let unfinished = |vm: VmIndex| match self.table.vms[vm.index()] {
            Place::Starting { .. } => true,
            Place::Lost { .. } => self
                .recovery
                .work
                .get(&vm)
                .is_some_and(|work| work.target.is_some()),
            _ => false,
        };
        let policies = (0_u16..).map(VmIndex).zip(&self.config.vms);
        let first = policies
            .filter(|(vm, _)| unfinished(*vm))
            .map(|(_, policy)| policy.order)
            .min();
        for (vm, attempts) in lost {
            let policy = &self.config.vms[vm.index()];
            let Some(work) = self.recovery.work.get_mut(&vm) else {
                continue;
            };
            let Some(host) = work.target else { continue };
            if Some(policy.order) != first {
                continue;
            }
            let turn = *work.turn.get_or_insert(steady);
            let waited = steady >= turn + u64::from(policy.start_delay_ms) * MS;
            if waited && work.disks.iter().all(|disk| *disk == Disk::Taken) {
                let attempt = attempts + 1;
                let cause = work.cause;
                self.table.vms[vm.index()] = Place::Starting { host, attempt };
                self.recovery.work.remove(&vm);
                self.recovery.starting.insert(vm, steady);
                self.tell(Event::Restart {
                    vm,
                    host,
                    attempt,
                    cause,
                });
            }
        }
    }

    /// Tells people when the pool can bear more or fewer failures than before.
    fn watch_protection(&mut self) {
        let stamp = self.table.stamp();
        if self.recovery.planned == Some(stamp) {
            return;
        }
        self.recovery.planned = Some(stamp);
        let Plan {
            tolerated,
            shortage,
            ..
        } = capacity::plan(&self.config, &self.table);
        let now = (tolerated, shortage);
        if self.recovery.protection.as_ref() != Some(&now) {
            self.recovery.protection = Some(now.clone());
            let (tolerated, shortage) = now;
            self.tell(Event::Protection {
                tolerated,
                shortage,
            });
        }
    }
}
