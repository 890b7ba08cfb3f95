//! The LEASE program: who may write a virtual disk.
//!
//! A lease belongs to a file and has an *epoch*, which grows with every change of holder. ACQUIRE and TAKE
//! return a file handle that carries the epoch; the server refuses every READ, WRITE, COMMIT and SETATTR
//! that comes with the handle of another epoch (`Stale`), and every change of a leased file that comes
//! with a handle from LOOKUP (`Acces`). So a host that lost a disk cannot harm it, however late its
//! requests arrive, and live migration has a point at which the disk changes hands: TAKE, a compare-and-swap on the epoch.
//!
//! NLM, the lock program that goes with NFS, was rejected: its locks name processes and not
//! disks, outlive their holder until it is heard of again, and are not checked on READ and WRITE.

use alloc::vec::Vec;

use crate::{
    rpc::procedures,
    types::{DirEntry, FileHandle, Name, Path},
    xdr::{Decode, Decoder, Encode, List, Malformed, xdr_bytes, xdr_enum, xdr_struct},
};

/// Program number, from the range that RFC 5531 leaves to local use.
pub const PROGRAM: u32 = 0x2000_E1AB;
/// Version.
pub const VERSION: u32 = 1;
/// Longest name of an owner.
pub const MAX_OWNER: usize = 64;
/// Longest time to live, in milliseconds: a day.
pub const MAX_TTL_MS: u32 = 24 * 60 * 60 * 1000;

procedures!(PROGRAM, VERSION, {
    /// Does nothing.
    Null = 0: () => (),
    /// Gets a lease that is free or expired, or gets the caller's own lease anew.
    Acquire = 1: AcquireArgs<'a> => LeaseResult<'a, Grant<'a>>,
    /// Prolongs a lease.
    Renew = 2: RenewArgs => LeaseResult<'a, Holding<'a>>,
    /// Compare-and-swap: takes an exclusive lease over from whoever holds it at the expected epoch.
    Take = 3: TakeArgs<'a> => LeaseResult<'a, Grant<'a>>,
    /// Gives a lease back. Other readers keep theirs.
    Release = 4: FileHandle => LeaseResult<'a, Holding<'a>>,
    /// State of a lease.
    Get = 5: DirEntry<'a> => LeaseResult<'a, Holding<'a>>,
    /// All leases that are held.
    ListAll = 6: () => Listing<'a>,
    /// Takes a lease away from its holder, whose handles become stale. For operators.
    Break = 7: DirEntry<'a> => LeaseResult<'a, Holding<'a>>,
    /// Puts another file in the place of one that the caller has a lease of, lease included: a disk is branched while it is
    /// in use.
    Replace = 8: ReplaceArgs<'a> => LeaseResult<'a, Grant<'a>>,
});

xdr_bytes!(
    /// Who holds a lease: a host's name and what tells its incarnations apart.
    Owner, MAX_OWNER
);

xdr_enum!(
    /// What a lease allows.
    Mode as "a lease mode" {
        /// To read and write, alone.
        Exclusive = 0,
        /// To read, among others, while nobody writes. For base copies. Each reader has an epoch of its own.
        Shared = 1,
    }
);

xdr_enum!(
    /// Why a lease was not granted (success is the `Ok` of [`LeaseResult`]).
    LeaseStatus as "a lease status" {
        /// Somebody holds it.
        Held = 1,
        /// The epoch has moved on.
        Stale = 2,
        /// There is no such file.
        NoEnt = 3,
        /// An argument is not valid.
        Inval = 4,
        /// The change could not be made durable.
        Io = 5,
    }
);

xdr_struct!(
    /// State of a lease.
    #[derive(Copy)]
    Holding<'a> {
        /// Epoch; 0 if the file never had a lease.
        epoch: u64,
        /// What it allows.
        mode: Mode,
        /// Holder; empty if nobody. Of several readers, the last that came.
        owner: Owner<'a>,
        /// Milliseconds left; 0 if it is free or expired. Of several readers, the longest.
        remaining_ms: u32,
    }
);

xdr_struct!(
    /// A lease that was granted.
    #[derive(Copy)]
    Grant<'a> {
        /// The lease.
        holding: Holding<'a>,
        /// The file, by a handle that carries the epoch.
        object: FileHandle,
    }
);

xdr_struct!(
    /// Why a lease was not granted, and its state as far as there is one.
    #[derive(Copy)]
    Refused<'a> {
        /// Why.
        status: LeaseStatus,
        /// State.
        holding: Holding<'a>,
    }
);

/// Result of a procedure of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseResult<'a, T>(pub Result<T, Refused<'a>>);

impl<T: Encode> Encode for LeaseResult<'_, T> {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Ok(body) => {
                0u32.encode(out);
                body.encode(out);
            }
            Err(refused) => refused.encode(out),
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for LeaseResult<'a, T> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        Ok(Self(match input.get()? {
            0 => Ok(input.get()?),
            status => Err(Refused {
                status: LeaseStatus::from_wire(status)?,
                holding: input.get()?,
            }),
        }))
    }
}

xdr_struct!(
    /// Arguments of ACQUIRE.
    #[derive(Copy)]
    AcquireArgs<'a> {
        /// The file.
        file: DirEntry<'a>,
        /// For whom.
        owner: Owner<'a>,
        /// What it shall allow.
        mode: Mode,
        /// 0: only if it is free or expired. Else the epoch of a lease that this owner holds: it is granted
        /// anew, and handles of that epoch become stale (a host that was restarted).
        expected_epoch: u64,
        /// Time to live; at most [`MAX_TTL_MS`].
        ttl_ms: u32,
    }
);

xdr_struct!(
    /// Arguments of RENEW.
    #[derive(Copy)]
    RenewArgs {
        /// The handle that the lease was granted with.
        object: FileHandle,
        /// Time to live from now.
        ttl_ms: u32,
    }
);

xdr_struct!(
    /// Arguments of TAKE.
    #[derive(Copy)]
    TakeArgs<'a> {
        /// The file.
        file: DirEntry<'a>,
        /// For whom.
        owner: Owner<'a>,
        /// Succeeds only if this is the epoch; it then grows by one. Repeating a TAKE that succeeded
        /// gives the same answer as long as nothing else has happened to the lease.
        expected_epoch: u64,
        /// Time to live.
        ttl_ms: u32,
    }
);

xdr_struct!(
    /// Arguments of REPLACE.
    #[derive(Copy)]
    ReplaceArgs<'a> {
        /// The handle that the lease of the file was granted with. That lease stays: its holder gives it back.
        object: FileHandle,
        /// The file's name, which its successor is to have. Repeating a REPLACE that succeeded gives the same answer as
        /// long as nothing else has happened to the lease.
        file: DirEntry<'a>,
        /// Name of the successor, in the same directory. It must be nobody else's.
        successor: Name<'a>,
        /// Another name of the file itself, so that it cannot be lost.
        kept: Name<'a>,
        /// For whom.
        owner: Owner<'a>,
        /// Time to live.
        ttl_ms: u32,
    }
);

xdr_struct!(
    /// A lease in LIST.
    Listed<'a> {
        /// Path of the file below the export.
        path: Path<'a>,
        /// State.
        holding: Holding<'a>,
    }
);

xdr_struct!(
    /// Result of LIST.
    Listing<'a> {
        /// All leases that are held, one that readers share once for each.
        leases: List<Listed<'a>>,
    }
);
