//! Formats in which machines and disks travel: XVA and OVA archives, and images of single disks (raw, streamOptimized
//! VMDK, qcow2).
//!
//! Everything is a stream in one direction: a disk goes from a [`disk::Source`] to a format or from a format to a
//! [`disk::Sink`], once, from its start to its end, so that memory does not grow with the disk. The crate knows bytes and
//! nothing of repositories, leases or labs; what is read is input from outside, and every length in it is bounded.

#![forbid(unsafe_code)]

pub mod any;
mod archive;
pub mod compress;
pub mod disk;
mod error;
pub mod ova;
pub mod qcow2;
pub mod vm;
pub mod vmdk;
pub mod xva;

pub use error::Error;

/// Bytes that are copied at a time.
pub const UNIT: usize = 1 << 20;

/// What a reference in XML stands for.
fn xml_reference(reference: &quick_xml::events::BytesRef<'_>) -> Option<char> {
    if let Ok(Some(character)) = reference.resolve_char_ref() {
        return Some(character);
    }
    match &**reference {
        b"lt" => Some('<'),
        b"gt" => Some('>'),
        b"amp" => Some('&'),
        b"quot" => Some('"'),
        b"apos" => Some('\''),
        _ => None,
    }
}
