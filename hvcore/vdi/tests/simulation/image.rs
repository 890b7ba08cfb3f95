//! Small VHDs with small blocks, so that a short run allocates many.

use vhd::{Bat, Batmap, Bitmap, Disk, DiskKind, Footer, Header, SECTOR, Tables, Uuid};

use crate::support::guest::{Stamp, pattern};

pub const BLOCK: u32 = 16 << 10;
pub const SIZE: u64 = 512 << 10;
pub const SECTORS: usize = (SIZE / SECTOR) as usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// Files of a disk, the leaf first, and what its sectors hold.
pub fn files(kind: Kind) -> (Vec<(&'static str, Vec<u8>)>, Vec<Stamp>) {
    let mut stamps = vec![0; SECTORS];
    let files = match kind {
        Kind::Fixed => {
            let footer = Footer::new(DiskKind::Fixed, SIZE, Uuid([1; 16]), 0);
            let mut content = vec![0; SIZE as usize];
            content.extend_from_slice(&footer.encode());
            vec![("disk.vhd", content)]
        }
        Kind::Dynamic => vec![("disk.vhd", sparse(DiskKind::Dynamic, [1; 16], None, None))],
        Kind::Differencing => {
            let parent = sparse(DiskKind::Dynamic, [2; 16], None, Some(&mut stamps));
            let leaf = sparse(DiskKind::Differencing, [1; 16], Some("base.vhd"), None);
            vec![("disk.vhd", leaf), ("base.vhd", parent)]
        }
    };
    (files, stamps)
}

fn sparse(
    kind: DiskKind,
    uuid: [u8; 16],
    parent: Option<&str>,
    stamps: Option<&mut Vec<Stamp>>,
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
    // As XenServer makes them; other programs' disks have no batmap.
    let batmap = (kind == DiskKind::Differencing).then(|| Batmap::empty(entries));
    let tables = Tables {
        bat: Bat::empty(entries),
        batmap: batmap.clone(),
    };
    let mut disk = Disk::sparse(footer.clone(), header.clone(), tables).expect("an empty disk");
    let mut blocks = Vec::new();
    if let Some(stamps) = stamps {
        for block in (0..entries).step_by(3) {
            let allocation = disk.allocate(block);
            let mut data = Vec::new();
            for n in 0..(BLOCK as usize / 512) {
                let sector = block as usize * (BLOCK as usize / 512) + n;
                stamps[sector] = sector as Stamp + 1;
                data.extend_from_slice(&pattern(stamps[sector], sector));
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
    if let Some(batmap) = batmap {
        let at = Batmap::offset(&header);
        put(at, &batmap.encode(at));
    }
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

/// Makes the checksums of footers and header right again, so that damage gets past them.
pub fn seal(content: &mut [u8]) {
    let mut sum_up = |from: usize, len: usize, checksum_at: usize| {
        let Some(bytes) = content.get_mut(from..from + len) else {
            return;
        };
        bytes[checksum_at..checksum_at + 4].fill(0);
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    sum_up(0, 512, 64);
    sum_up(512, 1024, 36);
}

/// Says what is wrong with a disk as a crash has left it: its tables must name only what is there.
pub fn check(content: &[u8]) -> Result<(), String> {
    let footer = Footer::parse(content).map_err(|why| why.to_string());
    let footer = match footer {
        Ok(footer) if footer.header_offset.is_some() => footer,
        // A fixed disk has nothing but a footer, which is never written.
        _ => return Ok(()),
    };
    let header = Header::parse(&content[512..1536]).map_err(|why| why.to_string())?;
    let tables = Tables::parse(&content[1536..], &header).map_err(|why| why.to_string())?;
    if tables.batmap.is_none() && footer.kind == DiskKind::Differencing {
        return Err("the batmap was overwritten".into());
    }
    let disk = Disk::sparse(footer, header, tables).map_err(|why| why.to_string())?;
    if disk.footer_at() > content.len() as u64 {
        return Err(format!(
            "a block reaches beyond the file's {} bytes",
            content.len()
        ));
    }
    Ok(())
}
