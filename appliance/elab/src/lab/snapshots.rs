//! Snapshots of VMs, with and without memory, and going back to them.
//!
//! A snapshot is a disk for each disk of the VM, in the repository, and a record (`<uuid>.snapshot`) of the machine as it was.
//! The record is written last: what has none is garbage that `nfs-sr sr check` knows.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use formats::vm::Vm as Machine;
use host_protocol::{Command, Reply, VmConfig, VmState};
use nfs_sr::sr::guard::Guard;
use nfs_sr::sr::store::Store;
use nfs_sr::sr::{chain, online, vdi, write_durably};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vhd::Uuid;

use super::suspended::{MEMORY_PATIENCE, Repository};
use super::{Inner, records};
use crate::control::CallError;

/// Opening the children and letting what is in flight end, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A snapshot, as its record has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Identity.
    pub uuid: String,
    /// Name for people; no other snapshot of the VM has it.
    pub name: String,
    /// Nanoseconds since 1970.
    pub taken_unix_ns: u64,
    /// The machine as it was. Its identity is the VM's; its disks are the snapshot's.
    pub vm: Machine,
    /// The disk with the memory of that moment, if that was kept.
    pub memory: Option<String>,
}

/// The snapshots of a repository, oldest first.
///
/// # Errors
/// When a record cannot be read.
pub fn all(repository: &std::path::Path) -> Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    let names = fs::read_dir(repository)
        .with_context(|| format!("cannot read {}", repository.display()))?;
    for name in names {
        let path = name.context("cannot read the repository")?.path();
        if path.extension().is_some_and(|end| end == "snapshot") {
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let snapshot: Snapshot = serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged", path.display()))?;
            all.push(snapshot);
        }
    }
    all.sort_by(|a, b| (a.taken_unix_ns, &a.uuid).cmp(&(b.taken_unix_ns, &b.uuid)));
    Ok(all)
}

/// Finds a snapshot of a VM by its name.
///
/// # Errors
/// When there is none.
pub fn find(repository: &std::path::Path, vm: &str, name: &str) -> Result<Snapshot> {
    let mut known = all(repository)?;
    known.retain(|one| one.vm.name == vm);
    let names: Vec<_> = known.iter().map(|one| one.name.clone()).collect();
    known
        .into_iter()
        .find(|one| one.name == name)
        .with_context(|| {
            format!(
                "VM \"{vm}\" has no snapshot \"{name}\"; it has: {}",
                if names.is_empty() {
                    "none".into()
                } else {
                    names.join(", ")
                }
            )
        })
}

pub(super) fn identity(text: &str) -> Result<Uuid> {
    text.parse()
        .ok()
        .with_context(|| format!("\"{text}\" is not the UUID of a disk"))
}

/// The disks of a VM that are its own.
fn disks_of(config: &VmConfig) -> Result<Vec<Uuid>> {
    let writable = config.disks.iter().filter(|disk| !disk.read_only);
    let names = writable.map(|disk| {
        let file = disk.path.rsplit('/').next().unwrap_or_default();
        identity(file.strip_suffix(".vhd").unwrap_or(file))
    });
    names.collect()
}

impl Repository {
    fn record_of(&self, snapshot: &Snapshot) -> PathBuf {
        self.path.join(format!("{}.snapshot", snapshot.uuid))
    }

    pub(super) fn write(&self, snapshot: &Snapshot) -> Result<()> {
        let text = serde_json::to_vec_pretty(snapshot).context("cannot write JSON")?;
        let record = self.record_of(snapshot);
        write_durably(&record, &text)
            .and_then(|()| self.store().sync_names())
            .with_context(|| format!("cannot write {}", record.display()))
    }

    /// Holds disks that no host may open meanwhile.
    pub(super) fn hold(&self, lab: &Inner, disks: &[Uuid]) -> Result<Guard> {
        let gone = lab.lock().hosts_without_power();
        let guard = Guard::new(&self.path)?.without(gone);
        for disk in disks {
            guard.hold(&vdi::file_name(*disk))?;
        }
        Ok(guard)
    }
}

impl Inner {
    /// Takes a snapshot, of a VM that runs or is off; with its memory only while it runs.
    pub(crate) fn vm_snapshot(
        self: &Arc<Self>,
        vm: &str,
        name: Option<&str>,
        memory: bool,
    ) -> Result<Value> {
        let config = self.config(vm)?;
        let _chains = self.lock_chains();
        let repository = Repository::of(self.export()?, &config)?;
        let known = all(&repository.path)?;
        let id = Uuid(config.id).to_string();
        let taken: Vec<_> = known.iter().filter(|one| one.vm.uuid == id).collect();
        let name = match name {
            Some(name) => name.to_owned(),
            None => format!("snapshot-{}", taken.len() + 1),
        };
        if taken.iter().any(|one| one.name == name) {
            bail!("VM \"{vm}\" has a snapshot \"{name}\" already");
        }
        let mut machine = records::described(&repository.path, &config)?;
        let disks = disks_of(&config)?;
        let copies: Vec<Uuid> = disks.iter().map(|_| vdi::new_uuid()).collect();
        let off = self.lock().vms[vm].state == VmState::Halted;
        let (memory, pause_ns) = match (off, memory) {
            (true, true) => bail!("VM \"{vm}\" is off, so it has no memory to keep"),
            (true, false) => {
                self.refuse_suspended(&config)?;
                let _held = repository.hold(self, &disks)?;
                for (disk, copy) in disks.iter().zip(&copies) {
                    chain::snapshot(&repository.store(), *disk, *copy)?;
                }
                (None, 0)
            }
            (false, memory) => self.branch(vm, &config, &repository, &copies, memory)?,
        };
        let writable = machine.disks.iter_mut().zip(&config.disks);
        let writable = writable.filter(|(_, disk)| !disk.read_only);
        for ((disk, _), copy) in writable.zip(&copies) {
            disk.uuid = copy.to_string();
        }
        let taken_unix_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        repository.write(&Snapshot {
            uuid: vdi::new_uuid().to_string(),
            name: name.clone(),
            taken_unix_ns,
            vm: machine,
            memory: memory.map(|uuid| uuid.to_string()),
        })?;
        Ok(json!({ "snapshot": name, "pause_ns": pause_ns }))
    }

    /// Has the host of a running VM branch its disks at one moment, and makes `copies` of what they held then. Gives the disk with
    /// the memory, if that was wanted, and how long the VM stood still.
    fn branch(
        &self,
        vm: &str,
        config: &VmConfig,
        repository: &Repository,
        copies: &[Uuid],
        memory: bool,
    ) -> Result<(Option<Uuid>, u64)> {
        let (id, host) = self.running(vm)?;
        let connection = self.connection(&host)?;
        let store = repository.store();
        let disks = disks_of(config)?;
        let prepared = disks.iter().map(|disk| online::prepare(&store, *disk));
        let bases: Vec<Uuid> = prepared.collect::<Result<_, _>>()?;
        let medium = match memory {
            true => Some(repository.create_memory(config)?),
            false => None,
        };
        let asked = match medium {
            Some(medium) => {
                let path = repository.disk(medium);
                let keep_running = true;
                connection.call(
                    Command::Suspend {
                        vm: id,
                        path,
                        keep_running,
                    },
                    MEMORY_PATIENCE,
                )
            }
            None => connection.call(Command::Snapshot(id), PATIENCE),
        };
        let failed = || format!("{host} took no snapshot of VM \"{vm}\"");
        match asked {
            Ok(Reply::Snapshot { pause_ns }) => {
                for (base, copy) in bases.iter().zip(copies) {
                    online::finish(&store, *base, *copy)?;
                }
                Ok((medium, pause_ns))
            }
            Ok(other) => bail!("{host} answers {other:?} when asked for a snapshot"),
            Err(error @ CallError::Refused(_)) => {
                for (disk, base) in disks.iter().zip(&bases) {
                    online::undo(&store, *disk, *base)?;
                }
                if let Some(medium) = medium {
                    chain::delete(&store, medium)?;
                }
                Err(error).with_context(failed)
            }
            // Whether it was taken is not known; the files tell, and the next snapshot clears what was not used.
            Err(error) => Err(error).with_context(failed),
        }
    }

    /// The snapshots of a VM, or all.
    pub(crate) fn vm_snapshots(&self, vm: Option<&str>) -> Result<Value> {
        let repository = records::repository(self.export()?);
        let mut known = all(&repository)?;
        known.retain(|one| vm.is_none_or(|vm| one.vm.name == vm));
        let shown = known.iter().map(|one| {
            json!({
                "vm": one.vm.name, "snapshot": one.name, "taken_unix_s": one.taken_unix_ns / 1_000_000_000, "memory": one.memory.is_some(),
            })
        });
        Ok(Value::Array(shown.collect()))
    }

    /// Gives the disks of a VM that is off what they held then. With memory in the snapshot, unless `cold`, it goes on from there.
    pub(crate) fn vm_revert(
        self: &Arc<Self>,
        vm: &str,
        name: &str,
        host: Option<&str>,
        cold: bool,
    ) -> Result<()> {
        let config = self.config(vm)?;
        let repository = Repository::of(self.export()?, &config)?;
        let snapshot = find(&repository.path, vm, name)?;
        if self.lock().vms[vm].state != VmState::Halted {
            bail!("VM \"{vm}\" runs, and what it holds now would be lost; stop it first");
        }
        self.refuse_suspended(&config)?;
        let disks = disks_of(&config)?;
        if disks.len() != snapshot.vm.disks.len() {
            bail!("VM \"{vm}\" had other disks then");
        }
        {
            let _chains = self.lock_chains();
            let _held = repository.hold(self, &disks)?;
            for (disk, then) in disks.iter().zip(&snapshot.vm.disks) {
                chain::revert(&repository.store(), *disk, identity(&then.uuid)?)?;
            }
        }
        let Some(memory) = snapshot.memory.filter(|_| !cold) else {
            return Ok(());
        };
        let last = self.lock().vms[vm].host.clone();
        let host = host.map(str::to_owned).or(last);
        let host = host.unwrap_or_else(|| self.specs[0].name.clone());
        self.restore(vm, &host, repository.disk(identity(&memory)?))
    }

    /// Removes a snapshot, and then what only it needed.
    pub(crate) fn vm_snapshot_delete(&self, vm: &str, name: &str) -> Result<()> {
        let _chains = self.lock_chains();
        let config = self.config(vm)?;
        let repository = Repository::of(self.export()?, &config)?;
        let snapshot = find(&repository.path, vm, name)?;
        let record = repository.record_of(&snapshot);
        fs::remove_file(&record).with_context(|| format!("cannot remove {}", record.display()))?;
        let disks = snapshot.vm.disks.iter().map(|disk| &disk.uuid);
        for disk in disks.chain(&snapshot.memory) {
            chain::delete(&repository.store(), identity(disk)?)?;
        }
        self.reclaim();
        Ok(())
    }
}
