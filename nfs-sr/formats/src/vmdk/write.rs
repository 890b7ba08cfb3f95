//! Writing a streamOptimized VMDK.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};
use serde::{Deserialize, Serialize};

use super::{
    DIRECTORY_AT_END, END_OF_STREAM, FOOTER, GRAIN, GRAIN_BYTES, GRAIN_DIRECTORY, GRAIN_TABLE,
    OVERHEAD, SECTOR, TABLE, header,
};
use crate::{
    disk::Sink,
    error::{Error, at},
};

/// Writes a disk. Pieces begin at whole grains; all but the last are whole grains.
pub struct Writer<W> {
    out: W,
    place: String,
    sectors: u64,
    state: State,
}

/// How far a disk is written: what it takes to go on after an interruption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Sectors written.
    position: u64,
    table: Vec<u32>,
    /// Which table is being filled.
    current: usize,
    directory: Vec<u32>,
}

impl State {
    /// Bytes that are written.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.position * SECTOR
    }
}

impl<W: Write> Writer<W> {
    /// A disk of `size` bytes in an extent called `name`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(mut out: W, name: &str, size: u64) -> Result<Self, Error> {
        let sectors = size.div_ceil(SECTOR);
        let cylinders = (sectors / (16 * 63)).clamp(1, 16383);
        // The descriptor's own checksum of contents is any number that changes with them; nobody verifies it.
        let descriptor = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
             # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n# The Disk Data Base\nddb.adapterType = \"lsilogic\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n\
             ddb.virtualHWVersion = \"8\"\n"
        );
        let mut front = header(sectors, DIRECTORY_AT_END).to_vec();
        front.extend_from_slice(descriptor.as_bytes());
        front.resize((OVERHEAD * SECTOR) as usize, 0);
        at(name, out.write_all(&front))?;
        let tables = sectors.div_ceil(GRAIN * TABLE as u64) as usize;
        let state = State {
            position: OVERHEAD,
            table: vec![0; TABLE],
            current: 0,
            directory: vec![0; tables],
        };
        Ok(Self::resume(out, name, size, state))
    }

    /// Goes on with a disk of `size` bytes behind what was written until this state.
    pub fn resume(out: W, name: &str, size: u64, state: State) -> Self {
        Self {
            out,
            place: name.to_owned(),
            sectors: size.div_ceil(SECTOR),
            state,
        }
    }

    /// What it takes to go on from here, and where it writes: what is kept there must be made durable before the state counts.
    pub fn state(&mut self) -> (State, &mut W) {
        (self.state.clone(), &mut self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let padding = bytes.len().next_multiple_of(SECTOR as usize) - bytes.len();
        let written = self
            .out
            .write_all(bytes)
            .and_then(|()| self.out.write_all(&[0; SECTOR as usize][..padding]));
        at(&self.place, written)?;
        self.state.position += ((bytes.len() + padding) as u64) / SECTOR;
        Ok(())
    }

    fn marker(&mut self, sectors: u64, kind: u32) -> Result<(), Error> {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        self.put(&bytes)
    }

    fn end_table(&mut self) -> Result<(), Error> {
        if self.state.table.iter().any(|entry| *entry != 0) {
            let bytes: Vec<u8> = self
                .state
                .table
                .iter()
                .flat_map(|entry| entry.to_le_bytes())
                .collect();
            self.marker(bytes.len() as u64 / SECTOR, GRAIN_TABLE)?;
            self.state.directory[self.state.current] = self.state.position as u32;
            self.put(&bytes)?;
            self.state.table.fill(0);
        }
        Ok(())
    }

    fn grain(&mut self, number: u64, data: &[u8]) -> Result<(), Error> {
        let table = (number / TABLE as u64) as usize;
        if table != self.state.current {
            self.end_table()?;
            self.state.current = table;
        }
        self.state.table[(number % TABLE as u64) as usize] = self.state.position as u32;
        let mut frame = Vec::with_capacity(data.len() / 2);
        frame.extend_from_slice(&(number * GRAIN).to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        let mut encoder = ZlibEncoder::new(frame, Compression::fast());
        let frame = encoder.write_all(data).and_then(|()| encoder.finish());
        let mut frame = at(&self.place, frame)?;
        let length = frame.len() as u32 - 12;
        frame[8..12].copy_from_slice(&length.to_le_bytes());
        self.put(&frame)
    }

    /// Ends the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<W, Error> {
        self.end_table()?;
        let directory: Vec<u8> = self
            .state
            .directory
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        self.marker((directory.len() as u64).div_ceil(SECTOR), GRAIN_DIRECTORY)?;
        let directory_at = self.state.position;
        self.put(&directory)?;
        self.marker(1, FOOTER)?;
        self.put(&header(self.sectors, directory_at))?;
        self.marker(0, END_OF_STREAM)?;
        Ok(self.out)
    }
}

impl<W: Write> Sink for Writer<W> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        for (number, grain) in (offset / GRAIN_BYTES as u64..).zip(data.chunks(GRAIN_BYTES)) {
            if crate::disk::is_zero(grain) {
                continue;
            }
            if grain.len() == GRAIN_BYTES {
                self.grain(number, grain)?;
            } else {
                let mut whole = grain.to_vec();
                whole.resize(GRAIN_BYTES, 0);
                self.grain(number, &whole)?;
            }
        }
        Ok(())
    }
}
