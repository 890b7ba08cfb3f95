//! Writes what passes a port as a pcapng file (IETF draft-ietf-opsawg-pcapng), with a comment on each frame that a
//! fault touched, so that a packet analyser finds them: `frame.comment contains "lost"`.

use std::io::{self, Write};

use crate::link::Direction;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;

const OPTION_COMMENT: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;
const OPTION_EPB_FLAGS: u16 = 2;

/// A capture in progress.
#[derive(Debug)]
pub struct Capture<W> {
    out: W,
    start_unix_ns: u64,
    block: Vec<u8>,
}

impl<W: Write> Capture<W> {
    /// Begins a file for one interface. Times given later count from `start_unix_ns`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(out: W, interface: &str, start_unix_ns: u64) -> io::Result<Self> {
        let mut capture = Self {
            out,
            start_unix_ns,
            block: Vec::new(),
        };
        capture.block.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        capture.block.extend(1u16.to_le_bytes());
        capture.block.extend(0u16.to_le_bytes());
        capture.block.extend(u64::MAX.to_le_bytes());
        capture.write_block(SECTION_HEADER)?;
        capture.block.extend(LINKTYPE_ETHERNET.to_le_bytes());
        capture.block.extend(0u32.to_le_bytes());
        capture.option(OPTION_IF_NAME, interface.as_bytes());
        capture.option(OPTION_IF_TSRESOL, &[9]);
        capture.option(0, &[]);
        capture.write_block(INTERFACE)?;
        Ok(capture)
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn frame(
        &mut self,
        t_ns: u64,
        direction: Direction,
        frame: &[u8],
        comment: Option<&str>,
    ) -> io::Result<()> {
        let stamp = self.start_unix_ns.saturating_add(t_ns);
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.block.extend(0u32.to_le_bytes());
        self.block.extend(((stamp >> 32) as u32).to_le_bytes());
        self.block.extend((stamp as u32).to_le_bytes());
        self.block.extend(length.to_le_bytes());
        self.block.extend(length.to_le_bytes());
        self.block.extend_from_slice(frame);
        self.pad();
        // Seen from the port's owner: 1 is inbound, 2 outbound.
        let flags: u32 = match direction {
            Direction::Receiving => 1,
            Direction::Sending => 2,
        };
        self.option(OPTION_EPB_FLAGS, &flags.to_le_bytes());
        if let Some(comment) = comment {
            self.option(OPTION_COMMENT, comment.as_bytes());
        }
        self.option(0, &[]);
        self.write_block(ENHANCED_PACKET)
    }

    /// Hands everything to the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.block.extend(code.to_le_bytes());
        self.block.extend(length.to_le_bytes());
        self.block.extend_from_slice(&value[..usize::from(length)]);
        self.pad();
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn write_block(&mut self, kind: u32) -> io::Result<()> {
        let length = u32::try_from(self.block.len() + 12).map_err(io::Error::other)?;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.block.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn blocks_are_framed_and_carry_comment_and_direction() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, "h1:mgmt", 1_000_000_000).unwrap();
        capture
            .frame(5, Direction::Sending, &[0xaa; 61], Some("lost"))
            .unwrap();
        let mut at = 0;
        let mut kinds = Vec::new();
        while at < file.len() {
            let length = word(&file, at + 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(
                word(&file, at + length - 4) as usize,
                length,
                "length stands at both ends"
            );
            kinds.push((word(&file, at), at));
            at += length;
        }
        assert_eq!(at, file.len());
        let [_, (INTERFACE, _), (ENHANCED_PACKET, packet)] = kinds[..] else {
            panic!("unexpected blocks {kinds:?}");
        };
        assert_eq!(word(&file, packet + 16), 1_000_000_005);
        assert_eq!(word(&file, packet + 20), 61);
        assert!(file.windows(4).any(|window| window == b"lost"));
        assert!(file.windows(7).any(|window| window == b"h1:mgmt"));
    }
}
