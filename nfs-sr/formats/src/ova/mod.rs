//! OVA: a tar archive of a machine's description (OVF, DMTF DSP0243), a manifest of digests, and its disks as streamOptimized
//! VMDKs.
//!
//! Description and manifest come first, though they tell of the disks: their places are kept free and filled at the end.
//! Digests in the manifest are verified while disks are read, wherever it is.

mod ovf;
mod read;
mod write;
mod xml;

pub use read::Reader;
pub use write::{State, Writer};
