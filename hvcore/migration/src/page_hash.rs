//! A fast 128-bit hash of a page: to find pages that are equal, and to notice that one was damaged.
//!
//! It is no cryptographic hash. Two different pages have the same one with a probability that can be neglected, unless
//! a guest makes them so on purpose, and then the guest damages only itself.

use guest_memory::PAGE_SIZE;

/// Odd constants with about as many ones as zeroes: the golden ratio and the square root of 3, as fractions of 2^64.
const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0xbb67_ae85_84ca_a73b;

/// The hash of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageHash(u64, u64);

impl PageHash {
    /// Hashes a page, eight bytes at a time.
    pub fn of(page: &[u8; PAGE_SIZE]) -> Self {
        let (words, _) = page.as_chunks::<8>();
        let (mut first, mut second) = (FIRST, SECOND);
        for word in words {
            let word = u64::from_le_bytes(*word);
            first = (first ^ word).wrapping_mul(FIRST).rotate_left(29);
            second = (second ^ word).wrapping_mul(SECOND).rotate_left(31);
        }
        Self(first, second)
    }

    /// The part that guards a page on its way.
    pub fn check(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn pages_that_differ_little_have_different_hashes() {
        let mut seen = BTreeSet::new();
        let mut page = [0; PAGE_SIZE];
        assert!(seen.insert(PageHash::of(&page)));
        for place in (0..PAGE_SIZE).step_by(37) {
            for bit in 0..8 {
                page[place] ^= 1 << bit;
                assert!(seen.insert(PageHash::of(&page)), "byte {place}, bit {bit}");
                page[place] ^= 1 << bit;
            }
        }
        // The same words in another order.
        page[0] = 1;
        page[8] = 2;
        let one = PageHash::of(&page);
        page.swap(0, 8);
        assert_ne!(one, PageHash::of(&page));
    }
}
