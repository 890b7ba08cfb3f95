//! Which vCPU runs next on the physical CPU.
//!
//! Each vCPU has a virtual time, which advances while it runs, faster the smaller its VM's weight. The runnable
//! vCPU with the least virtual time runs, until it is a slice ahead of another. One that slept starts
//! again a slice behind the others: it goes first when it wakes (latency), and what it did not use
//! before is forgotten (fairness).
//!
//! Rejected: credits refilled at intervals, which need an interval and treat a vCPU that wakes
//! just after it differently from one that wakes just before.

use alloc::vec::Vec;

/// A vCPU: its VM's number on this host and its own number in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VcpuId {
    /// The VM.
    pub vm: u32,
    /// The vCPU.
    pub index: usize,
}

/// How long a vCPU may run while others wait.
pub(crate) const SLICE_NS: u64 = 2_000_000;

/// The weight at which virtual time is real time.
const USUAL_WEIGHT: u64 = 256;

struct Entry {
    vcpu: VcpuId,
    weight: u64,
    virtual_ns: u64,
    slept: bool,
}

/// The vCPUs of all VMs on one physical CPU.
#[derive(Default)]
pub(crate) struct Scheduler {
    entries: Vec<Entry>,
    /// Greatest virtual time at which a vCPU was picked: what a newcomer starts with.
    clock_ns: u64,
    /// The vCPU picked last, unless it has yielded since.
    current: Option<VcpuId>,
}

impl Scheduler {
    /// Adds a VM's vCPUs.
    pub fn add(&mut self, vm: u32, vcpus: usize, weight: u16) {
        self.entries.extend((0..vcpus).map(|index| Entry {
            vcpu: VcpuId { vm, index },
            weight: u64::from(weight.max(1)),
            virtual_ns: self.clock_ns,
            slept: true,
        }));
    }

    /// Takes a VM's vCPUs out.
    pub fn remove(&mut self, vm: u32) {
        self.entries.retain(|entry| entry.vcpu.vm != vm);
    }

    /// The vCPU to run now, and whether others wait for the CPU.
    pub fn pick(&mut self, mut runnable: impl FnMut(VcpuId) -> bool) -> Option<(VcpuId, bool)> {
        let mut best: Option<(u64, u64, VcpuId)> = None;
        let mut candidates = 0;
        for entry in &mut self.entries {
            if !runnable(entry.vcpu) {
                entry.slept = true;
                continue;
            }
            if entry.slept {
                entry.slept = false;
                let least = self.clock_ns.saturating_sub(SLICE_NS);
                entry.virtual_ns = entry.virtual_ns.max(least);
            }
            candidates += 1;
            // Every switch costs the newcomer a cold start, so the one that runs is a slice better off.
            let bonus = if self.current == Some(entry.vcpu) {
                SLICE_NS
            } else {
                0
            };
            let rank = entry.virtual_ns.saturating_sub(bonus);
            if best.is_none_or(|(least, ..)| rank < least) {
                best = Some((rank, entry.virtual_ns, entry.vcpu));
            }
        }
        let (_, virtual_ns, vcpu) = best?;
        self.clock_ns = self.clock_ns.max(virtual_ns);
        self.current = Some(vcpu);
        Some((vcpu, candidates > 1))
    }

    /// A vCPU has run.
    pub fn charge(&mut self, vcpu: VcpuId, ran_ns: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.vcpu == vcpu) {
            entry.virtual_ns += ran_ns * USUAL_WEIGHT / entry.weight;
        }
    }

    /// A vCPU spins: it goes behind the others.
    pub fn yield_now(&mut self, vcpu: VcpuId) {
        self.current = None;
        let last = self.entries.iter().map(|entry| entry.virtual_ns).max();
        if let (Some(last), Some(entry)) = (
            last,
            self.entries.iter_mut().find(|entry| entry.vcpu == vcpu),
        ) {
            entry.virtual_ns = entry.virtual_ns.max(last.min(entry.virtual_ns + SLICE_NS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(vm: u32) -> VcpuId {
        VcpuId { vm, index: 0 }
    }

    /// Runs whole slices and gives how many each VM got.
    fn run(
        scheduler: &mut Scheduler,
        slices: usize,
        runnable: impl Fn(VcpuId) -> bool,
    ) -> [usize; 4] {
        let mut got = [0; 4];
        for _ in 0..slices {
            let (vcpu, _) = scheduler.pick(&runnable).unwrap();
            scheduler.charge(vcpu, SLICE_NS);
            got[vcpu.vm as usize] += 1;
        }
        got
    }

    #[test]
    fn time_is_shared_by_weight() {
        let mut scheduler = Scheduler::default();
        scheduler.add(0, 1, 256);
        scheduler.add(1, 1, 512);
        scheduler.add(2, 1, 1024);
        let got = run(&mut scheduler, 700, |_| true);
        assert!((95..=105).contains(&got[0]), "{got:?}");
        assert!((195..=205).contains(&got[1]), "{got:?}");
        assert!((395..=405).contains(&got[2]), "{got:?}");
    }

    #[test]
    fn a_woken_vcpu_goes_first_but_saves_nothing_up() {
        let mut scheduler = Scheduler::default();
        scheduler.add(0, 1, 256);
        scheduler.add(1, 1, 256);
        run(&mut scheduler, 1000, |vcpu| vcpu.vm == 0);
        assert_eq!(scheduler.pick(|_| true), Some((id(1), true)));
        let got = run(&mut scheduler, 100, |_| true);
        assert!((49..=53).contains(&got[1]), "{got:?}");
    }

    #[test]
    fn a_newcomer_does_not_starve_the_others() {
        let mut scheduler = Scheduler::default();
        scheduler.add(0, 1, 256);
        run(&mut scheduler, 1000, |_| true);
        scheduler.add(1, 1, 256);
        let got = run(&mut scheduler, 100, |_| true);
        assert!((48..=52).contains(&got[0]), "{got:?}");
    }

    #[test]
    fn an_interrupt_does_not_end_the_slice_but_a_wakeup_does() {
        let mut scheduler = Scheduler::default();
        for vm in 0..3 {
            scheduler.add(vm, 1, 256);
        }
        let two = |vcpu: VcpuId| vcpu.vm < 2;
        run(&mut scheduler, 10, two);
        let (first, _) = scheduler.pick(two).unwrap();
        scheduler.charge(first, SLICE_NS / 10);
        assert_eq!(scheduler.pick(two), Some((first, true)));
        scheduler.charge(first, SLICE_NS / 10);
        assert_eq!(scheduler.pick(|_| true), Some((id(2), true)));
    }

    #[test]
    fn a_spinning_vcpu_lets_the_one_it_waits_for_run() {
        let mut scheduler = Scheduler::default();
        scheduler.add(0, 2, 256);
        let (first, _) = scheduler.pick(|_| true).unwrap();
        scheduler.charge(first, 1000);
        scheduler.yield_now(first);
        let (second, _) = scheduler.pick(|_| true).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn nothing_runnable_and_vms_gone() {
        let mut scheduler = Scheduler::default();
        scheduler.add(0, 1, 256);
        assert_eq!(scheduler.pick(|_| false), None);
        assert_eq!(scheduler.pick(|_| true), Some((id(0), false)));
        scheduler.remove(0);
        assert_eq!(scheduler.pick(|_| true), None);
    }
}
