//! The host's console: the first serial port (a 16550, TL16C550C data sheet), output and received bytes.
//!
//! Its lock is never held across anything that may panic, and a panic writes past it, so a report always gets
//! out.

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use spin::Mutex;
use x86_64::instructions::port::Port;

/// COM1.
const BASE: u16 = 0x3f8;

/// Line status: a received byte waits.
const DATA_READY: u8 = 1;
/// Line status: the transmit register is free.
const TRANSMIT_EMPTY: u8 = 1 << 5;

/// Bytes may wait. The port is read only then: under QEMU an access waits for the lock that the network
/// cards' threads want too.
static RECEIVED: AtomicBool = AtomicBool::new(false);

static CONSOLE: Mutex<SerialPort> = Mutex::new(SerialPort);

struct SerialPort;

impl SerialPort {
    fn write_register(&mut self, register: u16, value: u8) {
        // SAFETY: the UART's registers touch no memory.
        unsafe { Port::new(BASE + register).write(value) }
    }

    fn read_register(&mut self, register: u16) -> u8 {
        // SAFETY: as above.
        unsafe { Port::new(BASE + register).read() }
    }

    fn send(&mut self, byte: u8) {
        // Bounded, since the port may be missing: then its status reads as all ones.
        for _ in 0..1_000_000 {
            if self.read_register(5) & TRANSMIT_EMPTY != 0 {
                break;
            }
        }
        self.write_register(0, byte);
    }
}

impl Write for SerialPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}

/// Sets 115200 baud, 8 bits, no parity, FIFOs on, no interrupts.
pub fn init() {
    let mut port = CONSOLE.lock();
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        port.write_register(register, value);
    }
}

/// Makes received bytes raise the UART's interrupt line.
pub fn enable_receive_interrupt() {
    CONSOLE.lock().write_register(1, 1);
}

/// The interrupt line was raised.
pub fn interrupted() {
    RECEIVED.store(true, Ordering::Relaxed);
}

/// A byte typed at the console, if any.
pub fn receive() -> Option<u8> {
    if !RECEIVED.load(Ordering::Relaxed) {
        return None;
    }
    let mut port = CONSOLE.lock();
    if port.read_register(5) & DATA_READY == 0 {
        // The next byte raises the line again.
        RECEIVED.store(false, Ordering::Relaxed);
        return None;
    }
    Some(port.read_register(0))
}

/// Writes bytes as they are: a guest's console output.
pub fn write_bytes(bytes: &[u8]) {
    let mut port = CONSOLE.lock();
    for &byte in bytes {
        port.send(byte);
    }
}

/// Writes formatted text; use [`print!`](crate::println).
pub fn print(arguments: fmt::Arguments<'_>) {
    // Writing to the port cannot fail.
    let _ = CONSOLE.lock().write_fmt(arguments);
}

/// Writes text whoever holds the lock: for a CPU that is about to halt for good.
pub fn print_regardless(arguments: fmt::Arguments<'_>) {
    let _ = SerialPort.write_fmt(arguments);
}

/// Writes a line to the host's console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
