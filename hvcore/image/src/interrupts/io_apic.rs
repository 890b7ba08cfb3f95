//! The IOAPIC (82093AA data sheet), for the one device that has no message-signalled interrupts: the
//! console.

use crate::mmio::Registers;

const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
const REDIRECTION: u32 = 0x10;

/// Routes an input, edge triggered and active high, to a vector of one CPU.
pub fn route(address: u64, input: u32, vector: u8, apic_id: u8) {
    // SAFETY: the ACPI tables say that an IOAPIC is there; nobody else drives it.
    let registers = unsafe { Registers::new(address) };
    let register = REDIRECTION + 2 * input;
    registers.write(SELECT, register + 1);
    registers.write(WINDOW, u32::from(apic_id) << 24);
    registers.write(SELECT, register);
    registers.write(WINDOW, vector.into());
}
