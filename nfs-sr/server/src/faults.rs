//! A disk that fails when it is told to, for labs and tests that want to know what a failing disk does to guests. Whoever has
//! started the server tells it by lines on standard input (`serve --faults`), and each is answered by an event.
//!
//! Below it is the real disk, and only reads, writes and syncs of files fail, those of the server's own journals included.
//! Changes of directories do not fail; their syncs do.

use std::{
    fs::File,
    io::{self, BufRead},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::{
    events::Event,
    file_io::{Cover, Disk, FileIo, Wait},
    server::Server,
};

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[repr(u8)]
pub enum Fault {
    /// Reading gives `EIO`.
    EioRead = 1,
    /// Writing gives `EIO`.
    EioWrite = 2,
    /// Syncing gives `EIO`, and what was written since the last sync may be lost.
    EioFsync = 4,
    /// Nothing can be allocated: `ENOSPC`. What is there can be overwritten.
    Full = 8,
}

/// A disk with faults that can be switched on.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk(Arc<AtomicU8>);

impl FaultyDisk {
    /// Fails this way from now on, in addition to others.
    pub fn fail(&self, fault: Fault) {
        self.0.fetch_or(fault as u8, Ordering::SeqCst);
    }

    /// Is well again.
    pub fn clear(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    fn check(&self, fault: Fault, error: Errno) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) & fault as u8 {
            0 => Ok(()),
            _ => Err(error.into()),
        }
    }
}

impl Disk for FaultyDisk {
    fn file(&self, fd: OwnedFd, _: &Path) -> Box<dyn FileIo> {
        Box::new(FaultyFile {
            file: fd.into(),
            disk: self.clone(),
        })
    }
}

struct FaultyFile {
    file: File,
    disk: FaultyDisk,
}

impl FileIo for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        self.disk.check(Fault::EioRead, Errno::IO)?;
        self.file.read_at(buffer, offset, wait)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.check(Fault::EioWrite, Errno::IO)?;
        if self.disk.check(Fault::Full, Errno::NOSPC).is_err() {
            // The end of a file counts as a hole; behind it there is none to be found.
            match seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole >= offset + data.len() as u64 => {}
                Ok(_) | Err(Errno::NXIO) => return Err(Errno::NOSPC.into()),
                Err(error) => return Err(error.into()),
            }
        }
        self.file.write_at(data, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.check(Fault::EioWrite, Errno::IO)?;
        FileIo::set_len(&self.file, length)
    }

    fn sync(&self, cover: Cover) -> io::Result<()> {
        self.disk.check(Fault::EioFsync, Errno::IO)?;
        FileIo::sync(&self.file, cover)
    }
}

/// Takes faults, a line each, until there are no more or the server has ended: the name of a [`Fault`], or `clear` for a
/// disk that was replaced.
pub fn obey(lines: impl BufRead, disk: &FaultyDisk, server: &Weak<Server>) {
    for line in lines.lines().map_while(Result::ok) {
        let Some(server) = server.upgrade() else {
            return;
        };
        let word = line.trim();
        let known = match word {
            "clear" => {
                disk.clear();
                server.trust_disk_again().map_err(|error| error.to_string())
            }
            _ => <Fault as clap::ValueEnum>::from_str(word, false).map(|fault| disk.fail(fault)),
        };
        server.report(&match known {
            Ok(()) => Event::DiskFault { fault: word.into() },
            Err(why) => Event::Warning {
                message: format!("'{word}' is no fault of a disk: {why}"),
            },
        });
    }
}
