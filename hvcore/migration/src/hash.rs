//! A hash of a guest's RAM, computed in bounded steps.
//!
//! SHA-256 over the SHA-256 digests of all pages in order. The detour over the pages' digests makes
//! empty pages, the greater part of most guests, cost next to nothing.

use guest_memory::{GuestMemory, PAGE_SIZE};
use sha2::{Digest, Sha256};

/// A hash that is being computed.
#[derive(Debug)]
pub struct MemoryHash {
    next: usize,
    outer: Sha256,
    zero: [u8; 32],
}

impl Default for MemoryHash {
    fn default() -> Self {
        Self {
            next: 0,
            outer: Sha256::new(),
            zero: Sha256::digest([0; PAGE_SIZE]).into(),
        }
    }
}

impl MemoryHash {
    /// Goes on with at most `pages` pages. Gives the hash after the last one.
    pub fn step(&mut self, memory: &GuestMemory, pages: usize) -> Option<[u8; 32]> {
        let mut content = [0; PAGE_SIZE];
        let end = memory.pages().min(self.next + pages);
        for page in self.next..end {
            memory.read_page(page, &mut content);
            if is_zero(&content) {
                self.outer.update(self.zero);
            } else {
                self.outer.update(Sha256::digest(content));
            }
        }
        self.next = end;
        (end == memory.pages()).then(|| self.outer.clone().finalize().into())
    }
}

/// Whether a page holds nothing but zeroes. Word by word: the bare-metal target has no vector
/// registers, and a byte at a time is eight times slower.
#[must_use]
pub fn is_zero(page: &[u8; PAGE_SIZE]) -> bool {
    let (words, _) = page.as_chunks::<8>();
    words.chunks(16).all(|chunk| {
        chunk
            .iter()
            .fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
            == 0
    })
}

#[cfg(test)]
mod tests {
    use guest_memory::{Gpa, testing};

    use super::*;

    fn hash(memory: &GuestMemory, step: usize) -> [u8; 32] {
        let mut hash = MemoryHash::default();
        loop {
            if let Some(result) = hash.step(memory, step) {
                return result;
            }
        }
    }

    #[test]
    fn every_byte_and_its_place_count() {
        let memory = testing::memory(8 * PAGE_SIZE);
        let empty = hash(&memory, 3);
        memory.write(Gpa(5 * 4096 + 17), &[1]).unwrap();
        let one = hash(&memory, 100);
        assert_ne!(empty, one);
        assert_eq!(one, hash(&memory, 1));
        memory.write(Gpa(5 * 4096 + 17), &[0]).unwrap();
        memory.write(Gpa(4 * 4096 + 17), &[1]).unwrap();
        assert_ne!(one, hash(&memory, 1));
    }

    #[test]
    fn one_bit_makes_a_page_not_zero() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for place in [0, 7, 8, 127, 128, 4095] {
            page[place] = 0x80;
            assert!(!is_zero(&page), "{place}");
            page[place] = 0;
        }
    }
}
