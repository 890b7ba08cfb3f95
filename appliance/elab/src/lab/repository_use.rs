//! What the disks of the lab's repositories take, told when that changes.
//!
//! Read from the files, as `nfs-sr sr` reads them, and not asked of the server: that serves files and knows nothing of disks. A look
//! reads two kilobytes of each disk, whatever its size. What cannot be read now (a snapshot may be on its way) is told after the
//! next look.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use lab_protocol::Event;
use lab_protocol::event::DiskUse;
use nfs_sr::sr::image;
use nfs_sr::sr::store::Directory;
use nfs_sr::sr::vdi;
use vhd::{DiskKind, Uuid};

use super::{Inner, snapshots};

const EVERY: Duration = Duration::from_secs(2);
/// `st_blocks` counts in these, whatever the file system's own are (stat(2)).
const BLOCK: u64 = 512;

impl Inner {
    /// Tells what the disks take until the lab ends.
    pub(crate) fn watch_repositories(self: &Arc<Self>, export: &Path) -> Result<()> {
        let inner = Arc::downgrade(self);
        let export = export.to_owned();
        std::thread::Builder::new()
            .name("repository use".into())
            .spawn(move || watch(&inner, &export))
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn watch(inner: &Weak<Inner>, export: &Path) {
    let mut told: BTreeMap<PathBuf, Vec<DiskUse>> = BTreeMap::new();
    loop {
        {
            let Some(inner) = inner.upgrade() else { return };
            if inner.lock().stopping {
                return;
            }
            for repository in repositories(export) {
                let Ok(disks) = disks(&repository) else {
                    continue;
                };
                if told.get(&repository) == Some(&disks) {
                    continue;
                }
                let name = repository.file_name().unwrap_or_default();
                inner.record(Event::RepositoryUse {
                    repository: name.to_string_lossy().into_owned(),
                    free_bytes: free(&repository),
                    disks: disks.clone(),
                });
                told.insert(repository, disks);
            }
        }
        std::thread::sleep(EVERY);
    }
}

/// Repositories are called by their UUIDs.
fn repositories(export: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(export).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            path.is_dir() && name.is_some_and(|name| name.parse::<Uuid>().is_ok())
        })
        .collect()
}

fn free(repository: &Path) -> u64 {
    nix::sys::statvfs::statvfs(repository)
        .map_or(0, |below| below.blocks_available() * below.fragment_size())
}

/// Every disk of a repository, by the path that leases have.
fn disks(repository: &Path) -> Result<Vec<DiskUse>> {
    let name = repository.file_name().unwrap_or_default().to_string_lossy();
    let store = Directory::new(repository);
    let owners = owners(repository)?;
    let mut disks = BTreeMap::new();
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if vdi::uuid_of(&file).is_none() {
            continue;
        }
        let (footer, header) = image::ends(&store, &file)?;
        if let Some(header) = header.filter(|_| footer.kind == DiskKind::Differencing) {
            parents.insert(file.clone(), header.parent_name);
        }
        let disk = DiskUse {
            path: format!("{name}/{file}"),
            of: owners.get(&file).cloned().unwrap_or_default(),
            virtual_bytes: footer.size,
            used_bytes: entry.metadata()?.blocks() * BLOCK,
            depth: 1,
            base: footer.hidden,
        };
        disks.insert(file, disk);
    }
    for (file, disk) in &mut disks {
        disk.depth = depth(file, &parents);
    }
    Ok(disks.into_values().collect())
}

/// Files of a chain, this one included. A circle, which only damage makes, ends.
fn depth(file: &str, parents: &BTreeMap<String, String>) -> u32 {
    let mut depth = 1;
    let mut at = file;
    while let Some(parent) = parents.get(at).filter(|_| depth as usize <= parents.len()) {
        depth += 1;
        at = parent;
    }
    depth
}

/// What each disk is for: a VM, a snapshot of it, the memory of either, a template.
fn owners(repository: &Path) -> Result<BTreeMap<String, String>> {
    let file = |uuid: &str| format!("{uuid}.vhd");
    let mut owners = BTreeMap::new();
    let machines = transfer::machines(repository)?;
    for snapshot in snapshots::all(repository)? {
        let of = format!("{}@{}", snapshot.vm.name, snapshot.name);
        if let Some(memory) = &snapshot.memory {
            owners.insert(file(memory), format!("{of} memory"));
        }
        for disk in &snapshot.vm.disks {
            owners.insert(file(&disk.uuid), of.clone());
        }
    }
    for vm in &machines {
        let suspended = repository.join(format!("{}.suspended", vm.uuid));
        if let Ok(memory) = fs::read_to_string(suspended) {
            owners.insert(file(memory.trim()), format!("{} memory", vm.name));
        }
        for disk in &vm.disks {
            let of = match vm.template {
                true => format!("{} template", vm.name),
                false => vm.name.clone(),
            };
            owners.insert(file(&disk.uuid), of);
        }
    }
    Ok(owners)
}

#[cfg(test)]
mod tests {
    use formats::vm::{Disk, Vm};
    use nfs_sr::sr::chain;

    use super::*;

    #[test]
    fn disks_are_told_with_their_owners_and_chains() {
        let export = tempfile::tempdir().unwrap();
        let repository = nfs_sr::sr::create(export.path(), vdi::new_uuid()).unwrap();
        fs::create_dir(export.path().join("boot")).unwrap();
        let store = Directory::new(&repository);
        let [disk, kept] = [(); 2].map(|()| vdi::new_uuid());
        vdi::create(&store, disk, 4 << 20, DiskKind::Dynamic).unwrap();
        let vm = Vm {
            uuid: vdi::new_uuid().to_string(),
            name: "session".into(),
            disks: vec![Disk {
                uuid: disk.to_string(),
                name: "root".into(),
                size: 4 << 20,
            }],
            ..Vm::default()
        };
        transfer::record(&repository, &vm).unwrap();
        assert_eq!(
            repositories(export.path()),
            std::slice::from_ref(&repository)
        );
        let told = |of: &str| {
            let mut all = disks(&repository).unwrap();
            all.retain(|one| one.of == of);
            all
        };
        let whole = told("session");
        assert_eq!((whole[0].virtual_bytes, whole[0].depth), (4 << 20, 1));
        assert!(whole[0].path.ends_with(&format!("/{disk}.vhd")));

        chain::snapshot(&store, disk, kept).unwrap();
        assert_eq!(told("session")[0].depth, 2, "it has a base copy now");
        let others = told("");
        assert_eq!(others.len(), 2);
        assert_eq!(others.iter().filter(|one| one.base).count(), 1);
    }
}
