//! The allocator of physical memory: one bit for each 4 KiB frame.
//!
//! A bitmap and next-fit search: a run of frames of any length, aligned as asked, and freeing that
//! merges by itself. A buddy allocator would find large blocks faster, but a host allocates them
//! only when it builds a VM.

use core::ops::Range;

use crate::memory_map::FRAME_BYTES;

const WORD_BITS: u64 = u64::BITS as u64;

/// Hands out frames by physical address.
#[derive(Debug)]
pub struct FrameAllocator {
    /// A set bit is a free frame.
    bitmap: &'static mut [u64],
    total: u64,
    free: u64,
    /// Frame at which the next search begins.
    next: u64,
}

impl FrameAllocator {
    /// Words of bitmap needed for memory that ends at `end`.
    #[must_use]
    pub fn bitmap_words(end: u64) -> usize {
        end.div_ceil(FRAME_BYTES * WORD_BITS) as usize
    }

    /// An allocator of the frames in `free` ranges (whole frames, disjoint), with nothing handed out.
    /// Frames beyond the bitmap are left alone.
    #[must_use]
    pub fn new(bitmap: &'static mut [u64], free: &[Range<u64>]) -> Self {
        bitmap.fill(0);
        let limit = bitmap.len() as u64 * WORD_BITS;
        let mut allocator = Self {
            bitmap,
            total: 0,
            free: 0,
            next: 0,
        };
        for range in free {
            let frames = range.start / FRAME_BYTES..(range.end / FRAME_BYTES).min(limit);
            for frame in frames {
                allocator.set(frame);
                allocator.total += 1;
            }
        }
        allocator.free = allocator.total;
        allocator
    }

    /// Frames in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Frames not handed out.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.free
    }

    /// A run of `count` frames whose address is a multiple of `align` frames (a power of two), contents
    /// as they are.
    #[must_use]
    pub fn allocate(&mut self, count: u64, align: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two(), "alignment {align}");
        if count == 0 || count > self.free {
            return None;
        }
        let end = self.bitmap.len() as u64 * WORD_BITS;
        let first = self
            .find(self.next..end, count, align)
            .or_else(|| self.find(0..end, count, align))?;
        for frame in first..first + count {
            self.clear(frame);
        }
        self.free -= count;
        self.next = first + count;
        Some(first * FRAME_BYTES)
    }

    /// Takes back frames that [`Self::allocate`] gave.
    ///
    /// # Panics
    /// When one of them was not handed out: memory would then be in two hands.
    pub fn release(&mut self, address: u64, count: u64) {
        let first = address / FRAME_BYTES;
        for frame in first..first + count {
            assert!(
                !self.is_free(frame),
                "frame {:#x} was freed twice",
                frame * FRAME_BYTES
            );
            self.set(frame);
        }
        self.free += count;
    }

    fn find(&self, frames: Range<u64>, count: u64, align: u64) -> Option<u64> {
        let mut first = frames.start.next_multiple_of(align);
        while first + count <= frames.end {
            // Whole words that are handed out are the common case in a filled memory.
            if first.is_multiple_of(WORD_BITS) && self.bitmap[(first / WORD_BITS) as usize] == 0 {
                first = (first + WORD_BITS).next_multiple_of(align);
                continue;
            }
            match (first..first + count).find(|frame| !self.is_free(*frame)) {
                None => return Some(first),
                Some(taken) => first = (taken + 1).next_multiple_of(align),
            }
        }
        None
    }

    fn is_free(&self, frame: u64) -> bool {
        self.bitmap[(frame / WORD_BITS) as usize] & (1 << (frame % WORD_BITS)) != 0
    }

    fn set(&mut self, frame: u64) {
        self.bitmap[(frame / WORD_BITS) as usize] |= 1 << (frame % WORD_BITS);
    }

    fn clear(&mut self, frame: u64) {
        self.bitmap[(frame / WORD_BITS) as usize] &= !(1 << (frame % WORD_BITS));
    }
}

#[cfg(test)]
mod tests {
    use alloc::{boxed::Box, vec, vec::Vec};

    use proptest::prelude::*;

    use core::slice::from_ref;

    use super::*;

    fn allocator(frames: u64, free: &[Range<u64>]) -> FrameAllocator {
        let words = FrameAllocator::bitmap_words(frames * FRAME_BYTES);
        FrameAllocator::new(Box::leak(vec![0; words].into_boxed_slice()), free)
    }

    #[test]
    fn a_run_does_not_cross_a_hole() {
        let mut frames = allocator(64, &[0x1000..0x4000, 0x5000..0xa000]);
        assert_eq!(frames.total(), 8);
        assert_eq!(frames.allocate(4, 1), Some(0x5000));
        assert_eq!(frames.allocate(4, 1), None);
        assert_eq!(frames.allocate(3, 1), Some(0x1000));
        assert_eq!(frames.free_frames(), 1);
    }

    #[test]
    fn alignment_is_kept() {
        let mut frames = allocator(2048, from_ref(&(0x1000..0x80_0000)));
        assert_eq!(frames.allocate(512, 512), Some(0x20_0000));
        assert_eq!(frames.allocate(512, 512), Some(0x40_0000));
        assert_eq!(frames.allocate(512, 512), Some(0x60_0000));
        assert_eq!(frames.allocate(512, 512), None);
        assert_eq!(frames.free_frames(), 511);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_noticed() {
        let mut frames = allocator(64, from_ref(&(0x1000..0x9000)));
        let frame = frames.allocate(1, 1).unwrap();
        frames.release(frame, 1);
        frames.release(frame, 1);
    }

    proptest! {
        #[test]
        fn nothing_is_handed_out_twice_and_all_comes_back(
            steps in prop::collection::vec((1u64..40, 0u32..6, any::<bool>()), 1..80)
        ) {
            let mut frames = allocator(512, &[0x3000..0x8_0000, 0x9_0000..0x20_0000]);
            let mut held: Vec<Range<u64>> = Vec::new();
            for (count, align, release) in steps {
                if release && !held.is_empty() {
                    let range = held.swap_remove(count as usize % held.len());
                    frames.release(range.start * FRAME_BYTES, range.end - range.start);
                } else if let Some(address) = frames.allocate(count, 1 << align) {
                    prop_assert!(address.is_multiple_of(FRAME_BYTES << align));
                    let first = address / FRAME_BYTES;
                    let run = first..first + count;
                    prop_assert!(held.iter().all(|h| h.end <= run.start || run.end <= h.start));
                    prop_assert!(run.start >= 3 && run.end <= 512);
                    prop_assert!(run.end <= 0x80 || run.start >= 0x90);
                    held.push(run);
                }
                let held_frames: u64 = held.iter().map(|h| h.end - h.start).sum();
                prop_assert_eq!(frames.free_frames(), frames.total() - held_frames);
            }
        }
    }
}
