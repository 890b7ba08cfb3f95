//! Physical memory, which is identity mapped: who owns which frames, and the heap.

mod frames;
mod heap;

use alloc::vec::Vec;
use core::ops::Range;

use boot_info::{BootInfo, Module, PhysicalMemory, memory_map};

pub use frames::{Frames, account, release, take};

/// Bytes that the boot page tables map (`boot/entry.s`).
pub const MAPPED_BYTES: u64 = 512 << 30;

/// Real mode's memory: firmware keeps data there, and other processors will start there.
const LOW_MEMORY: Range<u64> = 0..0x10_0000;

/// Physical memory as the parsers of boot information read it.
pub struct Identity;

impl PhysicalMemory for Identity {
    fn read(&self, address: u64, buf: &mut [u8]) {
        match address.checked_add(buf.len() as u64) {
            Some(end) if address != 0 && end <= MAPPED_BYTES => {
                // SAFETY: every physical address below `MAPPED_BYTES` is mapped readable; `buf` is
                // writable, and `copy` allows for an overlap.
                unsafe { core::ptr::copy(address as *const u8, buf.as_mut_ptr(), buf.len()) }
            }
            _ => buf.fill(0xff),
        }
    }
}

/// Hands all memory that nobody else uses to the frame allocator.
pub fn init(boot: &BootInfo) {
    let mut taken: Vec<Range<u64>> = boot.modules.iter().map(|m| m.range.clone()).collect();
    taken.extend([LOW_MEMORY, crate::boot::image(), MAPPED_BYTES..u64::MAX]);
    frames::init(memory_map::free_ranges(&boot.memory, &taken));
}

/// The bytes of a boot module. [`init`] keeps their frames out of the allocator for good.
pub fn module_bytes(module: &Module) -> &'static [u8] {
    let Range { start, end } = module.range;
    if start == 0 || start >= end || end > MAPPED_BYTES {
        return &[];
    }
    // SAFETY: mapped, never written after boot, and never handed out.
    unsafe { core::slice::from_raw_parts(start as *const u8, (end - start) as usize) }
}
