//! Virtual disks of a host: VHD files on an NFS server, each owned by a lease.
//!
//! [`Storage`] is one NFS connection of a host with all its disks. It is sans-IO: bytes from the
//! server and a clock reading go in, bytes for the server, completions and a next deadline come out.
//!
//! What it promises:
//! - A flush completes only after the server has every write that completed before it on stable storage, the
//!   VHD's own tables included. Data that the server merely cached is kept here and written again when
//!   the server turns out to have restarted.
//! - A write is sent only under the handle of a lease. The server refuses a handle whose lease has moved
//!   on; the disk then fails for good ([`Completion::LeaseLost`]).
//! - I/O has hard semantics: a lost connection or a server that restarts delays it and never fails it.
//!
//! **Architecture invariant:** it knows nothing of virtio, of VMs, or of TCP. Who opens the connection, and
//! what a lost lease means for a guest, is the host's affair.
//!
//! Rejected: soft mounts (I/O errors after a time-out turn a guest's file system read-only), and
//! one connection for each disk (more sockets, and one server restart seen at different times).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod disk;
mod error;
mod file;
mod gather;
mod layer;
mod opening;
mod request;
mod state;
mod storage;
mod tag;
mod uncommitted;
mod walk;

pub use error::{IoError, StateError, StorageError};
pub use request::{Access, Completion, DiskId, DiskInfo, Op, Token};
pub use state::{DiskState, Uncommitted};
pub use storage::{Storage, StorageConfig};
