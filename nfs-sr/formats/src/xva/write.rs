//! Writing an XVA.

use std::{io::Write, ops::Range};

use super::{CHUNK, Checksum, metadata};
use crate::{
    archive,
    compress::{Compression, Compressor},
    disk::{self, Source},
    error::{Error, at},
    vm::Vm,
};

/// Where an export begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new archive.
    Beginning,
    /// Behind what was written before an interruption.
    Middle,
}

/// Writes an archive.
pub struct Writer<W: Write> {
    out: Compressor<W>,
    checksum: Checksum,
    references: Vec<String>,
    frame: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive of `vm`, or goes on with it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(
        out: W,
        vm: &Vm,
        checksum: Checksum,
        compression: Compression,
        start: Start,
    ) -> Result<Self, Error> {
        let mut out = Compressor::new(out, compression);
        if start == Start::Beginning {
            archive::write_member(&mut out, "ova.xml", metadata::write(vm).as_bytes())?;
        }
        Ok(Self {
            out,
            checksum,
            references: (0..vm.disks.len()).map(metadata::disk_reference).collect(),
            frame: Vec::with_capacity(CHUNK as usize + 4096),
        })
    }

    /// Chunks of a disk.
    #[must_use]
    pub fn chunks(size: u64) -> u64 {
        size.div_ceil(CHUNK)
    }

    /// Writes a range of the chunks of a disk, without those that are zeros.
    ///
    /// # Errors
    /// When the disk cannot be read, or the archive not be written.
    pub fn write(
        &mut self,
        disk: usize,
        source: &mut dyn Source,
        chunks: Range<u64>,
    ) -> Result<(), Error> {
        let last = Self::chunks(source.size()).saturating_sub(1);
        // Readers find the beginning and the end of a disk by its first and its last chunk, so these are never left out.
        let between = chunks.start + u64::from(chunks.start == 0)..chunks.end.min(last);
        if chunks.start == 0 && chunks.end > 0 {
            self.write_whole(disk, source, 0)?;
        }
        let bytes = between.start * CHUNK..between.end * CHUNK;
        disk::pieces(source, bytes, CHUNK as usize, &mut |offset, data| {
            self.chunk(disk, offset / CHUNK, data)
        })?;
        if last > 0 && chunks.contains(&last) {
            self.write_whole(disk, source, last)?;
        }
        Ok(())
    }

    fn write_whole(
        &mut self,
        disk: usize,
        source: &mut dyn Source,
        chunk: u64,
    ) -> Result<(), Error> {
        let offset = chunk * CHUNK;
        let mut data = vec![0; CHUNK.min(source.size() - offset) as usize];
        source.read(offset, &mut data)?;
        self.chunk(disk, chunk, &data)
    }

    fn chunk(&mut self, disk: usize, number: u64, data: &[u8]) -> Result<(), Error> {
        let name = format!("{}/{number:08}", self.references[disk]);
        self.frame.clear();
        archive::write_member(&mut self.frame, &name, data)?;
        let checksum = self.checksum.of(data);
        let beside = format!("{name}.{}", self.checksum.extension());
        archive::write_member(&mut self.frame, &beside, checksum.as_bytes())?;
        at(&name, self.out.write_all(&self.frame))
    }

    /// Brings everything so far into a state in which the archive can be gone on with.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn checkpoint(&mut self) -> Result<&mut W, Error> {
        at("the archive", self.out.boundary())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<W, Error> {
        archive::write_end(&mut self.out)?;
        at("the archive", self.out.finish())
    }
}
