//! The MOUNT program, version 3 (RFC 1813 appendix I): from the path of an export to its root handle.

use alloc::vec::Vec;

use crate::{
    rpc::procedures,
    types::{FileHandle, Path},
    xdr::{Decode, Decoder, Encode, List, Malformed, xdr_bytes, xdr_enum, xdr_struct},
};

/// Program number.
pub const PROGRAM: u32 = 100_005;
/// Version.
pub const VERSION: u32 = 3;
/// Most flavours of credentials in a reply.
const MAX_FLAVORS: usize = 16;

procedures!(PROGRAM, VERSION, {
    /// Does nothing.
    Null = 0: () => (),
    /// Root handle of an export.
    Mount = 1: Path<'a> => MountResult,
    /// What clients have mounted.
    Dump = 2: () => List<MountEntry<'a>>,
    /// A client says that it has unmounted.
    Unmount = 3: Path<'a> => (),
    /// A client says that it has unmounted everything.
    UnmountAll = 4: () => (),
    /// Exports and who may mount them.
    Export = 5: () => List<ExportEntry<'a>>,
});

xdr_enum!(
    /// Why a mount failed (`mountstat3`).
    MountStatus as "mountstat3" {
        /// Not the owner.
        Perm = 1,
        /// No such export.
        NoEnt = 2,
        /// An I/O error.
        Io = 5,
        /// The client may not mount it.
        Acces = 13,
        /// Not a directory.
        NotDir = 20,
        /// An argument is not valid.
        Inval = 22,
        /// The path is too long.
        NameTooLong = 63,
        /// Not supported.
        NotSupp = 10004,
        /// Another failure.
        ServerFault = 10006,
    }
);

/// A mounted export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Root of the export.
    pub root: FileHandle,
    /// Flavours of credentials that the server takes.
    pub flavors: Vec<u32>,
}

/// Result of MNT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountResult(pub Result<Mounted, MountStatus>);

impl Encode for MountResult {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Ok(mounted) => {
                0u32.encode(out);
                mounted.root.encode(out);
                (mounted.flavors.len() as u32).encode(out);
                mounted.flavors.iter().for_each(|flavor| flavor.encode(out));
            }
            Err(status) => status.encode(out),
        }
    }
}

impl Decode<'_> for MountResult {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let status = input.get::<u32>()?;
        if status != 0 {
            return Ok(Self(Err(MountStatus::from_wire(status)?)));
        }
        let root = input.get()?;
        let count = input.get::<u32>()? as usize;
        if count > MAX_FLAVORS {
            return Err(Malformed::TooLong {
                length: count,
                limit: MAX_FLAVORS,
            });
        }
        let flavors = (0..count).map(|_| input.get()).collect::<Result<_, _>>()?;
        Ok(Self(Ok(Mounted { root, flavors })))
    }
}

xdr_bytes!(
    /// Name of a client or a group of clients.
    HostName, 255
);

xdr_struct!(
    /// A mount that a client has (`mountbody`).
    MountEntry<'a> {
        /// The client.
        host: HostName<'a>,
        /// The export.
        path: Path<'a>,
    }
);

xdr_struct!(
    /// An export (`exportnode`).
    ExportEntry<'a> {
        /// Its path.
        path: Path<'a>,
        /// Who may mount it; empty is everybody.
        clients: List<HostName<'a>>,
    }
);
