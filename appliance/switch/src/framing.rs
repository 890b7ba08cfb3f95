//! QEMU's framing of Ethernet on a byte stream (`-netdev stream`, `-netdev socket`): a big-endian
//! `u32` length, then the frame. There is no other header (QEMU, `net/stream.c`).

use std::io::{self, Read};

/// Longest frame that a stream may announce. A longer one means that the peer does not speak
/// this framing, and nothing that follows could be trusted.
pub const MAX_FRAME: usize = 65_550;

const LENGTH: usize = 4;
/// Room for several frames, so that a burst costs one read.
const CAPACITY: usize = 256 * 1024;

/// The stream announced a frame that no Ethernet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stream announces a frame of {length} bytes, the limit is {MAX_FRAME}; the peer does not send QEMU's framing"
)]
pub struct Oversized {
    /// The announced length.
    pub length: u32,
}

/// Cuts a byte stream into frames, however its reads were split or joined.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            buffer: vec![0; CAPACITY],
            start: 0,
            end: 0,
        }
    }
}

impl Decoder {
    /// Forgets what was read; a new connection begins.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Reads once; 0 means that the peer has closed the stream.
    ///
    /// # Errors
    /// What `reader` says, `WouldBlock` among it.
    pub fn read_from(&mut self, reader: &mut impl Read) -> io::Result<usize> {
        // Frames that were complete have been taken out, so what is left is shorter than one frame.
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = reader.read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// The next complete frame. To be called until it gives `None` after each read.
    ///
    /// # Errors
    /// When the stream is not in this framing; it must be closed then.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Oversized> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*length);
        let length = announced as usize;
        if length > MAX_FRAME {
            return Err(Oversized { length: announced });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let begin = self.start + LENGTH;
        self.start = begin + length;
        Ok(Some(&self.buffer[begin..begin + length]))
    }
}

/// Appends `frame` in QEMU's framing.
pub fn encode(frame: &[u8], into: &mut Vec<u8>) {
    debug_assert!(frame.len() <= MAX_FRAME);
    // A frame came out of a `Decoder` or an endpoint's buffer, both are bounded.
    let length = u32::try_from(frame.len()).expect("a frame is shorter than MAX_FRAME");
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives its bytes in portions of the sizes asked for.
    struct Portions<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
    }

    impl Read for Portions<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let size = self.sizes.next().unwrap_or(1);
            let count = size.min(self.bytes.len()).min(buf.len());
            buf[..count].copy_from_slice(&self.bytes[..count]);
            self.bytes = &self.bytes[count..];
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..40),
            sizes in prop::collection::vec(1usize..5000, 1..20),
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                encode(frame, &mut stream);
            }
            let mut reader = Portions { bytes: &stream, sizes: sizes.into_iter().cycle() };
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            while decoder.read_from(&mut reader).unwrap() > 0 {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, frames);
        }
    }

    #[test]
    fn longest_frame_passes_and_a_longer_one_is_refused() {
        let mut stream = Vec::new();
        encode(&vec![7; MAX_FRAME], &mut stream);
        stream.extend_from_slice(&(MAX_FRAME as u32 + 1).to_be_bytes());
        let mut reader = stream.as_slice();
        let mut decoder = Decoder::default();
        decoder.read_from(&mut reader).unwrap();
        assert_eq!(decoder.next_frame().unwrap().unwrap().len(), MAX_FRAME);
        let error = decoder.next_frame().unwrap_err();
        assert_eq!(error.length as usize, MAX_FRAME + 1);
        assert!(error.to_string().contains("65551"));
    }
}
