//! The Multiboot2 boot information (specification 2.0, 3.6), as GRUB gives it under BIOS and UEFI.

use alloc::{string::String, vec::Vec};

use crate::{
    BootInfo, BootInfoError, MODULES_MAX, Module, PhysicalMemory, REGIONS_MAX, Region, acpi,
    bounded,
};

/// EAX at the entry.
pub const MAGIC: u32 = 0x36d7_6289;

/// Largest information accepted: GRUB's is a few KiB, plus what the firmware's own map needs.
const INFO_BYTES_MAX: usize = 1 << 20;

const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_ACPI_OLD: u32 = 14;
const TAG_ACPI_NEW: u32 = 15;

/// Memory map type of usable RAM.
const TYPE_RAM: u32 = 1;

pub fn parse(memory: &impl PhysicalMemory, info: u64) -> Result<BootInfo, BootInfoError> {
    let total = bounded(
        "boot information size",
        memory.read_u32(info).into(),
        INFO_BYTES_MAX,
    )?;
    let bytes = memory.read_vec(info, total);
    let mut parsed = BootInfo {
        command_line: String::new(),
        modules: Vec::new(),
        memory: Vec::new(),
        acpi: None,
    };
    let mut at = 8;
    loop {
        let (kind, size) = (
            u32_at(&bytes, at, "tags")?,
            u32_at(&bytes, at + 4, "tags")? as usize,
        );
        if kind == TAG_END {
            return Ok(parsed);
        }
        let body = size
            .checked_sub(8)
            .and_then(|len| bytes.get(at + 8..at + 8 + len))
            .ok_or(BootInfoError::Truncated { what: "tags" })?;
        match kind {
            TAG_COMMAND_LINE => parsed.command_line = text(body),
            TAG_MODULE => {
                bounded(
                    "number of modules",
                    parsed.modules.len() as u64 + 1,
                    MODULES_MAX,
                )?;
                let start = u32_at(body, 0, "modules")?;
                let end = u32_at(body, 4, "modules")?;
                parsed.modules.push(Module {
                    range: start.into()..end.into(),
                    command_line: text(&body[8..]),
                });
            }
            TAG_MEMORY_MAP => parsed.memory = memory_map(body)?,
            // The newer one wins where both are given.
            TAG_ACPI_OLD if parsed.acpi.is_some() => {}
            TAG_ACPI_OLD | TAG_ACPI_NEW => {
                parsed.acpi = acpi::RootTable::parse(body).or(parsed.acpi);
            }
            _ => {}
        }
        at += size.next_multiple_of(8);
    }
}

fn memory_map(body: &[u8]) -> Result<Vec<Region>, BootInfoError> {
    let what = "memory map";
    let entry_size = u32_at(body, 0, what)? as usize;
    if entry_size < 20 {
        return Err(BootInfoError::Truncated { what });
    }
    let entries = &body.get(8..).ok_or(BootInfoError::Truncated { what })?;
    bounded(
        "number of memory map entries",
        (entries.len() / entry_size) as u64,
        REGIONS_MAX,
    )?;
    entries
        .chunks_exact(entry_size)
        .map(|entry| {
            let start = u64_at(entry, 0, what)?;
            Ok(Region {
                range: start..start.saturating_add(u64_at(entry, 8, what)?),
                usable: u32_at(entry, 16, what)? == TYPE_RAM,
            })
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, BootInfoError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|word| u32::from_le_bytes(*word))
        .ok_or(BootInfoError::Truncated { what })
}

fn u64_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u64, BootInfoError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|word| u64::from_le_bytes(*word))
        .ok_or(BootInfoError::Truncated { what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Pieces;

    fn information(tags: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = alloc::vec![0; 8];
        for (kind, body) in tags {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((body.len() as u32 + 8).to_le_bytes());
            bytes.extend(*body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        bytes
    }

    fn map_tag(start: u64, len: u64) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(24u32.to_le_bytes());
        body.extend(0u32.to_le_bytes());
        body.extend(start.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(1u32.to_le_bytes());
        body.extend(0u32.to_le_bytes());
        body
    }

    #[test]
    fn tags_of_odd_length_are_stepped_over_aligned() {
        let mut module = Vec::new();
        module.extend(0x16_a000u32.to_le_bytes());
        module.extend(0x16_a010u32.to_le_bytes());
        module.extend(b"vm\0");
        let bytes = information(&[
            (1, b"name=h1\0"),
            (3, &module),
            (6, &map_tag(0x10_0000, 0x10_0000)),
            (99, &[1, 2, 3]),
            (0, &[]),
        ]);
        let memory = Pieces(alloc::vec![(0x9000, bytes)]);
        let info = BootInfo::parse(&memory, MAGIC, 0x9000).unwrap();
        assert_eq!(info.command_line, "name=h1");
        assert_eq!(info.modules[0].range, 0x16_a000..0x16_a010);
        assert_eq!(info.modules[0].command_line, "vm");
        assert_eq!(info.memory[0].range, 0x10_0000..0x20_0000);
    }

    #[test]
    fn a_missing_end_tag_is_an_error() {
        let bytes = information(&[(6, &map_tag(0x10_0000, 0x10_0000))]);
        let memory = Pieces(alloc::vec![(0x9000, bytes)]);
        assert_eq!(
            BootInfo::parse(&memory, MAGIC, 0x9000),
            Err(BootInfoError::Truncated { what: "tags" })
        );
    }

    proptest! {
        #[test]
        fn no_input_panics(mut bytes in prop::collection::vec(any::<u8>(), 8..512)) {
            let total = bytes.len() as u32;
            bytes[..4].copy_from_slice(&total.to_le_bytes());
            // Small kinds and sizes, so that more than the first tag is reached.
            for chunk in bytes[8..].chunks_exact_mut(8) {
                chunk[0] %= 16;
                chunk[1..4].fill(0);
                chunk[5..8].fill(0);
            }
            let memory = Pieces(alloc::vec![(0x9000, bytes)]);
            let _ = BootInfo::parse(&memory, MAGIC, 0x9000);
        }
    }
}
