//! A driver in memory: it lays rings out and fills them as a guest's driver would, or wrongly on purpose.

use std::vec::Vec;

use guest_memory::{Gpa, GuestMemory};

use super::queue::Queue;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A driver of one queue.
pub struct Driver<'m> {
    pub memory: &'m GuestMemory,
    pub base: u64,
    pub size: u16,
    next_descriptor: u16,
    next_available: u16,
    seen_used: u16,
}

impl<'m> Driver<'m> {
    pub fn new(memory: &'m GuestMemory, base: u64, size: u16) -> Self {
        Self {
            memory,
            base,
            size,
            next_descriptor: 0,
            next_available: 0,
            seen_used: 0,
        }
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }
    pub fn available(&self) -> u64 {
        self.base + 0x1000
    }
    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// The queue as the device has it once the driver has set it up.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(256);
        queue.size = self.size;
        queue.descriptors = self.descriptors();
        queue.available = self.available();
        queue.used = self.used();
        queue.ready = true;
        queue
    }

    /// Writes a descriptor into a table.
    pub fn descriptor(&self, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(gpa.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = table + u64::from(index) * 16;
        self.memory.write(Gpa(at), &bytes).unwrap();
    }

    /// Adds a chain of buffers (address, length, device writes) and makes it available.
    pub fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (i, (gpa, len, write)) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            let last = i + 1 == buffers.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = (index + 1) % self.size;
            self.descriptor(self.descriptors(), index, *gpa, *len, flags, next);
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
        }
        self.make_available(head);
        head
    }

    /// Makes a chain available.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        let entry = Gpa(self.available() + 4 + 2 * slot);
        self.memory.write(entry, &head.to_le_bytes()).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Writes the available index, right or wrong.
    pub fn set_available_index(&self, index: u16) {
        let at = Gpa(self.available() + 2);
        self.memory.write(at, &index.to_le_bytes()).unwrap();
    }

    /// The next chain that the device gave back: head and bytes written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        let index = self.memory.read_u16(Gpa(self.used() + 2)).unwrap();
        if index == self.seen_used {
            return None;
        }
        let at = self.used() + 4 + 8 * u64::from(self.seen_used % self.size);
        self.seen_used = self.seen_used.wrapping_add(1);
        let word = |offset| self.memory.read_u32(Gpa(at + offset)).unwrap();
        Some((word(0), word(4)))
    }
}
