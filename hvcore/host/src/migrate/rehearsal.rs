//! Running a copy of a guest that is about to arrive, so that its code is warm when it does.
//!
//! The copy runs in the RAM that has arrived so far, which is of one moment with the snapshot it begins with, on the real
//! vCPUs, with a machine whose requests nobody serves: what it sends, prints, reads from disk or writes there goes
//! nowhere. It receives what the guest receives. Afterwards the machine is replaced by a new one, the vCPUs are
//! loaded anew with the final state, and the pages that were changed are asked for again.
//!
//! Rejected: beginning with whatever pages have arrived. Stacks and run queues of the guest's kernel are then
//! older than its registers, the copy is lost at once, and hardly anything is warm.

use alloc::{
    collections::VecDeque,
    string::{String, ToString},
    vec::Vec,
};

use guest_memory::PageSet;
use machine::{Machine, Outcome, vcpu::Vcpu as _};
use migration::Snapshot;

use super::arrival::load_vcpus;
use crate::{
    HostClock,
    platform::{Platform, VmHardware},
    vm::Guest,
};

/// How long the copy runs: long enough for a key to be typed in most runs, and for what is seldom done to be done once.
const DURATION_NS: u64 = 250_000_000;

/// Frames that wait for the copy; what comes on top is dropped.
const MAX_FRAMES: usize = 256;

/// A copy of a guest that runs for a moment.
pub(crate) struct Rehearsal {
    until_ns: u64,
    frames: VecDeque<(usize, Vec<u8>)>,
    next_vcpu: usize,
}

impl Rehearsal {
    /// Puts the copy into the guest's place.
    pub fn begin<P: Platform>(
        platform: &P,
        guest: &mut Guest<P::Vm>,
        snapshot: &Snapshot,
    ) -> Result<Self, String> {
        guest
            .machine
            .restore(&snapshot.devices)
            .map_err(|error| error.to_string())?;
        load_vcpus(guest, snapshot)?;
        let saved = snapshot.vcpus.first().map_or(0, |vcpu| vcpu.tsc);
        let offset = saved.wrapping_sub(platform.tsc());
        for vcpu in 0..snapshot.vcpus.len() {
            guest.hardware.vcpu(vcpu).set_tsc_offset(offset);
        }
        Ok(Self {
            until_ns: platform.now_ns() + DURATION_NS,
            frames: VecDeque::new(),
            next_vcpu: 0,
        })
    }

    /// Gives the copy a frame.
    pub fn deliver(&mut self, nic: usize, frame: &[u8]) {
        if self.frames.len() < MAX_FRAMES {
            self.frames.push_back((nic, frame.to_vec()));
        }
    }

    /// Whether the copy has run long enough.
    pub fn is_over(&self, now_ns: u64) -> bool {
        self.until_ns <= now_ns
    }

    /// Runs it for a while. False when it has nothing to do at the moment.
    pub fn run<P: Platform>(
        &mut self,
        platform: &mut P,
        guest: &mut Guest<P::Vm>,
        until_ns: u64,
    ) -> bool {
        let until_ns = until_ns.min(self.until_ns);
        let vcpus = usize::from(guest.machine.config().vcpus);
        let nics = guest.machine.config().nics.len();
        let mut worked = false;
        while platform.now_ns() < until_ns {
            let machine = &mut guest.machine;
            while let Some((nic, frame)) = self.frames.front()
                && (*nic >= nics || machine.deliver_frame(*nic, frame))
            {
                self.frames.pop_front();
            }
            let Some(vcpu) = (0..vcpus)
                .map(|step| (self.next_vcpu + step) % vcpus)
                .find(|vcpu| machine.runnable(*vcpu, &HostClock(platform)))
            else {
                break;
            };
            self.next_vcpu = vcpu + 1;
            worked = true;
            let timer = machine.next_deadline_ns();
            platform.interrupt_at(timer.unwrap_or(until_ns).min(until_ns));
            let outcome = machine.run(vcpu, guest.hardware.vcpu(vcpu), &HostClock(platform));
            while machine.next_frame().is_some() {}
            while machine.next_disk_request().is_some() {}
            machine.take_console_output();
            match outcome {
                Outcome::Halted | Outcome::Work | Outcome::TimerSet | Outcome::Yield => {}
                // A card's interrupt, perhaps: look around.
                Outcome::Interrupted => break,
                Outcome::Reset { .. } | Outcome::PowerOff | Outcome::Misbehaved(_) => {
                    self.until_ns = 0;
                    break;
                }
            }
        }
        worked
    }

    /// When it has something to do again, or is over.
    pub fn next_deadline_ns<H>(&self, guest: &Guest<H>) -> u64 {
        let timer = guest.machine.next_deadline_ns();
        timer.unwrap_or(self.until_ns).min(self.until_ns)
    }

    /// Takes the copy away; gives the guest with a new machine, and the pages to be asked for again.
    pub fn end<P: Platform>(platform: &P, guest: Guest<P::Vm>) -> (Guest<P::Vm>, Vec<u32>) {
        let Guest {
            mut hardware,
            machine,
        } = guest;
        let config = machine.config().clone();
        let memory = machine.into_memory();
        // Loading a page leaves no mark, so all marks are the copy's.
        let mut spoilt = PageSet::new(memory.pages());
        memory.harvest_into(&mut spoilt);
        hardware.harvest_dirty(&mut spoilt);
        let pages = spoilt
            .iter()
            .map(|page| u32::try_from(page).expect("guests have less than 16 TiB"))
            .collect();
        let machine = Machine::new(&config, memory, |leaf, subleaf| {
            platform.cpuid(leaf, subleaf)
        });
        (Guest { hardware, machine }, pages)
    }
}
