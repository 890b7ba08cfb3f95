//! The heap behind `alloc`: a small array until the memory map is known, then frames, taken in large
//! pieces as they are needed and kept.

use core::alloc::Layout;

use boot_info::memory_map::FRAME_BYTES;
use talc::{
    TalcLock,
    base::{Talc, binning::Binning},
    source::Source,
};

/// Enough to parse the boot information.
const BOOT_HEAP_BYTES: usize = 256 * 1024;
/// Frames by which the heap grows at least.
const GROWTH_FRAMES: u64 = 1024;

static mut BOOT_HEAP: [u8; BOOT_HEAP_BYTES] = [0; BOOT_HEAP_BYTES];

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Growing> = TalcLock::new(Growing {
    boot_heap: Some(&raw mut BOOT_HEAP),
});

/// Where the heap's memory comes from.
#[derive(Debug)]
struct Growing {
    boot_heap: Option<*mut [u8; BOOT_HEAP_BYTES]>,
}

// SAFETY: the pointer is to a static that nothing else names.
unsafe impl Send for Growing {}

// SAFETY: taking frames does not allocate.
unsafe impl Source for Growing {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        if let Some(array) = talc.source.boot_heap.take() {
            // SAFETY: nothing else names the array, and it is claimed once.
            return unsafe { talc.claim(array.cast(), BOOT_HEAP_BYTES) }
                .map(drop)
                .ok_or(());
        }
        // Room for the allocator's own tags beside the largest alignment.
        let wanted = layout.size() + layout.align() + FRAME_BYTES as usize;
        let frames = (wanted as u64).div_ceil(FRAME_BYTES).max(GROWTH_FRAMES);
        let address = super::take(frames, 1).ok_or(())?;
        // SAFETY: the frames are mapped, ours alone, and never given back.
        unsafe { talc.claim(address as *mut u8, (frames * FRAME_BYTES) as usize) }
            .map(drop)
            .ok_or(())
    }
}
