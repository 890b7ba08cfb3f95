//! An NFSv3 client for one TCP connection, sans-IO.
//!
//! [`Client`] turns typed [`Call`]s into a stream of bytes, and the server's stream into typed
//! [`Reply`]s. It pipelines calls within a window, matches replies by transaction number, and after a
//! reconnect sends everything unanswered again under the same numbers, so that the server's duplicate
//! request cache can tell a repetition from a new call.
//!
//! **Architecture invariant:** it knows nothing of disks, and nothing of what a repeated call means: it neither
//! gives up on a call without a deadline nor interprets a status, `NFS3ERR_JUKEBOX` ("try later") excepted.
//!
//! Rejected: asynchronous functions (they would need an executor in the hypervisor's loop, and hide from
//! tests in which order things happen).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod call;
mod client;
mod connection;
mod error;
mod payload;

pub use call::{Call, Reply};
pub use client::{Client, ClientConfig};
pub use error::{CallError, LeaseRefusal};
pub use payload::Payload;
