//! The PCI bus: configuration space, the way to it, and MSI-X.
//!
//! One bus, one function per slot, no bridges, no interrupt pins. The bus gives functions their first
//! addresses as a firmware would; the guest may move them.

pub mod config;
pub mod msix;

pub use config::ConfigSpace;
pub use msix::MsiX;

/// Where a register is: the address register of configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigAddress(u32);

/// I/O port of the address register.
pub const ADDRESS_PORT: u16 = 0xcf8;
/// First I/O port of the data register.
pub const DATA_PORT: u16 = 0xcfc;
/// Last I/O port of the data register.
pub const DATA_PORT_LAST: u16 = 0xcff;

/// Window for the functions' registers.
pub const MEMORY_BASE: u64 = 0xe000_0000;
/// Its size.
pub const MEMORY_SIZE: u64 = 0x1000_0000;

impl ConfigAddress {
    /// From what the guest wrote.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & 0x80ff_fffc)
    }

    /// As the guest reads it.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Slot and register of an access to the data port, if the address is enabled and on bus 0, function 0.
    #[must_use]
    pub fn target(self, port: u16) -> Option<(usize, usize)> {
        let (bus, function) = (self.0 >> 16 & 0xff, self.0 >> 8 & 7);
        if self.0 >> 31 == 0 || bus != 0 || function != 0 {
            return None;
        }
        let slot = self.0 >> 11 & 0x1f;
        Some((
            slot as usize,
            (self.0 & 0xfc) as usize + usize::from(port & 3),
        ))
    }
}

/// The host bridge, which Linux looks for before it believes in mechanism 1.
#[must_use]
pub fn host_bridge() -> ConfigSpace {
    // QEMU's generic one: no operating system has workarounds for it.
    ConfigSpace::new(0x1b36, 0x0008, 0x06_00_00, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enabled_addresses_on_bus_0_reach_a_slot() {
        let at = |bits| ConfigAddress::from_bits(bits).target(0xcfe);
        assert_eq!(at(0x8000_1804), Some((3, 6)));
        assert_eq!(at(0x0000_1804), None, "not enabled");
        assert_eq!(at(0x8001_1804), None, "bus 1");
        assert_eq!(at(0x8000_1904), None, "function 1");
    }
}
