//! The guest's interrupt descriptor table, the handler of all vectors, and its local APIC (x2APIC).

use core::{
    arch::{asm, global_asm},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::cpu::{rdmsr, wrmsr};

global_asm!(include_str!("start.s"));

unsafe extern "C" {
    static interrupt_stubs: u8;
    static mut recovery_stack: u64;
    static catch_fault_return: u8;
}

/// Distance between two stubs.
const STUB_BYTES: u64 = 16;
/// The loader's code segment (Linux, x86/boot.rst: `__BOOT_CS`).
const CODE_SELECTOR: u64 = 0x10;
const INTERRUPT_GATE: u64 = 0x8e00;

/// x2APIC registers (Intel SDM vol. 3, 11.12.1.2).
pub mod x2apic {
    #![allow(missing_docs)]
    pub const TPR: u32 = 0x808;
    pub const EOI: u32 = 0x80b;
    pub const SPURIOUS: u32 = 0x80f;
    pub const ICR: u32 = 0x830;
    pub const LVT_TIMER: u32 = 0x832;
    pub const SELF_IPI: u32 = 0x83f;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const LVT_TSC_DEADLINE_MODE: u64 = 2 << 17;
}

/// KVM's MSR for paravirtualised end of interrupt.
pub const PV_EOI: u32 = 0x4b56_4d04;

static mut TABLE: [[u64; 2]; 256] = [[0; 2]; 256];
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// The word that the hypervisor sets when it can do without the EOI write.
static PV_EOI_WORD: AtomicU32 = AtomicU32::new(0);
static PV_EOI_ON: AtomicBool = AtomicBool::new(false);
static EOI_WRITES: AtomicU32 = AtomicU32::new(0);

/// What the stubs push.
#[repr(C)]
pub struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Loads the table and switches the local APIC on.
pub fn init() {
    let first = (&raw const interrupt_stubs) as u64;
    let mut table = [[0; 2]; 256];
    for (gate, vector) in table.iter_mut().zip(0..) {
        let stub = first + vector * STUB_BYTES;
        *gate = [
            stub & 0xffff | CODE_SELECTOR << 16 | INTERRUPT_GATE << 32 | (stub & 0xffff_0000) << 32,
            stub >> 32,
        ];
    }
    // SAFETY: one thread, and no interrupts yet.
    unsafe { TABLE = table };
    load_idt((&raw const TABLE) as u64, 0xfff);
    wrmsr(x2apic::SPURIOUS, 0x1ff);
}

/// LIDT.
pub fn load_idt(base: u64, limit: u16) {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let pointer = Pointer(limit, base);
    // SAFETY: the tests load a table that is good, or mean to crash.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer) };
}

#[unsafe(no_mangle)]
extern "C" fn handle_interrupt(frame: &mut Frame) {
    let vector = frame.vector as usize & 255;
    COUNTS[vector].fetch_add(1, Ordering::Relaxed);
    if vector >= 32 {
        end_of_interrupt();
        return;
    }
    // SAFETY: one thread; the word is written by `catch_fault` and here.
    let recovery = unsafe { recovery_stack };
    if recovery == 0 {
        panic!(
            "exception {vector} (error {:#x}) at {:#x}",
            frame.error, frame.rip
        );
    }
    // SAFETY: as above.
    unsafe { recovery_stack = 0 };
    frame.rip = (&raw const catch_fault_return) as u64;
    frame.rsp = recovery;
    // rax is pushed first, so it lies last. Bit 63 keeps vector 0 apart from "no fault".
    frame.registers[14] = 1 << 63 | frame.error << 8 | frame.vector;
}

fn end_of_interrupt() {
    // The hypervisor's side of the agreement: a set bit may be cleared instead of writing EOI.
    if PV_EOI_ON.load(Ordering::Relaxed) && PV_EOI_WORD.fetch_and(!1, Ordering::AcqRel) & 1 != 0 {
        return;
    }
    EOI_WRITES.fetch_add(1, Ordering::Relaxed);
    wrmsr(x2apic::EOI, 0);
}

/// How often a vector has been delivered.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// How often EOI had to be written.
pub fn eoi_writes() -> u32 {
    EOI_WRITES.load(Ordering::Relaxed)
}

/// Agrees on paravirtualised end of interrupt, or ends the agreement.
pub fn use_pv_eoi(on: bool) {
    let address = PV_EOI_WORD.as_ptr() as u64;
    PV_EOI_WORD.store(0, Ordering::Relaxed);
    wrmsr(PV_EOI, if on { address | 1 } else { 0 });
    PV_EOI_ON.store(on, Ordering::Relaxed);
}

/// Sends a vector to this CPU.
pub fn self_ipi(vector: u8) {
    wrmsr(x2apic::SELF_IPI, vector.into());
}

/// Arms the timer for a moment of the time-stamp counter.
pub fn timer_at(tsc: u64, vector: u8) {
    wrmsr(
        x2apic::LVT_TIMER,
        x2apic::LVT_TSC_DEADLINE_MODE | u64::from(vector),
    );
    wrmsr(x2apic::TSC_DEADLINE, tsc);
}

/// Whether the timer is still armed.
pub fn timer_armed() -> bool {
    rdmsr(x2apic::TSC_DEADLINE) != 0
}
