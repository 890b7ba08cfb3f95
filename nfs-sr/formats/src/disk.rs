//! What a disk is to a format: bytes at offsets, most of which may be absent.
//!
//! Disks are read and written once, from their start to their end, so that every format can be a stream and no
//! format needs memory that grows with the disk.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::error::{Error, at};

/// A disk that is read.
pub trait Source {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The first range from `from` on that may hold anything but zeros; none if there is nothing more.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, Error>;

    /// Reads all of `buffer`, which lies within the disk.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error>;
}

/// A disk that is written, from its start to its end. What is not written is zeros.
pub trait Sink {
    /// Writes `data`, which begins at or after the end of what was written before.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error>;
}

/// All bytes are zero.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    // Whole words, many between two looks: the compiler makes vectors of them.
    let (words, tail) = data.as_chunks();
    let any = |some: &[[u8; 8]]| {
        some.iter()
            .fold(0, |all, word| all | u64::from_ne_bytes(*word))
    };
    words.chunks(64).all(|some| any(some) == 0) && tail.iter().all(|byte| *byte == 0)
}

/// Is given the offset and the data of a piece.
pub type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

/// Calls `each` with the offset and the data of every piece of `unit` bytes within `range` that is not zeros. The last piece of
/// a disk may be shorter.
///
/// # Errors
/// Those of the disk and of `each`.
pub fn pieces(
    source: &mut dyn Source,
    range: Range<u64>,
    unit: usize,
    each: &mut Each<'_>,
) -> Result<(), Error> {
    let step = unit as u64;
    let end = range.end.min(source.size());
    let mut buffer = vec![0; unit];
    let mut from = range.start;
    while from < end {
        let Some(data) = source.next_data(from)? else {
            break;
        };
        let mut offset = from.max(data.start / step * step);
        while offset < data.end.min(end) {
            let length = step.min(source.size() - offset) as usize;
            let piece = &mut buffer[..length];
            source.read(offset, piece)?;
            if !is_zero(piece) {
                each(offset, piece)?;
            }
            offset += step;
        }
        from = offset;
    }
    Ok(())
}

/// Copies a disk.
///
/// # Errors
/// Those of both.
pub fn copy(source: &mut dyn Source, sink: &mut dyn Sink) -> Result<(), Error> {
    let size = source.size();
    pieces(source, 0..size, crate::UNIT, &mut |offset, data| {
        sink.write(offset, data)
    })
}

/// A raw image: the disk byte for byte, with holes for zeros.
pub struct Raw {
    file: File,
    name: String,
    size: u64,
}

impl Raw {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// When the file cannot be asked for its length.
    pub fn open(file: File, name: &str) -> Result<Self, Error> {
        let size = at(name, file.metadata())?.len();
        Ok(Self {
            file,
            name: name.to_owned(),
            size,
        })
    }

    /// Makes an empty file an image of `size` zeros.
    ///
    /// # Errors
    /// When the file cannot have this length.
    pub fn create(file: File, name: &str, size: u64) -> Result<Self, Error> {
        at(name, file.set_len(size))?;
        Ok(Self {
            file,
            name: name.to_owned(),
            size,
        })
    }
}

impl Source for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        if from >= self.size {
            return Ok(None);
        }
        let data = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(data) => data,
            // There is nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(None),
            Err(_) => return Ok(Some(from..self.size)),
        };
        let end = seek(&self.file, SeekFrom::Hole(data)).unwrap_or(self.size);
        Ok(Some(data..end.min(self.size)))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        at(&self.name, self.file.read_exact_at(buffer, offset))
    }
}

impl Sink for Raw {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        at(&self.name, self.file.write_all_at(data, offset))
    }
}

/// Accepts everything and keeps nothing, for a dry run.
pub struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// A disk in memory, for tests and small things.
impl Source for io::Cursor<Vec<u8>> {
    fn size(&self) -> u64 {
        self.get_ref().len() as u64
    }

    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let size = self.get_ref().len() as u64;
        Ok((from < size).then_some(from..size))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let from = offset as usize;
        buffer.copy_from_slice(&self.get_ref()[from..from + buffer.len()]);
        Ok(())
    }
}
