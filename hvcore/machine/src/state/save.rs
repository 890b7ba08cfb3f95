//! The machine as sections, and back.

use alloc::{format, vec::Vec};

use super::{
    Kind, Reader, SavedCpuid, SavedFunction, SavedIoApic, SavedPlatform, SavedProcessor,
    SavedSerial, Section, StateError, section,
};
use crate::{
    apic::IoApic, clock::GuestClock, frames::PutOff, machine::Machine, pci::ConfigAddress,
    processor::Processor, serial::Serial, virtio::transport::Function,
};

impl Machine {
    /// The state of all that is neither RAM nor a vCPU's registers. No vCPU may be running.
    #[must_use]
    pub fn save(&self) -> Vec<Section> {
        let platform = SavedPlatform {
            vcpus: self.processors.len() as u8,
            functions: self.functions.len() as u8,
            clock: self.clock.as_ref().map(GuestClock::save),
            pci_address: self.pci_address.bits(),
        };
        let mut sections = Vec::new();
        sections.push(section(Kind::Platform, &platform));
        sections.push(section(Kind::Cpuid, &self.cpuid.save()));
        for processor in &self.processors {
            sections.push(section(Kind::Processor, &processor.save()));
        }
        sections.push(section(Kind::IoApic, &self.io_apic.save()));
        sections.push(section(Kind::Serial, &self.serial.save()));
        for function in &self.functions {
            sections.push(section(Kind::Function, &function.save()));
        }
        sections
    }

    /// Takes over a saved state. Afterwards every queue is rung and every interrupt line
    /// recomputed, so that nothing the old host still had in hand is lost. Call it on a machine that
    /// was just built from the same configuration.
    ///
    /// # Errors
    /// When the sections are not exactly those of a machine of this configuration; nothing has changed then.
    pub fn restore(&mut self, sections: &[Section]) -> Result<(), StateError> {
        let mut reader = Reader::new(sections)?;
        let platform: SavedPlatform = reader.next(Kind::Platform)?;
        let (vcpus, functions) = (self.processors.len(), self.functions.len());
        if usize::from(platform.vcpus) != vcpus || usize::from(platform.functions) != functions {
            return Err(StateError::mismatch(format!(
                "it has {} vCPUs and {} PCI functions, and this machine {vcpus} and {functions}",
                platform.vcpus, platform.functions
            )));
        }
        let cpuid: SavedCpuid = reader.next(Kind::Cpuid)?;
        let cpuid = self.cpuid.restore(&cpuid).map_err(|leaf| {
            StateError::mismatch(format!(
                "its guest uses processor features of CPUID leaf {leaf:#x} that this host lacks"
            ))
        })?;
        let processors = (0..vcpus)
            .map(|index| {
                let saved: SavedProcessor = reader.next(Kind::Processor)?;
                Ok(Processor::restore(index as u8, &saved))
            })
            .collect::<Result<Vec<_>, StateError>>()?;
        let io_apic: SavedIoApic = reader.next(Kind::IoApic)?;
        let serial: SavedSerial = reader.next(Kind::Serial)?;
        let functions = (0..functions)
            .map(|index| {
                let saved: SavedFunction = reader.next(Kind::Function)?;
                self.fresh_function(index).restore(&saved).map_err(|why| {
                    StateError::mismatch(format!("{}: {why}", self.function_name(index)))
                })
            })
            .collect::<Result<Vec<Function>, StateError>>()?;
        reader.finish()?;

        self.cpuid = cpuid;
        self.clock = platform.clock.as_ref().map(GuestClock::restore);
        self.processors = processors;
        self.io_apic = IoApic::restore(&io_apic);
        self.serial = Serial::restore(&serial);
        self.pci_address = ConfigAddress::from_bits(platform.pci_address);
        self.functions = functions;
        self.synchronised = false;
        self.ring_all_of(u64::MAX);
        self.put_off = PutOff::all_due();
        self.update_serial_line();
        Ok(())
    }
}
