//! A function's configuration space (PCI Local Bus 3.0, 6.1): bytes, and which bits the guest may change.
//!
//! A base address register needs no more: the bits below its size are not writable, so writing all ones
//! reads back as the size.

/// Bytes of the space.
pub const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
/// I/O, memory, master, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0407;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// A configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    // Where the next capability goes, and the link that shall point to it.
    end: usize,
    link: usize,
    bar_size: u32,
}

impl ConfigSpace {
    /// A function of this identity; `class` is base class, subclass, interface.
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32, subsystem: u16) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            end: FIRST_CAPABILITY,
            link: CAPABILITIES,
            bar_size: 0,
        };
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        // Revision 1 marks a virtio device without legacy interface (virtio 1.2, 4.1.2.1).
        space.put(8, &(class << 8 | 1).to_le_bytes());
        space.put(SUBSYSTEM, &vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &subsystem.to_le_bytes());
        space
    }

    /// Gives the function a memory window, a power of two in size and so aligned.
    #[must_use]
    pub fn with_memory(mut self, base: u32, size: u32) -> Self {
        self.bar_size = size;
        self.put(BAR0, &base.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
        self.put(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes());
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self
    }

    /// Adds a capability, whose second byte links to the next one; gives its place.
    pub fn add_capability(&mut self, bytes: &[u8]) -> usize {
        let place = self.end;
        self.put(place, bytes);
        self.bytes[place + 1] = 0;
        self.bytes[self.link] = place as u8;
        self.link = place + 1;
        self.end = (place + bytes.len()).next_multiple_of(4);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        place
    }

    /// Lets the guest change bits.
    pub fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads 1, 2 or 4 bytes; beyond the space there are zeroes.
    #[must_use]
    pub fn read(&self, offset: usize, size: u8) -> u32 {
        (0..usize::from(size)).rev().fold(0, |value, i| {
            value << 8 | u32::from(self.bytes.get(offset + i).copied().unwrap_or(0))
        })
    }

    /// Writes 1, 2 or 4 bytes, as far as they may be changed.
    pub fn write(&mut self, offset: usize, size: u8, value: u32) {
        for (i, new) in value.to_le_bytes().iter().enumerate().take(size.into()) {
            if let Some(mask) = self.writable.get(offset + i) {
                let byte = &mut self.bytes[offset + i];
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// The offset of an access within the function's memory window, if it is there.
    #[must_use]
    pub fn memory_offset(&self, gpa: u64) -> Option<u64> {
        let enabled = self.command() & COMMAND_MEMORY != 0;
        let offset = gpa.checked_sub(self.base().into())?;
        (enabled && offset < self.bar_size.into()).then_some(offset)
    }

    /// Whether the function may send interrupt messages and touch memory.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    /// Command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.read(COMMAND, 2) as u16
    }

    /// Base of the memory window.
    #[must_use]
    pub fn base(&self) -> u32 {
        self.read(BAR0, 4)
    }

    /// Sets what of the header a guest may have changed, within what it may change.
    pub fn restore(&mut self, command: u16, base: u32) {
        self.write(COMMAND, 2, command.into());
        self.write(BAR0, 4, base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> ConfigSpace {
        ConfigSpace::new(0x1af4, 0x1042, 0x01_00_00, 0x40).with_memory(0xe000_8000, 0x8000)
    }

    #[test]
    fn a_base_address_tells_its_size_and_moves() {
        let mut space = function();
        space.write(0x10, 4, u32::MAX);
        assert_eq!(space.read(0x10, 4), 0xffff_8000);
        space.write(0x10, 4, 0xe123_4567);
        assert_eq!(space.memory_offset(0xe123_0010), Some(0x10));
        space.write(0x04, 2, 0);
        assert_eq!(
            space.memory_offset(0xe123_0010),
            None,
            "memory switched off"
        );
    }

    #[test]
    fn identity_cannot_be_written() {
        let mut space = function();
        space.write(0, 4, 0);
        assert_eq!(space.read(0, 4), 0x1042_1af4);
        space.write(0xfe, 4, u32::MAX);
        assert_eq!(
            space.read(0xfe, 4),
            0,
            "and an access past the end is harmless"
        );
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = function();
        space.add_capability(&[9, 0, 16]);
        space.add_capability(&[0x11, 0, 0]);
        assert_eq!(space.read(0x34, 1), 0x40);
        assert_eq!(space.read(0x40, 2), 0x4409);
        assert_eq!(space.read(0x44, 2), 0x0011);
        assert_eq!(space.read(0x06, 2) & 0x10, 0x10);
    }
}
