//! What one end has to say, until its socket takes it.

use alloc::vec::Vec;

use serde::Serialize;

use crate::wire::{self, BatchWriter, Page};

/// Bytes that have left are cleared away when there are so many of them.
const MAX_LEFT: usize = 64 << 10;

/// Messages in their order. The last may be one of pages that is still being filled.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// So many bytes at the beginning have left.
    left: usize,
    pages: BatchWriter,
}

impl Outbox {
    /// Adds a message.
    pub fn message(&mut self, message: &impl Serialize) {
        self.end_of_pages();
        wire::encode(message, &mut self.bytes);
    }

    /// Adds a page; gives the bytes that this takes. It does not leave before the message it is in is full, or ended.
    pub fn page(&mut self, page: u32, what: Page<'_>) -> usize {
        self.pages.push(&mut self.bytes, page, what)
    }

    /// Ends the message of pages, if one is being filled.
    pub fn end_of_pages(&mut self) {
        self.pages.finish(&mut self.bytes);
    }

    /// Fills `room` with what is to be sent; gives the number of bytes.
    pub fn transmit(&mut self, room: &mut [u8]) -> usize {
        let length = self.waiting().min(room.len());
        room[..length].copy_from_slice(&self.bytes[self.left..self.left + length]);
        self.left += length;
        // Pages are added while others leave, so it may never be empty before the end, and must not grow with the guest.
        if self.left == self.bytes.len() || self.left >= MAX_LEFT {
            self.bytes.drain(..self.left);
            self.pages.moved_up(self.left);
            self.left = 0;
        }
        length
    }

    /// Bytes that can be sent now. A message that is being filled cannot: it changes at its beginning.
    pub fn waiting(&self) -> usize {
        self.pages.finished(&self.bytes) - self.left
    }

    /// Whether all that was said has left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
