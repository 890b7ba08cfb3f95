//! Where an export that was interrupted goes on. It is written when everything before it is on disk, and replaces the
//! one before atomically, so the two files beside a target always fit each other.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use formats::vm::Vm;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, at};

/// What an export is of. One that was interrupted goes on only if nothing of this has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// Nothing where a disk is exported without its machine.
    pub vm: Vm,
    /// Format and options.
    pub form: String,
    /// Each file of the chains of disks: name, inode, length, time of the last change.
    pub files: Vec<(String, u64, u64, i64, i64)>,
}

/// The state of a file.
pub(crate) fn file_state(
    repository: &Path,
    name: &str,
) -> Result<(String, u64, u64, i64, i64), Error> {
    let path = repository.join(name);
    let found = at(&path, path.metadata())?;
    Ok((
        name.to_owned(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}

/// How far an export is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint<State> {
    pub of: Fingerprint,
    /// Bytes of the partial file that are good.
    pub length: u64,
    /// Bytes of data that are done.
    pub done: u64,
    /// What the format needs to go on.
    pub state: State,
}

fn path_of(part: &Path) -> PathBuf {
    with_suffix(part, ".json")
}

/// Opens the partial file of an export, which nobody else may write.
pub(crate) fn open(part: &Path) -> Result<File, Error> {
    let file = at(
        part,
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part),
    )?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(Error::Refused(format!(
            "another export writes {}",
            part.display()
        ))),
    }
}

/// Gives a partial file that is whole its name.
pub(crate) fn publish(part: &Path, target: &Path) -> Result<(), Error> {
    at(part, File::open(part).and_then(|file| file.sync_all()))?;
    at(target, std::fs::rename(part, target))?;
    remove(part);
    let directory = folder(target);
    at(
        directory,
        File::open(directory).and_then(|directory| directory.sync_all()),
    )
}

/// Where a file is.
pub(crate) fn folder(target: &Path) -> &Path {
    let directory = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

/// Removes what is left of a checkpoint.
pub(crate) fn remove(part: &Path) {
    let path = path_of(part);
    // They may not be there.
    let _ = std::fs::remove_file(with_suffix(&path, ".new"));
    let _ = std::fs::remove_file(path);
}

impl<State: Serialize + DeserializeOwned> Checkpoint<State> {
    /// The checkpoint of an earlier try at the same export.
    pub fn load(part: &Path, of: &Fingerprint) -> Option<Self> {
        let text = std::fs::read(path_of(part)).ok()?;
        let checkpoint: Self = serde_json::from_slice(&text).ok()?;
        let length = part.metadata().ok()?.len();
        (checkpoint.of == *of && checkpoint.length <= length).then_some(checkpoint)
    }

    pub fn save(&self, part: &Path) -> Result<(), Error> {
        let path = path_of(part);
        let new = with_suffix(&path, ".new");
        let text = serde_json::to_vec(self).expect("plain data");
        at(&new, std::fs::write(&new, text))?;
        at(&new, File::open(&new).and_then(|file| file.sync_all()))?;
        at(&path, std::fs::rename(&new, &path))
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
