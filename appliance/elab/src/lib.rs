//! The lab: hosts in QEMU, a switch with endpoints, a storage server, and the commands that drive them.

pub mod endpoint;
pub mod journal;
