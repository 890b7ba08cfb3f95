//! Formats in which machines and disks travel: XVA archives and images of single disks.
//!
//! Everything is a stream in one direction: a disk goes from a [`disk::Source`] to a format or from a format to a
//! [`disk::Sink`], once, from its start to its end, so that memory does not grow with the disk. The crate knows bytes and
//! nothing of repositories, leases or labs; what is read is input from outside, and every length in it is bounded.

#![forbid(unsafe_code)]

mod archive;
pub mod compress;
pub mod disk;
mod error;
pub mod vm;
pub mod xva;

pub use error::Error;

/// Bytes that are copied at a time.
pub const UNIT: usize = 1 << 20;
