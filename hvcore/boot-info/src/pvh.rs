//! The PVH boot protocol's `hvm_start_info` (Xen public/arch-x86/hvm/start_info.h), as QEMU's `-kernel`
//! gives it.

use alloc::{string::String, vec::Vec};

use crate::{
    BootInfo, BootInfoError, MODULES_MAX, Module, PhysicalMemory, REGIONS_MAX, Region, acpi,
    bounded,
};

/// The first word of the structure.
pub const MAGIC: u32 = 0x336e_c578;

/// Bytes of a module list entry.
const MODULE_BYTES: u64 = 32;
/// Bytes of a memory map entry.
const REGION_BYTES: u64 = 24;
/// E820 type of usable RAM.
const TYPE_RAM: u32 = 1;

pub fn parse(memory: &impl PhysicalMemory, info: u64) -> Result<BootInfo, BootInfoError> {
    let version = memory.read_u32(info + 4);
    let module_count = bounded(
        "number of modules",
        memory.read_u32(info + 12).into(),
        MODULES_MAX,
    )?;
    let module_list = memory.read_u64(info + 16);
    let command_line = memory.read_u64(info + 24);
    let rsdp = memory.read_u64(info + 32);
    // The memory map came with version 1.
    if version < 1 {
        return Err(BootInfoError::NoMemoryMap);
    }
    let memory_map = memory.read_u64(info + 40);
    let region_count = bounded(
        "number of memory map entries",
        memory.read_u32(info + 48).into(),
        REGIONS_MAX,
    )?;
    let text = |address| match address {
        0 => String::new(),
        address => memory.read_text(address),
    };
    let modules = (0..module_count as u64)
        .map(|index| {
            let entry = module_list.wrapping_add(index * MODULE_BYTES);
            let start = memory.read_u64(entry);
            Module {
                range: start..start.saturating_add(memory.read_u64(entry.wrapping_add(8))),
                command_line: text(memory.read_u64(entry.wrapping_add(16))),
            }
        })
        .collect();
    let regions: Vec<Region> = (0..region_count as u64)
        .map(|index| {
            let entry = memory_map.wrapping_add(index * REGION_BYTES);
            let start = memory.read_u64(entry);
            Region {
                range: start..start.saturating_add(memory.read_u64(entry.wrapping_add(8))),
                usable: memory.read_u32(entry.wrapping_add(16)) == TYPE_RAM,
            }
        })
        .collect();
    Ok(BootInfo {
        command_line: text(command_line),
        modules,
        memory: regions,
        acpi: match rsdp {
            0 => None,
            rsdp => acpi::RootTable::parse(&memory.read_vec(rsdp, acpi::RSDP_BYTES)),
        },
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::testing::Pieces;

    fn start_info(modules: u32, regions: u32) -> Vec<u8> {
        let mut info = Vec::new();
        info.extend(MAGIC.to_le_bytes());
        info.extend(1u32.to_le_bytes());
        info.extend(0u32.to_le_bytes());
        info.extend(modules.to_le_bytes());
        info.extend(0x2000u64.to_le_bytes());
        info.extend(0x3000u64.to_le_bytes());
        info.extend(0u64.to_le_bytes());
        info.extend(0x4000u64.to_le_bytes());
        info.extend(regions.to_le_bytes());
        info.extend(0u32.to_le_bytes());
        info
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn modules_map_and_command_line_are_read() {
        let memory = Pieces(alloc::vec![
            (0x1000, start_info(1, 2)),
            (0x2000, words(&[0x50_0000, 0x1234, 0x3008, 0])),
            (0x3000, b"name=h\0\0mod\0".to_vec()),
            (0x4000, words(&[0, 0x9fc00, 1, 0xa_0000, 0x1000, 2])),
        ]);
        let info = BootInfo::parse(&memory, 0, 0x1000).unwrap();
        assert_eq!(info.command_line, "name=h");
        assert_eq!(info.modules[0].range, 0x50_0000..0x50_1234);
        assert_eq!(info.modules[0].command_line, "mod");
        assert_eq!(
            info.memory,
            [
                Region {
                    range: 0..0x9fc00,
                    usable: true
                },
                Region {
                    range: 0xa_0000..0xa_1000,
                    usable: false
                },
            ]
        );
    }

    #[test]
    fn absurd_counts_are_refused() {
        let memory = Pieces(alloc::vec![(0x1000, start_info(u32::MAX, 1))]);
        assert!(matches!(
            BootInfo::parse(&memory, 0, 0x1000),
            Err(BootInfoError::TooLarge { .. })
        ));
        let memory = Pieces(alloc::vec![(0x1000, start_info(0, 0))]);
        assert_eq!(
            BootInfo::parse(&memory, 0, 0x1000),
            Err(BootInfoError::NoMemoryMap)
        );
    }

    #[test]
    fn an_unknown_protocol_is_named() {
        let memory = Pieces::default();
        let error = BootInfo::parse(&memory, 0x2bad_b002, 0x1000).unwrap_err();
        assert_eq!(
            error,
            BootInfoError::UnknownProtocol {
                eax: 0x2bad_b002,
                magic: u32::MAX
            }
        );
    }
}
