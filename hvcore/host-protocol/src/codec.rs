//! Messages on a byte stream: a big-endian `u32` length and a [`postcard`] body.
//!
//! It knows nothing of sockets: bytes come in as they arrive, whole messages come out. A length is
//! checked before anything is allocated for it, and a body must be used up to its last byte, so a
//! peer cannot hide data behind a message or make the reader hold more than
//! [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes.

use alloc::vec::Vec;

use serde::{Serialize, de::DeserializeOwned};

use crate::MAX_MESSAGE;

/// Bytes of the length in front of each message.
const HEADER: usize = 4;

/// A peer's bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The length is beyond the bound.
    #[error("the peer announced a message of {0} bytes, more than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    /// The body is not one of the messages expected.
    #[error("the peer sent a message that cannot be read: {0}")]
    Malformed(postcard::Error),
    /// The body goes on after the message.
    #[error("the peer sent {0} bytes after the end of a message")]
    Trailing(usize),
}

/// Appends a message with its length to `out`.
///
/// # Errors
/// When the message is longer than a peer would accept; `out` is then as before.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    let body = postcard::to_allocvec(message).map_err(CodecError::Malformed)?;
    if body.len() > MAX_MESSAGE {
        out.truncate(start);
        return Err(CodecError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).expect("MAX_MESSAGE fits u32");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that have been read.
    consumed: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` when its end has not arrived.
    ///
    /// # Errors
    /// When the stream is not made of messages. It cannot be read on after that: close it.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        let pending = &self.buffer[self.consumed..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MAX_MESSAGE {
            return Err(CodecError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let (message, trailing) = postcard::take_from_bytes(body).map_err(CodecError::Malformed)?;
        if !trailing.is_empty() {
            return Err(CodecError::Trailing(trailing.len()));
        }
        self.consumed += HEADER + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec, vec::Vec};

    use super::*;
    use crate::{Command, Notice, Request};

    fn encoded<T: Serialize>(message: &T) -> Vec<u8> {
        let mut out = Vec::new();
        encode(message, &mut out).unwrap();
        out
    }

    #[test]
    fn messages_survive_any_cutting_of_the_stream() {
        let messages = [
            Request::Ping { token: 7 },
            Request::Command {
                number: 1,
                command: Command::Status,
            },
            Request::ConsoleInput {
                vm: [3; 16],
                bytes: vec![9; 300],
            },
        ];
        let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
        for chunk in 1..stream.len() {
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for piece in stream.chunks(chunk) {
                decoder.push(piece);
                while let Some(message) = decoder.message::<Request>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, messages);
        }
    }

    #[test]
    fn an_excessive_length_is_refused_before_its_body_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&u32::MAX.to_be_bytes());
        assert_eq!(
            decoder.message::<Request>(),
            Err(CodecError::TooLong(u32::MAX as usize))
        );
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let mut stream = encoded(&Request::Ping { token: 7 });
        stream.push(0);
        stream[3] += 1;
        let mut decoder = Decoder::new();
        decoder.push(&stream);
        assert_eq!(decoder.message::<Request>(), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn a_message_beyond_the_bound_is_not_sent() {
        let mut out = vec![1, 2];
        let notice = Notice::Console {
            vm: [0; 16],
            stay: 0,
            position: 0,
            bytes: vec![0; MAX_MESSAGE],
        };
        assert!(matches!(
            encode(&notice, &mut out),
            Err(CodecError::TooLong(_))
        ));
        assert_eq!(out, [1, 2]);
    }

    #[test]
    fn noise_never_panics_and_never_grows_the_buffer() {
        // A small linear congruential generator is enough to reach every branch.
        let mut state = 1u64;
        for _ in 0..2000 {
            let mut decoder = Decoder::new();
            let mut stream = Vec::new();
            for _ in 0..64 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                stream.push((state >> 56) as u8);
            }
            stream[0] = 0;
            stream[1] = 0;
            stream[2] = 0;
            decoder.push(&stream);
            while let Ok(Some(_)) = decoder.message::<Request>() {}
        }
        assert!(CodecError::TooLong(5).to_string().contains("5 bytes"));
    }
}
