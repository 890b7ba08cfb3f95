//! What a disk's new owner must know that the file alone does not tell.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// State of a drained disk, for [`crate::Storage::restore_disk`] at the destination of a migration.
///
/// Uncommitted data is carried when there is little of it, and committed in the drain when there is more
/// ([`DiskState::MAX_CARRIED`]): a COMMIT is a disk flush of 1 to 5 ms in the interruption, whereas the few KiB
/// that a guest writes after the last early commit travel in well under 1 ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// [`DiskState::VERSION`] of the writer.
    pub version: u16,
    /// Path below the export.
    pub path: String,
    /// Epoch of the lease that the new owner takes over; 0 if nobody has ever had one.
    pub epoch: u64,
    /// Size as the guest sees it.
    pub bytes: u64,
    /// Blocks allocated since the VM started, on whichever host: block number and sector. Together with the
    /// table that the destination read from the file, which had all older ones, this is the whole table; so it
    /// stays short on big disks.
    pub allocated: Vec<(u32, u32)>,
    /// Those of them whose entry in the file's table is not written yet, since their data is not committed.
    pub not_entered: Vec<u32>,
    /// Writes that the server acknowledged and has not committed.
    pub uncommitted: Vec<Uncommitted>,
}

/// A write that a restart of the server would lose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncommitted {
    /// Offset in the file.
    pub offset: u64,
    /// The server's write verifier when it acknowledged it.
    pub verifier: [u8; 8],
    /// The data.
    pub data: Vec<u8>,
}

impl DiskState {
    /// Version of this layout.
    pub const VERSION: u16 = 1;
    /// At most so many bytes of uncommitted data travel; more is committed before the hand-over.
    pub const MAX_CARRIED: usize = 64 << 10;
}
