//! What the storage server says, and what is on a disk.

use nfs3::rpc;
use vhd::{Bat, Disk, Footer, Header, Place};

use crate::bytes::Bytes;

/// Parsed or refused.
pub fn rpc(data: &[u8]) {
    let _ = rpc::Call::parse(data);
    if let Ok(reply) = rpc::Reply::parse(data) {
        let _ = reply.results::<nfs3::nfs::Read>();
    }
    if let Ok(reply) = rpc::Reply::parse(data) {
        let _ = reply.results::<nfs3::nfs::Lookup>();
    }
    if let Ok(reply) = rpc::Reply::parse(data) {
        let _ = reply.results::<nfs3::lease::Acquire>();
    }
}

/// A structure whose checksum is right: all that a checksum keeps out is an accident.
fn with_checksum(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.fill(0);
        let sum = bytes
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add((*byte).into()));
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    bytes
}

/// A disk that is accepted locates every sector inside its file or nowhere.
///
/// # Panics
/// When that does not hold.
pub fn virtual_disk(data: &[u8]) {
    let mut bytes = Bytes(data);
    let footer = Footer::parse(&with_checksum(bytes.take(512), 64));
    let header = Header::parse(&with_checksum(bytes.take(1024), 36));
    let (Ok(footer), Ok(header)) = (footer, header) else {
        return;
    };
    let Ok(bat) = Bat::parse(bytes.0, header.bat_entries) else {
        return;
    };
    if let Ok(disk) = Disk::sparse(footer, header, bat) {
        let (size, end) = (disk.size(), disk.footer_at());
        for at in [0, size / 2, size.saturating_sub(512)] {
            let length = size.saturating_sub(at).min(4 << 20);
            for segment in disk
                .locate(at, length)
                .expect("it is inside the disk")
                .take(9)
            {
                if let Place::Present { at } = segment.place {
                    assert!(
                        at + segment.length <= end,
                        "{segment:?} lies behind the blocks"
                    );
                }
            }
        }
    }
}
