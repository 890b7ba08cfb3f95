//! Reading a streamOptimized VMDK in one pass.

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::{
    DEFLATE, DIRECTORY_AT_END, END_OF_STREAM, FOOTER, GRAIN_DIRECTORY, GRAIN_TABLE, MAGIC, SECTOR,
};
use crate::{
    error::{Error, at, damaged, unsupported},
    vm::MAX_DISK,
};

/// Largest grain: VMware's own writers go up to it.
const MAX_GRAIN: u64 = 2 << 20;
/// Most sectors of a marker's data, and before the first grain: directories of the largest disk take fewer.
const MAX_METADATA: u64 = 1 << 20;

/// Reads a disk, grain by grain.
pub struct Reader<R> {
    input: R,
    place: String,
    sectors: u64,
    grain: u64,
    /// First sector behind the last grain.
    behind: u64,
    ended: bool,
    tables_in_front: bool,
    /// Of the grain that was read last.
    offset: u64,
    packed: Vec<u8>,
    buffer: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is none, or of another kind of VMDK.
    pub fn new(mut input: R, name: &str) -> Result<Self, Error> {
        let place = format!("{name}, header");
        let mut header = [0; SECTOR as usize];
        at(&place, input.read_exact(&mut header))?;
        if header[..4] != MAGIC {
            return damaged(place, "it does not begin with KDMV: it is no sparse VMDK");
        }
        if header[73..77] != *b"\n \r\n" {
            return damaged(
                place,
                "line ends were changed: it was sent as text; send it again as it is",
            );
        }
        let compressed = u32_at(&header, 8) & 0x3_0000 == 0x3_0000;
        if !compressed || u16::from_le_bytes([header[77], header[78]]) != DEFLATE {
            return unsupported(
                place,
                "it is not streamOptimized; convert it with qemu-img convert -O vmdk -o subformat=streamOptimized",
            );
        }
        let (sectors, grain) = (u64_at(&header, 12), u64_at(&header, 20));
        if sectors == 0 || sectors > MAX_DISK / SECTOR {
            return damaged(
                place,
                format!("the disk has {sectors} sectors, which cannot be"),
            );
        }
        if !grain.is_power_of_two() || grain * SECTOR > MAX_GRAIN {
            return damaged(
                place,
                format!("a grain has {grain} sectors, which cannot be"),
            );
        }
        let overhead = u64_at(&header, 64);
        if !(1..=MAX_METADATA).contains(&overhead) {
            return damaged(
                place,
                format!("the first grain is at sector {overhead}, which cannot be"),
            );
        }
        let mut this = Self {
            input,
            place: name.to_owned(),
            sectors,
            grain,
            behind: 0,
            ended: false,
            tables_in_front: u64_at(&header, 56) != DIRECTORY_AT_END,
            offset: 0,
            packed: Vec::new(),
            buffer: Vec::new(),
        };
        this.skip(overhead - 1)?;
        Ok(this)
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.sectors * SECTOR
    }

    fn skip(&mut self, sectors: u64) -> Result<(), Error> {
        let bytes = sectors * SECTOR;
        let skipped = std::io::copy(&mut self.input.by_ref().take(bytes), &mut std::io::sink());
        match at(&self.place, skipped)? {
            all if all == bytes => Ok(()),
            _ => Err(Error::CutOff {
                place: self.place.clone(),
            }),
        }
    }

    /// Reads the next grain; false at the end of the disk.
    ///
    /// # Errors
    /// When the disk cannot be read or is damaged.
    pub fn advance(&mut self) -> Result<bool, Error> {
        while !self.ended {
            let mut sector = [0; SECTOR as usize];
            let place = format!("{}, after sector {} of the disk", self.place, self.behind);
            match self.input.read(&mut sector[..1]) {
                // QEMU leaves the tables in front, and no mark at the end.
                Ok(0) if self.tables_in_front => {
                    self.ended = true;
                    continue;
                }
                Ok(0) => return Err(Error::CutOff { place }),
                read => at(&place, read)?,
            };
            at(&place, self.input.read_exact(&mut sector[1..]))?;
            let (value, size) = (u64_at(&sector, 0), u32_at(&sector, 8));
            if size > 0 {
                self.grain(value, size, &sector)?;
                return Ok(true);
            }
            match u32_at(&sector, 12) {
                END_OF_STREAM => self.ended = true,
                GRAIN_TABLE | GRAIN_DIRECTORY | FOOTER if value <= MAX_METADATA => {
                    self.skip(value)?
                }
                kind => {
                    let why = format!(
                        "there is a marker of kind {kind} and {value} sectors, which cannot be"
                    );
                    return damaged(place, why);
                }
            }
        }
        Ok(false)
    }

    /// The grain that was read last: where it is on the disk, and what is in it.
    pub fn current(&self) -> (u64, &[u8]) {
        (self.offset, &self.buffer)
    }

    /// What the disk was read from, behind its end.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn grain(&mut self, first: u64, size: u32, sector: &[u8]) -> Result<(), Error> {
        let place = format!("{}, grain at sector {first} of the disk", self.place);
        if first < self.behind || !first.is_multiple_of(self.grain) || first >= self.sectors {
            return damaged(place, "it is not behind the one before, or not on the disk");
        }
        let whole = (self.grain * SECTOR) as usize;
        // What cannot be compressed grows a little.
        if size as usize > whole + whole / 8 + 64 {
            return damaged(place, format!("it has {size} bytes, more than a grain can"));
        }
        self.packed
            .resize((12 + size as usize).next_multiple_of(SECTOR as usize), 0);
        self.packed[..SECTOR as usize].copy_from_slice(sector);
        at(
            &place,
            self.input.read_exact(&mut self.packed[SECTOR as usize..]),
        )?;
        self.buffer.clear();
        let mut decoder =
            ZlibDecoder::new(&self.packed[12..12 + size as usize]).take(whole as u64 + 1);
        if let Err(error) = decoder.read_to_end(&mut self.buffer) {
            return damaged(place, format!("it cannot be decompressed ({error})"));
        }
        let wanted = whole.min(((self.sectors - first) * SECTOR) as usize);
        if self.buffer.len() != whole && self.buffer.len() != wanted {
            return damaged(
                place,
                format!("it has {} bytes instead of {whole}", self.buffer.len()),
            );
        }
        self.buffer.truncate(wanted);
        self.behind = first + self.grain;
        self.offset = first * SECTOR;
        Ok(())
    }
}
