//! The block allocation table: for each block of the virtual disk, the sector at which it begins in the file.

use alloc::{vec, vec::Vec};

use crate::{Error, SECTOR, u32_at};

/// Entry of a block that is not allocated.
const ABSENT: u32 = u32::MAX;

/// A block allocation table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bat(Vec<u32>);

/// A change of one entry, to be written to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatEntryWrite {
    /// Where in the file.
    pub at: u64,
    /// What.
    pub bytes: [u8; 4],
}

impl Bat {
    /// A table without allocated blocks.
    pub fn empty(entries: u32) -> Self {
        Self(vec![ABSENT; entries as usize])
    }

    /// Bytes that a table of so many entries takes in the file.
    pub fn file_size(entries: u32) -> u64 {
        (u64::from(entries) * 4).next_multiple_of(SECTOR)
    }

    /// Reads a table from its bytes in the file.
    pub fn parse(bytes: &[u8], entries: u32) -> Result<Self, Error> {
        let bytes = bytes
            .get(..entries as usize * 4)
            .ok_or(Error::Truncated("BAT"))?;
        Ok(Self(
            bytes
                .chunks_exact(4)
                .map(|entry| u32_at(entry, 0))
                .collect(),
        ))
    }

    /// Its bytes, padded with "absent" to whole sectors.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .0
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        bytes.resize(Self::file_size(self.0.len() as u32) as usize, 0xff);
        bytes
    }

    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// There are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sector at which a block begins; none if it is not allocated or there is no such block.
    pub fn get(&self, block: u32) -> Option<u32> {
        self.0
            .get(block as usize)
            .copied()
            .filter(|sector| *sector != ABSENT)
    }

    /// Records where a block is, or that it is absent.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn set(&mut self, block: u32, sector: Option<u32>) {
        self.0[block as usize] = sector.unwrap_or(ABSENT);
    }

    /// Blocks that are allocated, with their sectors, in the order of the virtual disk.
    pub fn allocated(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..)
            .zip(self.0.iter().copied())
            .filter(|(_, sector)| *sector != ABSENT)
    }
}
