//! Which physical memory the host may use.

use alloc::vec::Vec;
use core::ops::Range;

use crate::Region;

/// Bytes in a frame.
pub const FRAME_BYTES: u64 = 4096;

/// Whole frames of usable RAM, sorted and disjoint, without the `taken` ranges and without anything that
/// the map also describes as not usable.
#[must_use]
pub fn free_ranges(map: &[Region], taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut usable: Vec<Range<u64>> = map
        .iter()
        .filter(|region| region.usable)
        .map(|region| {
            let start = region.range.start.div_ceil(FRAME_BYTES) * FRAME_BYTES;
            let end = region.range.end / FRAME_BYTES * FRAME_BYTES;
            start..end
        })
        .filter(|range| !range.is_empty())
        .collect();
    usable.sort_by_key(|range| range.start);
    let mut free: Vec<Range<u64>> = Vec::new();
    for range in usable {
        match free.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => free.push(range),
        }
    }
    let firmware = map
        .iter()
        .filter(|region| !region.usable)
        .map(|region| &region.range);
    for taken in firmware.chain(taken) {
        // Outwards to whole frames: a frame is free only when all of it is.
        let start = taken.start / FRAME_BYTES * FRAME_BYTES;
        let end = taken.end.div_ceil(FRAME_BYTES).saturating_mul(FRAME_BYTES);
        if start >= end {
            continue;
        }
        free = free
            .into_iter()
            .flat_map(|range| {
                [
                    range.start..range.end.min(start),
                    range.start.max(end)..range.end,
                ]
            })
            .filter(|range| !range.is_empty())
            .collect();
    }
    free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(range: Range<u64>, usable: bool) -> Region {
        Region { range, usable }
    }

    #[test]
    fn a_module_in_the_middle_splits_the_range() {
        let map = [region(0x10_0000..0x80_0000, true)];
        assert_eq!(
            free_ranges(&map, &[0x10_0000..0x18_1001, 0x20_0fff..0x20_1001]),
            [0x18_2000..0x20_0000, 0x20_2000..0x80_0000]
        );
    }

    #[test]
    fn firmware_wins_over_an_overlapping_usable_entry() {
        let map = [
            region(0..0x10_0000, true),
            region(0x9_fc00..0x10_0000, false),
        ];
        let free = free_ranges(&map, &[]);
        assert_eq!(free, *core::slice::from_ref(&(0..0x9_f000)));
    }

    proptest! {
        #[test]
        fn exactly_the_wholly_usable_frames_are_free(
            regions in prop::collection::vec((0u64..0x8000, 0u64..0x4000, any::<bool>()), 0..8),
            taken in prop::collection::vec((0u64..0x8000, 0u64..0x4000), 0..4),
        ) {
            let map: Vec<Region> = regions
                .iter()
                .map(|&(start, len, usable)| region(start..start + len, usable))
                .collect();
            let taken: Vec<Range<u64>> =
                taken.iter().map(|&(start, len)| start..start + len).collect();
            let free = free_ranges(&map, &taken);
            prop_assert!(free.windows(2).all(|pair| pair[0].end <= pair[1].start));
            for frame in 0..16 {
                let start = frame * FRAME_BYTES;
                let bytes = start..start + FRAME_BYTES;
                let within = |range: &Range<u64>| range.start <= bytes.start && bytes.end <= range.end;
                let touches = |range: &Range<u64>| {
                    !range.is_empty() && range.start < bytes.end && bytes.start < range.end
                };
                let is_free = free.iter().any(within);
                let firmware = map.iter().filter(|r| !r.usable).any(|r| touches(&r.range));
                let blocked = firmware || taken.iter().any(touches);
                // A frame that two usable regions share is not offered: none describes it whole.
                let usable = map.iter().any(|r| r.usable && within(&r.range));
                prop_assert_eq!(is_free, usable && !blocked);
            }
        }
    }
}
