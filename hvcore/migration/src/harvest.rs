//! Who owns a dirty mark.
//!
//! Harvesting *clears* the marks: the D bits of the nested page tables, and the map of the hypervisor's own
//! writes. From that moment the only trace of a changed page is the harvest, and a harvest that is
//! dropped is a page that the destination never gets. So a [`Harvest`] is a thing of its own that shrinks as its
//! pages are sent and ends in one of two ways: [`Harvest::commit`], when every page of it is on its way on a
//! stream that has not failed, or [`Tracker::give_back`].

use guest_memory::PageSet;

/// Pages that must be sent before the guest may run elsewhere, beyond those marked in hardware and memory.
#[derive(Debug)]
pub(crate) struct Tracker {
    owed: PageSet,
}

impl Tracker {
    /// At the beginning the destination has nothing, so every page is owed.
    pub fn new(pages: usize) -> Self {
        Self {
            owed: PageSet::full(pages),
        }
    }

    /// Adds freshly cleared marks to what is owed and hands all of it out.
    pub fn harvest(&mut self, collect: impl FnOnce(&mut PageSet)) -> Harvest {
        collect(&mut self.owed);
        let empty = PageSet::new(self.owed.bound());
        Harvest {
            pages: core::mem::replace(&mut self.owed, empty),
            next: 0,
        }
    }

    /// Adds a page that the destination has lost.
    pub fn owe(&mut self, page: usize) {
        self.owed.insert(page);
    }

    /// Takes back what was not sent.
    pub fn give_back(&mut self, harvest: Harvest) {
        self.owed.union(&harvest.pages);
    }
}

/// Pages whose marks have been cleared and which have not been sent.
#[must_use = "a dropped harvest is lost pages: commit it or give it back"]
#[derive(Debug)]
pub(crate) struct Harvest {
    pages: PageSet,
    next: usize,
}

impl Harvest {
    /// Pages left.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Takes the next page out: the caller sends it.
    pub fn take(&mut self) -> Option<usize> {
        let page = self.pages.next(self.next)?;
        self.pages.remove(page);
        self.next = page + 1;
        Some(page)
    }

    /// Ends a harvest all of whose pages have been sent.
    pub fn commit(self) {
        assert!(self.pages.is_empty(), "a committed harvest has been sent");
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn nothing_that_was_harvested_is_forgotten() {
        let mut tracker = Tracker::new(100);
        let mut first = tracker.harvest(|_| {});
        assert_eq!(first.len(), 100);
        for expected in 0..60 {
            assert_eq!(first.take(), Some(expected));
        }
        tracker.give_back(first);
        let mut second = tracker.harvest(|marks| marks.insert(3));
        let mut left = Vec::new();
        while let Some(page) = second.take() {
            left.push(page);
        }
        second.commit();
        assert_eq!(left[0], 3);
        assert_eq!(left[1..], (60..100).collect::<Vec<_>>());
        assert_eq!(tracker.harvest(|_| {}).len(), 0);
    }
}
