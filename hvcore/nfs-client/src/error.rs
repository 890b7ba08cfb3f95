//! How a call can fail.

use alloc::{format, string::String};

use nfs3::{Malformed, Status, lease::LeaseStatus, mount::MountStatus, rpc::CallFailed};
use thiserror::Error;

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// The NFS program's status.
    #[error("{}", describe(*.0))]
    Nfs(Status),
    /// The MOUNT program's status.
    #[error("mount refused: {0:?}")]
    Mount(MountStatus),
    /// The LEASE program's status.
    #[error("{}", describe_lease(.0))]
    Lease(LeaseRefusal),
    /// The server refused the call as such, or its reply is malformed.
    #[error(transparent)]
    Rpc(#[from] CallFailed),
    /// Nobody answered before the call's deadline.
    #[error("the server did not answer in time")]
    TimedOut,
}

impl From<Malformed> for CallError {
    fn from(why: Malformed) -> Self {
        Self::Rpc(why.into())
    }
}

/// Why a lease was not granted, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRefusal {
    /// Why.
    pub status: LeaseStatus,
    /// Epoch of the lease.
    pub epoch: u64,
    /// Its holder; empty if nobody.
    pub owner: String,
    /// Milliseconds it has left.
    pub remaining_ms: u32,
}

fn describe(status: Status) -> &'static str {
    match status {
        Status::Perm | Status::Acces => "permission denied",
        Status::NoEnt => "no such file",
        Status::Io | Status::NxIo => "I/O error of the server's disk",
        Status::NoSpc => "no space is left on the server",
        Status::DQuot => "the quota on the server is used up",
        Status::FBig => "the file is too large for the server",
        Status::RoFs => "the server's file system is read-only",
        Status::NotDir => "not a directory",
        Status::IsDir => "a directory",
        Status::NameTooLong => "the name is too long",
        Status::Stale => "stale file handle: the lease moved on, or the file is gone",
        Status::BadHandle => "the server does not know the file handle",
        Status::ServerFault => "internal error of the server",
        _ => "unexpected status of the server",
    }
}

fn describe_lease(refusal: &LeaseRefusal) -> String {
    let LeaseRefusal { epoch, owner, .. } = refusal;
    match refusal.status {
        LeaseStatus::Held => format!("the lease is held by {owner:?} (epoch {epoch})"),
        LeaseStatus::Stale => {
            format!("the lease has moved on to epoch {epoch}, held by {owner:?}")
        }
        LeaseStatus::NoEnt => String::from("no such file"),
        LeaseStatus::Inval => String::from("the lease server does not accept the request"),
        LeaseStatus::Io => String::from("the lease server could not make the change durable"),
    }
}
