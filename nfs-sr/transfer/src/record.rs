//! The machines that a repository knows: one file of JSON each, beside their disks.

use std::path::Path;

use formats::vm::{Disk, Vm};
use nfs_sr::sr::{
    image::Image,
    store::{Directory, Store},
    vdi,
};
use vhd::Uuid;

use crate::{Error, at, repository::Unnamed};

/// Largest record.
const MAX_RECORD: u64 = 1 << 20;

/// A machine and where its disks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The machine.
    pub vm: Vm,
    /// Files of its disks, in the repository.
    pub files: Vec<String>,
}

fn file_name(vm: &Vm) -> String {
    format!("{}.vm", vm.uuid)
}

/// Records a machine, whose disks are there.
///
/// # Errors
/// When it is recorded already, or the record cannot be written.
pub fn record(repository: &Path, vm: &Vm) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(vm).expect("plain data");
    let file = Unnamed::new(repository)?;
    at(repository, file.write(&text))?;
    file.publish(&file_name(vm))
}

/// Bytes of a disk.
///
/// # Errors
/// When there is no such disk, or it is damaged.
pub fn size(repository: &Path, uuid: &str) -> Result<u64, Error> {
    let store = Directory::new(repository);
    Ok(Image::open(&store, &format!("{uuid}.vhd"))?.size())
}

/// The machines of a repository, by name.
///
/// # Errors
/// When a record cannot be read.
pub fn machines(repository: &Path) -> Result<Vec<Vm>, Error> {
    let mut machines: Vec<Vm> = Vec::new();
    for entry in at(repository, std::fs::read_dir(repository))? {
        let path = at(repository, entry)?.path();
        if path.extension().is_none_or(|extension| extension != "vm") {
            continue;
        }
        if at(&path, path.metadata())?.len() > MAX_RECORD {
            return Err(Error::Refused(format!(
                "{}: too large for the record of a machine",
                path.display()
            )));
        }
        let text = at(&path, std::fs::read(&path))?;
        let vm = serde_json::from_slice(&text)
            .map_err(|error| Error::Refused(format!("{}: {error}", path.display())))?;
        machines.push(vm);
    }
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(machines)
}

/// Finds a machine by its name or UUID, or a single disk by its UUID.
///
/// # Errors
/// When there is none, or more than one.
pub fn find(repository: &Path, wanted: &str) -> Result<Found, Error> {
    let all = machines(repository)?;
    let mut matching = all
        .iter()
        .filter(|vm| vm.name == wanted || vm.uuid == wanted);
    if let Some(vm) = matching.next() {
        if let Some(other) = matching.next() {
            return Err(Error::Refused(format!(
                "several machines are called \"{wanted}\"; use a UUID, such as {} or {}",
                vm.uuid, other.uuid
            )));
        }
        let files = vm
            .disks
            .iter()
            .map(|disk| format!("{}.vhd", disk.uuid))
            .collect();
        return Ok(Found {
            vm: vm.clone(),
            files,
        });
    }
    let text = wanted.strip_suffix(".vhd").unwrap_or(wanted);
    let store = Directory::new(repository);
    match text.parse::<Uuid>() {
        Ok(uuid) if store.length(&vdi::file_name(uuid)).is_ok() => {
            let name = vdi::file_name(uuid);
            let size = Image::open(&store, &name)?.size();
            Ok(Found {
                vm: of_disk(uuid, size),
                files: vec![name],
            })
        }
        _ => {
            let names: Vec<_> = all.iter().map(|vm| vm.name.as_str()).collect();
            let known = if names.is_empty() {
                "no machines".to_owned()
            } else {
                names.join(", ")
            };
            Err(Error::Refused(format!(
                "there is no machine and no disk \"{wanted}\" in {}, which has {known}",
                repository.display()
            )))
        }
    }
}

/// A machine around a disk of which nothing else is known.
fn of_disk(uuid: Uuid, size: u64) -> Vm {
    Vm {
        // The same each time, so that an export of it can be gone on with.
        uuid: uuid.to_string(),
        name: uuid.to_string(),
        memory: 512 << 20,
        vcpus: 1,
        weight: 256,
        disks: vec![Disk {
            uuid: uuid.to_string(),
            name: uuid.to_string(),
            size,
        }],
        ..Vm::default()
    }
}
