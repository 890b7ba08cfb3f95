//! File handles: 32 bytes that mean the same file after any restart, and that nobody can make up.
//!
//! ```text
//! file system u32 | generation u32 | inode u64 | lease epoch u64 | MAC u64
//! ```
//!
//! The key of the MAC is kept in the export, so handles outlive the server, and another server that takes the
//! export over honours them. The write verifier is deliberately not in here: it must change with every
//! instance, handles must not.

use hmac::{Hmac, KeyInit, Mac};
use nfs3::FileHandle;
use sha2::Sha256;

/// Bytes of the key.
pub const KEY: usize = 32;
const SIGNED: usize = 24;
const LENGTH: usize = 32;

/// A file, for as long as it exists: inode numbers are used again, together with the generation they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Inode number.
    pub inode: u64,
    /// From the inode's time of birth.
    pub generation: u32,
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The file.
    pub id: FileId,
    /// Epoch of the lease it was granted with; 0 if it came from LOOKUP or the like.
    pub epoch: u64,
}

/// Makes and opens the handles of an export.
#[derive(Debug)]
pub struct Handles {
    mac: Hmac<Sha256>,
    file_system: u32,
}

impl Handles {
    /// Handles signed with `key`.
    pub fn new(key: &[u8; KEY]) -> Self {
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        let file_system = mac
            .clone()
            .chain_update(b"file system")
            .finalize()
            .into_bytes();
        let file_system = u32::from_be_bytes(file_system[..4].try_into().expect("four bytes"));
        Self { mac, file_system }
    }

    /// Number of the file system in attributes and handles; stable like the key.
    pub fn file_system(&self) -> u64 {
        self.file_system.into()
    }

    /// The handle of a file.
    pub fn make(&self, id: FileId, epoch: u64) -> FileHandle {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&self.file_system.to_be_bytes());
        bytes[4..8].copy_from_slice(&id.generation.to_be_bytes());
        bytes[8..16].copy_from_slice(&id.inode.to_be_bytes());
        bytes[16..24].copy_from_slice(&epoch.to_be_bytes());
        let tag = self
            .mac
            .clone()
            .chain_update(&bytes[..SIGNED])
            .finalize()
            .into_bytes();
        bytes[SIGNED..].copy_from_slice(&tag[..LENGTH - SIGNED]);
        FileHandle::new(&bytes).expect("32 bytes fit")
    }

    /// What a handle stands for; none if it is not one of ours.
    pub fn open(&self, handle: &FileHandle) -> Option<Opened> {
        let bytes: &[u8; LENGTH] = handle.as_bytes().try_into().ok()?;
        let (signed, tag) = bytes.split_at(SIGNED);
        self.mac
            .clone()
            .chain_update(signed)
            .verify_truncated_left(tag)
            .ok()?;
        let word =
            |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Some(Opened {
            id: FileId {
                generation: u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes")),
                inode: word(8),
            },
            epoch: word(16),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_handles_open() {
        let handles = Handles::new(&[1; KEY]);
        let id = FileId {
            inode: 5,
            generation: 6,
        };
        let handle = handles.make(id, 7);
        assert_eq!(handles.open(&handle), Some(Opened { id, epoch: 7 }));
        assert_eq!(Handles::new(&[2; KEY]).open(&handle), None);
        for i in 0..32 {
            let mut bytes = handle.as_bytes().to_vec();
            bytes[i] ^= 1;
            let forged = FileHandle::new(&bytes).expect("32 bytes fit");
            assert_eq!(handles.open(&forged), None, "byte {i}");
        }
    }
}
