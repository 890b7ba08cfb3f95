//! Guest RAM in physical memory, in blocks of 2 MiB.
//!
//! A block is zeroed when it is first used, by the guest or by the hypervisor: a new VM costs nothing up
//! front, and a VM that arrives by migration only touches what its guest had touched. Until then
//! the block reads as zero without being looked at. Rejected: zeroing everything when the VM is made,
//! which holds up all other guests of the host for as long as it takes.

use alloc::{sync::Arc, vec::Vec};
use core::{
    ops::Range,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, Ordering},
};

use guest_memory::{PAGE_SIZE, Ram};

use crate::memory::Frames;

/// Bytes in a block: what one page table of the nested page tables maps.
pub const BLOCK_SIZE: u64 = 2 << 20;

struct Block {
    frames: Frames,
    /// It has been zeroed; from then on its content is the guest's.
    in_use: AtomicBool,
}

/// The blocks of one guest. They are free again when the last owner is dropped: the nested page
/// tables that map them, or the [`GuestRam`] that reads them.
pub struct Blocks {
    size: u64,
    blocks: Vec<Block>,
}

impl Blocks {
    /// Takes the blocks for a guest of `size` bytes; none when they do not all fit.
    pub fn take(size: u64) -> Option<Arc<Self>> {
        const FRAMES: u64 = BLOCK_SIZE / PAGE_SIZE as u64;
        let count = size.div_ceil(BLOCK_SIZE) as usize;
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(count).ok()?;
        for _ in 0..count {
            blocks.push(Block {
                frames: Frames::allocate(FRAMES, FRAMES)?,
                in_use: AtomicBool::new(false),
            });
        }
        Some(Arc::new(Self { size, blocks }))
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many blocks there are.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Physical address of a block, whether it is in use yet or not.
    pub fn base(&self, index: usize) -> u64 {
        self.blocks[index].frames.address()
    }

    /// Makes a block ready for use.
    pub fn put_in_use(&self, index: usize) {
        if !self.is_in_use(index) {
            let block = &self.blocks[index];
            // SAFETY: the block is ours alone and not yet mapped for the guest, which waits for
            // `in_use`. The image runs on one physical CPU, so no other caller is between the
            // load and the store.
            unsafe {
                block.frames.pointer().write_bytes(0, block.frames.bytes());
            }
            block.in_use.store(true, Ordering::Release);
        }
    }

    /// Whether a block holds something.
    pub fn is_in_use(&self, index: usize) -> bool {
        self.blocks[index].in_use.load(Ordering::Acquire)
    }

    /// Where a byte of a block is, if the block is in use.
    fn pointer(&self, index: usize, within: usize) -> Option<NonNull<u8>> {
        if !self.is_in_use(index) {
            return None;
        }
        let block = &self.blocks[index];
        assert!(within < block.frames.bytes(), "offset within a block");
        // SAFETY: inside the block, as just checked.
        Some(unsafe { block.frames.pointer().add(within) })
    }
}

/// The hypervisor's way to a guest's RAM.
pub struct GuestRam(pub Arc<Blocks>);

/// Cuts an access into pieces that each lie in one block: block, offset in it, range of the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK_SIZE) as usize;
        let piece = done..len.min(done + (BLOCK_SIZE as usize - within));
        done = piece.end;
        Some(((at / BLOCK_SIZE) as usize, within, piece))
    })
}

impl Ram for GuestRam {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        for (block, within, piece) in pieces(offset, buf.len()) {
            let buf = &mut buf[piece];
            let Some(from) = self.0.pointer(block, within) else {
                buf.fill(0);
                continue;
            };
            // SAFETY: `pieces` keeps the piece inside the block. The buffer is a Rust object,
            // and guest RAM never holds one.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), buf.as_mut_ptr(), buf.len()) };
        }
    }

    fn write(&self, offset: u64, buf: &[u8]) {
        for (block, within, piece) in pieces(offset, buf.len()) {
            self.0.put_in_use(block);
            let buf = &buf[piece];
            let to = self.0.pointer(block, within).expect("it was put in use");
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(buf.as_ptr(), to.as_ptr(), buf.len()) };
        }
    }
}
