//! The storage repository on disk: what the tools do with `<sr-uuid>/<vdi-uuid>.vhd` while no host has it open.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Writes a new file and waits until its contents are on disk. Its name is not: sync the directory for that.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::create(path)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}
