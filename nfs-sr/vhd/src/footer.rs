//! The footer, and its copy at the start of the file.

use crate::{Error, Geometry, MAX_SIZE, SECTOR, Uuid, checksum, u16_at, u32_at, u64_at};

const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM_AT: usize = 64;
/// "No offset": there is no header.
const NONE: u64 = u64::MAX;
const VERSION: u32 = 0x0001_0000;

/// How a disk stores its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// As it is, one to one.
    Fixed,
    /// In blocks that are allocated when written.
    Dynamic,
    /// Like `Dynamic`, and what is absent is read from a parent.
    Differencing,
}

/// The footer of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the header is; none in a fixed disk.
    pub header_offset: Option<u64>,
    /// When the disk was last changed, in seconds since 2000. A child remembers its parent's.
    pub timestamp: u32,
    /// Program that made it. `"tap\0"` has readers believe [`Self::size`] and not the geometry.
    pub creator: [u8; 4],
    /// Its version.
    pub creator_version: u32,
    /// Its operating system.
    pub creator_os: [u8; 4],
    /// Bytes when it was made.
    pub original_size: u64,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Geometry.
    pub geometry: Geometry,
    /// Kind.
    pub kind: DiskKind,
    /// Identity; a child names its parent by it.
    pub uuid: Uuid,
    /// The disk is part of a saved state.
    pub saved: bool,
    /// The disk is a base copy, kept for its children only (a convention of XenServer).
    pub hidden: bool,
}

impl Footer {
    /// The footer of a new disk.
    pub fn new(kind: DiskKind, size: u64, uuid: Uuid, timestamp: u32) -> Self {
        Self {
            header_offset: (kind != DiskKind::Fixed).then_some(SECTOR),
            timestamp,
            creator: *b"tap\0",
            creator_version: 0x0001_0003,
            creator_os: [0; 4],
            original_size: size,
            size,
            geometry: Geometry::for_bytes(size),
            kind,
            uuid,
            saved: false,
            hidden: false,
        }
    }

    /// Reads a footer from the 512 bytes it takes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; 512] = bytes
            .get(..512)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Error::Truncated("footer"))?;
        if &bytes[..8] != COOKIE {
            return Err(Error::Cookie("footer"));
        }
        if checksum(bytes, CHECKSUM_AT) != u32_at(bytes, CHECKSUM_AT) {
            return Err(Error::Checksum("footer"));
        }
        let bad = |field, value| Error::Field {
            structure: "footer",
            field,
            value,
        };
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(bad("version", version.into()));
        }
        let kind = match u32_at(bytes, 60) {
            2 => DiskKind::Fixed,
            3 => DiskKind::Dynamic,
            4 => DiskKind::Differencing,
            value => return Err(bad("disk type", value.into())),
        };
        let header_offset = u64_at(bytes, 16);
        if kind != DiskKind::Fixed && !(SECTOR..=MAX_SIZE).contains(&header_offset) {
            return Err(bad("offset of the header", header_offset));
        }
        let size = u64_at(bytes, 48);
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(bad("size", size));
        }
        let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes");
        Ok(Self {
            header_offset: (kind != DiskKind::Fixed && header_offset != NONE)
                .then_some(header_offset),
            timestamp: u32_at(bytes, 24),
            creator: word(28),
            creator_version: u32_at(bytes, 32),
            creator_os: word(36),
            original_size: u64_at(bytes, 40),
            size,
            geometry: Geometry {
                cylinders: u16_at(bytes, 56),
                heads: bytes[58],
                sectors: bytes[59],
            },
            kind,
            uuid: Uuid(bytes[68..84].try_into().expect("16 bytes")),
            saved: bytes[84] != 0,
            hidden: bytes[85] != 0,
        })
    }

    /// Its 512 bytes.
    pub fn encode(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, COOKIE);
        put(8, &2u32.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &self.header_offset.unwrap_or(NONE).to_be_bytes());
        put(24, &self.timestamp.to_be_bytes());
        put(28, &self.creator);
        put(32, &self.creator_version.to_be_bytes());
        put(36, &self.creator_os);
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        put(56, &self.geometry.cylinders.to_be_bytes());
        put(58, &[self.geometry.heads, self.geometry.sectors]);
        let kind: u32 = match self.kind {
            DiskKind::Fixed => 2,
            DiskKind::Dynamic => 3,
            DiskKind::Differencing => 4,
        };
        put(60, &kind.to_be_bytes());
        put(68, &self.uuid.0);
        put(84, &[self.saved.into(), self.hidden.into()]);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}
