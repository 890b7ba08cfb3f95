//! XVA, XenServer's archive of a machine: a tar archive of `ova.xml`, which describes the machine, and of its disks in chunks of
//! 1 MiB, each followed by its checksum (`xapi_export.ml`, `xapi_import.ml` and `xapi_stream_vdi.ml` of xapi).
//!
//! ```text
//! ova.xml
//! Ref:1000/00000000           data
//! Ref:1000/00000000.xxhash    XXH64, 16 digits, or .checksum: SHA-1, 40 digits
//! Ref:1000/00000007           chunks 1 to 6 are zeros
//! ...                         the first and the last chunk of a disk are always there
//! ```
//!
//! Disks come in the order of their references as text. The number of a chunk is not its offset: xapi keeps a
//! connection alive by empty chunks, which have a number and take no space; so a reader adds lengths.

mod metadata;
mod read;
mod value;
mod write;

pub use read::Reader;
pub use write::{Start, Writer};

use sha1::{Digest, Sha1};
use xxhash_rust::xxh64::xxh64;

/// Bytes of a chunk as it is written.
pub const CHUNK: u64 = 1 << 20;

/// Which checksum follows each chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-1, which every XenServer reads.
    Sha1,
    /// XXH64, which XenServer 8 and newer read, at a tenth of the cost.
    #[default]
    Xxhash,
}

impl Checksum {
    const ALL: [Self; 2] = [Self::Sha1, Self::Xxhash];

    fn extension(self) -> &'static str {
        match self {
            Self::Sha1 => "checksum",
            Self::Xxhash => "xxhash",
        }
    }

    fn of(self, data: &[u8]) -> String {
        match self {
            Self::Sha1 => hex(&Sha1::digest(data)),
            Self::Xxhash => format!("{:016X}", xxh64(data, 0)),
        }
    }

    fn digits(self) -> u64 {
        match self {
            Self::Sha1 => 40,
            Self::Xxhash => 16,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
