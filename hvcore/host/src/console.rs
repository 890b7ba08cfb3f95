//! The output of a VM's console, kept for whoever attaches later.

use alloc::{collections::VecDeque, vec::Vec};

/// Bytes kept: about the last thousand lines.
const CAPACITY: usize = 64 << 10;

/// A ring of the last [`CAPACITY`] bytes.
#[derive(Default)]
pub(crate) struct Console {
    bytes: VecDeque<u8>,
}

impl Console {
    /// Adds output; the oldest is forgotten when there is too much.
    pub fn push(&mut self, output: &[u8]) {
        let output = &output[output.len().saturating_sub(CAPACITY)..];
        let excess = (self.bytes.len() + output.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..excess);
        self.bytes.extend(output);
    }

    /// All that is kept, oldest first.
    pub fn replay(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn the_latest_output_is_kept() {
        let mut console = Console::default();
        console.push(b"boot\n");
        assert_eq!(console.replay(), b"boot\n");
        console.push(&vec![b'x'; CAPACITY - 1]);
        let kept = console.replay();
        assert_eq!((kept.len(), kept[0], kept[1]), (CAPACITY, b'\n', b'x'));
        console.push(&vec![b'y'; 3 * CAPACITY]);
        assert_eq!(console.replay(), vec![b'y'; CAPACITY]);
    }
}
