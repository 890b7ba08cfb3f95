//! NFS version 3 on the wire: XDR, ONC RPC over TCP, and the programs NFS, MOUNT, portmap and LEASE.
//!
//! Both directions of every message live here, so the hypervisor's client and the storage
//! server cannot disagree about a format. The crate does no I/O, keeps no state but a half-received
//! record, and knows nothing of files: it turns bytes into values and back.
//!
//! Every [`rpc::Procedure`] names its arguments and its reply. A client calls [`rpc::call`] and later
//! [`rpc::Reply::parse`]; a server calls [`rpc::Call::parse`] and [`rpc::accepted`]. Data of READ and WRITE, names and paths are
//! borrowed from the record they came in.
//!
//! Generated code (rpcgen and its like) was not used: bounded lengths and borrowed data would have had
//! to be added by hand to most of it, and the protocol has been frozen since 1995.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod lease;
pub mod mount;
pub mod nfs;
pub mod portmap;
pub mod record;
pub mod rpc;
pub mod types;
pub mod xdr;

pub use types::*;
pub use xdr::{Decode, Decoder, Encode, Malformed};

/// Most bytes of data in one READ or WRITE.
pub const MAX_DATA: usize = 1 << 20;
/// Longest RPC record accepted: a WRITE of [`MAX_DATA`] and generous headers.
pub const MAX_RECORD: usize = MAX_DATA + 8192;
/// Port of the NFS program; the server answers the other programs there too.
pub const PORT: u16 = 2049;
