//! I/O ports: the serial port, PCI configuration, power-off and reset, and nothing else.
//!
//! There is no interrupt controller, timer, clock or keyboard of the old PC: reads there give all ones and
//! writes go nowhere, which is how an absent device answers.

use crate::{
    acpi,
    machine::{Machine, Outcome, ResetCause},
    pci::{self, ConfigAddress},
    serial,
};

/// ACPI's sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's reset register.
pub const RESET: u16 = 0x601;
/// What restarts the machine when written to [`RESET`].
pub const RESET_VALUE: u8 = 0x42;
/// ACPI's sleep status register.
pub const SLEEP_STATUS: u16 = 0x602;

/// Command port of the keyboard controller, and its command to restart the machine.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// Reset control register of PC chip sets, and the bit that pulls the line.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CONTROL_PULL: u32 = 1 << 2;

/// `SLP_EN` and the place of `SLP_TYP` (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

impl Machine {
    pub(crate) fn read_port(&mut self, port: u16, size: u8) -> u32 {
        let nothing = u32::MAX;
        match (port, size) {
            (serial::BASE..=serial::LAST, 1) => {
                let value = self.serial.read(port - serial::BASE);
                self.update_serial_line();
                value.into()
            }
            (pci::ADDRESS_PORT, 4) => self.pci_address.bits(),
            (pci::DATA_PORT..=pci::DATA_PORT_LAST, _) => self
                .pci_address
                .target(port)
                .map_or(nothing, |(slot, register)| {
                    self.read_config(slot, register, size)
                }),
            // Idle: no byte waits, none is being taken in.
            (KEYBOARD, 1) => 0,
            (SLEEP_CONTROL | SLEEP_STATUS, 1) => 0,
            _ => nothing,
        }
    }

    pub(crate) fn write_port(&mut self, port: u16, size: u8, value: u32) -> Option<Outcome> {
        let reset = Some(Outcome::Reset {
            cause: ResetCause::Requested,
        });
        match (port, size) {
            (serial::BASE..=serial::LAST, 1) => {
                self.serial.write(port - serial::BASE, value as u8);
                self.update_serial_line();
            }
            (pci::ADDRESS_PORT, 4) => self.pci_address = ConfigAddress::from_bits(value),
            (RESET_CONTROL, 1) if value & RESET_CONTROL_PULL != 0 => return reset,
            (pci::DATA_PORT..=pci::DATA_PORT_LAST, _) => {
                if let Some((slot, register)) = self.pci_address.target(port) {
                    self.write_config(slot, register, size, value);
                }
            }
            (KEYBOARD, 1) if value as u8 == KEYBOARD_RESET => return reset,
            (RESET, 1) if value as u8 == RESET_VALUE => return reset,
            (SLEEP_CONTROL, 1) => {
                let off = acpi::SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
                if value as u8 == off {
                    return Some(Outcome::PowerOff);
                }
            }
            _ => {}
        }
        None
    }
}
