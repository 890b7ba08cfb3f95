//! An open virtual disk and its parents: reading through the chain, writing in the order that survives a crash.

use std::{collections::HashMap, io, ops::Range};

use vhd::{
    Batmap, Bitmap, Disk, DiskKind, Footer, Header, MAX_CHAIN, Place, SECTOR, Segment, Tables,
};

use super::store::Store;

/// A chain that is merged while it is opened is gone through again so often.
const MAX_RESTARTS: u32 = 4;

/// What is wrong with a disk or an operation on it.
#[derive(Debug, thiserror::Error)]
pub enum SrError {
    /// The disk below failed.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What failed.
        error: io::Error,
    },
    /// The file is not a good VHD.
    #[error("{name}: {error}")]
    Vhd {
        /// The file.
        name: String,
        /// What is wrong.
        error: vhd::Error,
    },
    /// The parent is not the disk that the child was made from.
    #[error(
        "{name}: its parent {parent} is not the disk that it was made from; its data would be wrong"
    )]
    WrongParent {
        /// The child.
        name: String,
        /// The parent.
        parent: String,
    },
    /// Too many ancestors, or a circle.
    #[error("{name}: the chain of parents is longer than {MAX_CHAIN}; coalesce it first")]
    ChainTooLong {
        /// The leaf.
        name: String,
    },
    /// The operation cannot be done as things are.
    #[error("{0}")]
    Refused(String),
}

/// Adds the name of the file to an error.
pub fn at<T>(name: &str, result: io::Result<T>) -> Result<T, SrError> {
    result.map_err(|error| SrError::Io {
        name: name.to_owned(),
        error,
    })
}

fn vhd<T>(name: &str, result: Result<T, vhd::Error>) -> Result<T, SrError> {
    result.map_err(|error| SrError::Vhd {
        name: name.to_owned(),
        error,
    })
}

/// One file of a chain.
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Its map.
    pub disk: Disk,
    bitmaps: HashMap<u32, Bitmap>,
}

/// Footer of a file, and its header unless the disk is fixed. A footer at the end that is damaged (a crash while a block was
/// added) is replaced by its copy at the start.
pub fn ends(store: &impl Store, name: &str) -> Result<(Footer, Option<Header>), SrError> {
    let length = at(name, store.length(name))?;
    let last = Footer::parse(&read(store, name, length.saturating_sub(SECTOR), 512)?);
    let first = Footer::parse(&read(store, name, 0, 512)?);
    let footer = match (first, last) {
        (Ok(first), _) if first.kind != DiskKind::Fixed => first,
        (_, last) => vhd(name, last)?,
    };
    let header = match footer.header_offset {
        Some(offset) => Some(vhd(name, Header::parse(&read(store, name, offset, 1024)?))?),
        None => None,
    };
    Ok((footer, header))
}

fn read(store: &impl Store, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, SrError> {
    let mut bytes = vec![0; length];
    at(name, store.read(name, offset, &mut bytes)).map(|()| bytes)
}

impl Layer {
    /// Opens a file without its parents.
    pub fn open(store: &impl Store, name: &str) -> Result<Self, SrError> {
        let (footer, header) = ends(store, name)?;
        let Some(header) = header else {
            return Ok(Self::of(name, Disk::fixed(footer)));
        };
        let tables = read(
            store,
            name,
            header.bat_offset,
            Tables::size(&header) as usize,
        )?;
        let tables = vhd(name, Tables::parse(&tables, &header))?;
        let disk = vhd(name, Disk::sparse(footer, header, tables))?;
        Ok(Self::of(name, disk))
    }

    /// A file whose tables are known.
    pub fn of(name: &str, disk: Disk) -> Self {
        Self {
            name: name.to_owned(),
            disk,
            bitmaps: HashMap::new(),
        }
    }

    /// The name of the parent, if there is one.
    pub fn parent_name(&self) -> Option<&str> {
        let header = self.disk.header()?;
        (self.disk.footer().kind == DiskKind::Differencing).then_some(header.parent_name.as_str())
    }

    fn bitmap(
        &mut self,
        store: &impl Store,
        block: u32,
        at_offset: u64,
    ) -> Result<&mut Bitmap, SrError> {
        if !self.bitmaps.contains_key(&block) {
            let size = self.disk.header().map_or(0, Header::bitmap_size);
            let mut bytes = vec![0; size as usize];
            at(&self.name, store.read(&self.name, at_offset, &mut bytes))?;
            self.bitmaps.insert(block, Bitmap::from_bytes(bytes));
        }
        Ok(self.bitmaps.get_mut(&block).expect("inserted above"))
    }

    /// The ranges of a segment that this file holds, and those that it does not, as (offset on the disk, length, offset in
    /// the file).
    pub fn runs(
        &mut self,
        store: &impl Store,
        segment: &Segment,
    ) -> Result<Vec<(u64, u64, Option<u64>)>, SrError> {
        Ok(match segment.place {
            Place::Absent => vec![(segment.offset, segment.length, None)],
            Place::Present { at } => vec![(segment.offset, segment.length, Some(at))],
            Place::Masked { at, bitmap_at } => {
                let bitmap = self.bitmap(store, segment.block, bitmap_at)?;
                let first = (segment.within / SECTOR) as u32;
                let count = (segment.length / SECTOR) as u32;
                let place = |run: vhd::Run| {
                    let skip = u64::from(run.first - first) * SECTOR;
                    let present = run.present.then_some(at + skip);
                    (
                        segment.offset + skip,
                        u64::from(run.count) * SECTOR,
                        present,
                    )
                };
                bitmap.runs(first, count).map(place).collect()
            }
        })
    }

    /// Writes whole sectors, allocating blocks as needed. Durable after [`Image::flush`].
    pub fn write(&mut self, store: &impl Store, offset: u64, data: &[u8]) -> Result<(), SrError> {
        let name = self.name.clone();
        let segments: Vec<Segment> =
            vhd(&name, self.disk.locate(offset, data.len() as u64))?.collect();
        for segment in segments {
            let from = (segment.offset - offset) as usize;
            let data = &data[from..from + segment.length as usize];
            let (first, count) = (
                (segment.within / SECTOR) as u32,
                (segment.length / SECTOR) as u32,
            );
            match segment.place {
                Place::Present { at: place } => at(&name, store.write(&name, place, data))?,
                Place::Masked {
                    at: place,
                    bitmap_at,
                } => {
                    at(&name, store.write(&name, place, data))?;
                    let bitmap = self.bitmap(store, segment.block, bitmap_at)?;
                    if bitmap.set(first, count) {
                        let bytes = bitmap.as_bytes().to_vec();
                        // The data must not be behind its bit: sectors would show what was there before.
                        at(&name, store.sync(&name))?;
                        at(&name, store.write(&name, bitmap_at, &bytes))?;
                    }
                }
                Place::Absent => self.allocate(store, &segment, data)?,
            }
        }
        Ok(())
    }

    /// The order of [`vhd::Allocation`].
    fn allocate(
        &mut self,
        store: &impl Store,
        segment: &Segment,
        data: &[u8],
    ) -> Result<(), SrError> {
        let name = self.name.clone();
        let (first, count) = (
            (segment.within / SECTOR) as u32,
            (segment.length / SECTOR) as u32,
        );
        let bitmap = self.disk.new_bitmap(first, count);
        let end = self.disk.footer_at();
        // What a block that never came into being left behind the last one must not show through this one.
        at(&name, store.set_length(&name, end))?;
        let new = self.disk.allocate(segment.block);
        at(&name, store.set_length(&name, new.footer_at))?;
        at(
            &name,
            store.write(&name, new.data_at + segment.within, data),
        )?;
        at(&name, store.write(&name, new.bitmap_at, bitmap.as_bytes()))?;
        at(&name, store.sync(&name))?;
        at(
            &name,
            store.write(&name, new.bat_entry.at, &new.bat_entry.bytes),
        )?;
        at(
            &name,
            store.write(&name, new.footer_at, &self.disk.footer().encode()),
        )?;
        self.bitmaps.insert(segment.block, bitmap);
        Ok(())
    }

    /// Writes a changed footer: first at the end, then its copy at the start, so that one of them is always whole.
    pub fn write_footer(&mut self, store: &impl Store, footer: Footer) -> Result<(), SrError> {
        let name = &self.name;
        at(
            name,
            store.write(name, self.disk.footer_at(), &footer.encode()),
        )?;
        at(name, store.sync(name))?;
        if footer.kind != DiskKind::Fixed {
            at(name, store.write(name, 0, &footer.encode()))?;
            at(name, store.sync(name))?;
        }
        self.disk = vhd(&self.name, self.disk.with(footer, None))?;
        Ok(())
    }

    /// The block holds all of its sectors, by its bitmap.
    pub fn is_full(&mut self, store: &impl Store, block: u32) -> Result<bool, SrError> {
        let Some(sector) = self.disk.bat().and_then(|bat| bat.get(block)) else {
            return Ok(false);
        };
        let bits = self
            .disk
            .header()
            .map_or(0, |header| header.block_size / SECTOR as u32);
        let bitmap = self.bitmap(store, block, u64::from(sector) * SECTOR)?;
        Ok(bitmap.runs(0, bits).all(|run| run.present))
    }

    /// Finds blocks that have become full, and gives what is to be written for the batmap to say so: where, and which bytes.
    pub fn mark_full_blocks(
        &mut self,
        store: &impl Store,
    ) -> Result<Option<(u64, Vec<u8>)>, SrError> {
        let (Some(header), Some(bat), Some(batmap)) =
            (self.disk.header(), self.disk.bat(), self.disk.batmap())
        else {
            return Ok(None);
        };
        let (offset, before) = (Batmap::offset(header), batmap.clone());
        let candidates: Vec<u32> = bat
            .allocated()
            .map(|(block, _)| block)
            .filter(|block| !before.get(*block))
            .collect();
        for block in candidates {
            if self.is_full(store, block)? {
                self.disk.mark_full(block);
            }
        }
        let changed = self.disk.batmap().filter(|after| **after != before);
        Ok(changed.map(|after| (offset, after.encode(offset))))
    }
}

/// A disk with all its parents, the leaf first.
pub struct Image<'a, S> {
    store: &'a S,
    /// The files.
    pub layers: Vec<Layer>,
}

impl<'a, S: Store> Image<'a, S> {
    /// Opens a disk, its parents, and checks that they belong together.
    pub fn open(store: &'a S, name: &str) -> Result<Self, SrError> {
        let mut layers = vec![Layer::open(store, name)?];
        let mut restarts = 0;
        loop {
            let leaf = layers.last().expect("never empty");
            let Some(parent_name) = leaf.parent_name() else {
                break;
            };
            let parent = match Layer::open(store, parent_name) {
                Err(SrError::Io { error, .. })
                    if error.kind() == io::ErrorKind::NotFound
                        && layers.len() > 1
                        && restarts < MAX_RESTARTS =>
                {
                    // Merged with its child since that was opened.
                    restarts += 1;
                    layers.truncate(1);
                    continue;
                }
                opened => opened?,
            };
            let expected = leaf.disk.header().map(|header| header.parent);
            let found = parent.disk.footer().uuid;
            // One with the child's own identity is about to take its place, see `super::merge`.
            if expected != Some(found) && leaf.disk.footer().uuid != found {
                let (name, parent) = (leaf.name.clone(), parent.name);
                return Err(SrError::WrongParent { name, parent });
            }
            layers.push(parent);
            if layers.len() > MAX_CHAIN {
                return Err(SrError::ChainTooLong {
                    name: name.to_owned(),
                });
            }
        }
        Ok(Self { store, layers })
    }

    /// Bytes of the virtual disk.
    pub fn size(&self) -> u64 {
        self.layers[0].disk.size()
    }

    /// Whether any of the files has blocks for this range. Where none has, there are zeros and nothing to be read.
    pub fn is_allocated(&self, range: Range<u64>) -> bool {
        self.layers.iter().any(|layer| {
            let end = range.end.min(layer.disk.size());
            match (layer.disk.header(), layer.disk.bat()) {
                _ if end <= range.start => false,
                (Some(header), Some(bat)) => {
                    let block = u64::from(header.block_size);
                    let mut blocks = range.start / block..end.div_ceil(block);
                    blocks.any(|block| bat.get(block as u32).is_some())
                }
                _ => true,
            }
        })
    }

    /// Reads whole sectors.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SrError> {
        buffer.fill(0);
        let mut wanted = vec![(offset, buffer.len() as u64)];
        for layer in &mut self.layers {
            let mut absent = Vec::new();
            for (start, length) in wanted {
                // A parent may be smaller than its child: behind its end is nothing.
                let length = length.min(layer.disk.size().saturating_sub(start));
                let segments: Vec<Segment> =
                    vhd(&layer.name, layer.disk.locate(start, length))?.collect();
                for segment in segments {
                    for (start, length, place) in layer.runs(self.store, &segment)? {
                        let Some(place) = place else {
                            absent.push((start, length));
                            continue;
                        };
                        let from = (start - offset) as usize;
                        let piece = &mut buffer[from..from + length as usize];
                        at(&layer.name, self.store.read(&layer.name, place, piece))?;
                    }
                }
            }
            wanted = absent;
        }
        Ok(())
    }

    /// Writes whole sectors.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), SrError> {
        self.layers[0].write(self.store, offset, data)
    }

    /// Returns when everything written is durable.
    pub fn flush(&mut self) -> Result<(), SrError> {
        let name = &self.layers[0].name;
        at(name, self.store.sync(name))
    }
}
