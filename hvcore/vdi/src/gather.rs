//! Reading a range of a file into memory by many READs.

use alloc::{vec, vec::Vec};

/// Part of a file: offset and length.
pub(crate) type Part = (u64, u32);

/// A range being read.
#[derive(Debug)]
pub(crate) struct Gather {
    offset: u64,
    bytes: Vec<u8>,
    outstanding: usize,
    /// Beyond the end of the file are zeros, instead of an error.
    padded: bool,
}

/// What follows an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// Ask for this too.
    More(Part),
    /// Wait for the other answers.
    Wait,
    /// Everything is there.
    All(Vec<u8>),
    /// The file ends within the range.
    EndOfFile,
}

impl Gather {
    /// Starts reading `len` bytes, which must not be 0, by READs of at most `chunk`. All are asked for at once: the
    /// client's window paces them.
    pub fn start(offset: u64, len: usize, chunk: u32) -> (Self, Vec<Part>) {
        let end = offset + len as u64;
        let parts: Vec<Part> = (offset..end)
            .step_by(chunk as usize)
            .map(|at| (at, (end - at).min(u64::from(chunk)) as u32))
            .collect();
        (
            Self {
                offset,
                bytes: vec![0; len],
                outstanding: parts.len(),
                padded: false,
            },
            parts,
        )
    }

    /// Beyond the end of the file are zeros, instead of an error.
    pub fn padded(self) -> Self {
        Self {
            padded: true,
            ..self
        }
    }

    /// Takes what came for `part`; the client sees to it that it is not longer than asked for.
    pub fn take(&mut self, part: Part, bytes: &[u8], eof: bool) -> Gathered {
        let (offset, len) = part;
        let at = (offset - self.offset) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let done = bytes.len() as u32;
        if done < len {
            if !eof {
                return Gathered::More((offset + u64::from(done), len - done));
            }
            if !self.padded {
                return Gathered::EndOfFile;
            }
        }
        self.outstanding -= 1;
        match self.outstanding {
            0 => Gathered::All(core::mem::take(&mut self.bytes)),
            _ => Gathered::Wait,
        }
    }
}
