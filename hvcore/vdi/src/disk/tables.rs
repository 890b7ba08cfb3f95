//! Keeps the VHD's tables in the file behind those in memory.
//!
//! Order in which a new block comes into being:
//! 1. *placing*: with the first data, its bitmap, and the footer behind it. The new footer is never where the old
//!    one is, so the file always ends in one.
//! 2. COMMIT of all this and of the data.
//! 3. *entering*: its entry in the block allocation table (BAT), and bitmaps of older blocks that have changed.
//! 4. COMMIT of these; then a flush is answered.
//!
//! Whatever is lost of what was not committed, the BAT names no block that is not whole in the file, and a
//! bitmap claims no sector whose data is not there. An owner or a server that dies leaves, at worst, blocks behind the last
//! that the BAT names; these are cut off when the disk is opened again.
//!
//! Placing is done at once; a commit, which is when the rest is done, then has less to wait for. Entering at
//! once too was rejected: it would need a COMMIT for each new block.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use nfs_client::Payload;
use vhd::{Allocation, Bitmap, SECTOR};

use super::{Context, Disk};
use crate::{error::IoError, layer::Missing, tag::WritePurpose};

/// What of the tables is not in the file yet.
#[derive(Debug)]
pub(super) struct Tables {
    /// New blocks, to be placed.
    fresh: Vec<Allocation>,
    placing: Option<Placing>,
    /// Rounds of placing begun and ended.
    begun: u64,
    ended: u64,
    /// Blocks that are placed and not entered.
    placed: BTreeSet<u32>,
    /// Blocks whose bitmap in memory is ahead of the file's.
    dirty: BTreeSet<u32>,
    entering: Option<Entering>,
    footer_due: bool,
    /// Why the last round of placing failed; the next commit tries again.
    failed: Option<IoError>,
    /// Blocks of a dynamic disk whose bitmap is known to be full.
    full: BTreeSet<u32>,
    /// Bitmaps being read, with the operations that wait for them.
    loading: BTreeMap<Missing, Vec<u64>>,
}

#[derive(Debug)]
struct Placing {
    blocks: Vec<Allocation>,
    left: usize,
    error: Option<IoError>,
}

#[derive(Debug)]
struct Entering {
    blocks: BTreeSet<u32>,
    bitmaps: BTreeSet<u32>,
    left: usize,
    error: Option<IoError>,
}

/// What is to be entered: the state of the tables when the COMMIT before it was sent.
#[derive(Debug)]
pub(super) struct Snapshot {
    blocks: BTreeSet<u32>,
    bitmaps: BTreeMap<u32, Bitmap>,
}

impl Tables {
    pub fn new(footer_due: bool) -> Self {
        Self {
            fresh: Vec::new(),
            placing: None,
            begun: 0,
            ended: 0,
            placed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            entering: None,
            footer_due,
            failed: None,
            full: BTreeSet::new(),
            loading: BTreeMap::new(),
        }
    }

    pub fn on_allocated(&mut self, allocation: Allocation) {
        self.fresh.push(allocation);
    }

    /// A block was placed by the owner before us.
    pub fn on_placed(&mut self, block: u32) {
        self.placed.insert(block);
    }

    /// Placed blocks that are not entered.
    pub fn placed(&self) -> impl Iterator<Item = u32> {
        self.placed.iter().copied()
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

    /// Whether a bitmap is being read.
    pub fn is_loading(&self) -> bool {
        !self.loading.is_empty()
    }

    pub fn end_loading(&mut self, missing: Missing) -> Vec<u64> {
        self.loading.remove(&missing).unwrap_or_default()
    }

    /// All blocks are placed, and bitmaps as they should be; entries may be missing.
    pub fn can_travel(&self) -> bool {
        !self.must_place()
            && self.placing.is_none()
            && self.dirty.is_empty()
            && self.entering.is_none()
    }

    /// The file has everything, though perhaps not on stable storage.
    pub fn is_written(&self) -> bool {
        self.can_travel() && self.placed.is_empty()
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn must_place(&self) -> bool {
        !self.fresh.is_empty() || self.footer_due
    }

    /// The round after which everything of now is placed.
    pub fn round_of_now(&self) -> u64 {
        self.begun + u64::from(self.must_place())
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
    /// Places new blocks.
    pub(super) fn advance_tables(&mut self, cx: &mut Context<'_>) {
        if !self.tables.must_place()
            || self.tables.placing.is_some()
            || self.tables.failed.is_some()
            || self.commit.is_rewriting()
        {
            return;
        }
        self.tables.begun += 1;
        let blocks = core::mem::take(&mut self.tables.fresh);
        let mut left = 0;
        for allocation in &blocks {
            let bitmap = self.layers[0].disk.new_bitmap(0, 0);
            let bytes = Payload::from(bitmap.as_bytes().to_vec());
            left += self.write(WritePurpose::Placing, allocation.bitmap_at, bytes, cx);
        }
        // Behind the last block of this round; a block that comes later brings its own.
        let leaf = &self.layers[0].disk;
        let footer_at = blocks
            .last()
            .map_or(leaf.footer_at(), |last| last.footer_at);
        let footer = Payload::from(leaf.footer().encode().to_vec());
        left += self.write(WritePurpose::Placing, footer_at, footer, cx);
        self.tables.footer_due = false;
        self.tables.placing = Some(Placing {
            blocks,
            left,
            error: None,
        });
    }

    pub(super) fn on_placed(&mut self, result: Result<(), IoError>) {
        let tables = &mut self.tables;
        let placing = tables.placing.as_mut().expect("placing is under way");
        if let Err(why) = result {
            placing.error.get_or_insert(why);
        }
        placing.left -= 1;
        if placing.left > 0 {
            return;
        }
        let Placing { blocks, error, .. } = tables.placing.take().expect("placing is under way");
        tables.ended += 1;
        if error.is_none() {
            tables
                .placed
                .extend(blocks.iter().map(|allocation| allocation.block));
        } else {
            tables.footer_due = true;
            tables.fresh.splice(0..0, blocks);
        }
        tables.failed = error;
    }

    /// What can be entered once all that is acknowledged now is stable; none if there is nothing.
    pub(super) fn snapshot_tables(&mut self) -> Option<Snapshot> {
        let tables = &mut self.tables;
        let placing = tables.placing.iter().flat_map(|placing| &placing.blocks);
        let not_placed: BTreeSet<u32> = placing
            .chain(&tables.fresh)
            .map(|allocation| allocation.block)
            .collect();
        let blocks = core::mem::take(&mut tables.placed);
        let changed: BTreeSet<u32> = tables.dirty.difference(&not_placed).copied().collect();
        tables.dirty.retain(|block| not_placed.contains(block));
        if blocks.is_empty() && changed.is_empty() {
            return None;
        }
        let leaf = &self.layers[0];
        let bitmap = |block| match leaf.bitmaps.get(&block) {
            Some(bitmap) => bitmap.clone(),
            None => Bitmap::full(leaf.bitmap_size()),
        };
        let bitmaps = changed
            .into_iter()
            .map(|block| (block, bitmap(block)))
            .collect();
        Some(Snapshot { blocks, bitmaps })
    }

    /// A snapshot that is not entered after all.
    pub(super) fn give_back(&mut self, snapshot: Snapshot) {
        self.tables.placed.extend(snapshot.blocks);
        self.tables.dirty.extend(snapshot.bitmaps.into_keys());
    }

    pub(super) fn enter(&mut self, snapshot: Snapshot, cx: &mut Context<'_>) {
        let Snapshot { blocks, bitmaps } = snapshot;
        let mut left = 0;
        for (block, bitmap) in &bitmaps {
            let at = self.layers[0].bitmap_at(*block).expect("the block exists");
            let bytes = Payload::from(bitmap.as_bytes().to_vec());
            left += self.write(WritePurpose::Entering, at, bytes, cx);
        }
        for (at, bytes) in self.entries(&blocks) {
            left += self.write(WritePurpose::Entering, at, bytes.into(), cx);
        }
        let bitmaps = bitmaps.into_keys().collect();
        self.tables.entering = Some(Entering {
            blocks,
            bitmaps,
            left,
            error: None,
        });
    }

    /// Entries of the BAT and where they go, adjacent ones joined.
    fn entries(&self, blocks: &BTreeSet<u32>) -> Vec<(u64, Vec<u8>)> {
        let leaf = &self.layers[0];
        let table = leaf.disk.header().map_or(0, |header| header.bat_offset);
        let mut joined: Vec<(u64, Vec<u8>)> = Vec::new();
        for block in blocks {
            let at = table + 4 * u64::from(*block);
            let place = leaf.bitmap_at(*block).expect("the block exists");
            let entry = ((place / SECTOR) as u32).to_be_bytes();
            match joined.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == at => run.extend(entry),
                _ => joined.push((at, entry.to_vec())),
            }
        }
        joined
    }

    pub(super) fn on_entered(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        let tables = &mut self.tables;
        let entering = tables.entering.as_mut().expect("entering is under way");
        if let Err(why) = result {
            entering.error.get_or_insert(why);
        }
        entering.left -= 1;
        if entering.left > 0 {
            return;
        }
        let entering = tables.entering.take().expect("entering is under way");
        let result = match entering.error {
            None => Ok(()),
            Some(why) => {
                tables.placed.extend(entering.blocks);
                tables.dirty.extend(entering.bitmaps);
                Err(why)
            }
        };
        self.after_entering(result, cx);
    }
}
