//! Clocks: nanoseconds since boot, and the time of day.
//!
//! The time-stamp counter is the clock. Its rate comes from the launcher, or is measured against a timer
//! of known rate. The PIT is not used for that: under load QEMU's lets the measured rate be off by a tenth and
//! more (TCG-QUIRK 15). Instead each reading of the reference is paired with the counter just
//! before and after, and the closest pair of many counts, so that being descheduled in between does no harm.

use core::arch::x86_64::_rdtsc;

use boot_info::{acpi::Tables, rtc};
use spin::Once;
use x86_64::instructions::port::{Port, PortReadOnly};

use crate::{interrupts::apic, mmio::Registers};

/// How long the rates are measured.
const MEASURE_NS: u64 = 20_000_000;
/// Readings of which the closest pair is taken.
const READINGS: usize = 50;
/// Ticks of the ACPI timer in a second (ACPI 6.5, 4.8.3.3).
const ACPI_TIMER_HZ: u64 = 3_579_545;

static CLOCK: Once<Clock> = Once::new();

struct Clock {
    tsc_hz: u64,
    /// Counter at which `now_ns` is zero.
    boot_tsc: u64,
    /// Nanoseconds in a tick, times 2^40.
    ns_per_tick: u64,
    /// Nanoseconds from 1970 to boot.
    unix_at_boot_ns: u64,
}

/// A timer of known rate.
enum Reference {
    /// High-precision event timer (IA-PC HPET specification 1.0a), with ticks in a second.
    Hpet(Registers, u64),
    /// The ACPI timer's port; 24 bits of it are always there.
    Acpi(u16),
}

impl Reference {
    fn find(tables: &Tables) -> Option<Self> {
        const CAPABILITIES_PERIOD_FS: u64 = 4;
        const CONFIGURATION: u64 = 0x10;
        const ENABLE: u32 = 1;
        const FS_IN_SECOND: u64 = 1_000_000_000_000_000;
        if let Some(address) = tables.hpet {
            // SAFETY: the ACPI tables say that an HPET is there; nobody else drives it.
            let registers = unsafe { Registers::new(address) };
            let period_fs = u64::from(registers.read(CAPABILITIES_PERIOD_FS));
            // The specification's limit is 100 ns.
            if (1..=100_000_000).contains(&period_fs) {
                registers.write(CONFIGURATION, registers.read(CONFIGURATION) | ENABLE);
                return Some(Self::Hpet(registers, FS_IN_SECOND / period_fs));
            }
        }
        tables.acpi_timer.map(Self::Acpi)
    }

    /// The low 24 bits, which wrap after 160 ms at the fastest rate the specifications allow.
    fn read(&self) -> u64 {
        const COUNTER: u64 = 0xf0;
        let value = match self {
            Self::Hpet(registers, _) => registers.read(COUNTER),
            // SAFETY: reads a counter.
            Self::Acpi(port) => unsafe { PortReadOnly::<u32>::new(*port).read() },
        };
        u64::from(value & 0xff_ffff)
    }

    fn hz(&self) -> u64 {
        match self {
            Self::Hpet(_, hz) => *hz,
            Self::Acpi(_) => ACPI_TIMER_HZ,
        }
    }

    fn ticks_since(&self, then: u64) -> u64 {
        self.read().wrapping_sub(then) & 0xff_ffff
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: the instruction is on every 64-bit CPU and reads a counter.
    unsafe { _rdtsc() }
}

/// The counter at the moment of a reading, from the reading that took least.
fn paired(read: impl Fn() -> u64) -> (u64, u64) {
    (0..READINGS)
        .map(|_| {
            let before = tsc();
            let value = read();
            let after = tsc();
            (after - before, before + (after - before) / 2, value)
        })
        .min()
        .map(|(_, at, value)| (at, value))
        .expect("there is more than one reading")
}

/// Starts the clocks and the timer. `tsc_hz` is what the launcher said.
pub fn init(tables: &Tables, tsc_hz: Option<u64>) {
    let boot_tsc = tsc();
    let reference = Reference::find(tables);
    apic::start_counting();
    let (apic_first_tsc, apic_first) = paired(|| apic::counted().into());
    let measured = reference.map(|reference| {
        let (first_tsc, first) = paired(|| reference.read());
        let wait = reference.hz() * (MEASURE_NS / 1000) / 1_000_000;
        while reference.ticks_since(first) < wait {
            core::hint::spin_loop();
        }
        let (last_tsc, last) = paired(|| reference.read());
        let ticks = last.wrapping_sub(first) & 0xff_ffff;
        scale(last_tsc - first_tsc, reference.hz(), ticks)
    });
    let tsc_hz = tsc_hz.or(measured).expect(
        "the rate of the time-stamp counter is unknown: this machine has neither HPET nor ACPI timer; \
         give the setting tsc_hz",
    );
    while tsc() - apic_first_tsc < scale(tsc_hz, MEASURE_NS, 1_000_000_000) {
        core::hint::spin_loop();
    }
    let (apic_last_tsc, apic_last) = paired(|| apic::counted().into());
    apic::start_timer(scale(
        apic_last - apic_first,
        tsc_hz,
        apic_last_tsc - apic_first_tsc,
    ));
    let unix_ns = read_rtc();
    CLOCK.call_once(|| Clock {
        tsc_hz,
        boot_tsc,
        ns_per_tick: scale(1 << 40, 1_000_000_000, tsc_hz),
        unix_at_boot_ns: unix_ns.saturating_sub(scale(tsc() - boot_tsc, 1_000_000_000, tsc_hz)),
    });
}

fn clock() -> &'static Clock {
    CLOCK.get().expect("the clocks start before anything asks")
}

fn scale(value: u64, by: u64, divided: u64) -> u64 {
    (u128::from(value) * u128::from(by) / u128::from(divided.max(1))) as u64
}

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    let clock = clock();
    let ticks = u128::from(tsc().wrapping_sub(clock.boot_tsc));
    ((ticks * u128::from(clock.ns_per_tick)) >> 40) as u64
}

/// Ticks of the time-stamp counter in a second.
pub fn tsc_hz() -> u64 {
    clock().tsc_hz
}

/// Nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    clock().unix_at_boot_ns + now_ns()
}

/// Raises the timer interrupt at a moment of [`now_ns`], at once when it has passed.
pub fn interrupt_at(at_ns: u64) {
    apic::interrupt_in(at_ns.saturating_sub(now_ns()));
}

/// Takes back what [`interrupt_at`] asked for.
pub fn stop_timer() {
    apic::stop_timer();
}

/// Reads the battery-backed clock, to the second.
fn read_rtc() -> u64 {
    let registers = || rtc::REGISTERS.map(read_cmos);
    // The update in progress takes 2 ms at most: two equal readings are a whole one.
    let mut last = registers();
    for _ in 0..1000 {
        let updating = read_cmos(rtc::STATUS_A) & rtc::UPDATING != 0;
        let again = registers();
        if !updating && again == last {
            break;
        }
        last = again;
    }
    rtc::unix_seconds(last, read_cmos(rtc::STATUS_B)) * 1_000_000_000
}

fn read_cmos(register: u8) -> u8 {
    // SAFETY: selects and reads a register of the clock; bit 7 stays clear, NMIs are not masked.
    unsafe {
        Port::<u8>::new(0x70).write(register);
        Port::<u8>::new(0x71).read()
    }
}
