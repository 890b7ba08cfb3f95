//! Interrupts and time.

use crate::{
    check,
    cpu::{self, cli, rdmsr, sti, tsc, wait, wrmsr},
    interrupts::{self, count, timer_armed, timer_at, x2apic},
};

const LOW: u8 = 0x41;
const HIGH: u8 = 0x91;
const TIMER: u8 = 0xec;
/// A port that nothing listens to.
const DELAY_PORT: u16 = 0x80;
/// Ticks that are "soon" at any rate of the counter: 40 us at 2.6 GHz.
const SOON: u64 = 100_000;
/// Ticks by which a timer may be late on a busy machine.
const LATE: u64 = 5_000_000_000;

fn self_ipi_arrives(vector: u8) {
    let before = count(vector);
    cli();
    interrupts::self_ipi(vector);
    check!(count(vector) == before, "delivered while held back");
    sti();
    let start = tsc();
    while count(vector) == before {
        check!(tsc() - start < LATE, "vector {vector:#x} was not delivered");
    }
    cli();
    check!(
        count(vector) == before + 1,
        "delivered {} times",
        count(vector) - before
    );
}

/// A vector sent to oneself arrives once, when interrupts are let in and not before.
pub fn self_ipi() {
    self_ipi_arrives(LOW);
    self_ipi_arrives(HIGH);
}

/// The timer fires, not before its time, and ends a halt.
pub fn deadline() {
    for distance in [SOON, 10 * SOON, 100 * SOON] {
        let (before, start) = (count(TIMER), tsc());
        timer_at(start + distance, TIMER);
        while count(TIMER) == before {
            wait();
        }
        let took = tsc() - start;
        check!(took >= distance, "{distance} ticks took {took}");
        check!(took < distance + LATE, "{distance} ticks took {took}");
        check!(!timer_armed(), "still armed after it fired");
    }
}

/// A moment that has passed fires at once; zero disarms.
pub fn past_deadline() {
    let before = count(TIMER);
    timer_at(1, TIMER);
    while count(TIMER) == before {
        wait();
    }
    // On a busy machine the moment may pass before the timer is disarmed: then it is tried again.
    for distance in (1..=20).map(|try_number| try_number * 100 * SOON) {
        let moment = tsc() + distance;
        timer_at(moment, TIMER);
        wrmsr(x2apic::TSC_DEADLINE, 0);
        if tsc() >= moment {
            // It may have fired already: out with it.
            sti();
            cpu::outb(DELAY_PORT, 0);
            cli();
            continue;
        }
        let before = count(TIMER);
        sti();
        while tsc() < moment + 100 * SOON {}
        cli();
        check!(count(TIMER) == before, "a disarmed timer fired");
        return;
    }
    panic!("the timer could never be disarmed in time");
}

/// An interrupt that becomes due between STI and HLT must end the halt. The distances sweep the
/// moment over the two instructions. A lost wake-up hangs here for ever, and the driver of the test says so.
pub fn halt_race() {
    for round in 0..400 {
        let before = count(TIMER);
        timer_at(tsc() + round * 512, TIMER);
        while count(TIMER) == before {
            wait();
        }
    }
}

/// With the agreement, most ends of interrupt cost no exit, and none is lost.
pub fn pv_eoi() {
    const ROUNDS: u32 = 100;
    interrupts::use_pv_eoi(true);
    let (before, writes) = (count(LOW), interrupts::eoi_writes());
    for _ in 0..ROUNDS {
        self_ipi_arrives(LOW);
    }
    check!(
        count(LOW) == before + ROUNDS,
        "{} of {ROUNDS}",
        count(LOW) - before
    );
    let writes = interrupts::eoi_writes() - writes;
    check!(
        writes < ROUNDS / 2,
        "{writes} EOIs were written in {ROUNDS} interrupts"
    );
    interrupts::use_pv_eoi(false);
    self_ipi_arrives(LOW);
}

/// The task priority holds back lower vectors only.
pub fn priority() {
    let (low, high) = (count(LOW), count(HIGH));
    wrmsr(x2apic::TPR, 0x50);
    interrupts::self_ipi(LOW);
    interrupts::self_ipi(HIGH);
    sti();
    let start = tsc();
    while count(HIGH) == high {
        check!(tsc() - start < LATE, "the higher vector was held back");
    }
    check!(count(LOW) == low, "the lower vector was not held back");
    wrmsr(x2apic::TPR, 0);
    while count(LOW) == low {
        check!(tsc() - start < LATE, "the lower vector was lost");
    }
    cli();
}

/// CR8 is the same register. It keeps its value over whatever happens to the guest meanwhile, and lowering it lets an
/// interrupt in at once.
pub fn task_priority() {
    cpu::set_cr8(5);
    let read = rdmsr(x2apic::TPR);
    check!(read == 0x50, "the local APIC shows {read:#x}");
    let before = count(LOW);
    interrupts::self_ipi(LOW);
    sti();
    let start = tsc();
    while tsc() - start < 500 * SOON {}
    check!(count(LOW) == before, "the vector was not held back");
    check!(cpu::cr8() == 5, "CR8 became {}", cpu::cr8());
    cpu::set_cr8(0);
    check!(count(LOW) == before + 1, "the vector did not come at once");
    cli();
}

/// kvmclock tells a rate that agrees with itself, and a wall clock of this century.
pub fn clock() {
    let before = crate::bench::nanoseconds();
    let start = tsc();
    while tsc() - start < 100 * SOON {}
    let passed = crate::bench::nanoseconds() - before;
    check!(passed > 0, "the clock stands still");
}
