//! The local APIC in xAPIC mode (APM vol. 2, chapter 16): end of interrupt and the one-shot timer.
//!
//! Not x2APIC, which QEMU's TCG lacks before version 9; not the TSC deadline timer, which it lacks
//! altogether.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::mmio::Registers;

/// Where every CPU has its own after reset.
// SAFETY: the architecture puts the local APIC there, and it is mapped.
const REGISTERS: Registers = unsafe { Registers::new(0xfee0_0000) };

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

/// Delivery mode of the pin that non-maskable interrupts arrive at.
const NMI: u32 = 4 << 8;
const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_ONE: u32 = 0xb;

/// Timer ticks in a nanosecond, times 2^32, once measured.
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(0);

/// Switches this CPU's APIC on, with nothing but the timer and the PC's NMI to come.
pub fn enable() {
    REGISTERS.write(TASK_PRIORITY, 0);
    REGISTERS.write(LINT0, MASKED);
    REGISTERS.write(LINT1, NMI);
    REGISTERS.write(TIMER, MASKED);
    REGISTERS.write(TIMER_DIVIDE, DIVIDE_BY_ONE);
    REGISTERS.write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// This CPU's APIC identifier.
pub fn id() -> u8 {
    (REGISTERS.read(ID) >> 24) as u8
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    REGISTERS.write(END_OF_INTERRUPT, 0);
}

/// Starts the timer from its maximum without an interrupt, to measure its rate: it counts down.
pub fn start_counting() {
    REGISTERS.write(TIMER, MASKED);
    REGISTERS.write(TIMER_INITIAL, u32::MAX);
}

/// Ticks since [`start_counting`]; wraps after 2^32.
pub fn counted() -> u32 {
    u32::MAX - REGISTERS.read(TIMER_CURRENT)
}

/// Sets the rate that was measured and makes the timer interrupt.
pub fn start_timer(hz: u64) {
    let ticks_per_ns = (u128::from(hz) << 32) / 1_000_000_000;
    TICKS_PER_NS.store(ticks_per_ns as u64, Ordering::Relaxed);
    REGISTERS.write(TIMER_INITIAL, 0);
    REGISTERS.write(TIMER, TIMER_VECTOR.into());
}

/// Interrupts once, in `ns` nanoseconds at the latest: earlier when that is beyond the timer's reach.
pub fn interrupt_in(ns: u64) {
    let ticks_per_ns = u128::from(TICKS_PER_NS.load(Ordering::Relaxed));
    let ticks = (u128::from(ns) * ticks_per_ns) >> 32;
    // Zero would stop the timer.
    let ticks = ticks.clamp(1, u32::MAX.into()) as u32;
    REGISTERS.write(TIMER_INITIAL, ticks);
}

/// Stops the timer.
pub fn stop_timer() {
    REGISTERS.write(TIMER_INITIAL, 0);
}
