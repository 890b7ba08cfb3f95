//! What a test guest says: lines on the serial port.

use core::fmt;

use crate::cpu::{inb, outb};

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// ACPI's sleep control register of this machine, and what switches it off: SLP_TYP 5, SLP_EN.
const SLEEP_CONTROL: u16 = 0x600;
const POWER_OFF: u8 = 5 << 2 | 1 << 5;

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            outb(PORT, byte);
        }
        Ok(())
    }
}

/// Writes without allocating or locking: there is one thread.
pub fn print(arguments: fmt::Arguments<'_>) {
    // The console never fails.
    let _ = fmt::Write::write_fmt(&mut Console, arguments);
}

/// A line on the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Switches the machine off.
pub fn power_off() -> ! {
    outb(SLEEP_CONTROL, POWER_OFF);
    loop {
        crate::cpu::halt_for_ever();
    }
}

/// Fails the running test, with the reason.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            panic!($($why)*);
        }
    };
}
