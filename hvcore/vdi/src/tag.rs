//! What each call to the server is for.

use nfs_client::Payload;

use crate::{
    gather::Part,
    request::{DiskId, Token},
};

/// Names a call; comes back with its answer.
#[derive(Debug)]
pub(crate) enum Tag {
    /// Reading a file.
    File(Token, FileJob),
    /// Opening a disk.
    Open(Token, OpenJob),
    /// A call of an open disk.
    Disk(DiskId, DiskJob),
    /// Nobody waits for the answer.
    Nobody,
}

/// A step of reading a file.
#[derive(Debug)]
pub(crate) enum FileJob {
    /// The next of several that follow one another.
    Step,
    /// Bytes of the file.
    Read(Part),
}

/// A step of opening a disk.
#[derive(Debug)]
pub(crate) enum OpenJob {
    /// The next of several that follow one another.
    Step,
    /// Its lease.
    Acquire { sent_ns: u64 },
    /// Bytes of the file.
    Read(Part),
}

/// A call of an open disk.
#[derive(Debug)]
pub(crate) enum DiskJob {
    /// Part of a guest's read: bytes of a layer's file for this place in the guest's buffer.
    Read {
        op: u64,
        layer: usize,
        at: usize,
        offset: u64,
        len: u32,
    },
    /// Bitmap of a block.
    LoadBitmap { layer: usize, block: u32 },
    /// A write to the leaf's file.
    Write {
        purpose: WritePurpose,
        offset: u64,
        data: Payload,
    },
    /// COMMIT.
    Commit,
    /// Prolong the lease.
    Renew { sent_ns: u64 },
    /// Take the lease over.
    Take { expected_epoch: u64, sent_ns: u64 },
    /// Take it from ourselves, see [`crate::disk`].
    Fence { expected_epoch: u64, sent_ns: u64 },
    /// Put this prepared disk in its place.
    Replace { child: DiskId, sent_ns: u64 },
    /// Give it back.
    Release,
}

/// Why the leaf's file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WritePurpose {
    /// Part of a guest's write.
    Guest { op: u64 },
    /// Bitmap and footer of new blocks.
    Placing,
    /// Entries of new blocks and changed bitmaps.
    Entering,
    /// Again, since the server lost it.
    Again,
}
