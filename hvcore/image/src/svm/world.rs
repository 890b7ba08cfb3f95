//! The world switch: everything between "the guest's state is in memory" and "it is again".
//!
//! The window is CLGI; STI; VMLOAD; VMRUN; VMSAVE; CLI; STGI:
//! - CLGI holds back interrupts from before STI until VMRUN has made the guest's GIF 1, so none
//!   falls between the two and is lost to the caller.
//! - STI, because with V_INTR_MASKING it is the *host's* IF that lets a physical interrupt
//!   end the guest's run (APM vol. 2, 15.21.1). Everywhere else the image keeps IF clear.
//! - After #VMEXIT GIF is 0; CLI comes before STGI, so a pending interrupt stays pending until the
//!   caller takes it with [`crate::interrupts::take_pending`].
//!
//! FS, GS, TR, LDTR and the system-call MSRs stay the guest's while the host runs: the image uses
//! none of them (it never leaves CPL 0 and switches no stacks), so loading its own back on every
//! exit would buy nothing. Rejected: `vmload` of the host after each exit, as general-purpose
//! kernels must.

use core::{arch::naked_asm, mem::offset_of};

/// The general-purpose registers that VMRUN does not switch, by encoding number. The entries of
/// `rax` and `rsp` are unused: those two live in the VMCB.
#[repr(C)]
#[derive(Default)]
pub struct Gprs(pub [u64; 16]);

const _: () = assert!(offset_of!(Gprs, 0) == 0);

/// Runs the guest until its next #VMEXIT.
///
/// # Safety
/// `vmcb` is the physical address of a VMCB whose nested page tables map only the guest's own memory
/// and whose permission maps are alive; this CPU has SVM enabled and VM_HSAVE_PA set;
/// interrupts are off, and memory is identity-mapped.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(gprs: &mut Gprs, vmcb: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov rax, rsi",
        "clgi",
        "sti",
        "vmload rax",
        "mov rcx, [rdi + 1*8]",
        "mov rdx, [rdi + 2*8]",
        "mov rbx, [rdi + 3*8]",
        "mov rbp, [rdi + 5*8]",
        "mov rsi, [rdi + 6*8]",
        "mov r8,  [rdi + 8*8]",
        "mov r9,  [rdi + 9*8]",
        "mov r10, [rdi + 10*8]",
        "mov r11, [rdi + 11*8]",
        "mov r12, [rdi + 12*8]",
        "mov r13, [rdi + 13*8]",
        "mov r14, [rdi + 14*8]",
        "mov r15, [rdi + 15*8]",
        "mov rdi, [rdi + 7*8]",
        ".global svm_vmrun",
        "svm_vmrun:",
        // VMRUN restores the host's rax, rsp and rip; the rest is the guest's afterwards.
        "vmrun rax",
        "vmsave rax",
        "mov rax, [rsp]",
        "mov [rax + 1*8], rcx",
        "mov [rax + 2*8], rdx",
        "mov [rax + 3*8], rbx",
        "mov [rax + 5*8], rbp",
        "mov [rax + 6*8], rsi",
        "mov [rax + 7*8], rdi",
        "mov [rax + 8*8], r8",
        "mov [rax + 9*8], r9",
        "mov [rax + 10*8], r10",
        "mov [rax + 11*8], r11",
        "mov [rax + 12*8], r12",
        "mov [rax + 13*8], r13",
        "mov [rax + 14*8], r14",
        "mov [rax + 15*8], r15",
        "cli",
        "stgi",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    );
}

unsafe extern "C" {
    /// The VMRUN instruction in [`enter`].
    static svm_vmrun: u8;
}

/// Address of the VMRUN instruction: the RIP that a refused entry leaves behind.
// TCG-QUIRK(4)
#[must_use]
pub fn vmrun_address() -> u64 {
    (&raw const svm_vmrun).addr() as u64
}
