//! Puts phases into captures: the first frame after each mark of the event log carries it as a comment, so that a packet
//! analyser finds the place (`frame.comment contains "lease hand-over"`).
//!
//! It is done afterwards because marks of hosts are known on the lab's clock only then. Format: IETF draft-ietf-opsawg-pcapng.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

const ENHANCED_PACKET: u32 = 6;
const COMMENT: u16 = 1;
/// Longest block: the longest frame of any network here, its options, and room.
const BLOCK_MAX: u32 = 1 << 20;
/// Of an enhanced packet block before the frame: type, length, interface, time, lengths.
const FIXED: usize = 28;

/// Rewrites a capture with the marks, which are by time (nanoseconds since 1970) and text. A capture that was cut short stays readable up to
/// its end.
///
/// # Errors
/// When the file cannot be read or written, or is no capture of ours.
pub fn annotate(path: &Path, marks: &[(u64, String)]) -> io::Result<()> {
    let new = path.with_extension("pcapng.new");
    let mut reader = BufReader::new(File::open(path)?);
    let mut writer = BufWriter::new(File::create(&new)?);
    let mut marks = marks.iter().peekable();
    while let Some(mut block) = read_block(&mut reader)? {
        if kind(&block) == ENHANCED_PACKET && block.len() >= FIXED + 4 {
            let t_ns = u64::from(word(&block, 12)) << 32 | u64::from(word(&block, 16));
            let mut texts: Vec<&str> = Vec::new();
            while let Some((_, text)) = marks.next_if(|(at, _)| *at <= t_ns) {
                texts.push(text);
            }
            if !texts.is_empty() {
                comment(&mut block, &texts.join("; "));
            }
        }
        writer.write_all(&block)?;
    }
    writer.flush()?;
    fs::rename(new, path)
}

fn word(block: &[u8], at: usize) -> u32 {
    let bytes = block
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

fn kind(block: &[u8]) -> u32 {
    word(block, 0)
}

/// A whole block; `None` at the end, or where the file was cut short.
fn read_block(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = word(&head, 4);
    if !(12..=BLOCK_MAX).contains(&length) || !length.is_multiple_of(4) {
        return Err(io::Error::other("this is no capture of this program"));
    }
    let mut block = vec![0; length as usize];
    block[..8].copy_from_slice(&head);
    match reader.read_exact(&mut block[8..]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| Some(block)),
    }
}

/// Adds a comment before the options that a packet has; they stay, and end as they did.
fn comment(block: &mut Vec<u8>, text: &str) {
    let captured = word(block, 20) as usize;
    let options = FIXED + captured.div_ceil(4) * 4;
    if options + 4 > block.len() {
        return;
    }
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX) - 3)];
    let mut option = Vec::new();
    option.extend(COMMENT.to_le_bytes());
    option.extend((bytes.len() as u16).to_le_bytes());
    option.extend_from_slice(bytes);
    option.resize(option.len().div_ceil(4) * 4, 0);
    if options + 4 == block.len() {
        // It had none: an end of options is needed.
        option.extend([0; 4]);
    }
    block.splice(options..options, option);
    let length = (block.len() as u32).to_le_bytes();
    block[4..8].copy_from_slice(&length);
    let end = block.len() - 4;
    block[end..].copy_from_slice(&length);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(t_ns: u64, frame: &[u8], options: &[u8]) -> Vec<u8> {
        let padded = frame.len().div_ceil(4) * 4;
        let length = (FIXED + padded + options.len() + 4) as u32;
        let mut block = Vec::new();
        for value in [
            ENHANCED_PACKET,
            length,
            0,
            (t_ns >> 32) as u32,
            t_ns as u32,
            frame.len() as u32,
            frame.len() as u32,
        ] {
            block.extend(value.to_le_bytes());
        }
        block.extend_from_slice(frame);
        block.resize(FIXED + padded, 0);
        block.extend_from_slice(options);
        block.extend(length.to_le_bytes());
        block
    }

    #[test]
    fn the_first_frame_after_a_mark_carries_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h1-mgmt.pcapng");
        let flags = [2, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let blocks = [
            packet(100, b"abc", &flags),
            packet(200, b"defgh", &[]),
            packet(300, b"i", &flags),
        ];
        let mut whole = blocks.concat();
        // Cut short in the fourth.
        whole.extend_from_slice(&blocks[0][..20]);
        fs::write(&path, whole).unwrap();
        annotate(
            &path,
            &[
                (150, "drain".into()),
                (160, "last pages".into()),
                (900, "later".into()),
            ],
        )
        .unwrap();
        let read = fs::read(&path).unwrap();
        let mut reader = &read[..];
        let mut got = Vec::new();
        while let Some(block) = read_block(&mut reader).unwrap() {
            assert_eq!(word(&block, 4) as usize, block.len());
            assert_eq!(word(&block, block.len() - 4) as usize, block.len());
            got.push(block);
        }
        assert_eq!(got.len(), 3);
        assert_eq!((&got[0], &got[2]), (&blocks[0], &blocks[2]));
        let text = String::from_utf8_lossy(&got[1]).into_owned();
        assert!(text.contains("defgh") && text.contains("drain; last pages"));
    }

    #[test]
    fn what_is_no_capture_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcapng");
        fs::write(&path, "this is no capture at all").unwrap();
        assert!(annotate(&path, &[]).is_err());
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "this is no capture at all"
        );
    }
}
