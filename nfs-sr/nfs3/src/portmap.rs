//! The port mapper, version 2 (RFC 1833 section 3): on which port a program listens.

use crate::{
    rpc::procedures,
    xdr::{List, xdr_struct},
};

/// Program number.
pub const PROGRAM: u32 = 100_000;
/// Version.
pub const VERSION: u32 = 2;
/// Port of the port mapper.
pub const PORT: u16 = 111;
/// The only transport here.
pub const TCP: u32 = 6;

procedures!(PROGRAM, VERSION, {
    /// Does nothing.
    Null = 0: () => (),
    /// Registers a program; refused by this server.
    Set = 1: Mapping => bool,
    /// Unregisters a program; refused by this server.
    Unset = 2: Mapping => bool,
    /// Port of a program, 0 if it is not there.
    GetPort = 3: Mapping => u32,
    /// All programs.
    Dump = 4: () => List<Mapping>,
});

xdr_struct!(
    /// Where a program listens.
    #[derive(Copy)]
    Mapping {
        /// Program.
        program: u32,
        /// Version.
        version: u32,
        /// IP protocol.
        protocol: u32,
        /// Port.
        port: u32,
    }
);
