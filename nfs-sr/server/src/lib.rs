//! The storage repository: an NFS version 3 server that is honest about durability and enforces the leases of virtual disks,
//! and the tools that keep disks in XenServer's layout.
//!
//! ```text
//! transport (TCP, Ethernet) ── records ──► server ──► nfs, mount, portmap, lease
//!                                             │          └─► node (files), durability (group commit), lease table
//!                                             └─► drc (calls that must not run twice), metrics, events
//! ```
//!
//! Threads and epoll, no asynchronous runtime: one thread per transport answers whatever does not wait for the disk, and a
//! small pool does the rest. The server knows nothing of VHD; the tools ([`sr`]) know nothing of NFS.

#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod drc;
pub mod durability;
pub mod events;
pub mod export;
pub mod faults;
pub mod file_io;
pub mod handles;
pub mod lease;
pub mod metrics;
mod mount;
mod nfs;
pub mod node;
pub mod pool;
mod portmap;
pub mod serve;
pub mod server;
pub mod sr;
pub mod times;
pub mod transport;
