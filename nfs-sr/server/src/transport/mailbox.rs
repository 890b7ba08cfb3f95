//! Where replies wait for the event loop that owns their connection.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
};

use rustix::event::{EventfdFlags, eventfd};

/// A reply on its way to its connection.
pub struct Delivery {
    /// The connection.
    pub connection: u64,
    /// The record; empty if the call is over and nothing is to be sent.
    pub reply: Vec<u8>,
    /// Bytes that the connection had set aside for it.
    pub reserved: usize,
}

/// Replies for one event loop.
pub struct Mailbox {
    replies: Mutex<Vec<Delivery>>,
    wake: OwnedFd,
    owner: ThreadId,
}

impl Mailbox {
    /// A mailbox of the calling thread's event loop.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            replies: Mutex::default(),
            wake,
            owner: thread::current().id(),
        }))
    }

    /// Posts the reply for a connection, and wakes the loop if another thread posts.
    pub fn post(&self, delivery: Delivery) {
        let mut replies = self.replies.lock().expect("nothing panics under the lock");
        let first = replies.is_empty();
        replies.push(delivery);
        drop(replies);
        if first && thread::current().id() != self.owner {
            self.wake();
        }
    }

    /// Has the loop turn.
    pub fn wake(&self) {
        // It fails only if the loop has been woken 2^64 times and has not looked.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes what was posted.
    pub fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.replies.lock().expect("nothing panics under the lock"))
    }

    /// To be called when the descriptor was readable.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }
}

/// Readable when another thread has posted.
impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
