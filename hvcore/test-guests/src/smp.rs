//! Other processors: start, and turns on one physical CPU.

use core::arch::asm;

use crate::{
    check,
    cpu::{cpuid, tsc, wrmsr},
    interrupts::x2apic,
    println,
};

/// Where the others start (a page below 1 MiB, as the startup message wants it, above what the loader put
/// there), and where they report.
const START: u64 = 0x4_0000;
const REPORT: u64 = START + 0x100;
const DELIVERY_INIT: u64 = 5 << 8;
const DELIVERY_STARTUP: u64 = 6 << 8;
const ASSERT: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
/// Ticks after which a processor has not started.
const LATE: u64 = 20_000_000_000;

/// Real-mode code: `mov ax, cs; mov ds, ax; lock inc word [0x100]`, then count at 0x102 for ever, so
/// that this vCPU competes for the physical CPU.
const CODE: [u8; 15] = [
    0x8c, 0xc8, 0x8e, 0xd8, 0xf0, 0xff, 0x06, 0x00, 0x01, 0xff, 0x06, 0x02, 0x01, 0xeb, 0xfa,
];

fn report(index: u64) -> u16 {
    // SAFETY: low memory that nothing else uses, written by the others.
    unsafe { ((REPORT + 2 * index) as *const u16).read_volatile() }
}

fn send(target: u64, message: u64) {
    wrmsr(x2apic::ICR, target << 32 | message);
}

/// Every other vCPU starts when it is told, once, and all get their turns.
pub fn start_others() {
    let [_, logical, _, _] = cpuid(0xb, 1);
    let others = (logical & 0xffff).saturating_sub(1);
    println!("{others} other processors");
    // SAFETY: low memory that nothing else uses.
    unsafe {
        core::ptr::copy_nonoverlapping(CODE.as_ptr(), START as *mut u8, CODE.len());
        (REPORT as *mut u32).write_volatile(0);
    }
    for target in 1..=u64::from(others) {
        send(target, DELIVERY_INIT | ASSERT | LEVEL);
        send(target, DELIVERY_INIT | LEVEL);
        // The second message finds the processor running, and must change nothing.
        send(target, DELIVERY_STARTUP | ASSERT | START >> 12);
        send(target, DELIVERY_STARTUP | ASSERT | START >> 12);
    }
    let begin = tsc();
    while u32::from(report(0)) < others {
        check!(
            tsc() - begin < LATE,
            "only {} of {others} started",
            report(0)
        );
        // SAFETY: a hint.
        unsafe { asm!("pause") };
    }
    let counted = report(1);
    while report(1) == counted && others > 0 {
        check!(tsc() - begin < LATE, "the others get no turns");
    }
    check!(
        u32::from(report(0)) == others,
        "{} starts of {others}",
        report(0)
    );
}
