//! Errors, worded for the people who read them in a host's log.

use alloc::string::String;

use thiserror::Error;

/// Why a file or a disk cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StorageError {
    /// The server answered with an error.
    #[error("{path}: the storage server refused {operation}: {reason}")]
    Refused {
        /// Path below the export.
        path: String,
        /// What was asked of it.
        operation: &'static str,
        /// Its answer.
        reason: String,
    },
    /// Nobody answered in time.
    #[error(
        "{path}: the storage server does not answer {operation}; is it running, and is the storage network up?"
    )]
    TimedOut {
        /// Path below the export.
        path: String,
        /// What was asked of it.
        operation: &'static str,
    },
    /// Another host holds the lease.
    #[error("{path}: the disk is in use by {holder} (lease epoch {epoch}, {remaining_ms} ms left)")]
    Held {
        /// Path below the export.
        path: String,
        /// Who holds it.
        holder: String,
        /// The lease's epoch.
        epoch: u64,
        /// Until it expires.
        remaining_ms: u32,
    },
    /// The lease has moved on since the expected epoch.
    #[error(
        "{path}: the lease is at epoch {epoch}, owned by {holder:?}; epoch {expected} was expected"
    )]
    Stale {
        /// Path below the export.
        path: String,
        /// Who holds it.
        holder: String,
        /// Its epoch.
        epoch: u64,
        /// What we expected.
        expected: u64,
    },
    /// The file is not a VHD that we can use.
    #[error("{path}: not a usable VHD: {reason}")]
    BadDisk {
        /// Path below the export.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The file is longer than [`crate::StorageConfig::max_file`].
    #[error("{path}: {bytes} bytes are too long to read into memory; at most {max} are allowed")]
    TooLong {
        /// Path below the export.
        path: String,
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The request does not fit the disk's state.
    #[error("{path}: {reason}")]
    Unusable {
        /// Path below the export.
        path: String,
        /// Why.
        reason: &'static str,
    },
}

/// Why an operation on a disk failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IoError {
    /// No such disk, or it is not open for I/O (yet, or any more).
    #[error("the disk is not open for I/O")]
    NotOpen,
    /// Beyond the end, or not a multiple of 512 bytes, or too long.
    #[error("{len} bytes at {offset} are not inside the disk or not whole sectors")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The disk's lease is lost.
    #[error("the disk's lease is lost")]
    LeaseLost,
    /// The server reported an error.
    #[error("the storage server refused {operation}: {reason}")]
    Server {
        /// What was asked of it.
        operation: &'static str,
        /// Its answer.
        reason: String,
    },
    /// The VHD's tables are wrong.
    #[error("the VHD is damaged: {0}")]
    Damaged(String),
}

/// Why a saved disk state cannot be restored; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The state was written by a newer version.
    #[error("disk state version {found} is not supported; this host knows {known}")]
    Version {
        /// Of the state.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// The state does not fit the prepared disk.
    #[error("disk state does not fit {path}: {reason}")]
    Mismatch {
        /// Path below the export.
        path: String,
        /// What differs.
        reason: &'static str,
    },
    /// The disk is not in the state that the call needs.
    #[error("{0}")]
    NotReady(&'static str),
}
