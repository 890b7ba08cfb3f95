//! Keeps the VHD's tables in the file behind those in memory.
//!
//! Order in which a new block comes into being:
//! 1. its data, its bitmap, and the footer behind it (which never lies where the old footer or a block is,
//!    so the file always ends in a footer);
//! 2. when the server has these, the entry in the block allocation table (BAT).
//!
//! So an owner that dies leaves a valid disk: a block whose entry is missing is behind the last block, and is cut
//! off when the disk is opened again.
//!
//! A *server* that dies may keep any part of what was not committed. In a dynamic disk that is harmless: a new block
//! without its data reads as zeros, which is what it held before. In a differencing disk a bit without its
//! data would hide the parent's; there, bitmaps and entries are written only after a COMMIT of the data.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use nfs_client::Payload;
use vhd::{Allocation, BatEntryWrite, Bitmap};

use super::{Context, Disk};
use crate::{error::IoError, layer::Missing, tag::WritePurpose};

/// What of the tables is not in the file yet.
#[derive(Debug)]
pub(super) struct Tables {
    /// New blocks, not yet in a round.
    fresh: Vec<Allocation>,
    /// Blocks whose bitmap in memory is ahead of the file's, not yet in a round.
    dirty: BTreeSet<u32>,
    footer_due: bool,
    round: Round,
    /// Rounds begun and ended.
    begun: u64,
    ended: u64,
    /// A round failed; the next begins with the next commit.
    failed: Option<IoError>,
    /// Blocks of a dynamic disk whose bitmap is full.
    full: BTreeSet<u32>,
    /// Bitmaps being read, with the operations that wait for them.
    loading: BTreeMap<Missing, Vec<u64>>,
}

#[derive(Debug)]
enum Round {
    None,
    /// Bitmaps and the footer are being written, for these blocks.
    Blocks {
        blocks: Vec<Allocation>,
        bitmaps: BTreeSet<u32>,
        left: usize,
    },
    /// Entries are being written.
    Entries {
        blocks: Vec<Allocation>,
        left: usize,
    },
}

/// What a differencing disk's round writes: its state when the COMMIT before it was sent.
#[derive(Debug)]
pub(super) struct Snapshot {
    blocks: Vec<Allocation>,
    bitmaps: BTreeMap<u32, Bitmap>,
}

impl Tables {
    pub fn new(footer_due: bool) -> Self {
        Self {
            fresh: Vec::new(),
            dirty: BTreeSet::new(),
            footer_due,
            round: Round::None,
            begun: 0,
            ended: 0,
            failed: None,
            full: BTreeSet::new(),
            loading: BTreeMap::new(),
        }
    }

    pub fn on_allocated(&mut self, allocation: Allocation) {
        self.fresh.push(allocation);
    }

    /// A differencing disk's bitmap has changed.
    pub fn on_dirty(&mut self, block: u32) {
        self.dirty.insert(block);
    }

    /// A dynamic disk's block was allocated by us, with a full bitmap.
    pub fn on_full(&mut self, block: u32) {
        self.full.insert(block);
    }

    /// A dynamic disk's bitmap was read. In a dynamic disk all bits are set: what the bits said not to be there is
    /// zero in the file too.
    pub fn on_loaded(&mut self, block: u32, full: bool) {
        self.full.insert(block);
        if !full {
            self.dirty.insert(block);
        }
    }

    pub fn is_full(&self, block: u32) -> bool {
        self.full.contains(&block)
    }

    /// Whether a call must be made.
    pub fn start_loading(&mut self, missing: Missing, waiter: Option<u64>) -> bool {
        let new = !self.loading.contains_key(&missing);
        self.loading.entry(missing).or_default().extend(waiter);
        new
    }

    pub fn end_loading(&mut self, missing: Missing) -> Vec<u64> {
        self.loading.remove(&missing).unwrap_or_default()
    }

    /// There is something that is not in the file and not on its way.
    pub fn is_behind(&self) -> bool {
        !self.fresh.is_empty() || !self.dirty.is_empty() || self.footer_due
    }

    /// The file has everything, though perhaps not on stable storage.
    pub fn is_written(&self) -> bool {
        !self.is_behind() && self.is_idle()
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.round, Round::None)
    }

    /// The round after which everything of now is in the file.
    pub fn round_of_now(&self) -> u64 {
        self.begun + u64::from(self.is_behind())
    }

    /// The latest round.
    pub fn round_begun(&self) -> u64 {
        self.begun
    }

    pub fn has_ended(&self, round: u64) -> bool {
        self.ended >= round
    }

    pub fn failure(&self) -> Option<&IoError> {
        self.failed.as_ref()
    }

    /// After a failure: try again.
    pub fn retry(&mut self) {
        self.failed = None;
    }
}

impl Disk {
    /// A dynamic disk's tables follow at once, so that a flush has little left to do.
    pub(super) fn advance_tables(&mut self, cx: &mut Context<'_>) {
        if self.is_differencing()
            || !self.tables.is_idle()
            || !self.tables.is_behind()
            || self.tables.failed.is_some()
            || self.commit.is_rewriting()
        {
            return;
        }
        let size = self.layers[0].bitmap_size();
        let blocks = core::mem::take(&mut self.tables.fresh);
        let dirty = core::mem::take(&mut self.tables.dirty);
        let bitmaps = blocks
            .iter()
            .map(|allocation| allocation.block)
            .chain(dirty)
            .map(|block| (block, Bitmap::full(size)))
            .collect();
        self.begin_round(Snapshot { blocks, bitmaps }, cx);
    }

    /// What a differencing disk's tables must say once its data of now is stable.
    pub(super) fn snapshot_tables(&mut self) -> Snapshot {
        let leaf = &self.layers[0];
        let blocks = core::mem::take(&mut self.tables.fresh);
        let mut changed = core::mem::take(&mut self.tables.dirty);
        changed.extend(blocks.iter().map(|allocation| allocation.block));
        let bitmaps = changed
            .into_iter()
            .map(|block| (block, leaf.bitmaps[&block].clone()))
            .collect();
        Snapshot { blocks, bitmaps }
    }

    pub(super) fn give_back(&mut self, snapshot: Snapshot) {
        self.tables.dirty.extend(snapshot.bitmaps.into_keys());
        self.tables.fresh.splice(0..0, snapshot.blocks);
    }

    pub(super) fn begin_round(&mut self, snapshot: Snapshot, cx: &mut Context<'_>) {
        let Snapshot { blocks, bitmaps } = snapshot;
        self.tables.begun += 1;
        let mut left = 0;
        for (block, bitmap) in &bitmaps {
            let at = self.layers[0].bitmap_at(*block).expect("the block exists");
            let bytes = Payload::from(bitmap.as_bytes().to_vec());
            left += self.write(WritePurpose::Tables, at, bytes, cx);
        }
        if !blocks.is_empty() || self.tables.footer_due {
            self.tables.footer_due = false;
            // Of the round's last block and not of the disk's: a later block's round brings its own.
            let at = match blocks.last() {
                Some(allocation) => allocation.footer_at,
                None => self.layers[0].disk.footer_at(),
            };
            let footer = Payload::from(self.layers[0].disk.footer().encode().to_vec());
            if !self.is_writing(at, footer.len() as u64) {
                left += self.write(WritePurpose::Tables, at, footer, cx);
            }
        }
        let bitmaps = bitmaps.into_keys().collect();
        self.tables.round = Round::Blocks {
            blocks,
            bitmaps,
            left,
        };
        if left == 0 {
            self.begin_entries(cx);
        }
    }

    fn begin_entries(&mut self, cx: &mut Context<'_>) {
        let round = core::mem::replace(&mut self.tables.round, Round::None);
        let Round::Blocks { blocks, .. } = round else {
            unreachable!("entries follow blocks")
        };
        let mut left = 0;
        for (at, bytes) in joined(blocks.iter().map(|allocation| allocation.bat_entry)) {
            left += self.write(WritePurpose::Tables, at, bytes.into(), cx);
        }
        self.tables.round = Round::Entries { blocks, left };
        if left == 0 {
            self.end_round();
        }
    }

    fn end_round(&mut self) {
        self.tables.round = Round::None;
        self.tables.ended += 1;
    }

    pub(super) fn on_table_written(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        if let Err(why) = result {
            self.tables.failed.get_or_insert(why);
        }
        let (Round::Blocks { left, .. } | Round::Entries { left, .. }) = &mut self.tables.round
        else {
            unreachable!("tables are written in rounds")
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        if self.tables.failed.is_none() {
            return match self.tables.round {
                Round::Blocks { .. } => self.begin_entries(cx),
                Round::Entries { .. } | Round::None => self.end_round(),
            };
        }
        // All of the round is to be done again, in order.
        match core::mem::replace(&mut self.tables.round, Round::None) {
            Round::Blocks {
                blocks, bitmaps, ..
            } => {
                self.tables.fresh.splice(0..0, blocks);
                self.tables.dirty.extend(bitmaps);
            }
            Round::Entries { blocks, .. } => {
                self.tables.fresh.splice(0..0, blocks);
            }
            Round::None => {}
        }
        self.tables.footer_due = true;
        self.tables.ended += 1;
    }
}

/// Entries in the order of the table, adjacent ones joined.
fn joined(entries: impl Iterator<Item = BatEntryWrite>) -> Vec<(u64, Vec<u8>)> {
    let sorted: BTreeMap<u64, [u8; 4]> = entries.map(|entry| (entry.at, entry.bytes)).collect();
    let mut joined: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in sorted {
        match joined.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(&bytes),
            _ => joined.push((at, bytes.to_vec())),
        }
    }
    joined
}
