//! The 16550A serial port at 0x3f8: the guest's console (National Semiconductor PC16550D data sheet).
//!
//! The line has no speed: what the guest writes is sent at once. It knows neither the port
//! number nor the interrupt pin.

use alloc::{collections::VecDeque, vec::Vec};

use bitflags::bitflags;

use crate::state::SavedSerial;

/// First I/O port.
pub const BASE: u16 = 0x3f8;
/// Last I/O port.
pub const LAST: u16 = BASE + 7;
/// Pin of the I/O APIC.
pub const PIN: usize = 4;

/// Bytes typed ahead; more are dropped, as on a real line without flow control.
const INPUT_MAX: usize = 4096;
/// Bytes kept for a host that does not read; the oldest go first.
const OUTPUT_MAX: usize = 64 * 1024;

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Enable: u8 {
        const RECEIVED = 1;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// Modem control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Control: u8 {
        const DTR = 1;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }
}

const FIFO_ENABLED: u8 = 1;
const DIVISOR_ACCESS: u8 = 1 << 7;
const DATA_READY: u8 = 1;
const TRANSMITTER_IDLE: u8 = 0x60;

/// A serial port.
#[derive(Clone, Debug)]
pub struct Serial {
    // Volatile state.
    enable: Enable,
    fifo_control: u8,
    line_control: u8,
    modem_control: Control,
    scratch: u8,
    divisor: [u8; 2],
    /// The "transmitter empty" interrupt is latched: raised when enabled and after each byte sent, cleared
    /// when its identification is read. A level there makes Linux' tty output stall.
    transmitter_empty: bool,
    input: VecDeque<u8>,
    // Runtime glue.
    output: Vec<u8>,
}

impl Default for Serial {
    fn default() -> Self {
        Self {
            enable: Enable::empty(),
            fifo_control: 0,
            line_control: 0,
            modem_control: Control::empty(),
            scratch: 0,
            divisor: [12, 0],
            transmitter_empty: false,
            input: VecDeque::new(),
            output: Vec::new(),
        }
    }
}

impl Serial {
    /// Whether the interrupt line is up. OUT2 gates it on a PC.
    #[must_use]
    pub fn line(&self) -> bool {
        self.interrupt().is_some()
            && self.modem_control.contains(Control::OUT2)
            && !self.modem_control.contains(Control::LOOPBACK)
    }

    /// Identification of the most urgent interrupt.
    fn interrupt(&self) -> Option<u8> {
        if self.enable.contains(Enable::RECEIVED) && !self.input.is_empty() {
            Some(0x04)
        } else if self.enable.contains(Enable::TRANSMITTER_EMPTY) && self.transmitter_empty {
            Some(0x02)
        } else {
            None
        }
    }

    /// Reads a register, 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        match register {
            0 | 1 if self.line_control & DIVISOR_ACCESS != 0 => self.divisor[usize::from(register)],
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.enable.bits(),
            2 => {
                let fifo = if self.fifo_control & FIFO_ENABLED != 0 {
                    0xc0
                } else {
                    0
                };
                let id = self.interrupt();
                if id == Some(0x02) {
                    self.transmitter_empty = false;
                }
                fifo | id.unwrap_or(0x01)
            }
            3 => self.line_control,
            4 => self.modem_control.bits(),
            5 => TRANSMITTER_IDLE | if self.input.is_empty() { 0 } else { DATA_READY },
            6 if self.modem_control.contains(Control::LOOPBACK) => {
                // RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
                let out = self.modem_control.bits();
                (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4
            }
            // CTS, DSR, DCD: somebody is always there.
            6 => 0xb0,
            _ => self.scratch,
        }
    }

    /// Writes a register, 0 to 7.
    pub fn write(&mut self, register: u16, value: u8) {
        match register {
            0 | 1 if self.line_control & DIVISOR_ACCESS != 0 => {
                self.divisor[usize::from(register)] = value;
            }
            0 => {
                if self.modem_control.contains(Control::LOOPBACK) {
                    self.receive(&[value]);
                } else {
                    if self.output.len() >= OUTPUT_MAX {
                        self.output.drain(..OUTPUT_MAX / 2);
                    }
                    self.output.push(value);
                }
                self.transmitter_empty = true;
            }
            1 => {
                let enable = Enable::from_bits_truncate(value);
                if !self.enable.contains(Enable::TRANSMITTER_EMPTY)
                    && enable.contains(Enable::TRANSMITTER_EMPTY)
                {
                    self.transmitter_empty = true;
                }
                self.enable = enable;
            }
            2 => {
                if value & 2 != 0 {
                    self.input.clear();
                }
                self.fifo_control = value & 0xc9;
            }
            3 => self.line_control = value,
            4 => self.modem_control = Control::from_bits_truncate(value),
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }

    /// Bytes arrive on the line.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = INPUT_MAX - self.input.len();
        self.input.extend(&bytes[..bytes.len().min(room)]);
    }

    /// What the guest sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }

    /// The state that travels. Output that nobody took stays behind: it belongs to this host's console.
    #[must_use]
    pub fn save(&self) -> SavedSerial {
        SavedSerial {
            enable: self.enable.bits(),
            fifo_control: self.fifo_control,
            line_control: self.line_control,
            modem_control: self.modem_control.bits(),
            scratch: self.scratch,
            divisor: self.divisor,
            transmitter_empty: self.transmitter_empty,
            input: self.input.iter().copied().collect(),
        }
    }

    /// Goes on from a saved state.
    #[must_use]
    pub fn restore(saved: &SavedSerial) -> Self {
        let mut serial = Self {
            enable: Enable::from_bits_truncate(saved.enable),
            fifo_control: saved.fifo_control & 0xc9,
            line_control: saved.line_control,
            modem_control: Control::from_bits_truncate(saved.modem_control),
            scratch: saved.scratch,
            divisor: saved.divisor,
            transmitter_empty: saved.transmitter_empty,
            input: VecDeque::new(),
            output: Vec::new(),
        };
        serial.receive(&saved.input);
        serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transmitter_interrupt_is_latched() {
        let mut serial = Serial::default();
        serial.write(4, 0x0b);
        serial.write(1, 0x02);
        assert!(serial.line(), "raised when enabled");
        assert_eq!(serial.read(2) & 0x0f, 0x02);
        assert!(!serial.line(), "cleared by reading the identification");
        serial.write(0, b'x');
        assert!(serial.line(), "raised after a byte");
        assert_eq!(serial.take_output(), b"x");
    }

    #[test]
    fn linux_detects_a_16550a() {
        // What autoconfig() in Linux' 8250 driver looks at: IER, loopback, FIFO, scratch.
        let mut serial = Serial::default();
        serial.write(1, 0x0f);
        assert_eq!(serial.read(1), 0x0f);
        serial.write(1, 0);
        serial.write(4, 0x1a);
        assert_eq!(serial.read(6) & 0xf0, 0x90);
        serial.write(2, 0x01);
        assert_eq!(serial.read(2) & 0xc0, 0xc0);
        serial.write(7, 0x5a);
        assert_eq!(serial.read(7), 0x5a);
    }

    #[test]
    fn input_interrupts_until_read_and_is_bounded() {
        let mut serial = Serial::default();
        serial.write(4, 0x08);
        serial.write(1, 0x01);
        serial.receive(&[1; INPUT_MAX + 10]);
        let mut count = 0;
        while serial.line() {
            assert_eq!(serial.read(5) & DATA_READY, DATA_READY);
            serial.read(0);
            count += 1;
        }
        assert_eq!(count, INPUT_MAX);
    }
}
