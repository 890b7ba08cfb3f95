//! A vCPU that runs [`Program`] instead of machine code. Its exits are real: the instruction that causes each
//! of them is in guest RAM, for the machine to decode.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, Mutex},
};

use guest_memory::{PAGE_SIZE, PageSet};
use machine::vcpu::{Event, Exit, Segment, SegmentName, Vcpu, VcpuState, gpr};

use crate::program::Program;

/// What the program asks of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Writes so many bytes of a value to an address.
    Write(u64, u8, u64),
    /// Writes so many bytes of a value to a port.
    Port(u16, u8, u64),
    /// Writes a model-specific register.
    Msr(u32, u64),
    Halt,
}

/// Guest RAM with the D bits of its nested page tables.
pub struct Ram(Mutex<(Vec<u8>, PageSet)>);

impl Ram {
    pub fn new(size: usize) -> Self {
        Self(Mutex::new((vec![0; size], PageSet::new(size / PAGE_SIZE))))
    }

    /// As the guest reads.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        self.0.lock().unwrap().0[at as usize..at as usize + len].to_vec()
    }

    /// As the guest reads, without a vector: the program looks at a dozen words in each step.
    pub fn array<const N: usize>(&self, at: u64) -> [u8; N] {
        self.0.lock().unwrap().0[at as usize..][..N]
            .try_into()
            .unwrap()
    }

    /// As the guest writes: sets D bits.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let (ram, dirty) = &mut *self.0.lock().unwrap();
        ram[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        for page in at as usize / PAGE_SIZE..=(at as usize + bytes.len() - 1) / PAGE_SIZE {
            dirty.insert(page);
        }
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub fn set_u64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn harvest(&self, into: &mut PageSet) {
        let (ram, dirty) = &mut *self.0.lock().unwrap();
        into.union(dirty);
        *dirty = PageSet::new(ram.len() / PAGE_SIZE);
    }
}

/// The hypervisor's view of the same RAM, which leaves the D bits alone.
pub struct HostView(pub Arc<Ram>);

impl guest_memory::Ram for HostView {
    fn size(&self) -> u64 {
        self.0.0.lock().unwrap().0.len() as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let ram = &self.0.0.lock().unwrap().0;
        buf.copy_from_slice(&ram[offset as usize..offset as usize + buf.len()]);
    }
    fn write(&self, offset: u64, buf: &[u8]) {
        let ram = &mut self.0.0.lock().unwrap().0;
        ram[offset as usize..offset as usize + buf.len()].copy_from_slice(buf);
    }
}

/// Instructions the program's exits stand for, in the kernel's payload.
pub const CODE: &[u8] = &[
    0x88, 0x03, // mov [rbx], al
    0x66, 0x89, 0x03, // mov [rbx], ax
    0x89, 0x03, // mov [rbx], eax
    0x0f, 0x30, // wrmsr
    0xf4, // hlt
];
const STORE_1: u64 = 0;
const STORE_2: u64 = 2;
const STORE_4: u64 = 5;
const WRMSR: u64 = 7;
const HLT: u64 = 9;

/// The instruction pointer's flag register: interrupts on.
const RFLAGS_IF: u64 = 1 << 9;

/// Time that an exit takes, and a moment of computing.
const STEP_NS: u64 = 2_000;

pub struct Cpu {
    pub ram: Arc<Ram>,
    pub now: Rc<Cell<u64>>,
    pub interrupt_at: Rc<Cell<u64>>,
    /// A card's interrupt, as the simulation sees fit.
    pub card_interrupt_at: Rc<Cell<u64>>,
    pub exits: u64,
    state: VcpuState,
    tsc_offset: u64,
    /// Where [`CODE`] is.
    code: u64,
}

impl Cpu {
    pub fn new(
        ram: Arc<Ram>,
        now: Rc<Cell<u64>>,
        interrupt_at: Rc<Cell<u64>>,
        card_interrupt_at: Rc<Cell<u64>>,
    ) -> Self {
        Self {
            ram,
            now,
            interrupt_at,
            card_interrupt_at,
            exits: 0,
            state: VcpuState::default(),
            tsc_offset: 0,
            code: crate::KERNEL_AT + 0x200,
        }
    }
}

impl Vcpu for Cpu {
    fn run(&mut self) -> Exit {
        self.exits += 1;
        if let Some(Event::Interrupt(vector)) = self.state.pending.take() {
            let program = Program {
                ram: &self.ram,
                tsc: self.tsc(),
            };
            program.on_interrupt(vector);
        }
        loop {
            self.now.set(self.now.get() + STEP_NS);
            if self.now.get() >= self.interrupt_at.get().min(self.card_interrupt_at.get()) {
                return Exit::Interrupted;
            }
            let program = Program {
                ram: &self.ram,
                tsc: self.tsc(),
            };
            match program.step() {
                None => {}
                Some(Request::Write(gpa, size, value)) => {
                    self.state.gprs[usize::from(gpr::RBX)] = gpa;
                    self.state.gprs[usize::from(gpr::RAX)] = value;
                    self.state.rip = self.code
                        + match size {
                            1 => STORE_1,
                            2 => STORE_2,
                            _ => STORE_4,
                        };
                    return Exit::NestedFault {
                        gpa,
                        write: true,
                        fetch: false,
                        table_walk: false,
                    };
                }
                Some(Request::Port(port, size, value)) => {
                    self.state.gprs[usize::from(gpr::RAX)] = value;
                    return Exit::Io {
                        port,
                        size,
                        write: true,
                        string: false,
                        repeat: false,
                        next_rip: self.state.rip,
                    };
                }
                Some(Request::Msr(register, value)) => {
                    self.state.gprs[usize::from(gpr::RCX)] = register.into();
                    self.state.gprs[usize::from(gpr::RAX)] = value & 0xffff_ffff;
                    self.state.gprs[usize::from(gpr::RDX)] = value >> 32;
                    self.state.rip = self.code + WRMSR;
                    return Exit::WriteMsr;
                }
                Some(Request::Halt) => {
                    self.state.rip = self.code + HLT;
                    return Exit::Halt;
                }
            }
        }
    }

    fn gpr(&self, register: u8) -> u64 {
        self.state.gprs[usize::from(register)]
    }
    fn set_gpr(&mut self, register: u8, value: u64) {
        self.state.gprs[usize::from(register)] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn advance_to(&mut self, rip: u64) {
        self.state.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags | RFLAGS_IF
    }
    fn cr(&self, number: u8) -> u64 {
        match number {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            8 => 0,
            _ => self.state.cr4,
        }
    }
    fn set_task_priority(&mut self, _: u8, _: bool) {}
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
        self.now.get().wrapping_add(self.tsc_offset)
    }
    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn can_take_interrupt(&self) -> bool {
        self.state.pending.is_none()
    }
    fn inject(&mut self, event: Event) {
        assert!(self.state.pending.is_none(), "one event waits at most");
        assert!(
            matches!(event, Event::Interrupt(_)),
            "the program does nothing wrong: {event:?}"
        );
        self.state.pending = Some(event);
    }
    fn pending_event(&self) -> Option<Event> {
        self.state.pending
    }
    fn want_interrupt_window(&mut self, _: bool) {}
    fn save(&mut self) -> VcpuState {
        let mut state = self.state.clone();
        state.tsc = self.tsc();
        state
    }
    fn load(&mut self, state: &VcpuState) {
        self.state = state.clone();
    }
}
