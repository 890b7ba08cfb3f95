//! PCI configuration by ports, as much as a test needs to find a virtio device (PCI 3.0, 3.2.2.3).

use crate::cpu::{inl, outl};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const VIRTIO_VENDOR: u32 = 0x1af4;
const CAPABILITY_VENDOR: u32 = 0x09;

/// A function on bus 0.
#[derive(Clone, Copy, Debug)]
pub struct Device(u32);

impl Device {
    /// Reads a configuration word.
    pub fn read(self, offset: u32) -> u32 {
        outl(ADDRESS, 1 << 31 | self.0 << 11 | offset & 0xfc);
        inl(DATA)
    }

    /// Writes a configuration word.
    pub fn write(self, offset: u32, value: u32) {
        outl(ADDRESS, 1 << 31 | self.0 << 11 | offset & 0xfc);
        outl(DATA, value);
    }

    /// Address of a virtio structure: 1 common, 2 notify, 3 ISR, 4 device (virtio 1.2, 4.1.4).
    pub fn structure(self, wanted: u32) -> Option<(u64, u32)> {
        let mut capability = self.read(0x34) & 0xfc;
        // A list has at most 48 entries.
        for _ in 0..48 {
            if capability == 0 {
                break;
            }
            let head = self.read(capability);
            if head & 0xff == CAPABILITY_VENDOR && head >> 24 == wanted {
                let bar = 0x10 + (self.read(capability + 4) & 0xff) * 4;
                let low = self.read(bar);
                let high = if low & 0b110 == 0b100 {
                    self.read(bar + 4)
                } else {
                    0
                };
                let base = u64::from(high) << 32 | u64::from(low & !0xf);
                let offset = self.read(capability + 8);
                return Some((base + u64::from(offset), capability));
            }
            capability = head >> 8 & 0xfc;
        }
        None
    }
}

/// All virtio functions.
pub fn virtio_functions() -> impl Iterator<Item = Device> {
    (0..32)
        .map(Device)
        .filter(|device| device.read(0) & 0xffff == VIRTIO_VENDOR)
}
