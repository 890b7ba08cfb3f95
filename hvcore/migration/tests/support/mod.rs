//! A world in which a guest migrates: two hosts, a link between them, a lease server, a session network,
//! virtual time, and one fault.

pub mod guest;
pub mod world;
