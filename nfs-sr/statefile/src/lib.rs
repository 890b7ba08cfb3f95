//! The statefile of a repository: where hosts leave their heartbeats, so that each can tell which others still
//! reach the storage when the network between them is gone.
//!
//! One file of fixed size, [`NAME`] in the repository's directory, of blocks of 4 KiB:
//!
//! ```text
//! block 0      header: cookie "elabstat" | version u32 | slots u32 | repository's UUID | crc u32
//! block 1 + i  slot of the host with index i:
//!              cookie "elabslot" | version u32 | index u32 | host's UUID | sequence u64 | length u32 | crc u32 | payload
//! ```
//!
//! Integers are little-endian, what follows is zeros, and the CRC (CRC-32C) covers the whole block with its own four bytes
//! counted as zero. A host writes its own slot and no other, one whole block at a time with FILE_SYNC, and a higher sequence
//! each time; so no two writers meet in a block and no lease is needed. It reads all slots, as often as it likes. What a
//! payload says is up to availability; this crate knows neither clocks nor pools, and does no I/O.
//!
//! A slot of zeros was never written. One that does not fit its CRC was being written when the server's power went, and is no
//! news: the reader keeps what it knew, and the host's next heartbeat mends it.
//!
//! The sector layout of XenServer's HA daemon was not taken over: its host sector is a dump of that program's state, with room for
//! 64 hosts. From it are the size of a block and one slot for each host.

#![no_std]
#![forbid(unsafe_code)]

use crc::{CRC_32_ISCSI, Crc, Digest, Table};
use vhd::Uuid;

/// Name of the file in the repository's directory.
pub const NAME: &str = "statefile";
/// Bytes of the header and of each slot: a page of the server, so a write never needs a read.
pub const BLOCK: usize = 4096;
/// Hosts that there is room for.
pub const SLOTS: u32 = 256;
/// Bytes of the file.
pub const SIZE: u64 = (1 + SLOTS as u64) * BLOCK as u64;
/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = BLOCK - PAYLOAD_AT;

const VERSION: u32 = 1;
const HEADER: &[u8; 8] = b"elabstat";
const SLOT: &[u8; 8] = b"elabslot";
const HEADER_CRC_AT: usize = 32;
const SLOT_CRC_AT: usize = 44;
const PAYLOAD_AT: usize = 48;
/// Of sixteen tables: hosts read and write whole blocks several times a second.
const CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// What is wrong with a block of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Fewer bytes than a block has.
    #[error("the block is cut off")]
    Truncated,
    /// Not a block of a statefile.
    #[error("the block does not begin with its cookie: this is not a statefile, or it is damaged")]
    Cookie,
    /// The CRC is wrong: the block is damaged, or was being written when the power went.
    #[error("the checksum is wrong: the block is damaged or only partly written")]
    Checksum,
    /// Written by a program that is newer than this one.
    #[error("version {0} of the statefile is not known here")]
    Version(u32),
    /// A field cannot be what it is.
    #[error("the {0} is not possible")]
    Field(&'static str),
}

/// A host's index or payload that the file has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// There is no such slot.
    #[error("host {0} has no slot: there is room for {SLOTS} hosts")]
    Index(u32),
    /// The payload is too long.
    #[error("a heartbeat of {0} bytes does not fit: a slot holds {MAX_PAYLOAD}")]
    Payload(usize),
}

/// Where the slot of a host is in the file; none if there is no room for this host.
pub fn slot_offset(index: u32) -> Option<u64> {
    (index < SLOTS).then_some((1 + u64::from(index)) * BLOCK as u64)
}

/// The first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The repository that the file was made for. A copy that was restored elsewhere is known by it.
    pub repository: Uuid,
}

impl Header {
    /// Its bytes.
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(HEADER);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&SLOTS.to_le_bytes());
        block[16..32].copy_from_slice(&self.repository.0);
        seal(&mut block, HEADER_CRC_AT);
        block
    }

    /// Reads the first block of a file.
    pub fn parse(block: &[u8]) -> Result<Self, Bad> {
        let block = open(block, HEADER, HEADER_CRC_AT)?;
        if u32_at(block, 12) != SLOTS {
            return Err(Bad::Field("number of slots"));
        }
        let mut repository = Uuid::default();
        repository.0.copy_from_slice(&block[16..32]);
        Ok(Self { repository })
    }
}

/// What a host left in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<'a> {
    /// The host's index in the pool.
    pub index: u32,
    /// The host. Tells a host from the one that had the index before it.
    pub host: Uuid,
    /// Grows with every write. A reader that sees it grow knows that the host reached the storage in between.
    pub sequence: u64,
    /// What the host says.
    pub payload: &'a [u8],
}

impl<'a> Slot<'a> {
    /// Its bytes, to be written at [`slot_offset`] in one piece.
    pub fn encode(&self) -> Result<[u8; BLOCK], NoRoom> {
        let mut block = [0; BLOCK];
        if self.index >= SLOTS {
            return Err(NoRoom::Index(self.index));
        }
        let payload = block
            .get_mut(PAYLOAD_AT..PAYLOAD_AT + self.payload.len())
            .ok_or(NoRoom::Payload(self.payload.len()))?;
        payload.copy_from_slice(self.payload);
        block[..8].copy_from_slice(SLOT);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.index.to_le_bytes());
        block[16..32].copy_from_slice(&self.host.0);
        block[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        block[40..44].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        seal(&mut block, SLOT_CRC_AT);
        Ok(block)
    }

    /// Reads the slot of the host `index`; none if no host has written it.
    pub fn parse(index: u32, block: &'a [u8]) -> Result<Option<Self>, Bad> {
        if block
            .get(..BLOCK)
            .is_some_and(|block| block.iter().all(|byte| *byte == 0))
        {
            return Ok(None);
        }
        let block = open(block, SLOT, SLOT_CRC_AT)?;
        if u32_at(block, 12) != index {
            return Err(Bad::Field("index of the host"));
        }
        let length = u32_at(block, 40) as usize;
        let payload = block[PAYLOAD_AT..]
            .get(..length)
            .ok_or(Bad::Field("length of the payload"))?;
        let mut host = Uuid::default();
        host.0.copy_from_slice(&block[16..32]);
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&block[32..40]);
        Ok(Some(Self {
            index,
            host,
            sequence: u64::from_le_bytes(sequence),
            payload,
        }))
    }
}

/// A whole block of this kind, checked.
fn open<'a>(block: &'a [u8], cookie: &[u8; 8], crc_at: usize) -> Result<&'a [u8; BLOCK], Bad> {
    let block: &[u8; BLOCK] = block.first_chunk().ok_or(Bad::Truncated)?;
    if !block.starts_with(cookie) {
        return Err(Bad::Cookie);
    }
    if checksum(block, crc_at) != u32_at(block, crc_at) {
        return Err(Bad::Checksum);
    }
    match u32_at(block, 8) {
        VERSION => Ok(block),
        version => Err(Bad::Version(version)),
    }
}

fn seal(block: &mut [u8; BLOCK], crc_at: usize) {
    let sum = checksum(block, crc_at);
    block[crc_at..crc_at + 4].copy_from_slice(&sum.to_le_bytes());
}

fn checksum(block: &[u8; BLOCK], crc_at: usize) -> u32 {
    let mut digest: Digest<'_, u32, Table<16>> = CRC.digest();
    digest.update(&block[..crc_at]);
    digest.update(&[0; 4]);
    digest.update(&block[crc_at + 4..]);
    digest.finalize()
}

fn u32_at(block: &[u8; BLOCK], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPOSITORY: Uuid = Uuid([7; 16]);

    proptest! {
        #[test]
        fn slots_come_back_and_no_torn_one_is_believed(
            index in 0..SLOTS,
            sequence: u64,
            old in proptest::collection::vec(1u8.., 1..MAX_PAYLOAD),
            new in proptest::collection::vec(1u8.., 1..MAX_PAYLOAD),
            sectors in 1usize..8,
        ) {
            let slot = |sequence, payload| Slot { index, host: Uuid([3; 16]), sequence, payload };
            let before = slot(sequence, &old[..]).encode().expect("fits");
            let after = slot(sequence.wrapping_add(1), &new[..]).encode().expect("fits");
            prop_assert_eq!(Slot::parse(index, &before), Ok(Some(slot(sequence, &old[..]))));
            // Some sectors of the new block over the old one: the first always differs, by the sequence.
            let mut torn = before;
            torn[..sectors * 512].copy_from_slice(&after[..sectors * 512]);
            let parsed = Slot::parse(index, &torn);
            prop_assert!(parsed == Err(Bad::Checksum) || torn == after, "{:?}", parsed);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let header = Header {
            repository: REPOSITORY,
        };
        let block = header.encode();
        assert_eq!(Header::parse(&block), Ok(header));
        for bit in 0..BLOCK * 8 {
            let mut damaged = block;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_slot_is_read_only_as_its_own() {
        let slot = Slot {
            index: 4,
            host: REPOSITORY,
            sequence: 1,
            payload: b"alive",
        };
        let block = slot.encode().expect("fits");
        assert_eq!(Slot::parse(5, &block), Err(Bad::Field("index of the host")));
        assert_eq!(Slot::parse(4, &block[..100]), Err(Bad::Truncated));
        assert_eq!(Slot::parse(4, &[0; BLOCK]), Ok(None));
        assert_eq!(
            Slot::parse(
                4,
                &Header {
                    repository: REPOSITORY
                }
                .encode()
            ),
            Err(Bad::Cookie)
        );
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let payload = [1; MAX_PAYLOAD + 1];
        let slot = |index, payload| {
            Slot {
                index,
                host: REPOSITORY,
                sequence: 1,
                payload,
            }
            .encode()
        };
        assert_eq!(slot(SLOTS, &[]), Err(NoRoom::Index(SLOTS)));
        assert_eq!(slot(0, &payload), Err(NoRoom::Payload(payload.len())));
        assert!(slot(SLOTS - 1, &payload[1..]).is_ok());
        assert_eq!(slot_offset(SLOTS - 1), Some(SIZE - BLOCK as u64));
        assert_eq!(slot_offset(SLOTS), None);
    }
}
