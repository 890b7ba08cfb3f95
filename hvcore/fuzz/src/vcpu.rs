//! A vCPU and a clock of memory, and the machine they belong to.

use std::cell::Cell;

use guest_memory::testing;
use machine::{
    Clock, DiskModel, Machine, MachineConfig, NicModel,
    vcpu::{Event, Exit, Gpr, Segment, SegmentName, Vcpu, VcpuState},
};

/// RAM of [`machine`].
pub const RAM: usize = 1 << 16;
/// Where instructions are placed.
pub const CODE: u64 = 0x1000;

const RFLAGS_IF: u64 = 1 << 9;
const EFER_LMA_LME: u64 = 0x500;
const LONG_MODE_CODE: u16 = 0xa9b;

/// A clock that is set.
#[derive(Default)]
pub struct SetClock(pub Cell<u64>);

impl Clock for SetClock {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }
    fn tsc_hz(&self) -> u64 {
        2_000_000_000
    }
    fn unix_ns(&self) -> u64 {
        self.0.get()
    }
    fn random(&self, buf: &mut [u8]) {
        buf.fill(0x5a);
    }
}

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0x20, 0, 0, 0],
        (0x8000_0000, _) => [0x8000_0021, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        _ => [u32::MAX; 4],
    }
}

/// What [`machine`] is made of.
pub fn config() -> MachineConfig {
    MachineConfig {
        vcpus: 2,
        disks: vec![DiskModel {
            sectors: 64,
            read_only: false,
            serial: "disk-0".into(),
        }],
        nics: vec![NicModel {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        }],
        balloon: true,
    }
}

/// A machine with a disk, a card and two vCPUs, in this RAM.
pub fn machine_in(memory: guest_memory::GuestMemory) -> Machine {
    Machine::new(&config(), memory, cpuid)
}

/// As [`machine_in`], in RAM of its own.
pub fn machine() -> Machine {
    machine_in(testing::memory(RAM))
}

/// A vCPU that leaves the guest once for the reason it was given, then for the host's sake.
#[derive(Default)]
pub struct SetVcpu {
    pub state: VcpuState,
    pub exit: Option<Exit>,
    /// What the guest has set CR8 to.
    pub cr8: u8,
    tsc_offset: u64,
}

impl SetVcpu {
    /// In 64-bit mode without paging, which no real one is in, so that linear addresses are physical ones.
    pub fn new() -> Self {
        let mut vcpu = Self::default();
        vcpu.state.rflags = 2 | RFLAGS_IF;
        vcpu.state.efer = EFER_LMA_LME;
        vcpu.state.cs.attributes = LONG_MODE_CODE;
        vcpu.state.rip = CODE;
        vcpu
    }
}

impl Vcpu for SetVcpu {
    fn run(&mut self) -> Exit {
        self.state.pending = None;
        self.exit.take().unwrap_or(Exit::Interrupted)
    }
    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gprs[usize::from(register)]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gprs[usize::from(register)] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn advance_to(&mut self, rip: u64) {
        self.state.rip = rip;
        self.state.interrupt_shadow = false;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn cr(&self, number: u8) -> u64 {
        match number {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            8 => self.cr8.into(),
            _ => self.state.cr4,
        }
    }
    fn set_task_priority(&mut self, class: u8, _: bool) {
        self.cr8 = class;
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        match name {
            SegmentName::Es => self.state.es,
            SegmentName::Cs => self.state.cs,
            SegmentName::Ss => self.state.ss,
            SegmentName::Ds => self.state.ds,
            SegmentName::Fs => self.state.fs,
            SegmentName::Gs => self.state.gs,
        }
    }
    fn cpl(&self) -> u8 {
        self.state.cpl
    }
    fn pat(&self) -> u64 {
        self.state.pat
    }
    fn set_pat(&mut self, value: u64) {
        self.state.pat = value;
    }
    fn tsc_aux(&self) -> u64 {
        self.state.tsc_aux
    }
    fn set_tsc_aux(&mut self, value: u64) {
        self.state.tsc_aux = value;
    }
    fn xcr0(&self) -> u64 {
        self.state.xcr0
    }
    fn set_xcr0(&mut self, value: u64) {
        self.state.xcr0 = value;
    }
    fn tsc(&self) -> u64 {
        self.tsc_offset
    }
    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn can_take_interrupt(&self) -> bool {
        self.state.rflags & RFLAGS_IF != 0 && self.state.pending.is_none()
    }
    fn inject(&mut self, event: Event) {
        assert_eq!(self.state.pending, None, "one event at a time");
        self.state.pending = Some(event);
    }
    fn pending_event(&self) -> Option<Event> {
        self.state.pending
    }
    fn want_interrupt_window(&mut self, _: bool) {}
    fn save(&mut self) -> VcpuState {
        self.state.clone()
    }
    fn load(&mut self, state: &VcpuState) {
        self.state = state.clone();
    }
}
