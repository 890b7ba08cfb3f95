//! What hosts do with VMs, as `hvcore/host` does it: starting them, moving them, giving them up.
//!
//! A migration is modelled from the moment at which the source has sent the last pages: until then nothing but CPU time can be lost.
//! Of what the two engines of `hvcore/migration` do, all is here that decides who has the guest: each end asks the storage server
//! at most once, with the epoch that the source had, and an answer is for the end that asked, not for whoever has that VM here now.

use super::*;

/// How far a copy of a VM is on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its disks are being opened, or it boots.
    Starting,
    /// It runs while the pool permits it.
    Running,
    /// It stands still, and may be the destination's already.
    Leaving,
    /// All of it but the last pages is here. It is the source's.
    Arriving,
    /// Its lease has been asked for.
    Taking,
}

/// A copy of a VM on a host.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Tells it from others of the same VM here, and from itself in an earlier migration: answers and alarms are for one number.
    number: u64,
    pub epoch: u64,
    pub stage: Stage,
    /// Where it comes from.
    source: Option<(usize, u64)>,
}

impl Copy {
    /// What the pool is told of it.
    fn report(&self) -> Option<VmReport> {
        match self.stage {
            Stage::Starting => Some(VmReport::Starting),
            Stage::Running | Stage::Leaving => Some(VmReport::Running),
            Stage::Arriving | Stage::Taking => None,
        }
    }
}

/// What comes to a copy without its having asked.
#[derive(Clone, Copy, Debug)]
pub enum ToCopy {
    /// It has booted.
    Booted,
    /// The last pages, and the epoch that the source has.
    Final { expected: u64 },
    /// The last pages have not come, and will not.
    SourceIsLost,
    /// The destination has it.
    Committed,
    /// The destination has not answered in time, or is lost.
    DestinationIsLost,
}

impl World {
    fn insert(&mut self, host: usize, vm: VmIndex, stage: Stage) -> u64 {
        self.order += 1;
        let number = self.order;
        let copy = Copy {
            number,
            epoch: 0,
            stage,
            source: None,
        };
        self.hosts[host].copies.insert(vm, copy);
        number
    }

    fn copy(&mut self, host: usize, vm: VmIndex, number: u64) -> Option<&mut Copy> {
        let copy = self.hosts[host].copies.get_mut(&vm);
        copy.filter(|copy| copy.number == number)
    }

    fn report(&mut self, host: usize, vm: VmIndex, report: Option<VmReport>) {
        let local = self.local(host);
        if let Some(pool) = &mut self.hosts[host].pool {
            pool.set_vm(local, vm, report);
        }
    }

    /// A pool tells its host to start a VM, or somebody does by command.
    pub(super) fn start(&mut self, host: usize, vm: VmIndex, attempt: u16) {
        match self.hosts[host].copies.get(&vm).copied() {
            // What has arrived by half makes way.
            None
            | Some(Copy {
                stage: Stage::Arriving,
                ..
            }) => {
                let number = self.insert(host, vm, Stage::Starting);
                self.request(
                    host,
                    Request::Open {
                        vm,
                        number,
                        attempt,
                    },
                );
            }
            Some(copy) => {
                self.report(host, vm, Some(VmReport::Failed(attempt)));
                self.report(host, vm, copy.report());
            }
        }
    }

    /// Somebody starts a VM by command.
    pub fn start_by_hand(&mut self, host: usize, vm: VmIndex) {
        if self.is_up(host) {
            self.report(host, vm, Some(VmReport::Starting));
            self.start(host, vm, 0);
            self.turn(host);
        }
    }

    pub(super) fn on_opened(
        &mut self,
        host: usize,
        vm: VmIndex,
        number: u64,
        attempt: u16,
        epoch: Option<u64>,
    ) {
        let fails = attempt != 0 && self.failing_starts > 0;
        let Some(copy) = self.copy(host, vm, number) else {
            return;
        };
        match epoch {
            Some(epoch) if !fails => {
                copy.epoch = epoch;
                let at = self.now + self.rng.u64(MS..self.longest_boot);
                self.tell_copy(at, host, vm, number, ToCopy::Booted);
            }
            _ => {
                self.failing_starts -= u32::from(fails);
                self.hosts[host].copies.remove(&vm);
                self.report(host, vm, Some(VmReport::Failed(attempt)));
            }
        }
    }

    /// A migration, from its last pages on: the source stands still.
    pub fn migrate(&mut self, from: usize, to: usize, vm: VmIndex) {
        let is_here = |host: &Host| {
            let copy = host.copies.get(&vm);
            copy.is_some_and(|copy| copy.stage != Stage::Arriving)
        };
        let takes_it = self.hosts[to].frozen_until <= self.now
            && self.hosts[to].pool.as_ref().is_some_and(Pool::may_host);
        let leaves = self.hosts[from].copies.get(&vm).copied();
        let Some(copy) = leaves.filter(|copy| copy.stage == Stage::Running) else {
            return;
        };
        if !takes_it || is_here(&self.hosts[to]) {
            return;
        }
        self.did(from, format!("VM {} leaves for h{}", vm.0, to + 1));
        let source = self.insert(from, vm, Stage::Leaving);
        if let Some(leaving) = self.copy(from, vm, source) {
            leaving.epoch = copy.epoch;
        }
        let destination = self.insert(to, vm, Stage::Arriving);
        if let Some(arriving) = self.copy(to, vm, destination) {
            arriving.source = Some((from, source));
        }
        // The last pages may never arrive.
        let link = *self.link(from, to);
        if !link.cut && self.rng.u8(0..4) != 0 {
            let at = self.now + self.rng.u64(MS / 10..=link.delay);
            let last = ToCopy::Final {
                expected: copy.epoch,
            };
            self.tell_copy(at, to, vm, destination, last);
        }
        let lost = self.now + self.rng.u64(300 * MS..3 * SECOND);
        self.tell_copy(lost, from, vm, source, ToCopy::DestinationIsLost);
        let lost = self.now + self.rng.u64(300 * MS..4 * SECOND);
        self.tell_copy(lost, to, vm, destination, ToCopy::SourceIsLost);
    }

    fn tell_copy(&mut self, at: u64, host: usize, vm: VmIndex, number: u64, what: ToCopy) {
        let what = What::ToCopy {
            host,
            vm,
            number,
            what,
        };
        self.at(at, what);
    }

    pub(super) fn on_copy_told(&mut self, host: usize, vm: VmIndex, number: u64, what: ToCopy) {
        let frozen_until = self.hosts[host].frozen_until;
        if frozen_until > self.now && self.is_up(host) {
            return self.tell_copy(frozen_until + MS / 10, host, vm, number, what);
        }
        let Some(copy) = self.copy(host, vm, number) else {
            return;
        };
        match (copy.stage, what) {
            (Stage::Starting, ToCopy::Booted) => {
                copy.stage = Stage::Running;
                self.report(host, vm, Some(VmReport::Running));
                self.turn(host);
            }
            (Stage::Arriving, ToCopy::Final { expected }) => {
                copy.stage = Stage::Taking;
                self.take_over(host, vm, number, expected);
            }
            (Stage::Leaving, ToCopy::DestinationIsLost) => {
                let expected = copy.epoch;
                self.take_over(host, vm, number, expected);
            }
            (Stage::Arriving, ToCopy::SourceIsLost) | (Stage::Leaving, ToCopy::Committed) => {
                self.drop_copy(host, vm);
            }
            _ => {}
        }
    }

    fn take_over(&mut self, host: usize, vm: VmIndex, number: u64, expected: u64) {
        self.request(
            host,
            Request::TakeOver {
                vm,
                number,
                expected,
            },
        );
    }

    /// The storage server has said whose a VM is that was handed over; `None`: another's.
    pub(super) fn on_taken_over(
        &mut self,
        host: usize,
        vm: VmIndex,
        number: u64,
        epoch: Option<u64>,
    ) {
        let Some(copy) = self.copy(host, vm, number) else {
            return;
        };
        let Some(epoch) = epoch else {
            return self.drop_copy(host, vm);
        };
        copy.epoch = epoch;
        copy.stage = Stage::Running;
        let source = copy.source.take();
        self.report(host, vm, Some(VmReport::Running));
        if let Some((from, number)) = source {
            let link = *self.link(host, from);
            if !link.cut {
                let at = self.now + self.rng.u64(MS / 10..=link.delay);
                self.tell_copy(at, from, vm, number, ToCopy::Committed);
            }
        }
    }

    /// The storage server has refused a write of that epoch.
    pub(super) fn on_stale(&mut self, host: usize, vm: VmIndex, epoch: u64) {
        let copy = self.hosts[host].copies.get(&vm);
        if copy.is_some_and(|copy| copy.epoch == epoch && copy.stage == Stage::Running) {
            self.drop_copy(host, vm);
        }
    }

    fn drop_copy(&mut self, host: usize, vm: VmIndex) {
        self.hosts[host].copies.remove(&vm);
        self.report(host, vm, None);
        self.turn(host);
    }

    pub(super) fn on_guest_writes(&mut self, host: usize, life: u32) {
        if self.hosts[host].life != life || !self.is_up(host) {
            return;
        }
        let vms: Vec<_> = self.hosts[host]
            .copies
            .iter()
            .map(|(vm, copy)| (*vm, copy.epoch))
            .collect();
        for (vm, epoch) in vms {
            if self.executes(host, vm) {
                self.request(host, Request::Guest { vm, epoch });
            }
        }
        let at = self.now + self.rng.u64(200 * MS..400 * MS);
        self.at(at, What::GuestWrites { host, life });
    }

    /// Whether a guest's instructions run on a host at this moment.
    pub fn executes(&self, host: usize, vm: VmIndex) -> bool {
        let it = &self.hosts[host];
        let runs = |copy: &Copy| copy.stage == Stage::Running;
        it.frozen_until <= self.now
            && it.copies.get(&vm).is_some_and(runs)
            && it
                .pool
                .as_ref()
                .is_some_and(|pool| pool.may_run(self.local(host)))
    }

    pub fn executing(&self, vm: VmIndex) -> Vec<usize> {
        (0..self.hosts.len())
            .filter(|host| self.executes(*host, vm))
            .collect()
    }

    /// No VM runs twice.
    pub(super) fn check(&mut self) {
        for vm in 0..self.config.vms.len() {
            let vm = VmIndex(vm as u16);
            let copies = self
                .hosts
                .iter()
                .filter(|host| host.copies.contains_key(&vm))
                .count();
            if copies < 2 {
                continue;
            }
            let executing = self.executing(vm);
            // Without the server's check, what it checks is to be seen.
            if executing.len() < 2 || !self.storage.enforced {
                continue;
            }
            match &mut self.overlaps {
                Some(overlaps) => overlaps.push(self.now),
                None => {
                    self.violation =
                        Some(format!("VM {} runs on hosts {executing:?} at once", vm.0));
                }
            }
        }
    }

    /// Whether each VM runs once.
    pub fn all_run(&self) -> bool {
        (0..self.config.vms.len()).all(|vm| self.executing(VmIndex(vm as u16)).len() == 1)
    }
}
