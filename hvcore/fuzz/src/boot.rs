//! What a boot loader, a firmware and whoever starts a host tell it.

use std::cell::Cell;

use boot_info::{
    BootInfo, PhysicalMemory,
    acpi::{RootTable, Tables},
    config::Settings,
    memory_map, standalone,
};

const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
/// Where the bytes lie; below they are seen too, shifted, so that small addresses lead somewhere.
const BASE: u64 = 0x10000;
/// Where the image itself lies.
const IMAGE: std::ops::Range<u64> = 0x10_0000..0x20_0000;
/// A boot reads less than this, however its tables are linked.
const READS_MAX: u64 = 4 << 20;

struct Memory<'a>(&'a [u8], Cell<u64>);

impl PhysicalMemory for Memory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) {
        self.1.set(self.1.get() + buf.len() as u64);
        assert!(self.1.get() < READS_MAX, "the tables are read without end");
        for (index, byte) in buf.iter_mut().enumerate() {
            let at = address.wrapping_add(index as u64).wrapping_sub(BASE);
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| self.0.get(at))
                .copied()
                .unwrap_or(0xff);
        }
    }
}

/// Parsed or refused.
///
/// # Panics
/// When a table is read without end, or the free memory overlaps itself.
pub fn boot_information(data: &[u8]) {
    let memory = Memory(data, Cell::new(0));
    for eax in [MULTIBOOT2_MAGIC, 0] {
        if let Ok(info) = BootInfo::parse(&memory, eax, BASE as u32) {
            let taken: Vec<_> = info
                .modules
                .iter()
                .map(|module| module.range.clone())
                .chain([IMAGE])
                .collect();
            let free = memory_map::free_ranges(&info.memory, &taken);
            assert!(
                free.iter().is_sorted_by(|a, b| a.end <= b.start),
                "{free:?}"
            );
        }
    }
    if let Some(root) = RootTable::parse(data) {
        let _ = Tables::read(&memory, root);
    }
    let _ = Tables::read(&memory, RootTable::Xsdt(BASE));
    let _ = standalone::split_kernel(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Settings::parse(text);
        let _ = standalone::parse(text);
    }
}
