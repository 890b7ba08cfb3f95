//! The output of a VM's console, kept for whoever attaches later.

use alloc::{collections::VecDeque, vec::Vec};

/// Bytes kept: about the last thousand lines.
const CAPACITY: usize = 64 << 10;

/// A ring of the last [`CAPACITY`] bytes.
#[derive(Default)]
pub(crate) struct Console {
    bytes: VecDeque<u8>,
    /// All that was ever added.
    length: u64,
}

impl Console {
    /// Adds output and gives the position of its first byte; the oldest is forgotten when there is too much.
    pub fn push(&mut self, output: &[u8]) -> u64 {
        let position = self.length;
        self.length += output.len() as u64;
        let output = &output[output.len().saturating_sub(CAPACITY)..];
        let excess = (self.bytes.len() + output.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..excess);
        self.bytes.extend(output);
        position
    }

    /// All that is kept, oldest first, and the position of its first byte.
    pub fn replay(&self) -> (u64, Vec<u8>) {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        (self.length - bytes.len() as u64, bytes)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn the_latest_output_is_kept() {
        let mut console = Console::default();
        assert_eq!(console.push(b"boot\n"), 0);
        assert_eq!(console.replay(), (0, b"boot\n".to_vec()));
        assert_eq!(console.push(&vec![b'x'; CAPACITY - 1]), 5);
        let (position, kept) = console.replay();
        assert_eq!(
            (position, kept.len(), kept[0], kept[1]),
            (4, CAPACITY, b'\n', b'x')
        );
        console.push(&vec![b'y'; 3 * CAPACITY]);
        let whole = 5 + CAPACITY as u64 - 1 + 3 * CAPACITY as u64;
        assert_eq!(
            console.replay(),
            (whole - CAPACITY as u64, vec![b'y'; CAPACITY])
        );
    }
}
