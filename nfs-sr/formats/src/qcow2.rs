//! qcow2, QEMU's format (`docs/interop/qcow2.txt` of QEMU): version 3, clusters of 64 KiB, without snapshots, backing files
//! or encryption.
//!
//! ```text
//! cluster 0       header
//!         1 ...   L1 table: where each L2 table is
//!                 data clusters, and after those of 512 MiB of the disk their L2 table
//!                 refcount blocks, refcount table
//! ```
//!
//! All integers are big-endian. The header is written last: a file that was not finished is no qcow2.

use std::{fs::File, io::Read, ops::Range, os::unix::fs::FileExt};

use flate2::read::DeflateDecoder;
use serde::{Deserialize, Serialize};

use crate::{
    disk::{Sink, Source, is_zero},
    error::{Error, at, damaged, unsupported},
    vm::MAX_DISK,
};

const MAGIC: u32 = 0x5146_49fb;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table.
const ENTRIES: u64 = CLUSTER / 8;
/// "There is only one reference to it", in L1 and L2 entries.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ZEROS: u64 = 1;
/// Refcounts of 16 bits in a block.
const COUNTS: u64 = CLUSTER / 2;

/// Writes a disk to an empty file.
pub struct Writer {
    file: File,
    place: String,
    size: u64,
    state: State,
}

/// How far a disk is written: what it takes to go on after an interruption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    l1: Vec<u64>,
    l2: Vec<u64>,
    /// Which L2 table is being filled.
    current: usize,
    /// First cluster that is free.
    next: u64,
}

impl State {
    /// Bytes of the file that count.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.next * CLUSTER
    }
}

impl Writer {
    /// A disk of `size` bytes.
    #[must_use]
    pub fn new(file: File, name: &str, size: u64) -> Self {
        let tables = size.div_ceil(CLUSTER * ENTRIES);
        let state = State {
            l1: vec![0; tables as usize],
            l2: vec![0; ENTRIES as usize],
            current: 0,
            next: 1 + (tables * 8).div_ceil(CLUSTER),
        };
        Self::resume(file, name, size, state)
    }

    /// Goes on with a disk of `size` bytes, in a file that has what it had in this state.
    #[must_use]
    pub fn resume(file: File, name: &str, size: u64, state: State) -> Self {
        Self {
            file,
            place: name.to_owned(),
            size,
            state,
        }
    }

    /// Has everything so far on disk, and says what it takes to go on from there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn state(&self) -> Result<State, Error> {
        at(&self.place, self.file.sync_data())?;
        Ok(self.state.clone())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let offset = self.state.next * CLUSTER;
        at(&self.place, self.file.write_all_at(bytes, offset))?;
        self.state.next += (bytes.len() as u64).div_ceil(CLUSTER);
        Ok(offset)
    }

    fn end_table(&mut self) -> Result<(), Error> {
        if self.state.l2.iter().any(|entry| *entry != 0) {
            let bytes: Vec<u8> = self
                .state
                .l2
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect();
            self.state.l1[self.state.current] = self.put(&bytes)? | COPIED;
            self.state.l2.fill(0);
        }
        Ok(())
    }

    /// Ends the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        self.end_table()?;
        // The blocks count themselves and their table.
        let first_block = self.state.next;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let clusters = first_block + blocks + table;
            let needed = clusters.div_ceil(COUNTS);
            let table_needed = (needed * 8).div_ceil(CLUSTER);
            if (needed, table_needed) == (blocks, table) {
                break;
            }
            (blocks, table) = (needed, table_needed);
        }
        let clusters = first_block + blocks + table;
        let one = [0u8, 1].repeat(COUNTS as usize);
        for block in 0..blocks {
            let used = (clusters - block * COUNTS).min(COUNTS) as usize;
            let mut bytes = one.clone();
            bytes[2 * used..].fill(0);
            self.put(&bytes)?;
        }
        let mut entries: Vec<u8> = (0..blocks)
            .flat_map(|block| ((first_block + block) * CLUSTER).to_be_bytes())
            .collect();
        entries.resize((table * CLUSTER) as usize, 0);
        let table_at = self.put(&entries)?;
        let l1: Vec<u8> = self
            .state
            .l1
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        at(&self.place, self.file.write_all_at(&l1, CLUSTER))?;
        at(&self.place, self.file.set_len(clusters * CLUSTER))?;
        at(&self.place, self.file.sync_data())?;
        let mut header = Vec::with_capacity(104);
        header.extend_from_slice(&MAGIC.to_be_bytes());
        header.extend_from_slice(&3u32.to_be_bytes());
        // No backing file.
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&self.size.to_be_bytes());
        // No encryption.
        header.extend_from_slice(&0u32.to_be_bytes());
        header.extend_from_slice(&(self.state.l1.len() as u32).to_be_bytes());
        header.extend_from_slice(&CLUSTER.to_be_bytes());
        header.extend_from_slice(&table_at.to_be_bytes());
        header.extend_from_slice(&(table as u32).to_be_bytes());
        // No snapshots, no feature bits.
        header.extend_from_slice(&[0; 12 + 24]);
        // Refcounts of 2^4 bits; length of the header.
        header.extend_from_slice(&4u32.to_be_bytes());
        header.extend_from_slice(&104u32.to_be_bytes());
        at(&self.place, self.file.write_all_at(&header, 0))?;
        at(&self.place, self.file.sync_all())
    }
}

impl Sink for Writer {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        for (number, cluster) in (offset / CLUSTER..).zip(data.chunks(CLUSTER as usize)) {
            if is_zero(cluster) {
                continue;
            }
            let table = (number / ENTRIES) as usize;
            if table != self.state.current {
                self.end_table()?;
                self.state.current = table;
            }
            self.state.l2[(number % ENTRIES) as usize] = self.put(cluster)? | COPIED;
        }
        Ok(())
    }
}

/// Reads a disk.
pub struct Reader {
    file: File,
    place: String,
    length: u64,
    size: u64,
    cluster_bits: u32,
    l1: Vec<u64>,
    /// The L2 table that was used last, and which it is.
    l2: Vec<u64>,
    current: Option<u64>,
    cluster: Vec<u8>,
}

/// Largest L1 table: that of the largest disk in the smallest clusters.
const MAX_L1: u64 = 64 << 20;

impl Reader {
    /// Reads the header and the L1 table.
    ///
    /// # Errors
    /// When the file is no qcow2, damaged, or needs something that is not here.
    pub fn open(file: File, name: &str) -> Result<Self, Error> {
        let place = format!("{name}, header");
        let mut header = [0; 104];
        at(&place, file.read_exact_at(&mut header[..72], 0))?;
        let u32_at =
            |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let u64_at =
            |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if u32_at(0) != MAGIC {
            return damaged(place, "it does not begin with QFI: it is no qcow2");
        }
        let version = u32_at(4);
        if !(2..=3).contains(&version) {
            return unsupported(place, format!("it is version {version}"));
        }
        if u64_at(8) != 0 {
            return unsupported(
                place,
                "it has a backing file; flatten it with qemu-img convert",
            );
        }
        if u32_at(32) != 0 {
            return unsupported(place, "it is encrypted");
        }
        let (cluster_bits, size) = (u32_at(20), u64_at(24));
        if !(9..=21).contains(&cluster_bits) {
            return damaged(
                place,
                format!("a cluster has 2^{cluster_bits} bytes, which cannot be"),
            );
        }
        if size == 0 || size > MAX_DISK {
            return damaged(place, format!("the disk has {size} bytes, which cannot be"));
        }
        let (entries, l1_at) = (u64::from(u32_at(36)), u64_at(40));
        if version == 3 {
            let mut features = [0; 8];
            at(&place, file.read_exact_at(&mut features, 72))?;
            // Dirty refcounts harm no reader; external data, other compression and extended entries do.
            let features = u64::from_be_bytes(features) & !1;
            if features != 0 {
                return unsupported(
                    place,
                    format!("it has the incompatible features {features:#x}"),
                );
            }
        }
        let per_table = 1u64 << (2 * cluster_bits - 3);
        if entries * 8 > MAX_L1 || entries < size.div_ceil(per_table) {
            return damaged(
                place,
                format!("its L1 table has {entries} entries, which cannot be"),
            );
        }
        let length = at(&place, file.metadata())?.len();
        let mut reader = Self {
            file,
            place: name.to_owned(),
            length,
            size,
            cluster_bits,
            l1: Vec::new(),
            l2: Vec::new(),
            current: None,
            cluster: Vec::new(),
        };
        reader.l1 = reader.table(l1_at, size.div_ceil(per_table), "L1 table")?;
        Ok(reader)
    }

    fn table(&self, offset: u64, entries: u64, what: &str) -> Result<Vec<u64>, Error> {
        let mut bytes = vec![0; entries as usize * 8];
        let place = format!("{}, {what} at {offset}", self.place);
        at(&place, self.file.read_exact_at(&mut bytes, offset))?;
        Ok(bytes
            .chunks_exact(8)
            .map(|entry| u64::from_be_bytes(entry.try_into().expect("eight bytes")))
            .collect())
    }

    fn entries(&self) -> u64 {
        1 << (self.cluster_bits - 3)
    }

    /// The entry of a cluster of the disk; 0 if it has none.
    fn entry(&mut self, number: u64) -> Result<u64, Error> {
        let table = number / self.entries();
        if self.current != Some(table) {
            let offset = self.l1[table as usize] & OFFSET;
            if offset == 0 {
                return Ok(0);
            }
            self.l2 = self.table(offset, self.entries(), "L2 table")?;
            self.current = Some(table);
        }
        Ok(self.l2[(number % self.entries()) as usize])
    }

    /// Reads the cluster of an entry that is not 0.
    fn fetch(&mut self, number: u64, entry: u64) -> Result<(), Error> {
        let size = 1usize << self.cluster_bits;
        let place = format!("{}, cluster {number} of the disk", self.place);
        self.cluster.clear();
        self.cluster.resize(size, 0);
        if entry & COMPRESSED == 0 {
            let offset = entry & OFFSET;
            if entry & ALL_ZEROS != 0 || offset == 0 {
                return Ok(());
            }
            if offset >= self.length {
                return damaged(place, "it lies behind the end of the file");
            }
            // The last cluster of a file may be cut short at the end of the disk.
            let there = (self.length - offset).min(size as u64) as usize;
            return at(
                &place,
                self.file.read_exact_at(&mut self.cluster[..there], offset),
            );
        }
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry >> bits & ((1 << (62 - bits)) - 1)) + 1;
        let most = (sectors * 512 - offset % 512).min(self.length.saturating_sub(offset));
        let mut packed = vec![0; most as usize];
        at(&place, self.file.read_exact_at(&mut packed, offset))?;
        match DeflateDecoder::new(&packed[..]).read_exact(&mut self.cluster) {
            Ok(()) => Ok(()),
            Err(error) => damaged(place, format!("it cannot be decompressed ({error})")),
        }
    }
}

impl Source for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let cluster = 1 << self.cluster_bits;
        let clusters = self.size.div_ceil(cluster);
        let mut number = from / cluster;
        while number < clusters {
            let table = number / self.entries();
            if self.l1[table as usize] & OFFSET == 0 {
                number = (table + 1) * self.entries();
            } else if self.entry(number)? == 0 {
                number += 1;
            } else {
                let start = (number * cluster).max(from);
                return Ok(Some(start..((number + 1) * cluster).min(self.size)));
            }
        }
        Ok(None)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let cluster = 1u64 << self.cluster_bits;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (number, within) = (at / cluster, (at % cluster) as usize);
            let n = (cluster as usize - within).min(buffer.len() - done);
            let piece = &mut buffer[done..done + n];
            match self.entry(number)? {
                0 => piece.fill(0),
                entry => {
                    self.fetch(number, entry)?;
                    piece.copy_from_slice(&self.cluster[within..within + n]);
                }
            }
            done += n;
        }
        Ok(())
    }
}
