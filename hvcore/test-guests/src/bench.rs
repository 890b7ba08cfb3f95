//! What an exit costs, as the guest sees it.
//!
//! Meant for virtual time (QEMU `-icount shift=0,sleep=off -rtc clock=vm`), where one instruction takes one
//! nanosecond and the figures are the same on every machine; elsewhere they are wall time.

use core::hint::black_box;

use crate::{
    check,
    cpu::{self, cpuid, inb, rdmsr, tsc, wrmsr},
    interrupts::x2apic,
    println,
};

const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ROUNDS: u64 = 2000;

/// KVM's page that scales the time-stamp counter (Linux, virt/kvm/x86/msr.rst).
#[repr(C, align(64))]
struct ClockPage {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

static mut CLOCK: ClockPage = ClockPage {
    version: 0,
    pad: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    pad2: [0; 2],
};

/// Ticks to nanoseconds, by the clock page.
fn scaled(ticks: u64) -> u64 {
    let page = &raw const CLOCK;
    // SAFETY: one thread; the hypervisor writes the page when the MSR is written, before this reads it.
    let (mul, shift) = unsafe {
        (
            (&raw const (*page).tsc_to_system_mul).read_volatile(),
            (&raw const (*page).tsc_shift).read_volatile(),
        )
    };
    let ticks = if shift >= 0 {
        ticks << shift
    } else {
        ticks >> -shift
    };
    ((u128::from(ticks) * u128::from(mul)) >> 32) as u64
}

/// Nanoseconds of the guest's clock.
pub fn nanoseconds() -> u64 {
    wrmsr(SYSTEM_TIME, (&raw const CLOCK) as u64 | 1);
    let page = &raw const CLOCK;
    // SAFETY: as in `scaled`.
    let (stamp, time, version) = unsafe {
        (
            (&raw const (*page).tsc_timestamp).read_volatile(),
            (&raw const (*page).system_time).read_volatile(),
            (&raw const (*page).version).read_volatile(),
        )
    };
    check!(
        version != 0 && version & 1 == 0,
        "clock page of version {version}"
    );
    time + scaled(tsc().wrapping_sub(stamp))
}

fn measure(name: &str, operation: impl Fn()) {
    operation();
    let start = tsc();
    for _ in 0..ROUNDS {
        operation();
    }
    let ns = scaled(tsc() - start) / ROUNDS;
    println!("bench {name} {ns} ns");
}

/// Prints one line for each kind of exit: `bench NAME N ns`.
pub fn run() {
    nanoseconds();
    measure("loop", || {
        black_box(0);
    });
    measure("cpuid", || {
        black_box(cpuid(0, 0));
    });
    measure("read-msr", || {
        black_box(rdmsr(x2apic::TPR));
    });
    measure("write-msr", || wrmsr(x2apic::TPR, 0));
    measure("port", || {
        black_box(inb(0x80));
    });
    measure("mmio", || {
        // SAFETY: the IOAPIC's select register.
        black_box(unsafe { core::ptr::read_volatile(0xfec0_0000 as *const u32) });
    });
    measure("self-ipi", || {
        cpu::cli();
        crate::interrupts::self_ipi(0x41);
        cpu::sti();
        cpu::cli();
    });
    measure("timer", || {
        crate::interrupts::timer_at(tsc() + 1, 0xec);
        cpu::wait();
    });
}
