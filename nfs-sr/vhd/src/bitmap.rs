//! A block's bitmap: which of its sectors the block holds. In a differencing disk the others are read from
//! the parent; in a dynamic disk they are zero.

use alloc::{vec, vec::Vec};

/// Bits of the sectors of one block, the first in the highest bit of the first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap(Vec<u8>);

/// Consecutive sectors that are all present or all absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First sector within the block.
    pub first: u32,
    /// Number of sectors.
    pub count: u32,
    /// The block holds them.
    pub present: bool,
}

impl Bitmap {
    /// A bitmap of `bytes` bytes with no sector present.
    pub fn empty(bytes: u32) -> Self {
        Self(vec![0; bytes as usize])
    }

    /// A bitmap of `bytes` bytes with every sector present.
    pub fn full(bytes: u32) -> Self {
        Self(vec![0xff; bytes as usize])
    }

    /// The bitmap as it is in the file.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// As it is in the file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The block holds this sector.
    pub fn get(&self, sector: u32) -> bool {
        self.0
            .get(sector as usize / 8)
            .is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
    }

    /// Marks sectors as present. True if any was not.
    ///
    /// # Panics
    /// If the sectors are not of this block.
    pub fn set(&mut self, first: u32, count: u32) -> bool {
        let mut changed = false;
        for sector in first..first + count {
            let byte = &mut self.0[sector as usize / 8];
            let bit = 0x80 >> (sector % 8);
            changed |= *byte & bit == 0;
            *byte |= bit;
        }
        changed
    }

    /// Cuts a range of sectors into runs that are present or absent.
    pub fn runs(&self, first: u32, count: u32) -> impl Iterator<Item = Run> + '_ {
        let end = first + count;
        let mut at = first;
        core::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let (first, present) = (at, self.get(at));
            while at < end && self.get(at) == present {
                at += 1;
            }
            Some(Run {
                first,
                count: at - first,
                present,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_tell_what_was_set(sets in proptest::collection::vec((0u32..60, 1u32..5), 0..8), first in 0u32..30, count in 0u32..34) {
            let mut bitmap = Bitmap::empty(8);
            let mut model = [false; 64];
            for (at, n) in sets {
                let changed = bitmap.set(at, n);
                let range = at as usize..(at + n) as usize;
                prop_assert_eq!(changed, model[range.clone()].contains(&false));
                model[range].fill(true);
            }
            let mut at = first;
            for run in bitmap.runs(first, count) {
                prop_assert_eq!(run.first, at);
                for sector in at..at + run.count {
                    prop_assert_eq!(model[sector as usize], run.present);
                }
                at += run.count;
            }
            prop_assert_eq!(at, first + count);
        }
    }

    #[test]
    fn the_first_sector_is_the_highest_bit() {
        let mut bitmap = Bitmap::empty(2);
        bitmap.set(0, 1);
        bitmap.set(9, 1);
        assert_eq!(bitmap.as_bytes(), [0x80, 0x40]);
    }
}
