//! Times of files that were written stably. RFC 1813 (WRITE) has FILE_SYNC cover all metadata, and the one piece that `fdatasync`
//! leaves out is times. `fsync` covers them at the price of a commit of the file system's journal, with everything that
//! other files have in it: milliseconds instead of a few hundred microseconds.
//!
//! What a client can rely on is that a file whose data has changed does not show an old time, not even after a crash. So
//! before the first stable write to a file is answered, the file is marked here, durably. A server that finds marks
//! when it starts gives those files a new time, later than every one that was told. A full sync of the file, as by
//! SETATTR or at the end of the server, puts the times themselves on disk and takes the mark away.
//!
//! A slot of one sector for each file, in a preallocated file, so that marking costs one write and one `fdatasync`:
//! `crc u32 | inode u64 | generation u32`, little-endian; anything else is an empty slot.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use crc::{CRC_32_ISCSI, Crc};

use crate::{
    file_io::{Cover, Disk, FileIo, Wait},
    handles::FileId,
    node::Nodes,
};

const NAME: &str = "times";
const SLOT: usize = 512;
/// Files that can be marked at a time; stable writes to others sync the times with the data.
const SLOTS: usize = 256;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Which files' times may be newer than the disk knows.
pub struct Times {
    file: Box<dyn FileIo>,
    marked: Mutex<HashMap<FileId, usize>>,
}

impl Times {
    /// The marks in the private directory.
    pub fn open(private: &Path, disk: &dyn Disk) -> io::Result<Self> {
        let path = private.join(NAME);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let missing = file.metadata()?.len() < (SLOT * SLOTS) as u64;
        let file = disk.file(file.into(), Path::new(NAME));
        if missing {
            // Real zeros, not a hole: overwriting them later changes no metadata.
            file.write_at(&[0; SLOT * SLOTS], 0)?;
            file.sync(Cover::All)?;
            File::open(private)?.sync_all()?;
        }
        let mut slots = vec![0; SLOT * SLOTS];
        file.read_at(&mut slots, 0, Wait::Yes)?;
        let marked = slots.chunks(SLOT).enumerate();
        let marked = marked.filter_map(|(slot, bytes)| Some((decode(bytes)?, slot)));
        Ok(Self {
            marked: Mutex::new(marked.collect()),
            file,
        })
    }

    /// Gives a new time to every file that an instance before has left marked.
    pub fn renew(&self, nodes: &Nodes, disk: &dyn Disk) -> io::Result<()> {
        for id in self.marked() {
            // A file that is gone has no times.
            if let Ok(node) = nodes.get(id) {
                node.touch()?;
                node.io(disk)?.sync(Cover::All)?;
            }
            self.unmark(id)?;
        }
        Ok(())
    }

    /// Marks a file; false if there is no place for another.
    pub fn mark(&self, id: FileId) -> io::Result<bool> {
        let mut marked = self.lock();
        if marked.contains_key(&id) {
            return Ok(true);
        }
        let Some(slot) = (0..SLOTS).find(|slot| marked.values().all(|taken| taken != slot)) else {
            return Ok(false);
        };
        self.write(slot, &encode(id))?;
        marked.insert(id, slot);
        Ok(true)
    }

    /// The file's times are on disk.
    pub fn unmark(&self, id: FileId) -> io::Result<()> {
        let mut marked = self.lock();
        if let Some(slot) = marked.get(&id) {
            self.write(*slot, &[0; SLOT])?;
            marked.remove(&id);
        }
        Ok(())
    }

    /// The file is gone: its slot may be used again.
    pub fn forget(&self, id: FileId) {
        self.lock().remove(&id);
    }

    /// The marked files.
    pub fn marked(&self) -> Vec<FileId> {
        self.lock().keys().copied().collect()
    }

    fn write(&self, slot: usize, bytes: &[u8; SLOT]) -> io::Result<()> {
        self.file.write_at(bytes, (slot * SLOT) as u64)?;
        self.file.sync(Cover::Data)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileId, usize>> {
        self.marked.lock().expect("nothing panics under the lock")
    }
}

fn encode(id: FileId) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[4..12].copy_from_slice(&id.inode.to_le_bytes());
    bytes[12..16].copy_from_slice(&id.generation.to_le_bytes());
    let crc = CRC.checksum(&bytes[4..16]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<FileId> {
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (inode, rest) = rest.split_first_chunk()?;
    let id = FileId {
        inode: u64::from_le_bytes(*inode),
        generation: u32::from_le_bytes(*rest.first_chunk()?),
    };
    // The CRC of zeros is zero, so an empty slot is told by its inode, which no file has.
    (encode(id)[..4] == *crc && id.inode != 0).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_io::HostDisk;

    fn id(inode: u64) -> FileId {
        FileId {
            inode,
            generation: 7,
        }
    }

    #[test]
    fn marks_outlive_the_server_until_they_are_taken_away() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = || Times::open(dir.path(), &HostDisk).expect("a new directory");
        let times = open();
        assert!(times.mark(id(1)).expect("written"));
        assert!(times.mark(id(2)).expect("written"));
        times.unmark(id(1)).expect("written");
        assert_eq!(open().marked(), [id(2)]);
    }

    #[test]
    fn there_are_only_so_many() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let times = Times::open(dir.path(), &HostDisk).expect("a new directory");
        for inode in 1..=SLOTS as u64 {
            assert!(times.mark(id(inode)).expect("written"));
        }
        assert!(!times.mark(id(1000)).expect("nothing to write"));
        assert!(times.mark(id(5)).expect("it is marked"), "it has a slot");
        times.forget(id(5));
        assert!(times.mark(id(1000)).expect("written"));
    }

    #[test]
    fn a_torn_slot_is_empty() {
        let mut bytes = encode(id(9));
        assert_eq!(decode(&bytes), Some(id(9)));
        bytes[13] ^= 1;
        assert_eq!(decode(&bytes), None);
        assert_eq!(decode(&[0; SLOT]), None);
    }
}
