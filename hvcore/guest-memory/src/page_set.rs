//! A set of RAM pages, one bit each.

use alloc::{vec, vec::Vec};

/// A set of page indices below a fixed bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: usize,
}

impl PageSet {
    /// The empty set over `pages` pages.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self {
            words: vec![0; pages.div_ceil(64)],
            pages,
        }
    }

    /// The set of all `pages` pages.
    #[must_use]
    pub fn full(pages: usize) -> Self {
        let mut words = vec![u64::MAX; pages.div_ceil(64)];
        if let (Some(last), tail @ 1..) = (words.last_mut(), pages % 64) {
            *last = (1 << tail) - 1;
        }
        Self { words, pages }
    }

    /// The bound: indices are below it.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.pages
    }

    /// Adds a page.
    ///
    /// # Panics
    /// When the index is not below the bound.
    pub fn insert(&mut self, page: usize) {
        assert!(
            page < self.pages,
            "page {page} is beyond a set of {}",
            self.pages
        );
        self.words[page / 64] |= 1 << (page % 64);
    }

    /// Adds the pages of one 64-page word; bits beyond the bound are ignored.
    pub fn insert_word(&mut self, index: usize, bits: u64) {
        let tail = self.pages % 64;
        let valid = if index + 1 == self.words.len() && tail != 0 {
            (1 << tail) - 1
        } else {
            u64::MAX
        };
        if let Some(word) = self.words.get_mut(index) {
            *word |= bits & valid;
        }
    }

    /// Takes a page out; true when it was in.
    pub fn remove(&mut self, page: usize) -> bool {
        let Some(word) = self.words.get_mut(page / 64) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Whether a page is in the set.
    #[must_use]
    pub fn contains(&self, page: usize) -> bool {
        self.words
            .get(page / 64)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Number of pages in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether the set has no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds every page of `other`, which has the same bound.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// The lowest page at or after `from`.
    #[must_use]
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut index = from / 64;
        let mut word = *self.words.get(index)? & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index * 64 + word.trailing_zeros() as usize);
            }
            index += 1;
            word = *self.words.get(index)?;
        }
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let page = self.next(from)?;
            from = page + 1;
            Some(page)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_stops_at_the_bound() {
        for pages in [0, 1, 63, 64, 65, 128] {
            let set = PageSet::full(pages);
            assert_eq!(set.len(), pages);
            assert_eq!(set.iter().count(), pages);
        }
    }

    #[test]
    fn words_beyond_the_bound_are_ignored() {
        let mut set = PageSet::new(65);
        set.insert_word(1, u64::MAX);
        set.insert_word(2, u64::MAX);
        assert_eq!(set.iter().collect::<Vec<_>>(), [64]);
    }

    #[test]
    fn remove_tells_what_was_there() {
        let mut set = PageSet::new(10);
        set.insert(3);
        assert!(set.remove(3));
        assert!(!set.remove(3));
        assert!(!set.remove(1000));
    }
}
