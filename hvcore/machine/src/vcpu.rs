//! What a virtual CPU is to the rest of the hypervisor, whichever vendor's extension runs it.
//!
//! A backend (`hvcore/image/src/svm`) implements [`Vcpu`]: it enters the guest and says why it came
//! out. It knows nothing of devices, CPUID policy or instruction semantics; those answer the
//! [`Exit`]s in this crate, where they are tested without hardware.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// General-purpose registers, by their number in instruction encodings (AMD64 APM vol. 3, 1.4).
pub type Gpr = u8;

/// `rax`, `rcx`, `rdx`, `rbx`: the registers that CPUID and RDMSR answer in.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// Why the guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt: the host has work to do, or the time slice is over.
    Interrupted,
    /// The guest can take an interrupt now; asked for by [`Vcpu::want_interrupt_window`].
    InterruptWindow,
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// HLT. RIP is at the instruction, as with every exit for an instruction.
    Halt,
    /// PAUSE: the guest spins, so another vCPU should run.
    Pause,
    /// IN, OUT, INS or OUTS.
    Io {
        /// Port number.
        port: u16,
        /// Bytes in one transfer: 1, 2 or 4.
        size: u8,
        /// OUT or OUTS.
        write: bool,
        /// INS or OUTS.
        string: bool,
        /// A REP prefix.
        repeat: bool,
        /// RIP of the next instruction.
        next_rip: u64,
    },
    /// An access to a guest-physical address that is not RAM.
    NestedFault {
        /// The address.
        gpa: u64,
        /// The access wrote.
        write: bool,
        /// The access fetched an instruction.
        fetch: bool,
        /// The access was the CPU's own walk of the guest's page tables.
        table_walk: bool,
    },
    /// VMMCALL or VMCALL.
    Hypercall,
    /// MOV to CR8; asked for by [`Vcpu::set_task_priority`].
    SetTaskPriority,
    /// XSETBV.
    SetXcr,
    /// WBINVD, INVD and the like: nothing to do but step over it.
    CacheControl,
    /// An instruction this machine does not have: answered with #UD.
    Undefined,
    /// Triple fault.
    Shutdown,
    /// The hardware refused the vCPU's state, which a guest can bring about on some emulators
    /// (TCG-QUIRK 4), or an exit this backend does not know.
    Invalid {
        /// The vendor's exit code and two words of detail, for the report.
        code: u64,
        /// First detail word.
        info1: u64,
        /// Second detail word.
        info2: u64,
    },
}

/// An event to deliver at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception with its vector and, where it has one, its error code.
    Exception {
        /// Vector, below 32.
        vector: u8,
        /// Error code.
        error: Option<u32>,
    },
}

impl Event {
    /// #UD.
    pub const UNDEFINED: Self = Self::Exception {
        vector: 6,
        error: None,
    };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::Exception {
        vector: 13,
        error: Some(0),
    };
}

/// Segment registers in their instruction-encoding order.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes in the VMCB's packed form: descriptor bits 40-47 and 52-55 (APM vol. 2, 15.5.1).
    pub attributes: u16,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// Everything a vCPU carries from one host to another, apart from its local APIC.
///
/// A saved type: fields are only appended, and [`crate::state`] gives it a kind and a version.
#[allow(missing_docs)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// rax..r15 by encoding number (rsp included).
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldtr: Segment,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub cpl: u8,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// As the guest reads it: without SVME.
    pub efer: u64,
    pub dr0_3: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub pat: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter: [u64; 3],
    pub tsc_aux: u64,
    pub xcr0: u64,
    /// XSAVE image in the standard format (or FXSAVE image where the CPU has no XSAVE).
    pub xsave: Vec<u8>,
    /// The interrupt shadow of STI or MOV SS.
    pub interrupt_shadow: bool,
    /// An event that was to be delivered and has not been accepted yet.
    pub pending: Option<Event>,
    /// The guest's time-stamp counter at the moment of saving.
    pub tsc: u64,
}

/// A virtual CPU.
///
/// Between two calls of [`run`](Self::run) the guest does not execute and all registers may be
/// read and changed.
pub trait Vcpu {
    /// Runs the guest until something needs the hypervisor. An event set by [`Self::inject`] is delivered
    /// first; where its delivery was cut short, the backend keeps it for the next entry.
    fn run(&mut self) -> Exit;

    /// A general-purpose register, `rsp` included.
    fn gpr(&self, register: Gpr) -> u64;
    /// Sets a general-purpose register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Moves past an instruction that was emulated: sets RIP and ends an interrupt shadow.
    fn advance_to(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Control register 0, 2, 3, 4 or 8.
    fn cr(&self, number: u8) -> u64;
    /// Sets CR8, which is bits 7 to 4 of the local APIC's task priority (APM vol. 2, 16.6.4) and is saved with that.
    /// `watched`: the guest's next write to it exits, since an interrupt waits for that.
    fn set_task_priority(&mut self, class: u8, watched: bool);
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets EFER; the backend adds what the hardware needs.
    fn set_efer(&mut self, value: u64);
    /// A segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// Current privilege level.
    fn cpl(&self) -> u8;
    /// PAT as the guest sees it.
    fn pat(&self) -> u64;
    /// Sets PAT.
    fn set_pat(&mut self, value: u64);
    /// `IA32_TSC_AUX`.
    fn tsc_aux(&self) -> u64;
    /// Sets `IA32_TSC_AUX`.
    fn set_tsc_aux(&mut self, value: u64);
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Sets XCR0, already checked against what CPUID offers.
    fn set_xcr0(&mut self, value: u64);
    /// The guest's time-stamp counter now.
    fn tsc(&self) -> u64;
    /// What the guest's time-stamp counter is ahead of the host's, modulo 2^64.
    fn tsc_offset(&self) -> u64;
    /// Sets the offset. All vCPUs of a machine have the same one, so that their counters agree to the tick;
    /// a setter of the counter's *value* could not give that, since time passes between two calls.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Whether an external interrupt could be delivered at the next entry: IF set, no interrupt
    /// shadow, no event waiting.
    fn can_take_interrupt(&self) -> bool;
    /// Delivers an event at the next entry. At most one may wait.
    fn inject(&mut self, event: Event);
    /// The event that waits for the next entry.
    fn pending_event(&self) -> Option<Event>;
    /// Asks for (or no longer asks for) [`Exit::InterruptWindow`] as soon as an interrupt can be taken.
    fn want_interrupt_window(&mut self, wanted: bool);

    /// Copies everything out, for a migration or a snapshot.
    fn save(&mut self) -> VcpuState;
    /// Replaces everything but the TSC offset ([`VcpuState::tsc`] is for whoever sets that for the whole
    /// machine): a fresh vCPU, an application processor's start, or a migrated one.
    fn load(&mut self, state: &VcpuState);
}
