//! The journal of leases: fixed-size records in a preallocated file, so that a change costs one write and
//! one `fdatasync` that has no metadata to sync. A live migration waits for just this at its commit point.
//!
//! Record of 256 bytes, little-endian:
//! `crc u32 | sequence u64 | inode u64 | generation u32 | epoch u64 | ttl_ms u32 | change u8 | owner u8+64 | path u8+..`.
//! A torn record fails its CRC and ends the replay: its change was not answered. When the file is full it is
//! replaced, by rename, with one that holds only the present state.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crc::{CRC_32_ISCSI, Crc};

use crate::{
    file_io::{Cover, Disk, FileIo},
    handles::FileId,
};

const NAME: &str = "leases";
const RECORD: usize = 256;
/// Records in a file.
const CAPACITY: u64 = 2048;
const MAX_PATH: usize = 150;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The owner holds it alone.
    Exclusive,
    /// The owner may read under this epoch, beside other readers.
    Shared,
    /// Nobody holds it.
    Free,
    /// Whoever held it by this epoch has given it back.
    Left,
}

/// A change of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The file.
    pub id: FileId,
    /// Epoch after the change.
    pub epoch: u64,
    /// Time to live of the owner's holding.
    pub ttl_ms: u32,
    /// What has changed.
    pub change: Change,
    /// Who.
    pub owner: Vec<u8>,
    /// Where the file was found; for people only.
    pub path: PathBuf,
}

/// Why leases cannot be changed any more.
#[derive(Debug, thiserror::Error)]
#[error("the journal of leases {} cannot be used: {error}", path.display())]
pub struct JournalError {
    path: PathBuf,
    error: io::Error,
}

/// The journal, open for writing.
pub struct Journal {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    file: Box<dyn FileIo>,
    sequence: u64,
    /// Where the next record goes.
    position: u64,
    /// Off only as a negative control of tests.
    sync: bool,
}

impl Journal {
    /// What the journal in `dir` holds, and the last sequence number; nothing if there is none yet.
    pub fn read(dir: &Path) -> Result<(Vec<Record>, u64), JournalError> {
        let path = dir.join(NAME);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(replay(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Vec::new(), 0)),
            Err(error) => Err(JournalError { path, error }),
        }
    }

    /// Starts a new file with `records`, the present state.
    pub fn start(
        dir: &Path,
        records: &[Record],
        sequence: u64,
        disk: Arc<dyn Disk>,
        sync: bool,
    ) -> Result<Self, JournalError> {
        let (file, position) =
            rewrite(dir, records, sequence, &*disk, sync).map_err(|error| JournalError {
                path: dir.join(NAME),
                error,
            })?;
        let sequence = sequence + records.len() as u64;
        Ok(Self {
            dir: dir.to_owned(),
            disk,
            file,
            sequence,
            position,
            sync,
        })
    }

    /// The file has room for so many more records.
    pub fn has_room(&self, records: usize) -> bool {
        self.position + (records * RECORD) as u64 <= CAPACITY * RECORD as u64
    }

    /// Appends changes and waits until they are on disk.
    pub fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        self.try_append(records).map_err(|error| JournalError {
            path: self.dir.join(NAME),
            error,
        })
    }

    fn try_append(&mut self, records: &[Record]) -> io::Result<()> {
        let bytes = encode_all(records, self.sequence);
        self.file.write_at(&bytes, self.position)?;
        if self.sync {
            self.file.sync(Cover::Data)?;
        }
        self.sequence += records.len() as u64;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Replaces the file by one that holds only `records`, the present state.
    pub fn compact(&mut self, records: &[Record]) -> Result<(), JournalError> {
        *self = Self::start(
            &self.dir,
            records,
            self.sequence,
            self.disk.clone(),
            self.sync,
        )?;
        Ok(())
    }
}

/// Writes a new file with these records and room for more, and puts it in the place of the old one.
fn rewrite(
    dir: &Path,
    records: &[Record],
    sequence: u64,
    disk: &dyn Disk,
    sync: bool,
) -> io::Result<(Box<dyn FileIo>, u64)> {
    let new = dir.join("leases.new");
    let mut bytes = encode_all(records, sequence);
    let position = bytes.len() as u64;
    // Real zeros, not a hole: overwriting them later changes no metadata.
    bytes.resize((CAPACITY as usize * RECORD).max(bytes.len() + RECORD), 0);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)?;
    let file = disk.file(file.into(), Path::new(NAME));
    file.write_at(&bytes, 0)?;
    if sync {
        file.sync(Cover::All)?;
    }
    std::fs::rename(&new, dir.join(NAME))?;
    File::open(dir)?.sync_all()?;
    Ok((file, position))
}

/// The records up to the first that is not whole, and the last sequence number.
fn replay(bytes: &[u8]) -> (Vec<Record>, u64) {
    let mut records = Vec::new();
    let mut last = 0;
    for chunk in bytes.chunks_exact(RECORD) {
        let Some((record, sequence)) = decode(chunk) else {
            break;
        };
        if last != 0 && sequence != last + 1 {
            break;
        }
        last = sequence;
        records.push(record);
    }
    (records, last)
}

/// Records that follow the one with number `last`.
fn encode_all(records: &[Record], last: u64) -> Vec<u8> {
    records
        .iter()
        .zip(last + 1..)
        .flat_map(|(record, sequence)| encode(record, sequence))
        .collect()
}

fn encode(record: &Record, sequence: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let mut at = 4;
    let mut put = |field: &[u8]| {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    };
    put(&sequence.to_le_bytes());
    put(&record.id.inode.to_le_bytes());
    put(&record.id.generation.to_le_bytes());
    put(&record.epoch.to_le_bytes());
    put(&record.ttl_ms.to_le_bytes());
    put(&[record.change as u8]);
    let mut owner = [0; 65];
    let length = record.owner.len().min(64);
    owner[0] = length as u8;
    owner[1..1 + length].copy_from_slice(&record.owner[..length]);
    put(&owner);
    let path = record.path.as_os_str().as_encoded_bytes();
    let path = &path[..path.len().min(MAX_PATH)];
    put(&[path.len() as u8]);
    put(path);
    let crc = CRC.checksum(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Record, u64)> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let sequence = word(4);
    if half(0) != CRC.checksum(&bytes[4..]) || sequence == 0 {
        return None;
    }
    let change = match bytes[36] {
        0 => Change::Exclusive,
        1 => Change::Shared,
        2 => Change::Free,
        3 => Change::Left,
        _ => return None,
    };
    let owner = &bytes[37..];
    let owner = owner[1..].get(..usize::from(owner[0]))?;
    let path = &bytes[37 + 65..];
    let path = path[1..].get(..usize::from(path[0]))?;
    let record = Record {
        id: FileId {
            inode: word(12),
            generation: half(20),
        },
        epoch: word(24),
        ttl_ms: half(32),
        change,
        owner: owner.to_vec(),
        path: PathBuf::from(String::from_utf8_lossy(path).into_owned()),
    };
    Some((record, sequence))
}
