//! Machines out of a storage repository and into one.
//!
//! ```text
//! export   disks of the repository ──► XVA ──► FILE.part ──► read back and verified ──► FILE
//! import   archive, verified ──► files without a name ──► all of them get their names ──► the machine's record
//! ```
//!
//! An export that was interrupted leaves `FILE.part` with a checkpoint beside it, and goes on from there. An import that was
//! interrupted leaves nothing: its disks have no names before all of them are whole.
//!
//! The crate knows repositories and formats, but no lab and no terminal.

#![forbid(unsafe_code)]

mod checkpoint;
mod export;
mod follow;
mod image;
mod import;
pub mod progress;
mod record;
mod repository;

pub use export::{Export, Exported, Options};
pub use image::{Format, export_as, import_image, is_image};
pub use import::{As, Identity, Imported, Planned, check, import, new_mac};
pub use record::{Found, find, machines, record, size};

/// Why an export or an import failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive or the disk it is made of.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] nfs_sr::sr::image::SrError),
    /// A file beside them.
    #[error("{place}: {error}")]
    Io {
        /// The file.
        place: String,
        /// What failed.
        error: std::io::Error,
    },
    /// It cannot be done as things are.
    #[error("{0}")]
    Refused(String),
}

fn at<T>(path: &std::path::Path, result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::Io {
        place: path.display().to_string(),
        error,
    })
}
