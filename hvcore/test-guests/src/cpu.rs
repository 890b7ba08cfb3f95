//! Instructions the tests use, as functions, and faults as values.

use core::{arch::asm, mem::ManuallyDrop};

/// An exception that [`attempt`] caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 where the exception has none.
    pub error: u32,
}

/// #UD.
pub const UNDEFINED: Fault = Fault {
    vector: 6,
    error: 0,
};
/// #GP(0).
pub const PROTECTION: Fault = Fault {
    vector: 13,
    error: 0,
};

unsafe extern "C" {
    fn catch_fault(function: extern "C" fn(*mut u8), argument: *mut u8) -> u64;
}

/// Runs a closure; an exception in it ends it and is returned. The closure must own nothing that has to
/// be dropped.
pub fn attempt<T, F: FnOnce() -> T>(closure: F) -> Result<T, Fault> {
    union Slot<T, F> {
        closure: ManuallyDrop<F>,
        result: ManuallyDrop<T>,
    }
    extern "C" fn call<T, F: FnOnce() -> T>(slot: *mut u8) {
        let slot = slot.cast::<Slot<T, F>>();
        // SAFETY: `attempt` passes its slot, which holds the closure; it is taken once and replaced by
        // the result.
        unsafe {
            let closure = ManuallyDrop::take(&mut (*slot).closure);
            (*slot).result = ManuallyDrop::new(closure());
        }
    }
    let mut slot = Slot::<T, F> {
        closure: ManuallyDrop::new(closure),
    };
    // SAFETY: the function fits its argument. After a fault the stack above this frame is forgotten,
    // and the slot is not read.
    match unsafe { catch_fault(call::<T, F>, (&raw mut slot).cast()) } {
        // SAFETY: the call came back, so the slot holds the result.
        0 => Ok(unsafe { ManuallyDrop::into_inner(slot.result) }),
        fault => Err(Fault {
            vector: fault as u8,
            error: (fault >> 8) as u32,
        }),
    }
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// RDMSR; may fault.
pub fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR has no effect on memory; a fault is caught or ends the test.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR; may fault. The tests write only what leaves the guest's own code runnable, or mean not to.
pub fn wrmsr(number: u32, value: u64) {
    // SAFETY: a test guest has nothing to protect from itself.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32);
    }
}

/// IN of a byte.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the machine's ports do not touch memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// OUT of a byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as `inb`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// IN of two bytes.
pub fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: as `inb`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// IN of four bytes.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// OUT of four bytes.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as `inb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// RDTSC.
pub fn tsc() -> u64 {
    // SAFETY: exists on every 64-bit CPU.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets CR4; may fault.
pub fn set_cr4(value: u64) {
    // SAFETY: as `wrmsr`.
    unsafe { asm!("mov cr4, {}", in(reg) value) };
}

/// CR8.
pub fn cr8() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets CR8; an interrupt that this lets in is delivered before the next instruction.
pub fn set_cr8(value: u64) {
    // SAFETY: as `sti`.
    unsafe { asm!("mov cr8, {}", in(reg) value) };
}

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets CR3, and with it forgets cached translations.
pub fn set_cr3(value: u64) {
    // SAFETY: as `wrmsr`.
    unsafe { asm!("mov cr3, {}", in(reg) value) };
}

/// Lets interrupts in.
pub fn sti() {
    // SAFETY: every vector has a handler that keeps registers.
    unsafe { asm!("sti") };
}

/// Holds interrupts back.
pub fn cli() {
    // SAFETY: it only delays handlers.
    unsafe { asm!("cli") };
}

/// Waits for an interrupt, letting it in only once the CPU halts, and holds interrupts back again.
pub fn wait() {
    // SAFETY: as `sti`.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Nothing more will happen.
pub fn halt_for_ever() {
    // SAFETY: with interrupts held back it never comes back.
    unsafe { asm!("cli", "hlt") };
}
