//! The file systems on the guests' disks after the end of a run: a disk as a crash has left it must be whole once its journal is
//! replayed.
//!
//! `e2fsck` of e2fsprogs judges; a checker of our own would only share our misunderstandings.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde::{Deserialize, Serialize};

use super::{Check, Evidence};

/// What was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Nothing was wrong.
    pub clean: bool,
    /// What e2fsck said.
    pub said: String,
}

/// Every file system that was looked at is clean.
pub(super) fn file_system(evidence: &Evidence<'_>) -> Option<Check> {
    let wrong = evidence
        .file_systems
        .iter()
        .find(|(_, found)| !found.clean)
        .map(|(guest, found)| format!("{guest}: {}", found.said));
    let count = evidence.file_systems.len();
    (count > 0).then(|| Check::new("file-system", wrong, format!("{count} checked, all clean")))
}

/// Checks the raw contents of a disk, which is changed: its journal is replayed, as a guest would at its next boot.
///
/// # Errors
/// When the programs cannot be run.
pub fn check_raw(raw: &Path) -> Result<FileSystem, String> {
    // What the journal holds is part of the file system; with -n alone e2fsck would judge without it. It is replayed by debugfs,
    // which repairs nothing: e2fsck, asked for the journal only, mends what it stumbles over, and then finds it sound. Where
    // the journal cannot be replayed, the check below says why. Without checksums (-n): a bitmap that has yet to get its contents
    // from the journal need not fit its own, and debugfs would not open the file system.
    run(Command::new("debugfs")
        .args(["-n", "-w", "-R", "journal_run"])
        .arg(raw))?;
    let check = run(Command::new("e2fsck").args(["-f", "-n"]).arg(raw))?;
    Ok(FileSystem {
        clean: check.status.code() == Some(0),
        said: words(&check),
    })
}

/// Checks the file system on a VHD, which is left as it is.
///
/// # Errors
/// When the programs cannot be run, or the disk cannot be read.
pub fn check_vhd(vhd: &Path, scratch: &Path) -> Result<FileSystem, String> {
    let converted = run(Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .arg(vhd)
        .arg(scratch))?;
    if !converted.status.success() {
        return Err(format!("{}: {}", vhd.display(), words(&converted)));
    }
    let checked = check_raw(scratch);
    fs::remove_file(scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    checked
}

fn run(command: &mut Command) -> Result<Output, String> {
    // Administrators' programs are not on everyone's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))
}

/// The lines that say something.
fn words(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            !line.trim().is_empty() && !line.starts_with("e2fsck ") && !line.starts_with("Pass ")
        })
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    fn make(path: &Path) {
        let file = fs::File::create(path).unwrap();
        file.set_len(16 << 20).unwrap();
        let made = run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(path))
        .unwrap();
        assert!(made.status.success(), "{}", words(&made));
    }

    #[test]
    fn a_whole_file_system_is_clean_and_a_damaged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk");
        make(&raw);
        let found = check_raw(&raw).unwrap();
        assert!(found.clean, "{}", found.said);
        // Behind the superblock: group descriptors, bitmaps and inodes of the first group.
        let mut file = fs::OpenOptions::new().write(true).open(&raw).unwrap();
        file.seek(SeekFrom::Start(2048)).unwrap();
        file.write_all(&[0xa5; 1 << 20]).unwrap();
        let found = check_raw(&raw).unwrap();
        assert!(!found.clean, "{}", found.said);
    }

    #[test]
    fn a_bitmap_that_the_journal_is_yet_to_write_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk");
        make(&raw);
        let told = run(Command::new("dumpe2fs").arg(&raw)).unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let number = |before: &str| -> u64 {
            let rest = &told[told.find(before).unwrap() + before.len()..];
            let mut numbers = rest.trim_start().split(|c: char| !c.is_ascii_digit());
            numbers.next().unwrap().parse().unwrap()
        };
        let (block, size) = (number("Inode bitmap at"), number("Block size:"));

        // The journal holds the bitmap as it is to be; on the disk it is another.
        let disk = fs::read(&raw).unwrap();
        let at = (block * size) as usize;
        let bitmap = folder.path().join("bitmap");
        fs::write(&bitmap, &disk[at..at + size as usize]).unwrap();
        let commands = folder.path().join("commands");
        let script = format!(
            "journal_open -c\njournal_write -b {block} {}\njournal_close\n",
            bitmap.display()
        );
        fs::write(&commands, script).unwrap();
        let written = run(Command::new("debugfs")
            .args(["-w", "-f"])
            .args([&commands, &raw]))
        .unwrap();
        assert!(written.status.success(), "{}", words(&written));
        let mut file = fs::OpenOptions::new().write(true).open(&raw).unwrap();
        file.seek(SeekFrom::Start(block * size + 3)).unwrap();
        file.write_all(&[0xff; 3]).unwrap();

        let found = check_raw(&raw).unwrap();
        assert!(found.clean, "{}", found.said);
    }

    #[test]
    fn what_is_no_file_system_is_not_clean() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk");
        fs::write(&raw, vec![0; 1 << 20]).unwrap();
        assert!(!check_raw(&raw).unwrap().clean);
    }
}
