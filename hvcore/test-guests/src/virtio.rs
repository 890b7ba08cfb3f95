//! As much of a virtio driver as the tests need: one queue of a PCI device (virtio 1.2, 4.1).

use crate::pci;

/// Structures of the capability list (virtio 1.2, 4.1.4).
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
/// PCI device id of the entropy device (virtio 1.2, 4.1.2: 0x1040 and the device type).
const ENTROPY: u32 = 0x1044;

/// A virtio device.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    id: u32,
    /// Address of the common configuration.
    pub common: u64,
    notify: u64,
    multiplier: u32,
}

/// All virtio devices, with memory access and bus mastering on.
pub fn devices() -> impl Iterator<Item = Device> {
    pci::virtio_functions().filter_map(|function| {
        function.write(4, function.read(4) | 0b110);
        let (common, _) = function.structure(COMMON)?;
        let (notify, capability) = function.structure(NOTIFY)?;
        Some(Device {
            id: function.read(0) >> 16,
            common,
            notify,
            multiplier: function.read(capability + 16),
        })
    })
}

/// The entropy device.
pub fn entropy() -> Option<Device> {
    devices().find(|device| device.id == ENTROPY)
}

impl Device {
    fn put8(self, offset: u64, value: u8) {
        // SAFETY: device memory, which is not this program's.
        unsafe { core::ptr::write_volatile((self.common + offset) as *mut u8, value) };
    }

    fn put16(self, offset: u64, value: u16) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile((self.common + offset) as *mut u16, value) };
    }

    fn put32(self, offset: u64, value: u32) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile((self.common + offset) as *mut u32, value) };
    }

    /// Resets the device, and starts it with queue 0 at these rings: descriptors, available, used.
    pub fn start(self, rings: [u64; 3]) {
        self.put8(0x14, 0);
        for status in [1, 3] {
            self.put8(0x14, status);
        }
        // VERSION_1, and nothing else.
        self.put32(0x08, 1);
        self.put32(0x0c, 1);
        self.put8(0x14, 0x0b);
        self.put16(0x16, 0);
        for (index, address) in (0..).zip(rings) {
            self.put32(0x20 + index * 8, address as u32);
            self.put32(0x24 + index * 8, (address >> 32) as u32);
        }
        self.put16(0x1c, 1);
        self.put8(0x14, 0x0f);
    }

    /// Rings queue 0.
    pub fn ring(self) {
        self.put16(0x16, 0);
        // SAFETY: as above.
        let offset = unsafe { core::ptr::read_volatile((self.common + 0x1e) as *const u16) };
        let doorbell = self.notify + u64::from(offset) * u64::from(self.multiplier);
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(doorbell as *mut u16, 0) };
    }
}

/// A queue of two descriptors, of which only the first is used.
#[repr(C, align(4096))]
struct Page([u64; 512]);

static mut DESCRIPTORS: Page = Page([0; 512]);
static mut AVAILABLE: Page = Page([0; 512]);
static mut USED: Page = Page([0; 512]);

/// The entropy device, ready to fill buffers.
pub struct Entropy {
    device: Device,
    requests: u16,
}

impl Entropy {
    /// Starts the device.
    pub fn start() -> Option<Self> {
        let device = entropy()?;
        let rings = [
            &raw const DESCRIPTORS,
            &raw const AVAILABLE,
            &raw const USED,
        ];
        device.start(rings.map(|ring| ring as u64));
        Some(Self {
            device,
            requests: 0,
        })
    }

    /// Has the device write 64 bytes at an address.
    pub fn fill(&mut self, address: u64) {
        const WRITE: u64 = 2;
        let descriptor = (&raw mut DESCRIPTORS).cast::<u64>();
        let available = (&raw mut AVAILABLE).cast::<u16>();
        let used = (&raw const USED).cast::<u16>();
        self.requests = self.requests.wrapping_add(1);
        // SAFETY: this module's own rings; the device has finished with the last request.
        unsafe {
            descriptor.write_volatile(address);
            descriptor.add(1).write_volatile(WRITE << 32 | 64);
            // Every entry of the available ring names descriptor 0, as the ring is zero.
            available.add(1).write_volatile(self.requests);
        }
        self.device.ring();
        // SAFETY: as above.
        while unsafe { used.add(1).read_volatile() } != self.requests {}
    }
}
