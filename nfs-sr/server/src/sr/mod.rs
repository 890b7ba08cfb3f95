//! The storage repository on disk: what the tools do with `<sr-uuid>/<vdi-uuid>.vhd` while no host has the disk open.
//!
//! Every operation is safe against a crash by the order of its writes: a file appears under its name when it is
//! whole, a block is in the BAT when its data is on disk, and what a crash leaves behind can be told from the files
//! themselves.

pub mod chain;
pub mod check;
pub mod delta;
pub mod guard;
pub mod image;
pub mod journal;
pub mod merge;
pub mod online;
pub mod statefile;
pub mod store;
pub mod vdi;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use vhd::Uuid;

use image::{SrError, at};
use store::Directory;

/// Writes a new file and waits until its contents are on disk. Its name is not: sync the directory for that.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::create(path)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

/// Creates the directory of a new repository in an export, with its statefile.
pub fn create(export: &Path, uuid: Uuid) -> Result<PathBuf, SrError> {
    let path = export.join(uuid.to_string());
    let name = path.display().to_string();
    at(&name, std::fs::create_dir(&path))?;
    statefile::create(&Directory::new(&path), uuid)?;
    let export_name = export.display().to_string();
    at(
        &export_name,
        File::open(export).and_then(|dir| dir.sync_all()),
    )?;
    Ok(path)
}
