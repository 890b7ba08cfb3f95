//! The two queues of a card, each with buffers of its own that stay for ever.

use alloc::{boxed::Box, vec::Vec};
use core::{
    ptr::NonNull,
    slice,
    sync::atomic::{Ordering, fence},
};

use boot_info::memory_map::FRAME_BYTES;
use virtio_drivers::{BufferDirection, Hal, PhysAddr, queue::VirtQueue, transport::Transport};

use crate::{
    memory::{self, Frames},
    mmio::Registers,
};

/// Entries of a queue: QEMU's default, and enough for 2 MB of jumbo frames.
const ENTRIES: usize = 256;
/// Bytes of `struct virtio_net_hdr` (virtio 1.2, 5.1.6). All zero: no offloads are negotiated.
const HEADER_BYTES: usize = 12;
/// An Ethernet header and the largest MTU of the lab.
const FRAME_BYTES_MAX: usize = 14 + 9000;
/// Bytes of a buffer. Not a multiple of the page size: QEMU's TLB is direct mapped, and copies between
/// buffers a large power of two apart are slow.
const BUFFER_BYTES: usize = (HEADER_BYTES + FRAME_BYTES_MAX).next_multiple_of(64);

const NO_MEMORY: &str = "there is not enough memory for its buffers";
const NO_QUEUE: &str = "it has no queue of the size needed";

/// Physical memory as the `virtio-drivers` crate asks for it.
pub struct Identity;

// SAFETY: memory is identity mapped, so physical and virtual addresses are the same; frames are zeroed,
// aligned, contiguous and owned by the caller until it gives them back.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some(address) = memory::take(pages as u64, 1) else {
            // The crate's sign of failure is address 0.
            return (0, NonNull::dangling());
        };
        let pointer = NonNull::new(address as *mut u8).expect("low memory is never handed out");
        // SAFETY: the frames are ours alone and mapped.
        unsafe { pointer.write_bytes(0, pages * FRAME_BYTES as usize) };
        (address, pointer)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        memory::release(paddr, pages as u64);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// Where a queue's driver says that it has added buffers.
pub struct Doorbell {
    register: Registers,
    queue: u16,
}

impl Doorbell {
    pub fn new(register: Registers, queue: u16) -> Self {
        Self { register, queue }
    }

    fn ring(&self) {
        self.register.write_u16(0, self.queue);
    }
}

/// A queue, its buffers and its doorbell.
struct Ring {
    queue: Box<VirtQueue<Identity, ENTRIES>>,
    buffers: Frames,
    doorbell: Doorbell,
}

impl Ring {
    fn new(
        transport: &mut impl Transport,
        queue: u16,
        doorbell: Doorbell,
    ) -> Result<Self, &'static str> {
        let bytes = (ENTRIES * BUFFER_BYTES) as u64;
        Ok(Self {
            queue: Box::new(VirtQueue::new(transport, queue, false, false).map_err(|_| NO_QUEUE)?),
            buffers: Frames::zeroed(bytes.div_ceil(FRAME_BYTES), 1).ok_or(NO_MEMORY)?,
            doorbell,
        })
    }

    fn buffer(&self, index: u16) -> NonNull<u8> {
        debug_assert!(usize::from(index) < ENTRIES, "buffer {index}");
        // SAFETY: the frames hold `ENTRIES` buffers.
        unsafe {
            self.buffers
                .pointer()
                .add(usize::from(index) * BUFFER_BYTES)
        }
    }

    /// Rings the doorbell if the device waits for it.
    fn notify(&self) {
        // The device must see the new entries before it is asked whether it still looks for some: it
        // stores and loads in the opposite order (virtio 1.2, 2.7.13.4).
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            self.doorbell.ring();
        }
    }
}

/// Frames from the network.
pub struct Receiver {
    ring: Ring,
}

impl Receiver {
    /// A receiver whose buffers all wait for frames, once [`Self::ring_doorbell`] has said so.
    pub fn new(
        transport: &mut impl Transport,
        queue: u16,
        doorbell: Doorbell,
    ) -> Result<Self, &'static str> {
        let mut receiver = Self {
            ring: Ring::new(transport, queue, doorbell)?,
        };
        for index in 0..ENTRIES as u16 {
            receiver.offer(index);
        }
        Ok(receiver)
    }

    /// Tells the device that buffers wait.
    pub fn ring_doorbell(&self) {
        self.ring.notify();
    }

    /// Gives buffer `index` to the device.
    fn offer(&mut self, index: u16) {
        let pointer = self.ring.buffer(index);
        // SAFETY: the buffer is inside our frames, and no reference to it exists until the device
        // has given it back.
        let token = unsafe {
            let buffer = slice::from_raw_parts_mut(pointer.as_ptr(), BUFFER_BYTES);
            self.ring.queue.add(&[], &mut [buffer])
        };
        // Descriptors are a stack, filled in order at first, and a buffer goes back before the next is
        // taken: so buffer and descriptor number always agree.
        assert_eq!(token, Ok(index), "the receive queue lost a buffer");
    }

    /// Gives at most `limit` received frames to `take`; returns how many there were.
    pub fn receive(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(token) = self.ring.queue.peek_used()
        {
            let pointer = self.ring.buffer(token % ENTRIES as u16);
            // SAFETY: the device has given the buffer back; it is the one that was added under
            // this token.
            let (buffer, len) = unsafe {
                let buffer = slice::from_raw_parts_mut(pointer.as_ptr(), BUFFER_BYTES);
                let len = self.ring.queue.pop_used(token, &[], &mut [&mut *buffer]);
                (buffer, len)
            };
            let len = len.expect("the token was the next one") as usize;
            if let Some(frame) = buffer.get(HEADER_BYTES..len) {
                take(frame);
            }
            self.offer(token);
            count += 1;
        }
        if count > 0 {
            self.ring.notify();
        }
        count
    }

    /// Whether a frame waits.
    pub fn has_frame(&self) -> bool {
        self.ring.queue.can_pop()
    }
}

/// Frames to the network.
pub struct Transmitter {
    ring: Ring,
    /// Buffers that the device does not hold.
    free: Vec<u16>,
    /// The buffer that the device holds under each token.
    buffer_of: [u16; ENTRIES],
    /// Frames were added since the doorbell last rang.
    unannounced: bool,
}

impl Transmitter {
    /// A transmitter with nothing to send.
    pub fn new(
        transport: &mut impl Transport,
        queue: u16,
        doorbell: Doorbell,
    ) -> Result<Self, &'static str> {
        let mut ring = Ring::new(transport, queue, doorbell)?;
        // Sent frames are noticed when the next one is sent.
        ring.queue.set_dev_notify(false);
        Ok(Self {
            ring,
            free: (0..ENTRIES as u16).collect(),
            buffer_of: [0; ENTRIES],
            unannounced: false,
        })
    }

    /// How many frames can be sent now.
    pub fn room(&mut self) -> usize {
        self.reclaim();
        self.free.len()
    }

    /// Sends a frame at the next [`Self::flush`]. One that does not fit is dropped, as on a wire.
    pub fn send(&mut self, frame: &[u8]) {
        if frame.is_empty() || frame.len() > FRAME_BYTES_MAX {
            return;
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let Some(index) = self.free.pop() else {
            return;
        };
        let pointer = self.ring.buffer(index);
        // SAFETY: the buffer is inside our frames and free, so neither the device nor a reference has it,
        // and none has until the device gives it back. Its header is zero from the start.
        let token = unsafe {
            let buffer = slice::from_raw_parts_mut(pointer.as_ptr(), HEADER_BYTES + frame.len());
            buffer[HEADER_BYTES..].copy_from_slice(frame);
            self.ring.queue.add(&[buffer], &mut [])
        };
        let token = token.expect("as many descriptors as buffers");
        self.buffer_of[usize::from(token)] = index;
        self.unannounced = true;
    }

    /// Tells the device about the frames sent since the last time.
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.unannounced) {
            self.ring.notify();
        }
    }

    /// For a CPU about to halt with more to send: asks for an interrupt once the device has taken frames.
    /// Returns true when there is room already, so that halting would lose time.
    pub fn wake_for_room(&mut self) -> bool {
        if !self.free.is_empty() {
            return false;
        }
        self.ring.queue.set_dev_notify(true);
        fence(Ordering::SeqCst);
        self.reclaim();
        !self.free.is_empty()
    }

    fn reclaim(&mut self) {
        if !self.ring.queue.can_pop() {
            return;
        }
        self.ring.queue.set_dev_notify(false);
        while let Some(token) = self.ring.queue.peek_used() {
            let index = self.buffer_of[usize::from(token) % ENTRIES];
            let pointer = self.ring.buffer(index);
            // SAFETY: the device has given back the buffer that was added under this token.
            let result = unsafe {
                let buffer = slice::from_raw_parts(pointer.as_ptr(), BUFFER_BYTES);
                self.ring.queue.pop_used(token, &[buffer], &mut [])
            };
            result.expect("the token was the next one");
            self.free.push(index);
        }
    }
}
