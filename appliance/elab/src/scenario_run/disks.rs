//! What file system a guest's disk holds when its run is over.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nfs_sr::sr::image::Image;
use nfs_sr::sr::store::Directory;
use scenarios::verdict::file_system::{self, FileSystem};

/// Read and written at a time.
const CHUNK: u64 = 1 << 20;

/// Checks the file system on a disk, which is left as it is. A disk that was branched is read with its parents, as hosts read it;
/// one that was not by qemu-img, which does not share our misunderstandings.
///
/// # Errors
/// When the disk cannot be read.
pub(super) fn check(vhd: &Path, scratch: &Path) -> Result<FileSystem, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", vhd.display());
    let store = Directory::new(vhd.parent().unwrap_or(Path::new(".")));
    let name = vhd.file_name().unwrap_or_default().to_string_lossy();
    let mut image = Image::open(&store, &name).map_err(|error| failed(&error))?;
    if image.layers.len() == 1 {
        return file_system::check_vhd(vhd, scratch);
    }
    let raw = File::create(scratch).map_err(|error| failed(&error))?;
    let size = image.size();
    raw.set_len(size).map_err(|error| failed(&error))?;
    let mut offset = 0;
    while offset < size {
        let end = (offset + CHUNK).min(size);
        if image.is_allocated(offset..end) {
            let mut bytes = vec![0; usize::try_from(end - offset).map_err(|error| failed(&error))?];
            let read = image.read(offset, &mut bytes);
            read.map_err(|error| failed(&error))?;
            let written = raw.write_all_at(&bytes, offset);
            written.map_err(|error| failed(&error))?;
        }
        offset = end;
    }
    let checked = file_system::check_raw(scratch);
    fs::remove_file(scratch).map_err(|error| failed(&error))?;
    checked
}
