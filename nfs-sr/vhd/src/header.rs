//! The header of dynamic and differencing disks: the block size, where the BAT is, and who the parent is.

use alloc::{format, string::String, vec::Vec};

use crate::{Error, MAX_SIZE, SECTOR, Uuid, checksum, u16_at, u32_at, u64_at};

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const VERSION: u32 = 0x0001_0000;
/// Bytes of the header.
pub(crate) const LENGTH: usize = 1024;
/// Largest block that is accepted.
const MAX_BLOCK: u32 = 256 << 20;

/// How a locator writes the parent's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocatorCode {
    /// `file://` URL in UTF-8 (`MacX`).
    FileUrl,
    /// Absolute path in UTF-16LE (`W2ku`).
    WindowsAbsolute,
    /// Relative path in UTF-16LE (`W2ru`).
    WindowsRelative,
    /// One that is kept as it is.
    Other(u32),
}

impl LocatorCode {
    fn from_wire(code: u32) -> Self {
        match &code.to_be_bytes() {
            b"MacX" => Self::FileUrl,
            b"W2ku" => Self::WindowsAbsolute,
            b"W2ru" => Self::WindowsRelative,
            _ => Self::Other(code),
        }
    }

    /// The path of a parent in the same directory, as this form writes it; none for forms that are kept as they are.
    pub fn path(self, parent: &str) -> Option<Vec<u8>> {
        let utf16 = |text: String| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        match self {
            Self::FileUrl => Some(format!("file://./{parent}").into_bytes()),
            Self::WindowsAbsolute | Self::WindowsRelative => Some(utf16(format!(".\\{parent}"))),
            Self::Other(_) => None,
        }
    }

    fn to_wire(self) -> u32 {
        match self {
            Self::FileUrl => u32::from_be_bytes(*b"MacX"),
            Self::WindowsAbsolute => u32::from_be_bytes(*b"W2ku"),
            Self::WindowsRelative => u32::from_be_bytes(*b"W2ru"),
            Self::Other(code) => code,
        }
    }
}

/// Where a path of the parent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// How it is written.
    pub code: LocatorCode,
    /// Bytes that it takes in the file. (libvhd and Microsoft count bytes here, not sectors.)
    pub space: u32,
    /// Bytes of the path.
    pub length: u32,
    /// Where.
    pub offset: u64,
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the BAT is.
    pub bat_offset: u64,
    /// Entries of the BAT.
    pub bat_entries: u32,
    /// Bytes of a block.
    pub block_size: u32,
    /// The parent's identity; nil without a parent.
    pub parent: Uuid,
    /// The parent's timestamp when the child was made.
    pub parent_timestamp: u32,
    /// The parent's file name.
    pub parent_name: String,
    /// Where paths of the parent are.
    pub locators: Vec<Locator>,
}

impl Header {
    /// Bytes of a block's bitmap, padded to sectors.
    pub fn bitmap_size(&self) -> u32 {
        (self.block_size / SECTOR as u32)
            .div_ceil(8)
            .next_multiple_of(SECTOR as u32)
    }

    /// Reads a header from the 1024 bytes it takes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes = bytes.get(..LENGTH).ok_or(Error::Truncated("header"))?;
        if &bytes[..8] != COOKIE {
            return Err(Error::Cookie("header"));
        }
        if checksum(bytes, CHECKSUM_AT) != u32_at(bytes, CHECKSUM_AT) {
            return Err(Error::Checksum("header"));
        }
        let bad = |field, value| Error::Field {
            structure: "header",
            field,
            value,
        };
        let version = u32_at(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            return Err(bad("version", version.into()));
        }
        let bat_offset = u64_at(bytes, 16);
        if !bat_offset.is_multiple_of(SECTOR) || !(SECTOR..=MAX_SIZE).contains(&bat_offset) {
            return Err(bad("offset of the BAT", bat_offset));
        }
        let block_size = u32_at(bytes, 32);
        if !block_size.is_power_of_two() || !(4096..=MAX_BLOCK).contains(&block_size) {
            return Err(bad("block size", block_size.into()));
        }
        let bat_entries = u32_at(bytes, 28);
        if u64::from(bat_entries) > MAX_SIZE / u64::from(block_size) + 1 {
            return Err(bad("number of blocks", bat_entries.into()));
        }
        let name: Vec<u16> = (64..576)
            .step_by(2)
            .map(|at| u16_at(bytes, at))
            .take_while(|unit| *unit != 0)
            .collect();
        let locators = (0..8)
            .map(|i| 576 + i * 24)
            .filter(|&at| u32_at(bytes, at) != 0)
            .map(|at| Locator {
                code: LocatorCode::from_wire(u32_at(bytes, at)),
                space: u32_at(bytes, at + 4),
                length: u32_at(bytes, at + 8),
                offset: u64_at(bytes, at + 16),
            })
            .collect();
        Ok(Self {
            bat_offset,
            bat_entries,
            block_size,
            parent: Uuid(bytes[40..56].try_into().expect("16 bytes")),
            parent_timestamp: u32_at(bytes, 56),
            parent_name: String::from_utf16_lossy(&name),
            locators,
        })
    }

    /// Its 1024 bytes. A parent's name beyond 255 UTF-16 units and locators beyond eight are left out.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.bat_offset.to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.bat_entries.to_be_bytes());
        put(32, &self.block_size.to_be_bytes());
        put(40, &self.parent.0);
        put(56, &self.parent_timestamp.to_be_bytes());
        for (i, unit) in self.parent_name.encode_utf16().take(256).enumerate() {
            put(64 + 2 * i, &unit.to_be_bytes());
        }
        for (i, locator) in self.locators.iter().take(8).enumerate() {
            let at = 576 + i * 24;
            put(at, &locator.code.to_wire().to_be_bytes());
            put(at + 4, &locator.space.to_be_bytes());
            put(at + 8, &locator.length.to_be_bytes());
            put(at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}
