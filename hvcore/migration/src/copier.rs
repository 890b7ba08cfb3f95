//! How the pages of a guest that moves are told: whole, as zeroes, or as the same as one that was sent before.

use alloc::collections::BTreeMap;

use guest_memory::{GuestMemory, PAGE_SIZE, PageSet};
use host_protocol::Round;

use crate::{harvest::Harvest, hash::is_zero, outbox::Outbox, page_hash::PageHash, wire::Page};

/// Pages copied between two looks at the clock.
const STRIDE: usize = 16;

/// What the destination has of the guest's RAM.
#[derive(Debug)]
pub(crate) struct Copier {
    /// Pages it has with content: where a page became zero, it must be told.
    filled: PageSet,
    /// Contents sent in the first round, in which no page is sent twice: so it has them still.
    known: BTreeMap<PageHash, u32>,
}

impl Copier {
    /// For RAM of so many pages, of which the destination has none.
    pub fn new(pages: usize) -> Self {
        Self {
            filled: PageSet::new(pages),
            known: BTreeMap::new(),
        }
    }

    /// Copies a few pages of `harvest` and counts them in `round`. True when none is left.
    pub fn copy(
        &mut self,
        memory: &GuestMemory,
        harvest: &mut Harvest,
        round: &mut Round,
        outbox: &mut Outbox,
    ) -> bool {
        let mut content = [0; PAGE_SIZE];
        for _ in 0..STRIDE {
            let Some(page) = harvest.take() else {
                outbox.end_of_pages();
                return true;
            };
            let number = u32::try_from(page).expect("guests have less than 16 TiB");
            memory.read_page(page, &mut content);
            let what = if is_zero(&content) {
                round.zero_pages += 1;
                // The destination's RAM begins as zeroes, so only a page it has content for is worth a word.
                if !self.filled.remove(page) {
                    continue;
                }
                Page::Zero
            } else {
                round.pages += 1;
                self.filled.insert(page);
                self.content(number, &content, round.number == 0)
            };
            round.bytes += outbox.page(number, what) as u64;
        }
        false
    }

    fn content<'a>(
        &mut self,
        page: u32,
        content: &'a [u8; PAGE_SIZE],
        first_round: bool,
    ) -> Page<'a> {
        let hash = PageHash::of(content);
        if first_round {
            if let Some(same) = self.known.get(&hash) {
                return Page::SameAs(*same);
            }
            self.known.insert(hash, page);
        }
        Page::Content(content, hash)
    }

    /// A round is over: what it sent is sent again from now on, and may differ.
    pub fn end_round(&mut self) {
        self.known.clear();
    }

    /// The destination has changed a page.
    pub fn spoil(&mut self, page: usize) {
        // Even if it is zero here: it no longer is there.
        self.filled.insert(page);
    }
}
