//! The map from the virtual disk to the file, and the order in which a new block comes into being.

use alloc::vec::Vec;

use crate::{
    Error, Footer, Header, SECTOR,
    bat::{Bat, BatEntryWrite},
    batmap::{Batmap, Tables},
    bitmap::Bitmap,
    footer::DiskKind,
    header,
};

/// Data of a block is aligned to this, as libvhd does it, so that 4 KiB of the guest are one page of the server.
const DATA_ALIGNMENT: u64 = 4096;

/// An open disk. Which blocks exist is known; bitmaps of differencing disks are the caller's to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    footer: Footer,
    sparse: Option<Sparse>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sparse {
    header: Header,
    bat: Bat,
    batmap: Option<Batmap>,
    /// First byte after the last block, where the footer is.
    end: u64,
}

/// Where a piece of the virtual disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, at this offset, as it is (fixed disks, blocks of dynamic disks, and full blocks).
    Present {
        /// Offset in the file.
        at: u64,
    },
    /// In an allocated block of a differencing disk, as far as the block's bitmap says so.
    Masked {
        /// Offset in the file of the piece's first byte.
        at: u64,
        /// Offset in the file of the block's bitmap.
        bitmap_at: u64,
    },
    /// In no block: zeros, or the parent's.
    Absent,
}

/// A piece of the virtual disk that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte on the virtual disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The block; 0 in a fixed disk.
    pub block: u32,
    /// First byte within the block.
    pub within: u64,
    /// Where it is.
    pub place: Place,
}

/// A new block. What the caller writes, in this order:
///
/// 1. data at [`Self::data_at`] (what is not written there reads as zeros, since the file grows), and the bitmap at
///    [`Self::bitmap_at`];
/// 2. wait until these are durable (COMMIT, fdatasync);
/// 3. the BAT entry, and the footer at [`Self::footer_at`].
///
/// A crash before 3 is durable leaves the block unallocated, as it was before the guest's write, which was
/// not flushed yet. A crash between the parts of 3 leaves no footer at the end; readers then use its copy at
/// the start. A guest's flush is answered after 3 is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The block.
    pub block: u32,
    /// Where its bitmap goes.
    pub bitmap_at: u64,
    /// Bytes of the bitmap.
    pub bitmap_size: u32,
    /// Where its data goes.
    pub data_at: u64,
    /// The BAT entry.
    pub bat_entry: BatEntryWrite,
    /// Where the footer goes.
    pub footer_at: u64,
}

impl Disk {
    /// A fixed disk.
    pub fn fixed(footer: Footer) -> Self {
        Self {
            footer,
            sparse: None,
        }
    }

    /// A dynamic or differencing disk. Fails if the BAT is too small, or has blocks outside the block area or on
    /// top of one another.
    pub fn sparse(
        footer: Footer,
        header: Header,
        tables: impl Into<Tables>,
    ) -> Result<Self, Error> {
        let Tables { bat, batmap } = tables.into();
        let blocks = footer.size.div_ceil(header.block_size.into());
        if bat.len() != header.bat_entries || u64::from(bat.len()) < blocks {
            return Err(Error::Field {
                structure: "header",
                field: "number of blocks",
                value: bat.len().into(),
            });
        }
        let end = check_blocks(&footer, &header, &bat, batmap.is_some())?;
        Ok(Self {
            footer,
            sparse: Some(Sparse {
                header,
                bat,
                batmap,
                end,
            }),
        })
    }

    /// Its footer.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Its header; none in a fixed disk.
    pub fn header(&self) -> Option<&Header> {
        self.sparse.as_ref().map(|sparse| &sparse.header)
    }

    /// Its BAT; none in a fixed disk.
    pub fn bat(&self) -> Option<&Bat> {
        self.sparse.as_ref().map(|sparse| &sparse.bat)
    }

    /// Its batmap, if it has one.
    pub fn batmap(&self) -> Option<&Batmap> {
        self.sparse.as_ref()?.batmap.as_ref()
    }

    /// The same disk with another BAT or footer.
    pub fn with(&self, footer: Footer, bat: Option<Bat>) -> Result<Self, Error> {
        match &self.sparse {
            None => Ok(Self::fixed(footer)),
            Some(sparse) => {
                let tables = Tables {
                    bat: bat.unwrap_or_else(|| sparse.bat.clone()),
                    batmap: sparse.batmap.clone(),
                };
                Self::sparse(footer, sparse.header.clone(), tables)
            }
        }
    }

    /// Records in the batmap, if there is one, that a block is full. To be written by the caller.
    pub fn mark_full(&mut self, block: u32) {
        if let Some(batmap) = self
            .sparse
            .as_mut()
            .and_then(|sparse| sparse.batmap.as_mut())
        {
            batmap.set(block);
        }
    }

    /// Bytes of the virtual disk.
    pub fn size(&self) -> u64 {
        self.footer.size
    }

    /// Where the footer at the end of the file is.
    ///
    /// Before the first allocation in a disk that another program or a crash may have left behind, cut the file here
    /// and write the footer: what lies after the last block may be data of a block that never came into being,
    /// and must not show through a new one.
    pub fn footer_at(&self) -> u64 {
        self.sparse
            .as_ref()
            .map_or(self.footer.size, |sparse| sparse.end)
    }

    /// Cuts a range of the virtual disk into pieces of one block and says where each is.
    pub fn locate(
        &self,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = Segment> + '_, Error> {
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.size())
            .ok_or(Error::Range { offset, length })?;
        let mut at = offset;
        Ok(core::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let segment = match &self.sparse {
                None => Segment {
                    offset: at,
                    length: end - at,
                    block: 0,
                    within: at,
                    place: Place::Present { at },
                },
                Some(sparse) => sparse.segment(at, end, self.footer.kind),
            };
            at += segment.length;
            Some(segment)
        }))
    }

    /// Places a block at the end of the file. The BAT here knows it at once; the file must follow in the order
    /// that [`Allocation`] gives.
    ///
    /// # Panics
    /// If the block exists, or the disk is fixed, or has no such block: the caller has asked [`Self::locate`].
    pub fn allocate(&mut self, block: u32) -> Allocation {
        let sparse = self
            .sparse
            .as_mut()
            .expect("fixed disks have nothing to allocate");
        assert!(sparse.bat.get(block).is_none(), "the block exists");
        let bitmap_size = sparse.header.bitmap_size();
        let data_at = (sparse.end + u64::from(bitmap_size)).next_multiple_of(DATA_ALIGNMENT);
        let bitmap_at = data_at - u64::from(bitmap_size);
        let sector = (bitmap_at / SECTOR) as u32;
        sparse.bat.set(block, Some(sector));
        sparse.end = data_at + u64::from(sparse.header.block_size);
        Allocation {
            block,
            bitmap_at,
            bitmap_size,
            data_at,
            bat_entry: BatEntryWrite {
                at: sparse.header.bat_offset + 4 * u64::from(block),
                bytes: sector.to_be_bytes(),
            },
            footer_at: sparse.end,
        }
    }

    /// The bitmap of a new block in which the given bytes (within the block) are written: in a dynamic disk every
    /// sector, since none is ever read from elsewhere; in a differencing disk those that are written.
    pub fn new_bitmap(&self, first_sector: u32, sectors: u32) -> Bitmap {
        let bytes = self.header().map_or(0, Header::bitmap_size);
        match self.footer.kind {
            DiskKind::Differencing => {
                let mut bitmap = Bitmap::empty(bytes);
                bitmap.set(first_sector, sectors);
                bitmap
            }
            DiskKind::Fixed | DiskKind::Dynamic => Bitmap::full(bytes),
        }
    }
}

impl Sparse {
    fn segment(&self, at: u64, end: u64, kind: DiskKind) -> Segment {
        let block_size = u64::from(self.header.block_size);
        let block = (at / block_size) as u32;
        let within = at % block_size;
        let place = match self.bat.get(block) {
            None => Place::Absent,
            Some(sector) => {
                let bitmap_at = u64::from(sector) * SECTOR;
                let at = bitmap_at + u64::from(self.header.bitmap_size()) + within;
                let full = self.batmap.as_ref().is_some_and(|batmap| batmap.get(block));
                match kind {
                    DiskKind::Differencing if !full => Place::Masked { at, bitmap_at },
                    _ => Place::Present { at },
                }
            }
        };
        Segment {
            offset: at,
            length: (block_size - within).min(end - at),
            block,
            within,
            place,
        }
    }
}

/// Checks that blocks lie after the structures and do not overlap; gives the end of the last.
fn check_blocks(footer: &Footer, header: &Header, bat: &Bat, batmap: bool) -> Result<u64, Error> {
    let mut structures_end = Batmap::offset(header);
    if batmap {
        structures_end += Batmap::file_size(bat.len());
    }
    structures_end = structures_end.max(footer.header_offset.unwrap_or(0) + header::LENGTH as u64);
    for locator in &header.locators {
        // Locators behind the blocks are legal; only those in front move the start of the block area.
        if locator.offset < structures_end + 64 * 1024 {
            let space = if locator.space < 512 {
                locator.space * 512
            } else {
                locator.space
            };
            structures_end = structures_end.max(locator.offset.saturating_add(space.into()));
        }
    }
    let length = u64::from(header.bitmap_size()) + u64::from(header.block_size);
    let mut blocks: Vec<(u32, u32)> = bat
        .allocated()
        .map(|(block, sector)| (sector, block))
        .collect();
    blocks.sort_unstable();
    let mut end = structures_end.next_multiple_of(SECTOR);
    let mut why = "inside the structures at the start of the file";
    for (sector, block) in blocks {
        let start = u64::from(sector) * SECTOR;
        if start < end {
            return Err(Error::Block { block, sector, why });
        }
        end = start + length;
        why = "on top of another block";
    }
    Ok(end)
}
