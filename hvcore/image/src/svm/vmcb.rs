//! The virtual machine control block: how the CPU is told what to run and says why it stopped.
//!
//! Layout only (AMD64 APM vol. 2, appendix B); it knows nothing of what the fields are used for.
//! The CPU reads and writes the block only during VMRUN, VMLOAD and VMSAVE, so plain fields serve
//! and nothing needs to be volatile: the world switch is a barrier to the compiler.

use core::mem::{offset_of, size_of};

use machine::vcpu::Segment;

/// Intercepts of the word at 0x0c (APM vol. 2, table B-1).
pub mod intercept1 {
    #![allow(missing_docs)]
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO_PROT: u32 = 1 << 27;
    pub const MSR_PROT: u32 = 1 << 28;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the word at 0x10 (APM vol. 2, table B-1).
pub mod intercept2 {
    #![allow(missing_docs)]
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
}

/// Exit codes (APM vol. 2, appendix C).
pub mod exit_code {
    #![allow(missing_docs)]
    pub const CR8_WRITE: u64 = 0x18;
    pub const EXCEPTION_DB: u64 = 0x41;
    pub const EXCEPTION_AC: u64 = 0x51;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const NPF: u64 = 0x400;
    /// VMEXIT_INVALID is -1: 64 bits of it by the manual, 32 from QEMU 7.2.
    // TCG-QUIRK(4)
    pub const INVALID: [u64; 2] = [u64::MAX, 0xffff_ffff];
}

/// Fields of the virtual interrupt control at 0x60.
pub mod int_ctl {
    #![allow(missing_docs)]
    pub const V_TPR: u64 = 0xf;
    pub const V_IRQ: u64 = 1 << 8;
    pub const V_INTR_PRIO_SHIFT: u32 = 16;
    pub const V_IGN_TPR: u64 = 1 << 20;
    pub const V_INTR_MASKING: u64 = 1 << 24;
}

/// In the word at 0x00: bits 31 to 16 are writes to control registers 15 to 0.
pub const INTERCEPT_CR8_WRITE: u32 = 1 << (16 + 8);
/// Bit 0 of the word at 0x68: the guest is in the shadow of STI or MOV SS.
pub const INTERRUPT_SHADOW: u64 = 1;
/// Bit 0 of the word at 0x90.
pub const NESTED_PAGING: u64 = 1;
/// TLB_CONTROL: leave the TLB alone.
pub const TLB_KEEP: u8 = 0;
/// TLB_CONTROL: flush every entry of every ASID.
pub const TLB_FLUSH_ALL: u8 = 1;

/// The control area, offsets 0x000 to 0x3ff.
#[allow(missing_docs)]
#[repr(C)]
pub struct Control {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved_18: [u8; 0x28],
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    reserved_5d: [u8; 3],
    pub int_ctl: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    reserved_98: [u8; 0x10],
    pub event_inj: u64,
    pub nested_cr3: u64,
    reserved_b8: [u8; 0x348],
}

/// The state save area, offsets 0x400 to 0xfff.
#[allow(missing_docs)]
#[repr(C)]
pub struct Save {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_4a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_4cc: [u8; 4],
    pub efer: u64,
    reserved_4d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_580: [u8; 0x58],
    pub rsp: u64,
    reserved_5e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_648: [u8; 0x20],
    pub g_pat: u64,
    reserved_670: [u8; 0x990],
}

/// A segment register in the save area.
#[allow(missing_docs)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VmcbSegment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

impl From<VmcbSegment> for Segment {
    fn from(from: VmcbSegment) -> Self {
        Self {
            selector: from.selector,
            attributes: from.attributes,
            limit: from.limit,
            base: from.base,
        }
    }
}

impl From<Segment> for VmcbSegment {
    fn from(from: Segment) -> Self {
        Self {
            selector: from.selector,
            attributes: from.attributes,
            limit: from.limit,
            base: from.base,
        }
    }
}

/// The whole block.
#[allow(missing_docs)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Control, intercept1) == 0x0c);
    assert!(offset_of!(Control, intercept2) == 0x10);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, tlb_control) == 0x5c);
    assert!(offset_of!(Control, int_ctl) == 0x60);
    assert!(offset_of!(Control, interrupt_shadow) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inj) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Vmcb, save.tr) == 0x490);
    assert!(offset_of!(Vmcb, save.cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, save.efer) == 0x4d0);
    assert!(offset_of!(Vmcb, save.cr4) == 0x548);
    assert!(offset_of!(Vmcb, save.rip) == 0x578);
    assert!(offset_of!(Vmcb, save.rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, save.rax) == 0x5f8);
    assert!(offset_of!(Vmcb, save.cr2) == 0x640);
    assert!(offset_of!(Vmcb, save.g_pat) == 0x668);
};

impl Vmcb {
    /// A block of zeroes: nothing intercepted, nothing runnable.
    #[must_use]
    pub fn zeroed() -> Self {
        // SAFETY: every field is an integer or an array of integers, for which zero is a value.
        unsafe { core::mem::zeroed() }
    }
}
