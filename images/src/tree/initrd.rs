//! Which files an initial RAM disk holds: archives (cpio "newc"), one behind the other, the last of them usually compressed
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Names only; nothing is unpacked.
//!
//! Compressed parts go through the programs that every Debian has: libraries for four formats would serve a single question.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Longest name that is believed, and most of them.
const MAX_NAME: u64 = 4096;
const MAX_NAMES: usize = 1 << 20;
/// Length of an entry's header: a magic number and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 110;

/// First bytes of a compressed part, and the program for it.
const PROGRAMS: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// Names of all files in it.
pub fn names(path: &Path) -> Result<Vec<String>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut names = Vec::new();
    let rest = archives(&mut file, &mut names)?;
    let first = file.fill_buf()?;
    if first.is_empty() {
        return Ok(names);
    }
    let known = PROGRAMS.iter().find(|(magic, _)| first.starts_with(magic));
    let (_, program) = known.with_context(|| {
        format!("what it holds at byte {rest} is neither an archive nor compressed in a known way")
    })?;
    let mut file = file.into_inner();
    file.seek(SeekFrom::Start(rest))?;
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}, which it is compressed with"))?;
    let output = child.stdout.take().context("a program has an output")?;
    let read = archives(&mut BufReader::new(output), &mut names);
    let ended = child.wait()?;
    read.with_context(|| format!("in the part compressed by {program}"))?;
    ensure!(ended.success(), "{program} cannot read it: {ended}");
    Ok(names)
}

/// Reads archives until something else begins, or all is read; gives where.
fn archives(input: &mut impl BufRead, names: &mut Vec<String>) -> Result<u64> {
    let mut at = 0;
    loop {
        // Between archives there may be zeros, and each begins at a multiple of four.
        while input.fill_buf()?.first() == Some(&0) {
            input.consume(1);
            at += 1;
        }
        if !input.fill_buf()?.starts_with(b"07070") {
            return Ok(at);
        }
        loop {
            let mut header = [0; HEADER];
            input
                .read_exact(&mut header)
                .context("it ends in the middle")?;
            let magic = &header[..6];
            ensure!(
                magic == b"070701" || magic == b"070702",
                "an archive in it is damaged at byte {at}"
            );
            let (size, name_size) = (field(&header, 6)?, field(&header, 11)?);
            ensure!(
                (1..=MAX_NAME).contains(&name_size) && names.len() < MAX_NAMES,
                "an archive in it is damaged at byte {at}"
            );
            let mut name = vec![0; name_size as usize];
            input
                .read_exact(&mut name)
                .context("it ends in the middle")?;
            name.pop();
            let head = HEADER as u64 + name_size;
            let skip = (head.next_multiple_of(4) - head) + size.next_multiple_of(4);
            let skipped = std::io::copy(&mut input.take(skip), &mut std::io::sink())?;
            at += head + skip;
            if name == b"TRAILER!!!" {
                break;
            }
            if skipped != skip {
                bail!("it ends in the middle");
            }
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
    }
}

fn field(header: &[u8; HEADER], index: usize) -> Result<u64> {
    let text = &header[6 + 8 * index..][..8];
    let text = std::str::from_utf8(text).context("an archive in it is damaged")?;
    u64::from_str_radix(text, 16).context("an archive in it is damaged")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An archive of empty files.
    pub(in crate::tree) fn archive(names: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in names.iter().chain(&["TRAILER!!!"]) {
            bytes.extend(b"070701");
            for index in 0..13 {
                let value = if index == 11 { name.len() + 1 } else { 0 };
                bytes.extend(format!("{value:08x}").bytes());
            }
            bytes.extend(name.bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), bytes)?;
        names(file.path())
    }

    #[test]
    fn archives_follow_one_another_and_the_last_may_be_compressed() {
        let mut bytes = archive(&["kernel/x86/microcode/AuthenticAMD.bin"]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let last = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(last.path(), archive(&["init", "virtio_blk.ko"])).expect("written");
        for program in ["gzip", "xz", "zstd"] {
            let packed = Command::new(program)
                .arg("-c")
                .stdin(File::open(last.path()).expect("there"))
                .output();
            let mut whole = bytes.clone();
            whole.extend(packed.expect("the program runs").stdout);
            let names = read(&whole).expect("whole");
            assert_eq!(names[1..], ["init", "virtio_blk.ko"], "{program}");
            assert!(
                read(&whole[..whole.len() - 30]).is_err(),
                "{program}: cut off"
            );
        }
    }

    #[test]
    fn what_is_no_initrd_is_refused() {
        assert!(read(b"hello").is_err());
        let good = archive(&["init"]);
        for length in 1..good.len() {
            // All of it or nothing of it is there; no length panics.
            let _ = read(&good[..length]);
        }
        let mut bad = good;
        bad[6 + 8 * 11..][..8].copy_from_slice(b"ffffffff");
        assert!(read(&bad).is_err());
    }
}
