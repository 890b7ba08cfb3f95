//! Small VHDs with small blocks, so that a short run allocates many.

use vhd::{Bat, Bitmap, Disk, DiskKind, Footer, Header, SECTOR, Uuid};

use super::guest::{Guest, pattern};

pub const BLOCK: u32 = 16 << 10;
pub const SIZE: u64 = 512 << 10;
pub const SECTORS: usize = (SIZE / SECTOR) as usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// Files of a disk: the leaf first. `guest` learns what is in them.
pub fn files(kind: Kind, guest: &mut Guest) -> Vec<(&'static str, Vec<u8>)> {
    match kind {
        Kind::Fixed => {
            let footer = Footer::new(DiskKind::Fixed, SIZE, Uuid([1; 16]), 0);
            let mut content = vec![0; SIZE as usize];
            content.extend_from_slice(&footer.encode());
            vec![("disk.vhd", content)]
        }
        Kind::Dynamic => vec![("disk.vhd", sparse(DiskKind::Dynamic, [1; 16], None, None))],
        Kind::Differencing => {
            let parent = sparse(DiskKind::Dynamic, [2; 16], None, Some(guest));
            let leaf = sparse(DiskKind::Differencing, [1; 16], Some("base.vhd"), None);
            vec![("disk.vhd", leaf), ("base.vhd", parent)]
        }
    }
}

fn sparse(
    kind: DiskKind,
    uuid: [u8; 16],
    parent: Option<&str>,
    base: Option<&mut Guest>,
) -> Vec<u8> {
    let mut footer = Footer::new(kind, SIZE, Uuid(uuid), 0);
    footer.header_offset = Some(SECTOR);
    let entries = SIZE.div_ceil(BLOCK.into()) as u32;
    let header = Header {
        bat_offset: 1536,
        bat_entries: entries,
        block_size: BLOCK,
        parent: parent.map_or(Uuid::default(), |_| Uuid([2; 16])),
        parent_timestamp: 0,
        parent_name: parent.unwrap_or_default().into(),
        locators: Vec::new(),
    };
    let mut disk =
        Disk::sparse(footer.clone(), header.clone(), Bat::empty(entries)).expect("an empty disk");
    let mut blocks = Vec::new();
    if let Some(guest) = base {
        for block in (0..entries).step_by(3) {
            let allocation = disk.allocate(block);
            let mut data = Vec::new();
            for n in 0..(BLOCK as usize / 512) {
                let sector = block as usize * (BLOCK as usize / 512) + n;
                data.extend_from_slice(&pattern(sector as u64 + 1, sector));
                guest.has_base(sector);
            }
            blocks.push((allocation, data));
        }
    }
    let mut content = vec![0; disk.footer_at() as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        content[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &footer.encode());
    put(512, &header.encode());
    put(1536, &disk.bat().expect("a sparse disk").encode());
    for (allocation, data) in blocks {
        put(
            allocation.bitmap_at,
            Bitmap::full(allocation.bitmap_size).as_bytes(),
        );
        put(allocation.data_at, &data);
    }
    content.extend_from_slice(&footer.encode());
    content
}
