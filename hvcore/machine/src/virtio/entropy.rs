//! The entropy source (virtio 1.2, 5.4): fills what the guest gives it with the host's randomness.

use alloc::vec;

use guest_memory::GuestMemory;

use super::queue::{Queue, RingError};

/// Entries of the request queue.
pub const QUEUE_SIZE: u16 = 8;

/// Bytes given for one request; a driver asks again for more.
const REQUEST_MAX: u64 = 256;

/// Answers all requests in the queue.
///
/// # Errors
/// When the ring breaks the rules.
pub fn serve(
    queue: &mut Queue,
    memory: &GuestMemory,
    random: impl Fn(&mut [u8]),
) -> Result<(), RingError> {
    for _ in 0..=queue.size {
        let Some(chain) = queue.pop(memory)? else {
            break;
        };
        let mut bytes = vec![0; chain.writable_len().min(REQUEST_MAX) as usize];
        random(&mut bytes);
        let written = chain.write(memory, &bytes)?;
        queue.push(memory, chain.head, written)?;
    }
    Ok(())
}
