//! Virtio devices (Virtual I/O Device specification 1.2).
//!
//! [`queue`] reads and writes the rings, [`transport`] is the device's face on the PCI bus, and each device
//! type turns chains of buffers into requests to a backend and back.

pub mod balloon;
pub mod block;
pub mod entropy;
pub mod net;
pub mod queue;
#[cfg(test)]
pub mod testing;
pub mod transport;

/// No MSI-X vector (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Feature bits of every device.
pub mod feature {
    /// Chains may lie in tables of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications and interrupts only past named indices.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device follows version 1 of the specification.
    pub const VERSION_1: u64 = 1 << 32;
}
