//! Record marking: how RPC messages are told apart on a TCP stream (RFC 5531 section 11).

use alloc::vec::Vec;

/// Set in the mark of a record's last fragment.
const LAST: u32 = 1 << 31;
/// Bytes of a mark.
pub const MARK: usize = 4;
/// Fragments of one record. Clients in use send one; the limit keeps empty fragments from going on for ever.
const MAX_FRAGMENTS: u32 = 64;

/// Bytes that must have come before all of a long record is reserved.
const EARNED: usize = 4096;
/// Bytes that must be missing for them to be worth being received where they belong.
const DIRECT: usize = 16 * 1024;

/// Starts an outgoing record: room for the mark, to be filled in by [`finish`].
pub fn begin(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(MARK + capacity);
    out.extend_from_slice(&[0; MARK]);
    out
}

/// Ends an outgoing record by writing its mark.
pub fn finish(out: &mut [u8]) {
    let length = (out.len() - MARK) as u32;
    out[..MARK].copy_from_slice(&(LAST | length).to_be_bytes());
}

/// A stream that cannot be a sequence of RPC records; the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStream {
    /// A record longer than the receiver takes.
    #[error("a record of at least {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes announced so far.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A record in too many pieces.
    #[error("a record comes in more than {MAX_FRAGMENTS} fragments")]
    TooManyFragments,
}

/// Puts records together from a byte stream. Holds at most one record that is not complete.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    mark: [u8; MARK],
    mark_filled: usize,
    fragment_left: usize,
    last: bool,
    fragments: u32,
    /// The record as far as it has come, and space behind it.
    record: Vec<u8>,
    filled: usize,
}

impl Assembler {
    /// Refuses records longer than `limit`.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            mark: [0; MARK],
            mark_filled: 0,
            fragment_left: 0,
            last: false,
            fragments: 0,
            record: Vec::new(),
            filled: 0,
        }
    }

    /// Bytes held of a record that is not complete.
    pub fn held(&self) -> usize {
        self.record.capacity()
    }

    /// Bytes still missing of the fragment in progress, 0 between fragments.
    pub fn fragment_left(&self) -> usize {
        self.fragment_left
    }

    /// Consumes bytes from the front of `input`, up to the end of one record, and gives that record
    /// (without marks) when it is complete. To be called until it gives none.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, BadStream> {
        loop {
            if self.mark_filled < MARK {
                if input.is_empty() {
                    return Ok(None);
                }
                let n = input.len().min(MARK - self.mark_filled);
                self.mark[self.mark_filled..][..n].copy_from_slice(&input[..n]);
                self.mark_filled += n;
                *input = &input[n..];
                if self.mark_filled < MARK {
                    return Ok(None);
                }
                self.begin_fragment()?;
            }
            let n = input.len().min(self.fragment_left);
            let room = if n >= EARNED { self.fragment_left } else { n };
            self.make_room(room);
            self.record[self.filled..][..n].copy_from_slice(&input[..n]);
            *input = &input[n..];
            match self.received(n) {
                None if self.fragment_left > 0 => return Ok(None),
                None => {}
                record => return Ok(record),
            }
        }
    }

    /// Where the rest of a long fragment belongs: what is received into the front of it need not be copied. Empty if that is
    /// not worth it. To be followed by [`Self::received`].
    pub fn space(&mut self) -> &mut [u8] {
        let earned = self.mark_filled == MARK && self.filled >= EARNED;
        if !earned || self.fragment_left < DIRECT {
            return &mut [];
        }
        self.make_room(self.fragment_left);
        &mut self.record[self.filled..][..self.fragment_left]
    }

    /// So many bytes are in [`Self::space`] now; gives the record if that was all of it.
    pub fn received(&mut self, bytes: usize) -> Option<Vec<u8>> {
        self.filled += bytes;
        self.fragment_left -= bytes;
        if self.fragment_left > 0 {
            return None;
        }
        self.mark_filled = 0;
        if !self.last {
            return None;
        }
        self.fragments = 0;
        self.record.truncate(core::mem::take(&mut self.filled));
        Some(core::mem::take(&mut self.record))
    }

    fn make_room(&mut self, bytes: usize) {
        let needed = self.filled + bytes;
        if self.record.len() < needed {
            // All at once, not by doubling, which would copy what is there each time.
            self.record.reserve_exact(needed - self.record.len());
            self.record.resize(needed, 0);
        }
    }

    fn begin_fragment(&mut self) -> Result<(), BadStream> {
        let mark = u32::from_be_bytes(self.mark);
        self.last = mark & LAST != 0;
        self.fragment_left = (mark & !LAST) as usize;
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(BadStream::TooManyFragments);
        }
        let length = self.filled + self.fragment_left;
        if length > self.limit {
            return Err(BadStream::TooLong {
                length,
                limit: self.limit,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = begin(body.len());
        out.extend_from_slice(body);
        finish(&mut out);
        out
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_records(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5),
            cut in 1usize..20,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
            let mut assembler = Assembler::new(64);
            let mut records = Vec::new();
            for mut piece in stream.chunks(cut) {
                while let Some(record) = assembler.next(&mut piece).expect("well formed") {
                    records.push(record);
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(records, bodies);
        }
    }

    proptest! {
        #[test]
        fn records_are_the_same_if_they_are_received_where_they_belong(
            lengths in proptest::collection::vec(0usize..60_000, 1..5),
            cuts in proptest::collection::vec(1usize..40_000, 1..5),
        ) {
            let bodies: Vec<Vec<u8>> = (1u8..).zip(lengths).map(|(i, n)| vec![i; n]).collect();
            let stream: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
            let (mut assembler, mut records) = (Assembler::new(1 << 20), Vec::new());
            let (mut rest, mut cuts) = (&stream[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let cut = cuts.next().expect("endless").min(rest.len());
                let space = assembler.space();
                if space.is_empty() {
                    let mut piece = &rest[..cut];
                    while let Some(record) = assembler.next(&mut piece).expect("well formed") {
                        records.push(record);
                    }
                    rest = &rest[cut..];
                } else {
                    let n = cut.min(space.len());
                    space[..n].copy_from_slice(&rest[..n]);
                    records.extend(assembler.received(n));
                    rest = &rest[n..];
                }
            }
            prop_assert_eq!(records, bodies);
        }
    }

    #[test]
    fn fragments_are_joined() {
        let stream = [&[0u8, 0, 0, 2][..], b"ab", &[0x80, 0, 0, 1], b"c"].concat();
        let record = Assembler::new(8).next(&mut &stream[..]);
        assert_eq!(record, Ok(Some(vec![b'a', b'b', b'c'])));
    }

    #[test]
    fn too_long_and_endless_records_are_refused() {
        let huge = 0xffff_ffffu32.to_be_bytes();
        assert!(matches!(
            Assembler::new(8).next(&mut &huge[..]),
            Err(BadStream::TooLong { .. })
        ));
        let empty_fragments = [0u8; 4 * 100];
        assert_eq!(
            Assembler::new(8).next(&mut &empty_fragments[..]),
            Err(BadStream::TooManyFragments)
        );
    }
}
