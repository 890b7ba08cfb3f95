//! How calls arrive: over TCP of the operating system, or over the lab's Ethernet switch. Both are event loops of one thread
//! that never wait for the disk, and both keep a client that sends faster than it is served waiting by not
//! reading from it.

pub mod ethernet;
pub mod mailbox;
pub mod tcp;

/// Calls of one connection that may be under way; beyond that it is not read from.
const MAX_CALLS: usize = 256;
/// Bytes of replies that may wait for a slow client; beyond that it is not read from.
const MAX_UNSENT: usize = 4 << 20;
