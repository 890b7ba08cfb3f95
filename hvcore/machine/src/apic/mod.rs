//! Interrupt delivery: messages, who they are for, and the two kinds of controller.

pub mod io;
pub mod local;

pub use io::IoApic;
pub use local::LocalApic;

/// How a message acts on the processors it reaches (APM vol. 2, 16.5, "message type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt for every processor addressed.
    Fixed,
    /// An interrupt for one of the processors addressed.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// Reset to wait-for-startup.
    Init,
    /// Start at the page that the vector names.
    Startup,
}

impl Delivery {
    /// From the three-bit field that ICR, redirection entries and MSI data share; `None` for
    /// types this machine has no use for (SMI, ExtINT, reserved).
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }
}

/// Which processors a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC id.
    Physical(u32),
    /// The members, given as bits 0-15, of the cluster in bits 16-31.
    Logical(u32),
    /// The sender.
    Itself,
    /// All processors.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// Reads the eight-bit destination of an IOAPIC entry or an MSI address, whose all-ones is a broadcast.
    #[must_use]
    pub fn from_byte(byte: u8, logical: bool) -> Self {
        match (byte, logical) {
            (0xff, _) => Self::All,
            (id, false) => Self::Physical(id.into()),
            (bits, true) => Self::Logical(bits.into()),
        }
    }

    /// Whether the processor `target` is addressed by a message that `sender` sent.
    #[must_use]
    pub fn includes(self, target: u32, sender: u32) -> bool {
        match self {
            Self::Physical(id) => id == target,
            Self::Logical(mask) => {
                let own = local::logical_id(target);
                own >> 16 == mask >> 16 && own & mask & 0xffff != 0
            }
            Self::Itself => target == sender,
            Self::All => true,
            Self::Others => target != sender,
        }
    }
}

/// An interrupt message on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// Interrupt vector, or the page number of a start-up.
    pub vector: u8,
    /// Level-triggered: its end is reported to the IOAPIC.
    pub level: bool,
}

impl Message {
    /// Reads an MSI (PCI Local Bus 3.0, 6.8.1; address format in APM vol. 2, 16.11). `None` when it
    /// would not reach a local APIC or has a type this machine does not deliver.
    #[must_use]
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let destination = (address >> 12) as u8;
        let logical = address & 1 << 2 != 0;
        Some(Self {
            destination: Destination::from_byte(destination, logical),
            delivery: Delivery::from_bits(data >> 8)?,
            vector: data as u8,
            level: data & 1 << 15 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msi_names_processor_and_vector() {
        let message = Message::from_msi(0xfee0_3000, 0x0041).unwrap();
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!(message.vector, 0x41);
        assert!(!message.level);
        assert_eq!(Message::from_msi(0xfed0_3000, 0x41), None);
    }

    #[test]
    fn logical_destinations_match_within_their_cluster() {
        let third = Destination::Logical(0x0000_0008);
        assert!(third.includes(3, 0));
        assert!(!third.includes(4, 0));
        assert!(!third.includes(19, 0), "same bit, next cluster");
    }
}
