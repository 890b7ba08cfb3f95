//! What a host learns before it can run: from its boot loader, its firmware and its launcher.
//!
//! Pure parsing, tested on ordinary memory: physical memory is read through [`PhysicalMemory`], nothing is
//! kept that points into it, and every count and length is bounded. The image only maps addresses. The
//! published parsers (`multiboot2`, `acpi`) were not taken: the first covers one of the two boot protocols,
//! the second does not build on stable.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod config;
pub mod frames;
pub mod memory_map;
mod multiboot2;
mod pvh;
pub mod rtc;
pub mod standalone;

use alloc::{string::String, vec, vec::Vec};
use core::ops::Range;

use thiserror::Error;

/// Longest command line accepted.
const COMMAND_LINE_BYTES_MAX: usize = 4096;
/// Most boot modules accepted.
const MODULES_MAX: usize = 16;
/// Most memory map entries accepted.
const REGIONS_MAX: usize = 1024;

/// Memory by physical address.
pub trait PhysicalMemory {
    /// Copies bytes out. An address without memory behind it reads as whatever the bus gives.
    fn read(&self, address: u64, buf: &mut [u8]);

    /// Reads a little-endian `u32`.
    fn read_u32(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads a little-endian `u64`.
    fn read_u64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Reads `len` bytes.
    fn read_vec(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes);
        bytes
    }

    /// Reads text up to a zero byte, at most [`COMMAND_LINE_BYTES_MAX`] bytes; what is not UTF-8 is
    /// replaced.
    fn read_text(&self, address: u64) -> String {
        let mut text = Vec::new();
        while text.len() < COMMAND_LINE_BYTES_MAX {
            let mut byte = [0];
            self.read(address.wrapping_add(text.len() as u64), &mut byte);
            if byte[0] == 0 {
                break;
            }
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Why the boot loader's information was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BootInfoError {
    /// Neither protocol's magic number.
    #[error(
        "entered by an unknown boot protocol (eax {eax:#x}, magic {magic:#x}); boot the image by PVH or multiboot2"
    )]
    UnknownProtocol {
        /// EAX at the entry.
        eax: u32,
        /// The first word of the information.
        magic: u32,
    },
    /// A count or size beyond what makes sense.
    #[error("the boot loader's {what} is {found}, more than {max}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A structure that runs past its end.
    #[error("the boot loader's information ends inside its {what}")]
    Truncated {
        /// The structure.
        what: &'static str,
    },
    /// No memory map.
    #[error("the boot loader gave no memory map")]
    NoMemoryMap,
}

/// A range of physical addresses as firmware describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte to one past the last.
    pub range: Range<u64>,
    /// Whether it is free RAM (E820 type 1); all else is kept by firmware.
    pub usable: bool,
}

/// A file that the boot loader put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where it lies.
    pub range: Range<u64>,
    /// Its command line.
    pub command_line: String,
}

/// What the boot loader said, copied out of its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// The image's command line.
    pub command_line: String,
    /// Files loaded beside the image.
    pub modules: Vec<Module>,
    /// The memory map.
    pub memory: Vec<Region>,
    /// The root of the ACPI tables, where the loader knew it.
    pub acpi: Option<acpi::RootTable>,
}

impl BootInfo {
    /// Parses what the entry was given: EAX and EBX.
    ///
    /// # Errors
    /// When it is neither PVH nor multiboot2, or damaged.
    pub fn parse(memory: &impl PhysicalMemory, eax: u32, info: u32) -> Result<Self, BootInfoError> {
        let info = u64::from(info);
        let boot_info = if eax == multiboot2::MAGIC {
            multiboot2::parse(memory, info)?
        } else if memory.read_u32(info) == pvh::MAGIC {
            pvh::parse(memory, info)?
        } else {
            let magic = memory.read_u32(info);
            return Err(BootInfoError::UnknownProtocol { eax, magic });
        };
        if boot_info.memory.iter().any(|region| region.usable) {
            Ok(boot_info)
        } else {
            Err(BootInfoError::NoMemoryMap)
        }
    }
}

fn bounded(what: &'static str, found: u64, max: usize) -> Result<usize, BootInfoError> {
    match usize::try_from(found) {
        Ok(value) if value <= max => Ok(value),
        _ => Err(BootInfoError::TooLarge {
            what,
            found,
            max: max as u64,
        }),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use alloc::vec::Vec;

    use crate::PhysicalMemory;

    /// Memory made of a few pieces; the rest reads as ones, as an empty bus does.
    #[derive(Default)]
    pub struct Pieces(pub Vec<(u64, Vec<u8>)>);

    impl PhysicalMemory for Pieces {
        fn read(&self, address: u64, buf: &mut [u8]) {
            for (index, byte) in buf.iter_mut().enumerate() {
                let at = address.wrapping_add(index as u64);
                *byte = self
                    .0
                    .iter()
                    .find_map(|(start, bytes)| {
                        bytes.get(usize::try_from(at.checked_sub(*start)?).ok()?)
                    })
                    .copied()
                    .unwrap_or(0xff);
            }
        }
    }
}
