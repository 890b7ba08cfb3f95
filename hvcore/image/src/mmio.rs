//! Device registers in memory.

use core::ptr;

/// A block of registers at a physical address.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// Registers at `base`.
    ///
    /// # Safety
    /// A device with registers is there, in mapped memory that is nothing else; its registers may be
    /// read and written by whoever holds the value.
    pub const unsafe fn new(base: u64) -> Self {
        Self { base }
    }

    /// Reads the register at a byte offset.
    pub fn read(self, offset: u64) -> u32 {
        // SAFETY: a device register by the contract of `new`.
        unsafe { ptr::read_volatile((self.base + offset) as *const u32) }
    }

    /// Writes the register at a byte offset.
    pub fn write(self, offset: u64, value: u32) {
        // SAFETY: a device register by the contract of `new`.
        unsafe { ptr::write_volatile((self.base + offset) as *mut u32, value) }
    }

    /// Reads a 16-bit register.
    pub fn read_u16(self, offset: u64) -> u16 {
        // SAFETY: a device register by the contract of `new`.
        unsafe { ptr::read_volatile((self.base + offset) as *const u16) }
    }

    /// Writes a 16-bit register.
    pub fn write_u16(self, offset: u64, value: u16) {
        // SAFETY: a device register by the contract of `new`.
        unsafe { ptr::write_volatile((self.base + offset) as *mut u16, value) }
    }
}
