//! PCI configuration space, and message-signalled interrupts.
//!
//! Firmware has given addresses to all devices, also with QEMU's `-kernel`; only bus 0 is looked at, where the
//! network cards are.

use core::fmt;

use boot_info::acpi::Tables;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use x86_64::instructions::port::Port;

use crate::{interrupts::apic, mmio::Registers};

/// Capability of MSI-X (PCI Local Bus 3.0, 6.8.2).
const CAPABILITY_MSI_X: u8 = 0x11;
/// In its control word: MSI-X instead of interrupt lines.
const MSI_X_ENABLE: u32 = 1 << 31;
/// Register of the first base address.
const BAR_0: u8 = 0x10;

/// How configuration space is reached.
#[derive(Clone, Copy, Debug)]
pub enum ConfigSpace {
    /// Mapped into memory (PCI Express Base 3.0, 7.2.2).
    Mapped(Registers),
    /// By ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, 3.2.2.3.2).
    Ports,
}

impl ConfigSpace {
    /// What the machine offers: mapped when it starts with bus 0.
    pub fn find(tables: &Tables) -> Self {
        match tables.pci_config {
            // SAFETY: the ACPI tables say that configuration space is there. The registers used
            // here have no effect on memory beyond the device's own.
            Some((address, 0)) => Self::Mapped(unsafe { Registers::new(address) }),
            _ => Self::Ports,
        }
    }

    fn select(device: DeviceFunction, register: u8) {
        let address = 1 << 31
            | u32::from(device.bus) << 16
            | u32::from(device.device) << 11
            | u32::from(device.function) << 8
            | u32::from(register & 0xfc);
        // SAFETY: selects what 0xCFC reads and writes.
        unsafe { Port::new(0xcf8).write(address) };
    }

    fn mapped_offset(device: DeviceFunction, register: u8) -> u64 {
        u64::from(device.bus) << 20
            | u64::from(device.device) << 15
            | u64::from(device.function) << 12
            | u64::from(register & 0xfc)
    }

    /// The memory behind a base address register.
    pub fn bar(&self, device: DeviceFunction, index: u8) -> Option<u64> {
        const IO: u32 = 1;
        const TYPE: u32 = 6;
        const TYPE_64: u32 = 4;
        if index > 5 {
            return None;
        }
        let register = BAR_0 + 4 * index;
        let low = self.read_word(device, register);
        let high = match low & TYPE {
            TYPE_64 if index < 5 => self.read_word(device, register + 4),
            _ => 0,
        };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        (low & IO == 0 && address != 0 && address < crate::memory::MAPPED_BYTES).then_some(address)
    }

    /// Lets a device answer at its addresses and reach memory by itself.
    pub fn enable(self, device: DeviceFunction) {
        PciRoot::new(self).set_command(
            device,
            Command::IO_SPACE | Command::MEMORY_SPACE | Command::BUS_MASTER,
        );
    }

    /// Makes the device's first interrupt message raise `vector` on this CPU.
    pub fn enable_msi_x(mut self, device: DeviceFunction, vector: u8) -> Result<(), NoMsiX> {
        let capability = PciRoot::new(self)
            .capabilities(device)
            .find(|capability| capability.id == CAPABILITY_MSI_X)
            .ok_or(NoMsiX)?;
        let table = self.read_word(device, capability.offset + 4);
        let bar = self.bar(device, (table & 7) as u8).ok_or(NoMsiX)?;
        // SAFETY: the device's own table of messages; its driver is the only one to use it.
        let entry = unsafe { Registers::new(bar + u64::from(table & !7)) };
        entry.write(0, 0xfee0_0000 | u32::from(apic::id()) << 12);
        entry.write(4, 0);
        entry.write(8, vector.into());
        entry.write(12, 0);
        let control = self.read_word(device, capability.offset);
        self.write_word(device, capability.offset, control | MSI_X_ENABLE);
        Ok(())
    }
}

/// The device cannot send interrupt messages.
#[derive(Debug)]
pub struct NoMsiX;

impl fmt::Display for NoMsiX {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device has no MSI-X")
    }
}

impl ConfigurationAccess for ConfigSpace {
    fn read_word(&self, device: DeviceFunction, register: u8) -> u32 {
        match self {
            Self::Mapped(registers) => registers.read(Self::mapped_offset(device, register)),
            Self::Ports => {
                Self::select(device, register);
                // SAFETY: reads the register selected.
                unsafe { Port::new(0xcfc).read() }
            }
        }
    }

    fn write_word(&mut self, device: DeviceFunction, register: u8, data: u32) {
        match self {
            Self::Mapped(registers) => {
                registers.write(Self::mapped_offset(device, register), data);
            }
            Self::Ports => {
                Self::select(device, register);
                // SAFETY: writes the register selected; callers only set up the device they drive.
                unsafe { Port::new(0xcfc).write(data) }
            }
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}
