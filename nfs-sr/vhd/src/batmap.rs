//! The batmap: which blocks hold all of their sectors, so that a reader need not look at their bitmaps. An addition of
//! XenServer's block driver to the format, which its disks of version 1.1 and later must have.
//!
//! It lies behind the padded BAT: a sector with cookie "tdbatmap", offset of the map u64, its size in sectors u32, version u32 and the
//! map's checksum u32; then the map, one bit for each block, the first in the highest bit. A bit that is not set
//! says nothing, so writers of disks may leave the map alone: a block that is full stays so.

use alloc::{vec, vec::Vec};

use crate::{Bat, Error, Header, SECTOR, u32_at, u64_at};

const COOKIE: &[u8; 8] = b"tdbatmap";
const VERSION: u32 = 0x0001_0002;

/// A batmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap(Vec<u8>);

impl Batmap {
    /// For so many blocks, none of which is known to be full.
    pub fn empty(entries: u32) -> Self {
        Self(vec![0; Self::map_size(entries) as usize])
    }

    /// Where it is in a file.
    pub fn offset(header: &Header) -> u64 {
        header.bat_offset + Bat::file_size(header.bat_entries)
    }

    /// Bytes that it takes in a file, for so many blocks.
    pub fn file_size(entries: u32) -> u64 {
        SECTOR + Self::map_size(entries)
    }

    fn map_size(entries: u32) -> u64 {
        u64::from(entries).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Reads a batmap that is at `offset` of the file; none if there is none.
    pub fn parse(bytes: &[u8], offset: u64) -> Result<Option<Self>, Error> {
        if !bytes.starts_with(COOKIE) {
            return Ok(None);
        }
        let (header, map) = bytes
            .split_at_checked(SECTOR as usize)
            .ok_or(Error::Truncated("batmap"))?;
        let bad = |field, value| Error::Field {
            structure: "batmap",
            field,
            value,
        };
        if u64_at(header, 8) != offset + SECTOR {
            return Err(bad("offset of the map", u64_at(header, 8)));
        }
        if u32_at(header, 20) >> 16 != VERSION >> 16 {
            return Err(bad("version", u32_at(header, 20).into()));
        }
        let size = u64::from(u32_at(header, 16)) * SECTOR;
        let map = usize::try_from(size)
            .ok()
            .and_then(|size| map.get(..size))
            .ok_or(Error::Truncated("batmap"))?;
        if checksum(map) != u32_at(header, 24) {
            return Err(Error::Checksum("batmap"));
        }
        Ok(Some(Self(map.to_vec())))
    }

    /// Its bytes in a file, at `offset`.
    pub fn encode(&self, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..16].copy_from_slice(&(offset + SECTOR).to_be_bytes());
        bytes[16..20].copy_from_slice(&((self.0.len() as u64 / SECTOR) as u32).to_be_bytes());
        bytes[20..24].copy_from_slice(&VERSION.to_be_bytes());
        bytes[24..28].copy_from_slice(&checksum(&self.0).to_be_bytes());
        bytes.extend(&self.0);
        bytes
    }

    /// The block holds all of its sectors.
    pub fn get(&self, block: u32) -> bool {
        self.0
            .get(block as usize / 8)
            .is_some_and(|byte| byte & (0x80 >> (block % 8)) != 0)
    }

    /// Records that a block is full.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn set(&mut self, block: u32) {
        self.0[block as usize / 8] |= 0x80 >> (block % 8);
    }

    /// Blocks that are known to be full.
    pub fn full(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.0.len() as u32 * 8).filter(|block| self.get(*block))
    }
}

fn checksum(map: &[u8]) -> u32 {
    !map.iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// The tables of a disk: they lie one behind the other and are read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where the blocks are.
    pub bat: Bat,
    /// Which of them are full.
    pub batmap: Option<Batmap>,
}

impl Tables {
    /// Most bytes that the tables take in a file, from [`Header::bat_offset`] on.
    pub fn size(header: &Header) -> u64 {
        Bat::file_size(header.bat_entries) + Batmap::file_size(header.bat_entries)
    }

    /// Reads the tables from their bytes in the file, which may end after the BAT. A batmap that is damaged counts as none: all
    /// that it says can be told from the bitmaps.
    pub fn parse(bytes: &[u8], header: &Header) -> Result<Self, Error> {
        let bat = Bat::parse(bytes, header.bat_entries)?;
        let behind = bytes
            .get(Bat::file_size(header.bat_entries) as usize..)
            .unwrap_or_default();
        let batmap = Batmap::parse(behind, Batmap::offset(header)).ok().flatten();
        Ok(Self { bat, batmap })
    }
}

/// The tables of a disk that has no batmap.
impl From<Bat> for Tables {
    fn from(bat: Bat) -> Self {
        Self { bat, batmap: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down by hand from the layout.
    #[test]
    fn known_bytes() {
        let mut batmap = Batmap::empty(20);
        batmap.set(0);
        batmap.set(11);
        let bytes = batmap.encode(2048);
        assert_eq!(
            &bytes[..28],
            b"tdbatmap\0\0\0\0\0\0\x0a\0\0\0\0\x01\0\x01\0\x02\xff\xff\xff\x6f"
        );
        assert_eq!(
            (bytes.len(), &bytes[512..515]),
            (1024, &[0x80, 0x10, 0][..])
        );
        assert_eq!(Batmap::parse(&bytes, 2048), Ok(Some(batmap.clone())));
        assert_eq!(batmap.full().collect::<Vec<_>>(), [0, 11]);
        assert_eq!(Batmap::parse(&[0; 1024], 2048), Ok(None));
        assert!(Batmap::parse(&bytes, 4096).is_err());
        assert_eq!(
            Batmap::parse(&bytes[..600], 2048),
            Err(Error::Truncated("batmap"))
        );
        let mut damaged = bytes;
        damaged[513] ^= 1;
        assert_eq!(
            Batmap::parse(&damaged, 2048),
            Err(Error::Checksum("batmap"))
        );
    }
}
