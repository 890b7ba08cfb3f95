//! What a simulated host runs on.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use guest_memory::{GuestMemory, PageSet};
use host::platform::{Nic, NoMemory, Platform, VmHardware};

use crate::cpu::{Cpu, HostView, Ram};

/// Frames on their way out of a host.
pub type Outbox = Rc<RefCell<Vec<(Nic, Vec<u8>)>>>;

/// What the simulation sees of a host from outside.
#[derive(Clone, Default)]
pub struct Outside {
    pub outbox: Outbox,
    pub interrupt_at: Rc<Cell<u64>>,
    pub card_interrupt_at: Rc<Cell<u64>>,
    /// RAM of the VM that was created last.
    pub ram: Rc<RefCell<Option<Arc<Ram>>>>,
    pub log: Rc<RefCell<Vec<String>>>,
    /// How far the host's clock is ahead of the world's.
    pub ahead_ns: Rc<Cell<u64>>,
}

pub struct Simulated {
    pub number: u8,
    pub now: Rc<Cell<u64>>,
    pub outside: Outside,
    pub random: RefCell<fastrand::Rng>,
    pub memory: u64,
}

pub struct Vm {
    cpus: Vec<Cpu>,
}

impl VmHardware for Vm {
    type Vcpu = Cpu;

    fn vcpu(&mut self, index: usize) -> &mut Cpu {
        &mut self.cpus[index]
    }
    fn exits(&self) -> u64 {
        self.cpus.iter().map(|cpu| cpu.exits).sum()
    }
    fn harvest_dirty(&mut self, into: &mut PageSet) {
        self.cpus[0].ram.harvest(into);
    }
}

impl Platform for Simulated {
    type Vm = Vm;

    fn now_ns(&self) -> u64 {
        self.now.get() + self.outside.ahead_ns.get()
    }
    fn tsc(&self) -> u64 {
        self.now.get()
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn unix_ns(&self) -> u64 {
        self.now.get()
    }
    fn random(&self, buf: &mut [u8]) {
        self.random.borrow_mut().fill(buf);
    }
    fn interrupt_at(&mut self, at_ns: u64) {
        let at = at_ns.saturating_sub(self.outside.ahead_ns.get());
        self.outside.interrupt_at.set(at);
    }
    fn memory(&self) -> (u64, u64) {
        (self.memory, self.memory)
    }
    fn create_vm(&mut self, memory: u64, vcpus: usize) -> Result<(Vm, GuestMemory), NoMemory> {
        if memory > self.memory {
            return Err(NoMemory {
                needed: memory,
                free: self.memory,
            });
        }
        let ram = Arc::new(Ram::new(memory as usize));
        *self.outside.ram.borrow_mut() = Some(Arc::clone(&ram));
        let cpus = (0..vcpus)
            .map(|_| {
                Cpu::new(
                    Arc::clone(&ram),
                    Rc::clone(&self.now),
                    Rc::clone(&self.outside.interrupt_at),
                    Rc::clone(&self.outside.card_interrupt_at),
                )
            })
            .collect();
        Ok((Vm { cpus }, GuestMemory::new(Box::new(HostView(ram)))))
    }
    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }
    fn mac(&self, nic: Nic) -> [u8; 6] {
        [2, 0xe1, 0xab, nic as u8, 0, self.number]
    }
    fn transmit_room(&mut self, _: Nic) -> usize {
        256 - self.outside.outbox.borrow().len().min(256)
    }
    fn transmit(&mut self, nic: Nic, frame: &[u8]) {
        self.outside.outbox.borrow_mut().push((nic, frame.to_vec()));
    }
    fn log(&mut self, line: &str) {
        self.outside.log.borrow_mut().push(line.to_string());
    }
    fn power_off(&mut self) {}
}
