//! The I/O APIC: pins behind an index and a data register (82093AA data sheet).
//!
//! It knows pins, not devices, and hands out messages for the local APICs.

use crate::{
    apic::{Delivery, Destination, Message},
    state::SavedIoApic,
};

/// Number of pins. A PC has 24; a guest touches each of them several times when it starts, with an exit each
/// time, so there are no more than are used.
pub const PINS: usize = 8;
/// Where it sits in the guest's address space.
pub const BASE: u64 = 0xfec0_0000;
/// Size of its window.
pub const WINDOW: u64 = 0x1000;

/// Index behind the last redirection entry, of which each has two.
const ENTRIES_END: u8 = 0x10 + 2 * PINS as u8;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Delivery status and remote IRR are read-only; bits 17-55 are reserved.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// An I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    index: u8,
    entries: [u64; PINS],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            index: 0,
            entries: [MASKED; PINS],
            lines: 0,
        }
    }
}

impl IoApic {
    /// Reads a register of the window.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.index) {
            (0x00, _) => self.index.into(),
            (0x10, 0 | 2) => 0,
            // Version 0x20 has the EOI register, so that a guest can end a level interrupt by name.
            (0x10, 1) => (PINS as u32 - 1) << 16 | 0x20,
            (0x10, 0x10..ENTRIES_END) => {
                let entry = self.entries[usize::from(self.index - 0x10) / 2];
                (entry >> (self.index % 2 * 32)) as u32
            }
            _ => 0,
        }
    }

    /// Writes a register of the window; a pin whose line is raised may send its message at once.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match (offset, self.index) {
            (0x00, _) => self.index = value as u8,
            (0x10, 0x10..ENTRIES_END) => {
                let pin = usize::from(self.index - 0x10) / 2;
                let shift = self.index % 2 * 32;
                let mask = 0xffff_ffff << shift & WRITABLE;
                let entry = &mut self.entries[pin];
                *entry = *entry & !mask | u64::from(value) << shift & mask;
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                return self.send_level(pin);
            }
            (0x40, _) => return self.end_of_interrupt(value as u8),
            _ => {}
        }
        None
    }

    /// Sets a pin's input line. An edge sends a message when it rises, a level for as long as it is up.
    pub fn set_line(&mut self, pin: usize, up: bool) -> Option<Message> {
        let bit = 1 << pin;
        let rose = up && self.lines & bit == 0;
        self.lines = if up {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        let entry = self.entries[pin];
        if entry & LEVEL != 0 {
            self.send_level(pin)
        } else if rose && entry & MASKED == 0 {
            message(entry)
        } else {
            None
        }
    }

    /// A local APIC ended a level interrupt. Gives the message of a pin that is still up. Pins that share a
    /// vector are served one at a time, each by the end of the one before.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Option<Message> {
        for entry in &mut self.entries {
            if *entry & LEVEL != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
            }
        }
        (0..PINS).find_map(|pin| {
            let shares = self.entries[pin] as u8 == vector;
            shares.then(|| self.send_level(pin)).flatten()
        })
    }

    fn send_level(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        let up = self.lines & 1 << pin != 0;
        if !up || entry & LEVEL == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        let message = message(entry)?;
        self.entries[pin] |= REMOTE_IRR;
        Some(message)
    }

    /// The state that travels. Lines are not part of it: whoever drives them sets them again.
    #[must_use]
    pub fn save(&self) -> SavedIoApic {
        SavedIoApic {
            index: self.index,
            entries: self.entries,
        }
    }

    /// Goes on from a saved state, all lines down.
    #[must_use]
    pub fn restore(saved: &SavedIoApic) -> Self {
        Self {
            index: saved.index,
            entries: saved.entries.map(|entry| entry & (WRITABLE | REMOTE_IRR)),
            lines: 0,
        }
    }
}

fn message(entry: u64) -> Option<Message> {
    Some(Message {
        destination: Destination::from_byte((entry >> 56) as u8, entry & 1 << 11 != 0),
        delivery: Delivery::from_bits((entry >> 8) as u32)?,
        vector: entry as u8,
        level: entry & LEVEL != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(apic: &mut IoApic, pin: u32, low: u32) {
        apic.write(0, 0x10 + pin * 2);
        apic.write(0x10, low);
    }

    #[test]
    fn an_edge_sends_once_for_each_rise() {
        let mut apic = IoApic::default();
        program(&mut apic, 4, 0x34);
        assert_eq!(apic.set_line(4, true).unwrap().vector, 0x34);
        assert_eq!(apic.set_line(4, true), None);
        apic.set_line(4, false);
        assert!(apic.set_line(4, true).is_some());
    }

    #[test]
    fn a_level_sends_again_after_its_end_while_up() {
        let mut apic = IoApic::default();
        program(&mut apic, 6, LEVEL as u32 | 0x39);
        assert!(apic.set_line(6, true).unwrap().level);
        assert_eq!(apic.set_line(6, true), None, "remote IRR is set");
        assert!(apic.end_of_interrupt(0x39).is_some());
        apic.set_line(6, false);
        assert_eq!(apic.end_of_interrupt(0x39), None);
    }

    #[test]
    fn unmasking_a_raised_level_sends() {
        let mut apic = IoApic::default();
        program(&mut apic, 6, (LEVEL | MASKED) as u32 | 0x39);
        assert_eq!(apic.set_line(6, true), None);
        apic.write(0, 0x10 + 12);
        assert!(apic.write(0x10, LEVEL as u32 | 0x39).is_some());
    }

    #[test]
    fn read_only_bits_stay() {
        let mut apic = IoApic::default();
        program(&mut apic, 0, u32::MAX);
        assert_eq!(apic.read(0x10) & REMOTE_IRR as u32, 0);
    }
}
