//! Which I/O ports and model-specific registers a guest touches without an exit.
//!
//! Ports: none. MSRs: only those that VMLOAD and VMSAVE switch, because letting the guest have
//! them costs nothing and Linux writes them on every context switch. All others exit, those that
//! the CPU lacks included: under emulation they would not fault (TCG-QUIRK 9).
//!
//! The maps are the same for every guest, so a physical CPU has one pair.

use alloc::boxed::Box;

/// MSRs of the pass-through list: what VMLOAD and VMSAVE switch (APM vol. 2, 15.5.2).
const PASSED_THROUGH: [u32; 10] = [
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// One bit a port, and one for each byte of an access that runs past port 65535 (APM vol. 2, 15.10.1).
#[repr(C, align(4096))]
struct IoMap([u8; 0x3000]);

/// Two bits an MSR, read and write, for three ranges of 8192 MSRs (APM vol. 2, 15.11).
#[repr(C, align(4096))]
struct MsrMap([u8; 0x2000]);

/// The permission maps that VMCBs point to.
pub struct Permissions {
    io: Box<IoMap>,
    msr: Box<MsrMap>,
}

impl Permissions {
    /// Intercepts everything but the pass-through list.
    #[must_use]
    pub fn new() -> Self {
        let mut msr = Box::new(MsrMap([0xff; 0x2000]));
        for number in PASSED_THROUGH {
            let (range, base) = match number >> 16 {
                0 => (0x000, 0),
                0xc000 => (0x800, 0xc000_0000),
                _ => unreachable!("the list holds only MSRs of the first two ranges"),
            };
            let bit = (number - base) as usize * 2;
            msr.0[range + bit / 8] &= !(0b11 << (bit % 8));
        }
        Self {
            io: Box::new(IoMap([0xff; 0x3000])),
            msr,
        }
    }

    /// Physical address of the I/O map.
    #[must_use]
    pub fn io_base(&self) -> u64 {
        core::ptr::from_ref(&*self.io).addr() as u64
    }

    /// Physical address of the MSR map.
    #[must_use]
    pub fn msr_base(&self) -> u64 {
        core::ptr::from_ref(&*self.msr).addr() as u64
    }
}
