//! Guest RAM as the hypervisor sees it, with the software half of the dirty map.
//!
//! A guest's own writes set the D bits of its nested page tables. Writes that the hypervisor makes on
//! the guest's behalf (a virtio ring, a disk read, kvmclock) do not, so every write that goes
//! through [`GuestMemory`] marks its pages here. Live migration harvests both; a write path round
//! this type would lose pages.
//!
//! RAM is addressed in two ways: by guest-physical address ([`Gpa`]), which has a hole below 4 GiB
//! for devices, and by page index, which counts RAM pages from zero without the hole.
//! [`PageSet`] and everything that travels between hosts use page indices.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod page_set;

use alloc::{boxed::Box, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

pub use page_set::PageSet;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// First guest-physical address of the device hole; RAM beyond it continues at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;

/// First guest-physical address above the device hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// A guest-physical address: untrusted until [`GuestMemory`] has accepted it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The bytes behind a guest's RAM, addressed without the hole.
///
/// A guest may run on another CPU while the hypervisor reads, so an implementation gives no
/// references into RAM, only copies.
pub trait Ram: Send + Sync {
    /// Size in bytes, a multiple of [`PAGE_SIZE`].
    fn size(&self) -> u64;
    /// Copies `buf.len()` bytes from `offset`. The caller has checked the range.
    fn read(&self, offset: u64, buf: &mut [u8]);
    /// Copies `buf` to `offset`. The caller has checked the range.
    fn write(&self, offset: u64, buf: &[u8]);
}

/// An access touched an address that is not RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// Where the access began.
    pub gpa: Gpa,
    /// How many bytes it wanted.
    pub len: usize,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at guest address {:?} are not RAM",
            self.len, self.gpa
        )
    }
}

impl core::error::Error for OutOfRange {}

/// A guest's RAM and the map of the pages the hypervisor wrote.
pub struct GuestMemory {
    ram: Box<dyn Ram>,
    written: Vec<AtomicU64>,
}

impl GuestMemory {
    /// Wraps a guest's RAM; nothing is marked dirty.
    #[must_use]
    pub fn new(ram: Box<dyn Ram>) -> Self {
        assert!(
            ram.size().is_multiple_of(PAGE_SIZE as u64),
            "guest RAM is whole pages"
        );
        let pages = usize::try_from(ram.size()).expect("RAM fits the address space") / PAGE_SIZE;
        let written = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { ram, written }
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ram.size()
    }

    /// Pages of RAM.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.size() as usize / PAGE_SIZE
    }

    /// RAM offset of an access, or why it is refused. An access that runs into the hole is refused
    /// whole.
    ///
    /// # Errors
    /// When any byte of the access is not RAM.
    pub fn offset_of(&self, gpa: Gpa, len: usize) -> Result<u64, OutOfRange> {
        let refused = OutOfRange { gpa, len };
        let end = gpa.0.checked_add(len as u64).ok_or(refused)?;
        if end <= HOLE_START.min(self.size()) {
            return Ok(gpa.0);
        }
        if gpa.0 >= HOLE_END {
            let offset = gpa.0 - HOLE_END + HOLE_START;
            if end - HOLE_END + HOLE_START <= self.size() {
                return Ok(offset);
            }
        }
        Err(refused)
    }

    /// Guest-physical address of a RAM page.
    #[must_use]
    pub fn gpa_of_page(page: usize) -> Gpa {
        let offset = page as u64 * PAGE_SIZE as u64;
        if offset < HOLE_START {
            Gpa(offset)
        } else {
            Gpa(offset - HOLE_START + HOLE_END)
        }
    }

    /// Reads guest RAM.
    ///
    /// # Errors
    /// When any byte is not RAM; `buf` is then untouched.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let offset = self.offset_of(gpa, buf.len())?;
        self.ram.read(offset, buf);
        Ok(())
    }

    /// Writes guest RAM and marks the pages dirty.
    ///
    /// # Errors
    /// When any byte is not RAM; nothing is then written.
    pub fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), OutOfRange> {
        let offset = self.offset_of(gpa, buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        self.ram.write(offset, buf);
        let first = offset as usize / PAGE_SIZE;
        let last = (offset as usize + buf.len() - 1) / PAGE_SIZE;
        for page in first..=last {
            self.written[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads a little-endian `u16`. See [`Self::read`] for errors.
    #[allow(clippy::missing_errors_doc)]
    pub fn read_u16(&self, gpa: Gpa) -> Result<u16, OutOfRange> {
        let mut b = [0; 2];
        self.read(gpa, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }

    /// Reads a little-endian `u32`. See [`Self::read`] for errors.
    #[allow(clippy::missing_errors_doc)]
    pub fn read_u32(&self, gpa: Gpa) -> Result<u32, OutOfRange> {
        let mut b = [0; 4];
        self.read(gpa, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Reads a little-endian `u64`. See [`Self::read`] for errors.
    #[allow(clippy::missing_errors_doc)]
    pub fn read_u64(&self, gpa: Gpa) -> Result<u64, OutOfRange> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// Copies a whole page out, by index.
    ///
    /// # Panics
    /// When the index is beyond RAM: indices come from our own sets, not from a guest.
    pub fn read_page(&self, page: usize, buf: &mut [u8; PAGE_SIZE]) {
        assert!(page < self.pages(), "page {page} is beyond guest RAM");
        self.ram.read(page as u64 * PAGE_SIZE as u64, buf);
    }

    /// Fills a whole page, by index, *without* marking it dirty: for RAM that arrives from another
    /// host, which already counts as transferred.
    ///
    /// # Panics
    /// When the index is beyond RAM.
    pub fn load_page(&self, page: usize, buf: &[u8; PAGE_SIZE]) {
        assert!(page < self.pages(), "page {page} is beyond guest RAM");
        self.ram.write(page as u64 * PAGE_SIZE as u64, buf);
    }

    /// Moves the marks of the hypervisor's writes into `into` and clears them here.
    pub fn harvest_into(&self, into: &mut PageSet) {
        for (index, word) in self.written.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                into.insert_word(index, word.swap(0, Ordering::Relaxed));
            }
        }
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMemory")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// RAM in ordinary memory, for tests, fuzzers and simulations on the host.
pub mod testing {
    use alloc::{boxed::Box, vec::Vec};
    use core::sync::atomic::{AtomicU8, Ordering};

    use crate::{GuestMemory, Ram};

    struct VecRam(Vec<AtomicU8>);

    impl Ram for VecRam {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read(&self, offset: u64, buf: &mut [u8]) {
            for (byte, cell) in buf.iter_mut().zip(&self.0[offset as usize..]) {
                *byte = cell.load(Ordering::Relaxed);
            }
        }
        fn write(&self, offset: u64, buf: &[u8]) {
            for (byte, cell) in buf.iter().zip(&self.0[offset as usize..]) {
                cell.store(*byte, Ordering::Relaxed);
            }
        }
    }

    /// A zeroed guest RAM of `size` bytes.
    #[must_use]
    pub fn memory(size: usize) -> GuestMemory {
        GuestMemory::new(Box::new(VecRam(
            (0..size).map(|_| AtomicU8::new(0)).collect(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_across_pages_marks_each_page_once() {
        let memory = testing::memory(4 * PAGE_SIZE);
        memory.write(Gpa(PAGE_SIZE as u64 - 1), &[1, 2]).unwrap();
        let mut dirty = PageSet::new(memory.pages());
        memory.harvest_into(&mut dirty);
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [0, 1]);
        let mut again = PageSet::new(memory.pages());
        memory.harvest_into(&mut again);
        assert!(again.is_empty());
    }

    #[test]
    fn an_access_past_the_end_changes_nothing() {
        let memory = testing::memory(PAGE_SIZE);
        assert!(memory.write(Gpa(PAGE_SIZE as u64 - 1), &[1, 2]).is_err());
        assert!(memory.write(Gpa(u64::MAX), &[1, 2]).is_err());
        let mut byte = [0];
        memory.read(Gpa(PAGE_SIZE as u64 - 1), &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let mut dirty = PageSet::new(memory.pages());
        memory.harvest_into(&mut dirty);
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_loaded_page_is_not_dirty() {
        let memory = testing::memory(PAGE_SIZE);
        memory.load_page(0, &[7; PAGE_SIZE]);
        let mut dirty = PageSet::new(1);
        memory.harvest_into(&mut dirty);
        assert!(dirty.is_empty());
    }
}
