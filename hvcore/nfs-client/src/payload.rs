//! Data on its way to the server, shared instead of copied.
//!
//! A write is kept until the server has committed it and may be sent several times; cutting it
//! into calls, keeping it, and sending it all refer to the one buffer the guest's data came in.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, ops::Range};

/// A part of a shared, immutable buffer.
#[derive(Clone)]
pub struct Payload {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Payload {
    /// The part `range` of this payload.
    ///
    /// # Panics
    /// When the range reaches beyond the end.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len());
        let start = self.range.start;
        Self {
            buffer: Arc::clone(&self.buffer),
            range: start + range.start..start + range.end,
        }
    }

    /// The same bytes in a buffer of their own, if they are less than half of the buffer that they keep in
    /// memory: so what is kept never takes more than twice its length.
    #[must_use]
    pub fn compact(self) -> Self {
        if self.range.len() * 2 < self.buffer.capacity() {
            Self::from(self.as_slice().to_vec())
        } else {
            self
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self {
            buffer: Arc::new(bytes),
            range,
        }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn slices_refer_to_the_same_bytes() {
        let whole = Payload::from(vec![0, 1, 2, 3, 4, 5]);
        let part = whole.slice(1..5).slice(1..3);
        assert_eq!(part.as_slice(), [2, 3]);
    }

    #[test]
    fn a_small_rest_does_not_keep_a_large_buffer() {
        let rest = Payload::from(vec![7; 1000]).slice(10..20).compact();
        assert_eq!(rest.as_slice(), [7; 10]);
        assert!(rest.buffer.capacity() < 100);
        let most = Payload::from(vec![7; 1000]).slice(0..600).compact();
        assert_eq!(most.buffer.len(), 1000);
    }
}
