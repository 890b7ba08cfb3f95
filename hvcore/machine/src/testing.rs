//! A vCPU of memory, for tests: it "runs" by giving prepared exits, and its registers are variables.

use std::{cell::Cell, collections::VecDeque, vec::Vec};

use guest_memory::{Gpa, GuestMemory, testing};

use crate::{
    Clock, DiskModel, Machine, MachineConfig, NicModel, Outcome,
    vcpu::{Event, Exit, Gpr, Segment, SegmentName, Vcpu, VcpuState, gpr},
    virtio::transport::Function,
};

/// Where tests put instructions.
pub const CODE: u64 = 0x5000;
/// RAM of [`machine`].
pub const RAM: usize = 1 << 16;
/// Ticks per second of [`TestClock`]: two a nanosecond.
pub const TSC_HZ: u64 = 2_000_000_000;

const RFLAGS_IF: u64 = 1 << 9;

/// A processor with every feature there is.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0x20, 0, 0, 0],
        (0x8000_0000, _) => [0x8000_0021, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        _ => [u32::MAX; 4],
    }
}

/// A machine with one disk and one card.
pub fn machine(vcpus: u8) -> Machine {
    let config = MachineConfig {
        vcpus,
        disks: std::vec![DiskModel {
            sectors: 64,
            read_only: false,
            serial: "disk-0".into(),
        }],
        nics: std::vec![NicModel {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        }],
        balloon: false,
    };
    Machine::new(&config, testing::memory(RAM), cpuid)
}

/// Sets a device up as its driver would: a queue of eight entries with its rings from `rings` on, a page each, and
/// vector 0x61 for its interrupts.
pub fn start_driver(function: &mut Function, queue: u16, rings: u64) {
    for (register, size, value) in [
        (0x14, 1, 0),
        (0x14, 1, 3),
        (0x0c, 4, 1 << 29),
        (0x08, 4, 1),
        (0x0c, 4, 1),
        (0x14, 1, 0xb),
        (0x16, 2, queue.into()),
        (0x18, 2, 8),
        (0x20, 8, rings),
        (0x28, 8, rings + 0x1000),
        (0x30, 8, rings + 0x2000),
        (0x1a, 2, 1),
        (0x1c, 2, 1),
        (0x14, 1, 0xf),
        (0x4010, 4, 0xfee0_0000),
        (0x4018, 4, 0x61),
        (0x401c, 4, 0),
    ] {
        function.write(register, size, value).unwrap();
    }
    let msix = (0x40..0xf0)
        .step_by(4)
        .find(|place| function.config().read(*place, 1) == 0x11)
        .unwrap();
    function.write_config(msix + 2, 2, 0x8000);
}

/// A clock that stands until it is set.
#[derive(Default)]
pub struct TestClock {
    pub now_ns: Cell<u64>,
    pub tsc_hz: Cell<u64>,
}

impl TestClock {
    pub fn at(now_ns: u64) -> Self {
        Self {
            now_ns: Cell::new(now_ns),
            tsc_hz: Cell::new(TSC_HZ),
        }
    }
}

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn tsc_hz(&self) -> u64 {
        self.tsc_hz.get()
    }
    fn unix_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.now_ns.get()
    }
    fn random(&self, buf: &mut [u8]) {
        buf.fill(0x5a);
    }
}

/// A vCPU of memory. It starts in 64-bit mode without paging, which no real one does, so that linear addresses are
/// physical ones.
#[derive(Default)]
pub struct TestVcpu {
    pub state: VcpuState,
    /// What `run` gives, in order; then [`Exit::Interrupted`] for ever.
    pub exits: VecDeque<Exit>,
    /// What was delivered.
    pub delivered: Vec<Event>,
    pub window: bool,
    pub cr8: u8,
    /// What the guest writes to CR8 before its next exit.
    pub writes_cr8: Option<u8>,
    /// Writes to CR8 exit.
    pub cr8_watched: bool,
    pub tsc: u64,
    pub tsc_offset: u64,
}

impl TestVcpu {
    pub fn new() -> Self {
        let mut vcpu = Self::default();
        vcpu.state.rip = CODE;
        vcpu.state.rflags = 2 | RFLAGS_IF;
        vcpu.state.efer = 0x500;
        vcpu.state.cs.attributes = 0xa9b;
        vcpu
    }

    /// Executes one WRMSR.
    pub fn write_msr(
        &mut self,
        machine: &mut Machine,
        index: usize,
        msr: u32,
        value: u64,
        clock: &TestClock,
    ) -> Outcome {
        self.set_gpr(gpr::RCX, msr.into());
        self.set_gpr(gpr::RAX, value & 0xffff_ffff);
        self.set_gpr(gpr::RDX, value >> 32);
        self.exits.push_back(Exit::WriteMsr);
        machine.run(index, self, clock)
    }

    /// Executes one RDMSR.
    pub fn read_msr(&mut self, machine: &mut Machine, msr: u32, clock: &TestClock) -> u64 {
        self.set_gpr(gpr::RCX, msr.into());
        self.exits.push_back(Exit::ReadMsr);
        machine.run(0, self, clock);
        self.gpr(gpr::RAX) | self.gpr(gpr::RDX) << 32
    }

    /// Executes an instruction that makes this exit.
    pub fn exit(&mut self, machine: &mut Machine, exit: Exit, clock: &TestClock) -> Outcome {
        self.exits.push_back(exit);
        machine.run(0, self, clock)
    }

    /// Places an instruction where the next exit will look for it.
    pub fn place(&mut self, memory: &GuestMemory, code: &[u8]) {
        memory.write(Gpa(CODE), code).unwrap();
        self.state.rip = CODE;
    }
}

impl Vcpu for TestVcpu {
    fn run(&mut self) -> Exit {
        self.delivered.extend(self.state.pending.take());
        self.cr8 = self.writes_cr8.take().unwrap_or(self.cr8);
        self.exits.pop_front().unwrap_or(Exit::Interrupted)
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
    fn set_task_priority(&mut self, class: u8, watched: bool) {
        (self.cr8, self.cr8_watched) = (class, watched);
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
        self.tsc.wrapping_add(self.tsc_offset)
    }
    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn can_take_interrupt(&self) -> bool {
        self.state.rflags & RFLAGS_IF != 0
            && !self.state.interrupt_shadow
            && self.state.pending.is_none()
    }
    fn inject(&mut self, event: Event) {
        assert_eq!(self.state.pending, None, "one event at a time");
        self.state.pending = Some(event);
    }
    fn pending_event(&self) -> Option<Event> {
        self.state.pending
    }
    fn want_interrupt_window(&mut self, wanted: bool) {
        self.window = wanted;
    }
    fn save(&mut self) -> VcpuState {
        self.state.clone()
    }
    fn load(&mut self, state: &VcpuState) {
        self.state = state.clone();
    }
}
