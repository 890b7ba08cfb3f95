//! The interrupt descriptor table (APM vol. 2, 4.8.4 and 8.2) and the handler of all vectors.

use core::arch::global_asm;

use super::{CONSOLE_VECTOR, SPURIOUS_VECTOR, apic};
use crate::serial;
use spin::Once;
use x86_64::{VirtAddr, instructions::tables::lidt, structures::DescriptorTablePointer};

global_asm!(include_str!("stubs.s"));

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// Bytes between two stubs.
const STUB_BYTES: u64 = 16;
/// The code segment of `entry.s`.
const CODE_SELECTOR: u64 = 0x08;
/// Present, privilege level 0, 64-bit interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e00;

#[repr(C, align(16))]
struct Table([[u64; 2]; 256]);

static TABLE: Once<Table> = Once::new();

/// What the stubs push, lowest address first.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Loads the table on this CPU.
pub fn init() {
    let table = TABLE.call_once(|| {
        let first = (&raw const interrupt_stubs) as u64;
        Table(core::array::from_fn(|vector| {
            let stub = first + vector as u64 * STUB_BYTES;
            [
                (stub & 0xffff)
                    | (CODE_SELECTOR << 16)
                    | (INTERRUPT_GATE << 32)
                    | ((stub & 0xffff_0000) << 32),
                stub >> 32,
            ]
        }))
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of::<Table>() - 1) as u16,
        base: VirtAddr::from_ptr(table),
    };
    // SAFETY: the table lives for ever and each gate leads to a stub that keeps all registers.
    unsafe { lidt(&pointer) };
}

#[unsafe(no_mangle)]
extern "C" fn handle_interrupt(frame: &Frame) {
    match frame.vector {
        0..32 => exception(frame),
        vector if vector == u64::from(SPURIOUS_VECTOR) => {}
        vector => {
            if vector == u64::from(CONSOLE_VECTOR) {
                serial::interrupted();
            }
            apic::end_of_interrupt();
        }
    }
}

/// The host's own code raised an exception: a defect of ours, reported like a panic.
fn exception(frame: &Frame) -> ! {
    const NMI: u64 = 2;
    if frame.vector == NMI {
        panic!(
            "non-maskable interrupt at {:#x}: the hardware failed, or somebody asked for this halt",
            frame.rip
        );
    }
    let address = x86_64::registers::control::Cr2::read_raw();
    panic!(
        "exception {} (error {:#x}) at {:#x}, cr2 {address:#x}, rsp {:#x}, rflags {:#x}, rax {:#x} rcx {:#x} rdx {:#x} \
         rbx {:#x} rbp {:#x} rsi {:#x} rdi {:#x} r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        frame.rflags,
        frame.rax,
        frame.rcx,
        frame.rdx,
        frame.rbx,
        frame.rbp,
        frame.rsi,
        frame.rdi,
        frame.r8,
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15,
    );
}
