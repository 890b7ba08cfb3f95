//! MSI-X: a table of interrupt messages in a function's memory window (PCI Local Bus 3.0, 6.8.2).

use alloc::{vec, vec::Vec};

use crate::{apic::Message, state::SavedMsiX};

/// Size of a table entry.
const ENTRY: u64 = 16;
const ENTRY_MASKED: u32 = 1;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;

/// Bits of the capability's control word that the guest may change.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK_ALL;

/// The interrupt messages of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Address low, address high, data, control.
    entries: Vec<[u32; 4]>,
    pending: u64,
    control: u16,
}

impl MsiX {
    /// A table of `len` masked entries, 64 at most.
    #[must_use]
    pub fn new(len: usize) -> Self {
        assert!(len <= 64, "the pending bits are one word");
        Self {
            entries: vec![[0, 0, 0, ENTRY_MASKED]; len],
            pending: 0,
            control: 0,
        }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// Takes over the control word of the capability; gives the messages that were held back.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.control = control & CONTROL_WRITABLE;
        (0..self.entries.len())
            .filter_map(|index| self.release(index))
            .collect()
    }

    /// Sends an entry's message, or notes it while it is masked.
    pub fn raise(&mut self, index: u16) -> Option<Message> {
        let index = usize::from(index);
        if index >= self.entries.len() || !self.is_enabled() {
            return None;
        }
        self.pending |= 1 << index;
        self.release(index)
    }

    fn release(&mut self, index: usize) -> Option<Message> {
        let [low, high, data, control] = self.entries[index];
        let masked = control & ENTRY_MASKED != 0 || self.control & CONTROL_MASK_ALL != 0;
        if self.pending & 1 << index == 0 || masked || !self.is_enabled() {
            return None;
        }
        self.pending &= !(1 << index);
        Message::from_msi(u64::from(high) << 32 | u64::from(low), data)
    }

    /// Reads a register of the table.
    #[must_use]
    pub fn read_table(&self, offset: u64) -> u32 {
        self.entries
            .get((offset / ENTRY) as usize)
            .map_or(0, |entry| entry[(offset % ENTRY / 4) as usize])
    }

    /// Writes a register of the table; unmasking sends what was held back.
    pub fn write_table(&mut self, offset: u64, value: u32) -> Option<Message> {
        let index = (offset / ENTRY) as usize;
        let register = (offset % ENTRY / 4) as usize;
        let entry = self.entries.get_mut(index)?;
        entry[register] = if register == 3 {
            value & ENTRY_MASKED
        } else {
            value
        };
        self.release(index)
    }

    /// Reads the pending bits.
    #[must_use]
    pub fn read_pending(&self, offset: u64) -> u32 {
        match offset {
            0 => self.pending as u32,
            4 => (self.pending >> 32) as u32,
            _ => 0,
        }
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedMsiX {
        SavedMsiX {
            entries: self.entries.clone(),
            pending: self.pending,
            control: self.control,
        }
    }

    /// Goes on from a saved state; `None` when its table is of another length.
    #[must_use]
    pub fn restore(&self, saved: &SavedMsiX) -> Option<Self> {
        (saved.entries.len() == self.entries.len()).then(|| Self {
            entries: saved.entries.clone(),
            pending: saved.pending & ((1 << self.entries.len()) - 1),
            control: saved.control & CONTROL_WRITABLE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_message_waits() {
        let mut msix = MsiX::new(2);
        assert!(msix.set_control(CONTROL_ENABLE).is_empty());
        msix.write_table(16, 0xfee0_0000);
        msix.write_table(24, 0x55);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.read_pending(0), 2);
        assert_eq!(msix.write_table(28, 0).unwrap().vector, 0x55);
        assert_eq!(msix.read_pending(0), 0);
        assert_eq!(msix.raise(7), None, "no such entry");
    }
}
