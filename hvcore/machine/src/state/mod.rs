//! What of a machine travels to another host, or to the same one later.
//!
//! The types here are apart from the running ones, so that a running type can change without a change of
//! what travels. Each part of the machine is a [`Section`] with a kind and a version; its
//! body is a `postcard` encoding of one of these types. The encoding does not describe itself: a changed layout
//! needs a new version, and golden files in the tests hold the old ones. A reader refuses kinds and
//! versions it does not know, bodies that are too long or not used up, and sections missing or left over.
//! `repr(C)` structs were rejected: they cannot hold lists, and padding leaks.

mod save;
mod sections;

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

pub(crate) use sections::{Kind, Reader, section};
pub use sections::{Section, StateError};

/// A set of interrupt vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVectors(pub [u64; 4]);

/// A local APIC.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLocalApic {
    pub requested: SavedVectors,
    pub in_service: SavedVectors,
    pub level: SavedVectors,
    pub task_priority: u8,
    pub spurious: u32,
    pub errors: u32,
    pub icr: u64,
    pub lvt: [u32; 6],
    pub divide: u32,
    pub initial_count: u32,
    /// When the timer fires, as a value of the guest's time-stamp counter; 0: never.
    pub deadline_tsc: u64,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    Running,
    /// In HLT, which an interrupt ends if the guest had them enabled.
    Halted {
        /// RFLAGS.IF at the HLT.
        interruptible: bool,
    },
    /// After INIT.
    WaitingForStartup,
    /// Told to start in real mode at the page of this number.
    Startup(u8),
}

/// A vCPU apart from its registers.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProcessor {
    pub apic: SavedLocalApic,
    pub activity: Activity,
    pub nmi_pending: bool,
    /// The MSRs of the paravirtual clock and of the silent end of interrupt, as the guest wrote them.
    pub kvm_clock: u64,
    pub pv_eoi: u64,
    /// Whether the guest may end its interrupt by clearing a bit at the moment.
    pub pv_eoi_offered: bool,
    pub mtrr_default: u64,
}

/// The CPUID table.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCpuid {
    pub rows: Vec<SavedLeaf>,
}

/// A leaf of the CPUID table.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLeaf {
    pub leaf: u32,
    pub subleaf: u32,
    /// eax, ebx, ecx, edx.
    pub values: [u32; 4],
}

/// How guest time follows from the guest's time-stamp counter.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    pub tsc_hz: u64,
    /// Guest time `base_ns` is when the counter reads `base_tsc`.
    pub base_tsc: u64,
    pub base_ns: u64,
    pub version: u32,
}

/// What belongs to no device.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlatform {
    pub vcpus: u8,
    pub functions: u8,
    /// Absent before the first run.
    pub clock: Option<SavedClock>,
    pub pci_address: u32,
}

/// The I/O APIC.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedIoApic {
    pub index: u8,
    pub entries: [u64; 8],
}

/// The serial port.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    pub enable: u8,
    pub fifo_control: u8,
    pub line_control: u8,
    pub modem_control: u8,
    pub scratch: u8,
    pub divisor: [u8; 2],
    pub transmitter_empty: bool,
    pub input: Vec<u8>,
}

/// A table of interrupt messages.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMsiX {
    /// Address low, address high, data, control.
    pub entries: Vec<[u32; 4]>,
    pub pending: u64,
    pub control: u16,
}

/// A virtqueue.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub size: u16,
    pub ready: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub vector: u16,
    pub next_available: u16,
    pub next_used: u16,
    pub signalled: u16,
}

/// A virtio device on the PCI bus.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFunction {
    pub command: u16,
    pub base: u32,
    pub msix: SavedMsiX,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub status: u8,
    pub config_generation: u8,
    pub config_vector: u16,
    pub queue_select: u16,
    pub isr: u8,
    pub queues: Vec<SavedQueue>,
    pub device: SavedDevice,
}

/// What a device type adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedDevice {
    /// A disk.
    Block {
        /// Heads of the requests without an answer, oldest first: they are issued again.
        in_flight: Vec<u16>,
    },
    /// A network card.
    Net {
        /// An announcement was asked for and not made.
        announce: bool,
    },
    /// An entropy source.
    Entropy,
    /// A memory balloon.
    Balloon {
        /// Pages that the host would like to have.
        target: u32,
        /// Pages that the guest has given.
        actual: u32,
    },
}

impl StateError {
    pub(crate) fn mismatch(what: impl Into<String>) -> Self {
        Self::Mismatch(what.into())
    }
}

#[cfg(test)]
mod tests;
