//! Interrupts: the IDT, the controllers, and what each vector means.
//!
//! Interrupts are off except in [`wait`], in [`take_pending`] and while a guest runs, so a handler never
//! interrupts anything that holds a lock or is half done. A handler hardly does more than end the interrupt: its
//! meaning is "look again", and the main loop looks at the rings and clocks each time round. Only the console
//! is remembered, since looking there is not free.

pub mod apic;
mod idt;
mod io_apic;
mod pic;

use core::arch::asm;

use boot_info::acpi::Tables;

pub use idt::init as init_exceptions;

/// The one-shot timer.
pub const TIMER_VECTOR: u8 = 0x20;
/// A byte at the console.
pub const CONSOLE_VECTOR: u8 = 0x21;
/// The first network card; the others follow.
pub const NIC_VECTOR: u8 = 0x30;
/// What the local APIC delivers when an interrupt went away meanwhile; it is not ended.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// The legacy interrupt line of the first serial port.
const SERIAL_LINE: u8 = 4;

/// Sets up the controllers. Nothing is delivered before [`wait`], [`take_pending`] or a guest entry.
pub fn init_controllers(tables: &Tables) {
    pic::disable();
    apic::enable();
    if let Some(address) = tables.io_apic {
        io_apic::route(
            address,
            tables.input_of_line(SERIAL_LINE),
            CONSOLE_VECTOR,
            apic::id(),
        );
        crate::serial::enable_receive_interrupt();
    }
}

/// Halts until an interrupt; one that is already pending ends it at once.
pub fn wait() {
    // SAFETY: all vectors have handlers that keep registers. STI delays interrupts until HLT has begun,
    // so none is lost between the two (APM vol. 3, STI).
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
}

/// Takes the interrupts that are pending, if any.
pub fn take_pending() {
    // SAFETY: all vectors have handlers that keep registers. The first NOP is in the shadow of STI.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nomem, nostack)) };
}
