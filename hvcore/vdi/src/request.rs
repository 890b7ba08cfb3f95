//! What a host asks of [`crate::Storage`], and what it gets back.

use alloc::{string::String, vec::Vec};

use crate::error::{IoError, StorageError};

/// Names a request that ends in [`Completion::File`] or [`Completion::Opened`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub(crate) u64);

/// Names an open disk. Never used again after the disk is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub(crate) u32);

/// How a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For one owner; takes the disk's lease.
    ReadWrite,
    /// For any number of readers, while nobody writes; takes a lease that they share. It is not given back but
    /// expires, so a writer has to wait for that.
    ReadOnly,
}

/// An open disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size as the guest sees it; a multiple of 512.
    pub bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// One operation on a disk. Offsets and lengths are in bytes, multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Completes with the bytes read.
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes; at most [`Op::MAX_LEN`].
        len: u32,
    },
    /// Completes with no bytes, when every later read sees the data; it is not yet on stable storage.
    Write {
        /// First byte.
        offset: u64,
        /// What to write; at most [`Op::MAX_LEN`] bytes.
        data: Vec<u8>,
    },
    /// Completes with no bytes, when every write that had completed before is on stable storage.
    Flush,
}

impl Op {
    /// Longest read or write.
    pub const MAX_LEN: u32 = 32 << 20;
}

/// Something has ended or happened.
#[derive(Debug)]
pub enum Completion {
    /// Of [`crate::Storage::read_file`]: the file's content.
    File {
        /// The request.
        token: Token,
        /// The bytes of the file.
        result: Result<Vec<u8>, StorageError>,
    },
    /// Of [`crate::Storage::open_disk`] and [`crate::Storage::prepare_disk`].
    Opened {
        /// The request.
        token: Token,
        /// The disk.
        result: Result<(DiskId, DiskInfo), StorageError>,
    },
    /// Of [`crate::Storage::submit`].
    Io {
        /// The disk.
        disk: DiskId,
        /// The caller's number of the operation.
        id: u64,
        /// The data of a read; empty for the others.
        result: Result<Vec<u8>, IoError>,
    },
    /// Of [`crate::Storage::take_lease`]. After `Ok` the disk accepts I/O.
    Taken {
        /// The disk.
        disk: DiskId,
        /// The lease's new epoch.
        result: Result<u64, StorageError>,
    },
    /// Of [`crate::Storage::branch_disk`]. After `Ok` all that was written is in the parent, and what is written goes to the
    /// child.
    Branched {
        /// The disk.
        disk: DiskId,
        /// The epoch of the child's lease. After an error the disk is as it was, or [`Completion::LeaseLost`] follows.
        result: Result<u64, StorageError>,
    },
    /// Of [`crate::Storage::close_disk`]: the disk's data is stable, its lease released, its id gone.
    Closed {
        /// The disk.
        disk: DiskId,
        /// An error means that the lease is left to expire by itself.
        result: Result<(), StorageError>,
    },
    /// The server refused the disk's lease: someone else owns the disk, or it is gone. All outstanding
    /// operations fail (their completions come first) and so does every later one. The VM must stop.
    LeaseLost {
        /// The disk.
        disk: DiskId,
        /// What the server said, for people.
        why: String,
    },
}
