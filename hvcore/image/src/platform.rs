//! What this machine gives to `host::Host`.

use alloc::{rc::Rc, vec::Vec};
use core::arch::x86_64::__cpuid_count;

use guest_memory::GuestMemory;
use host::platform::{Nic, NoMemory, Platform};
use x86_64::instructions::port::PortWriteOnly;

use crate::{
    memory,
    net::Transmitter,
    panic, println, random,
    svm::{PhysicalCpu, SvmVm},
    time,
};

/// The hardware of a host, but for what it receives.
pub struct BareMetal {
    cpu: Rc<PhysicalCpu>,
    /// MAC address and sending half of each card, in the order of [`Nic::ALL`].
    cards: Vec<([u8; 6], Transmitter)>,
    /// Port and value that switch the machine off.
    power_off: Option<(u16, u16)>,
}

impl BareMetal {
    /// The hardware found at boot.
    pub fn new(
        cpu: Rc<PhysicalCpu>,
        cards: Vec<([u8; 6], Transmitter)>,
        power_off: Option<(u16, u16)>,
    ) -> Self {
        Self {
            cpu,
            cards,
            power_off,
        }
    }

    /// Announces to the cards what was sent since the last time.
    pub fn flush(&mut self) {
        for (_, transmitter) in &mut self.cards {
            transmitter.flush();
        }
    }

    /// Before halting: whether a card that was full has room again, so that there may be something to send.
    /// Otherwise it interrupts when it has.
    pub fn wake_for_room(&mut self) -> bool {
        self.cards.iter_mut().fold(false, |any, (_, transmitter)| {
            transmitter.wake_for_room() | any
        })
    }
}

impl Platform for BareMetal {
    type Vm = SvmVm;

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn tsc(&self) -> u64 {
        time::tsc()
    }

    fn tsc_hz(&self) -> u64 {
        time::tsc_hz()
    }

    fn unix_ns(&self) -> u64 {
        time::unix_ns()
    }

    fn random(&self, buf: &mut [u8]) {
        random::fill(buf);
    }

    fn interrupt_at(&mut self, at_ns: u64) {
        time::interrupt_at(at_ns);
    }

    fn memory(&self) -> (u64, u64) {
        memory::account()
    }

    fn create_vm(&mut self, memory: u64, vcpus: usize) -> Result<(SvmVm, GuestMemory), NoMemory> {
        SvmVm::build(&self.cpu, memory, vcpus)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = __cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn mac(&self, nic: Nic) -> [u8; 6] {
        self.cards[nic as usize].0
    }

    fn transmit_room(&mut self, nic: Nic) -> usize {
        self.cards[nic as usize].1.room()
    }

    fn transmit(&mut self, nic: Nic, frame: &[u8]) {
        self.cards[nic as usize].1.send(frame);
    }

    fn log(&mut self, line: &str) {
        let us = time::now_ns() / 1000;
        println!("[{:>5}.{:06}] {line}", us / 1_000_000, us % 1_000_000);
    }

    fn power_off(&mut self) {
        self.flush();
        power_off(self.power_off);
    }
}

/// Switches the machine off (ACPI 6.5, 7.4.2), or halts where that has no effect.
pub fn power_off(control: Option<(u16, u16)>) -> ! {
    println!("elab: host switched off");
    if let Some((port, value)) = control {
        // SAFETY: enters the sleep state from which only a reset leads back; nothing runs after it.
        unsafe { PortWriteOnly::new(port).write(value) };
    }
    panic::halt()
}
