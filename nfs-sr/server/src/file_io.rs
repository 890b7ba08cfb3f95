//! Reading, writing and syncing one file. A trait, so that tests can put a disk under the server that fails, or that
//! loses at a power cut what was not synced.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{fdatasync, fsync},
    io::{Errno, ReadWriteFlags, preadv2, pwrite},
};

/// Bytes written by one system call. The kernel keeps them in memory in as large a unit (folio) as it gets them, and ext4 (Linux 6.16
/// and later) then walks all blocks of the unit for each later write of 4 KiB to it, and again to write it back.
const PIECE: usize = 128 << 10;

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may.
    Yes,
    /// It fails with `WouldBlock` instead.
    No,
}

/// What a sync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cover {
    /// Data, and what is needed to read it back.
    Data,
    /// Data, and that times are never older than they were told; see [`crate::times`]. Files sync all instead.
    Times,
    /// Attributes such as times as well.
    All,
}

/// An open file.
pub trait FileIo: Send + Sync {
    /// Fills `buffer` as far as the file goes and gives the number of bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or lengthens it by zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns when everything written before is on disk.
    fn sync(&self, cover: Cover) -> io::Result<()>;
}

/// Gives each file that the server opens its [`FileIo`].
pub trait Disk: Send + Sync {
    /// `path` is relative to the export, for messages and choices of tests.
    fn file(&self, fd: OwnedFd, path: &Path) -> Box<dyn FileIo>;
}

/// Files as the operating system has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDisk;

impl Disk for HostDisk {
    fn file(&self, fd: OwnedFd, _: &Path) -> Box<dyn FileIo> {
        Box::new(File::from(fd))
    }
}

impl FileIo for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        let flags = match wait {
            Wait::No => ReadWriteFlags::NOWAIT,
            Wait::Yes => ReadWriteFlags::empty(),
        };
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut [IoSliceMut::new(&mut buffer[done..])];
            match preadv2(self, rest, offset + done as u64, flags) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match pwrite(self, &data[..data.len().min(PIECE)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    data = &data[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn sync(&self, cover: Cover) -> io::Result<()> {
        match cover {
            Cover::Data => fdatasync(self)?,
            Cover::Times | Cover::All => fsync(self)?,
        }
        Ok(())
    }
}
