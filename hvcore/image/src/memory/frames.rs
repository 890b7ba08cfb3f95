//! Who owns which physical frames.

use alloc::vec::Vec;
use core::{ops::Range, ptr::NonNull, slice};

use boot_info::{frames::FrameAllocator, memory_map::FRAME_BYTES};
use spin::Mutex;

/// Bytes that VMs leave to the host's own heap and rings.
const HOST_RESERVE_BYTES: u64 = 64 << 20;

static ALLOCATOR: Mutex<Option<FrameAllocator>> = Mutex::new(None);

/// Starts the allocator on `free` ranges; its bitmap is cut from the first that holds it.
pub fn init(mut free: Vec<Range<u64>>) {
    let end = free.last().map_or(0, |range| range.end);
    let words = FrameAllocator::bitmap_words(end);
    let bytes = (words as u64 * 8).next_multiple_of(FRAME_BYTES);
    let home = free
        .iter_mut()
        .find(|range| range.end - range.start >= bytes)
        .expect("a machine that runs this image has memory for a bitmap of it");
    let bitmap = home.start as *mut u64;
    home.start += bytes;
    // SAFETY: the frames are free RAM, mapped, taken out of the ranges for good, and any bytes are valid
    // numbers.
    let bitmap = unsafe { slice::from_raw_parts_mut(bitmap, words) };
    *ALLOCATOR.lock() = Some(FrameAllocator::new(bitmap, &free));
}

/// Physically contiguous frames, identity mapped and owned; freed when dropped.
#[derive(Debug)]
pub struct Frames {
    address: u64,
    count: u64,
}

impl Frames {
    /// `count` frames filled with zeroes, at an address that is a multiple of `align` frames.
    pub fn zeroed(count: u64, align: u64) -> Option<Self> {
        let frames = Self::allocate(count, align)?;
        // SAFETY: the frames are ours alone and mapped.
        unsafe { frames.pointer().write_bytes(0, frames.bytes()) };
        Some(frames)
    }

    /// As [`Self::zeroed`], with whatever contents.
    pub fn allocate(count: u64, align: u64) -> Option<Self> {
        let address = take(count, align)?;
        Some(Self { address, count })
    }

    /// Physical address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where the CPU finds them.
    pub fn pointer(&self) -> NonNull<u8> {
        NonNull::new(self.address as *mut u8).expect("low memory is never handed out")
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        (self.count * FRAME_BYTES) as usize
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        release(self.address, self.count);
    }
}

/// Takes frames without an owner; give them back by [`release`].
pub fn take(count: u64, align: u64) -> Option<u64> {
    ALLOCATOR.lock().as_mut()?.allocate(count, align)
}

/// Gives back frames got from [`take`].
pub fn release(address: u64, count: u64) {
    if let Some(allocator) = ALLOCATOR.lock().as_mut() {
        allocator.release(address, count);
    }
}

/// Bytes for VMs: total and free. What the host needs itself is in neither.
pub fn account() -> (u64, u64) {
    let allocator = ALLOCATOR.lock();
    let bytes = |frames: u64| (frames * FRAME_BYTES).saturating_sub(HOST_RESERVE_BYTES);
    allocator.as_ref().map_or((0, 0), |allocator| {
        (bytes(allocator.total()), bytes(allocator.free_frames()))
    })
}
