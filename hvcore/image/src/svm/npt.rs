//! Nested page tables: guest-physical to physical, and the record of what the guest wrote.
//!
//! Always 4 KiB pages, because the D bit of a leaf is the dirty log and splitting large pages when
//! a migration starts would be the harder half of it; 2 MiB pages were measured to gain
//! nothing. All tables are built when the VM is made, so running a guest never allocates.
//!
//! A block of RAM (2 MiB, one leaf table) becomes present when the guest first touches it, or when a
//! vCPU is loaded and the block holds something by then.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use guest_memory::{Gpa, GuestMemory, HOLE_END, HOLE_START, PAGE_SIZE, PageSet};

use super::ram::{BLOCK_SIZE, Blocks};

/// Entries in a table of any level.
const ENTRIES: usize = 512;
/// Bytes that one directory maps.
const DIRECTORY_SPAN: u64 = BLOCK_SIZE * ENTRIES as u64;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// The nested walk counts as a user access at every level (APM vol. 2, 15.25.5).
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const ALLOWED: u64 = PRESENT | WRITABLE | USER;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

impl Table {
    fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

    /// Physical address; memory is identity-mapped.
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }
}

/// Says whether cached translations must go before the guest runs again.
#[must_use = "a translation that stays cached hides later writes from the dirty log"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushNeeded(pub bool);

/// The nested page tables of one VM.
pub struct NestedTables {
    root: Box<Table>,
    /// Level 3; held because `root` points to it.
    _pointers: Box<Table>,
    directories: Vec<Table>,
    leaves: Vec<Table>,
    blocks: Arc<Blocks>,
}

impl NestedTables {
    /// Bytes that the tables of a VM of `memory` bytes take.
    pub fn overhead(memory: u64) -> u64 {
        let tables = 2 + memory.div_ceil(DIRECTORY_SPAN) + memory.div_ceil(BLOCK_SIZE);
        tables * PAGE_SIZE as u64
    }

    /// Builds the tables for a guest's RAM; none when they do not fit.
    pub fn build(blocks: Arc<Blocks>) -> Option<Self> {
        let leaves = tables(blocks.count())?;
        for (index, leaf) in leaves.iter().enumerate() {
            let start = index as u64 * BLOCK_SIZE;
            let pages = (blocks.size() - start).min(BLOCK_SIZE) / PAGE_SIZE as u64;
            for page in 0..pages {
                let frame = blocks.base(index) + page * PAGE_SIZE as u64;
                leaf.0[page as usize].store(frame | ALLOWED, Ordering::Relaxed);
            }
        }
        let directories = tables(blocks.count().div_ceil(ENTRIES))?;
        let pointers = Box::new(Table::empty());
        for (index, directory) in directories.iter().enumerate() {
            let Gpa(gpa) = GuestMemory::gpa_of_page(index * ENTRIES * ENTRIES);
            pointers
                .0
                .get((gpa / DIRECTORY_SPAN) as usize)?
                .store(directory.address() | ALLOWED, Ordering::Relaxed);
        }
        let root = Box::new(Table::empty());
        root.0[0].store(pointers.address() | ALLOWED, Ordering::Relaxed);
        Some(Self {
            root,
            _pointers: pointers,
            directories,
            leaves,
            blocks,
        })
    }

    /// What the VMCB's nested CR3 takes.
    pub fn root(&self) -> u64 {
        self.root.address()
    }

    /// The directory entry that points to a block's leaf table.
    fn directory_entry(&self, block: usize) -> &AtomicU64 {
        &self.directories[block / ENTRIES].0[block % ENTRIES]
    }

    /// Maps the RAM at an address that the guest touched for the first time. False when there is
    /// no RAM, or it was mapped already.
    pub fn populate(&self, gpa: u64) -> bool {
        let offset = match gpa {
            ..HOLE_START => gpa,
            HOLE_START..HOLE_END => return false,
            HOLE_END.. => gpa - HOLE_END + HOLE_START,
        };
        if offset >= self.blocks.size() {
            return false;
        }
        let block = (offset / BLOCK_SIZE) as usize;
        self.blocks.put_in_use(block);
        self.map(block)
    }

    /// Maps all RAM that holds something: what a loader or a migration has put there will be touched soon, and
    /// each first touch would cost an exit.
    pub fn populate_used(&self) {
        for block in (0..self.blocks.count()).filter(|block| self.blocks.is_in_use(*block)) {
            self.map(block);
        }
    }

    /// Makes a block present; false when it was already.
    fn map(&self, block: usize) -> bool {
        let entry = self.directory_entry(block);
        if entry.load(Ordering::Relaxed) != 0 {
            return false;
        }
        entry.store(self.leaves[block].address() | ALLOWED, Ordering::Relaxed);
        true
    }

    /// Moves the D bits into `into`.
    ///
    /// A leaf table can only have gained D bits if the CPU walked through its directory entry and
    /// set A there, so tables that were not touched are skipped for the price of one read. The A
    /// bit is cleared *before* the table is read: a walk in between sets it again, and the next
    /// harvest looks again.
    pub fn harvest(&self, into: &mut PageSet) -> FlushNeeded {
        let mut flush = false;
        for (block, leaf) in self.leaves.iter().enumerate() {
            let entry = self.directory_entry(block);
            if entry.load(Ordering::Relaxed) & ACCESSED == 0 {
                continue;
            }
            entry.fetch_and(!ACCESSED, Ordering::AcqRel);
            flush = true;
            for (index, entries) in leaf.0.chunks_exact(64).enumerate() {
                let bits = take_dirty(entries);
                if bits != 0 {
                    into.insert_word(block * (ENTRIES / 64) + index, bits);
                }
            }
        }
        FlushNeeded(flush)
    }
}

/// Clears the D bits of 64 entries and returns them, the first entry's in bit 0.
fn take_dirty(entries: &[AtomicU64]) -> u64 {
    let mut bits = 0;
    for (bit, entry) in entries.iter().enumerate() {
        if entry.load(Ordering::Relaxed) & DIRTY != 0 {
            // Atomic: a guest on another CPU may set A or D of the same entry.
            entry.fetch_and(!DIRTY, Ordering::AcqRel);
            bits |= 1 << bit;
        }
    }
    bits
}

fn tables(count: usize) -> Option<Vec<Table>> {
    let mut tables = Vec::new();
    tables.try_reserve_exact(count).ok()?;
    tables.resize_with(count, Table::empty);
    Some(tables)
}
