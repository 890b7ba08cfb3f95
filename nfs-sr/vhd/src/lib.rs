//! VHD, the disk format of XenServer's storage repositories (Microsoft's "Virtual Hard Disk Image Format
//! Specification" 1.0, with the habits of libvhd where the two differ).
//!
//! The crate maps, it does no I/O: it turns structures into bytes and back ([`Footer`], [`Header`], [`Bat`],
//! [`Bitmap`]), says where in the file a piece of the virtual disk lives ([`Disk::locate`]), and what an
//! allocating write must write, in which order, so that a crash at any point leaves a disk that holds every byte
//! that was flushed ([`Disk::allocate`]). The hypervisor does the I/O over NFS, the tools on files.
//!
//! ```text
//! 0        copy of the footer                       never changes while the disk is written to
//! 512      header
//! 1536     BAT: sector of each block, or "absent"
//! ...      batmap: which blocks are full
//! ...      locators of the parent (differencing disks)
//! ...      blocks: bitmap of present sectors, then data, which is aligned to 4 KiB
//! end-512  footer
//! ```
//!
//! All integers are big-endian; a sector is 512 bytes.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bat;
mod batmap;
mod bitmap;
mod create;
mod disk;
mod footer;
mod geometry;
mod header;
mod uuid;

pub use bat::{Bat, BatEntryWrite};
pub use batmap::{Batmap, Tables};
pub use bitmap::{Bitmap, Run};
pub use create::{Extent, NewDisk, Parent};
pub use disk::{Allocation, Disk, Place, Segment};
pub use footer::{DiskKind, Footer};
pub use geometry::Geometry;
pub use header::{Header, Locator, LocatorCode};
pub use uuid::{BadUuid, Uuid};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of a block in every disk that is created here, and in nearly all others.
pub const BLOCK: u32 = 2 << 20;
/// Smallest disk.
pub const MIN_SIZE: u64 = 2 << 20;
/// Largest disk: 2040 GiB, what the format's other users take.
pub const MAX_SIZE: u64 = 2040 << 30;
/// Most disks from a leaf to its root, both counted.
pub const MAX_CHAIN: usize = 30;
/// Seconds from 1970 to 2000, where VHD's clock starts.
pub const EPOCH_UNIX: u64 = 946_684_800;

/// What is wrong with a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A structure does not begin with its magic.
    #[error("the {0} does not begin with its cookie: this is not a VHD, or it is damaged")]
    Cookie(&'static str),
    /// A structure's checksum is wrong.
    #[error("the checksum of the {0} is wrong: it is damaged")]
    Checksum(&'static str),
    /// A structure is cut off.
    #[error("the {0} is cut off")]
    Truncated(&'static str),
    /// A field has a value that this crate does not support or that cannot be.
    #[error("the {field} of the {structure} is {value}, which is not supported")]
    Field {
        /// Footer or header.
        structure: &'static str,
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The BAT points outside the file's block area, or two blocks overlap.
    #[error("block {block} lies at sector {sector}, {why}")]
    Block {
        /// Number of the block.
        block: u32,
        /// Where the BAT says it is.
        sector: u32,
        /// What is wrong there.
        why: &'static str,
    },
    /// A size that a VHD cannot have.
    #[error("a VHD has {MIN_SIZE} to {MAX_SIZE} bytes in whole sectors, not {0}")]
    Size(u64),
    /// Beyond the end of the virtual disk.
    #[error("the range at {offset} of {length} bytes ends after the disk")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// Checksum of all VHD structures: the complement of the sum of the bytes, the checksum's own four
/// (at `at`) counted as zero.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
    };
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
