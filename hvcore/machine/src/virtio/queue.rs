//! The device's side of a split virtqueue (virtio 1.2, 2.7), with indirect descriptors and event indices.
//!
//! All indices, lengths and addresses come from the guest: each is checked before use, each
//! loop is bounded, and a ring that breaks the rules gives a [`RingError`] and is not touched again. Buffers
//! are copied, never referenced: another processor of the guest may change them at any time.

use alloc::{vec, vec::Vec};
use core::sync::atomic::{Ordering, fence};

use guest_memory::{Gpa, GuestMemory, OutOfRange};

use crate::state::SavedQueue;

/// Descriptors in one chain, the indirect ones included.
const CHAIN_MAX: usize = 256;
const DESCRIPTOR_SIZE: usize = 16;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
/// Available ring's flag: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;

/// How a guest's ring breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A ring or a buffer is outside RAM.
    #[error("{0}")]
    OutOfRange(#[from] OutOfRange),
    /// The available index ran ahead of the ring.
    #[error("available index {available} is more than {size} ahead of {next}")]
    AvailableIndex {
        /// What the driver wrote.
        available: u16,
        /// What the device took last.
        next: u16,
        /// Size of the ring.
        size: u16,
    },
    /// A descriptor index is beyond its table.
    #[error("descriptor {index} is beyond a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A chain is a loop, or too long.
    #[error("a chain has more than {CHAIN_MAX} descriptors")]
    ChainTooLong,
    /// An indirect table is empty, of odd length, nested or followed by others.
    #[error("a malformed indirect descriptor")]
    BadIndirect,
    /// A buffer to read follows one to write.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The request in the buffers is none.
    #[error("{0}")]
    Request(&'static str),
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where.
    pub gpa: Gpa,
    /// How long.
    pub len: u32,
}

/// The buffers of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor, which names the chain when it is given back.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Buffer>,
    /// What the device writes.
    pub writable: Vec<Buffer>,
}

impl Chain {
    /// Bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Copies all that is readable from `skip` on, at most `limit` bytes.
    ///
    /// # Errors
    /// When a buffer is not RAM or there is more than `limit`.
    pub fn read(
        &self,
        memory: &GuestMemory,
        skip: u64,
        limit: usize,
    ) -> Result<Vec<u8>, RingError> {
        let len = self.readable_len().saturating_sub(skip);
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= limit)
            .ok_or(RingError::Request("a request is too long"))?;
        let mut bytes = vec![0; len];
        let mut skip = skip;
        let mut done = 0;
        for buffer in &self.readable {
            let skipped = skip.min(buffer.len.into());
            skip -= skipped;
            let end = done + (u64::from(buffer.len) - skipped) as usize;
            memory.read(Gpa(buffer.gpa.0 + skipped), &mut bytes[done..end])?;
            done = end;
        }
        Ok(bytes)
    }

    /// Copies `bytes` into what is writable; gives how many fitted.
    ///
    /// # Errors
    /// When a buffer is not RAM.
    pub fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> Result<u32, RingError> {
        let mut rest = bytes;
        for buffer in &self.writable {
            let (now, later) = rest.split_at(rest.len().min(buffer.len as usize));
            memory.write(buffer.gpa, now)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        Ok((bytes.len() - rest.len()) as u32)
    }
}

/// A virtqueue as the device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    // Fixed configuration.
    max_size: u16,
    // Volatile state.
    /// Number of entries, chosen by the driver: a power of two, at most the maximum.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// MSI-X vector, or [`super::NO_VECTOR`].
    pub vector: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// Used index when the driver was interrupted last.
    signalled: u16,
}

impl Queue {
    /// A queue that the driver has not set up.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            vector: super::NO_VECTOR,
            event_idx: false,
            next_available: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// Largest size.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Back to what it was before the driver set it up.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Whether the size and the addresses can be a ring's (virtio 1.2, 2.7 and 4.1.4.3).
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= self.max_size
            && self.descriptors.is_multiple_of(16)
            && self.available.is_multiple_of(2)
            && self.used.is_multiple_of(4)
    }

    /// Takes the next chain; when there is none, asks the driver to ring when there is one again.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, RingError> {
        match self.poll(memory)? {
            None if self.ask_to_ring(memory)? => self.poll(memory),
            next => Ok(next),
        }
    }

    /// Takes the next chain. The driver goes on not to ring while the device has not asked it to.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn poll(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, RingError> {
        if !self.ready || self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available % self.size);
        let head = memory.read_u16(at(self.available, 4 + 2 * slot))?;
        let chain = self.chain(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Asks the driver to ring for its next chain. True when it has added one before it could see that.
    ///
    /// # Errors
    /// When the ring breaks the rules.
    pub fn ask_to_ring(&self, memory: &GuestMemory) -> Result<bool, RingError> {
        if !self.ready {
            return Ok(false);
        }
        if self.event_idx {
            let event = at(self.used, 4 + 8 * u64::from(self.size));
            memory.write(event, &self.next_available.to_le_bytes())?;
            fence(Ordering::SeqCst);
        }
        Ok(self.waiting(memory)? != 0)
    }

    fn waiting(&self, memory: &GuestMemory) -> Result<u16, RingError> {
        let available = memory.read_u16(at(self.available, 2))?;
        // The driver writes the ring's entries before its index.
        fence(Ordering::Acquire);
        let waiting = available.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingError::AvailableIndex {
                available,
                next: self.next_available,
                size: self.size,
            });
        }
        Ok(waiting)
    }

    /// The chain that begins at a descriptor.
    ///
    /// # Errors
    /// When it breaks the rules.
    pub fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, RingError> {
        let mut chain = Chain {
            head,
            ..Chain::default()
        };
        let mut index = head;
        loop {
            let size = self.size;
            if index >= size {
                return Err(RingError::DescriptorIndex { index, size });
            }
            let offset = u64::from(index) * DESCRIPTOR_SIZE as u64;
            let mut bytes = [0; DESCRIPTOR_SIZE];
            memory.read(at(self.descriptors, offset), &mut bytes)?;
            let descriptor = Descriptor::parse(&bytes);
            if descriptor.flags & FLAG_INDIRECT != 0 {
                if descriptor.flags & FLAG_NEXT != 0 {
                    return Err(RingError::BadIndirect);
                }
                indirect(&mut chain, memory, &descriptor)?;
                return Ok(chain);
            }
            add(&mut chain, memory, &descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    /// Gives a chain back with the number of bytes written.
    ///
    /// # Errors
    /// When the used ring is not RAM.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), RingError> {
        let slot = u64::from(self.next_used % self.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(at(self.used, 4 + 8 * slot), &element)?;
        fence(Ordering::Release);
        self.next_used = self.next_used.wrapping_add(1);
        memory.write(at(self.used, 2), &self.next_used.to_le_bytes())?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was given back since it was asked last
    /// (virtio 1.2, 2.7.7).
    ///
    /// # Errors
    /// When the available ring is not RAM.
    pub fn interrupt_due(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        let due = self.interrupt_wanted(memory)?;
        self.signalled = self.next_used;
        Ok(due)
    }

    /// As [`Self::interrupt_due`], but nobody counts as asked.
    ///
    /// # Errors
    /// When the available ring is not RAM.
    pub fn interrupt_wanted(&self, memory: &GuestMemory) -> Result<bool, RingError> {
        let (old, new) = (self.signalled, self.next_used);
        if !self.ready || old == new {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = memory.read_u16(at(self.available, 4 + 2 * u64::from(self.size)))?;
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            Ok(memory.read_u16(Gpa(self.available))? & NO_INTERRUPT == 0)
        }
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedQueue {
        SavedQueue {
            size: self.size,
            ready: self.ready,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            vector: self.vector,
            next_available: self.next_available,
            next_used: self.next_used,
            signalled: self.signalled,
        }
    }

    /// Goes on from a saved state; `None` when it cannot be one.
    #[must_use]
    pub fn restore(max_size: u16, saved: &SavedQueue, event_idx: bool) -> Option<Self> {
        let queue = Self {
            max_size,
            size: saved.size,
            ready: saved.ready,
            descriptors: saved.descriptors,
            available: saved.available,
            used: saved.used,
            vector: saved.vector,
            event_idx,
            next_available: saved.next_available,
            next_used: saved.next_used,
            signalled: saved.signalled,
        };
        (!queue.ready || queue.is_well_formed()).then_some(queue)
    }
}

/// An address in a ring. It may wrap, and is then no RAM or other RAM of the same guest.
fn at(base: u64, offset: u64) -> Gpa {
    Gpa(base.wrapping_add(offset))
}

struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(bytes: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let word = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        Self {
            buffer: Buffer {
                gpa: Gpa(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                len: u32::from(word(8)) | u32::from(word(10)) << 16,
            },
            flags: word(12),
            next: word(14),
        }
    }
}

fn add(chain: &mut Chain, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), RingError> {
    let buffer = descriptor.buffer;
    memory.offset_of(buffer.gpa, buffer.len as usize)?;
    if chain.readable.len() + chain.writable.len() >= CHAIN_MAX {
        return Err(RingError::ChainTooLong);
    }
    if descriptor.flags & FLAG_WRITE != 0 {
        chain.writable.push(buffer);
    } else if chain.writable.is_empty() {
        chain.readable.push(buffer);
    } else {
        return Err(RingError::Order);
    }
    Ok(())
}

fn indirect(
    chain: &mut Chain,
    memory: &GuestMemory,
    descriptor: &Descriptor,
) -> Result<(), RingError> {
    let len = descriptor.buffer.len as usize;
    let entries = len / DESCRIPTOR_SIZE;
    if len == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE) {
        return Err(RingError::BadIndirect);
    }
    if entries > CHAIN_MAX {
        return Err(RingError::ChainTooLong);
    }
    let mut table = vec![0; len];
    memory.read(descriptor.buffer.gpa, &mut table)?;
    let (table, _) = table.as_chunks::<DESCRIPTOR_SIZE>();
    let mut index = 0_u16;
    loop {
        let size = entries as u16;
        let bytes = table
            .get(usize::from(index))
            .ok_or(RingError::DescriptorIndex { index, size })?;
        let descriptor = Descriptor::parse(bytes);
        if descriptor.flags & FLAG_INDIRECT != 0 {
            return Err(RingError::BadIndirect);
        }
        add(chain, memory, &descriptor)?;
        if descriptor.flags & FLAG_NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next;
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod oracle_tests;
