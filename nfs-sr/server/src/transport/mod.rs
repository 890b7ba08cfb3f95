//! How calls arrive: over TCP of the operating system, or over the lab's Ethernet switch. Both are event loops of one thread
//! that never wait for the disk, and both keep a client that sends faster than it is served waiting by not
//! reading from it.

pub mod ethernet;
pub mod mailbox;
pub mod session;
pub mod tcp;
mod wait;
