//! What a VM that is restarted from its last checkpoint needs, prepared while it runs, so that the hosts can do it alone.
//!
//! An empty child of what its disk held at the checkpoint, and a second name for the disk's present file. The host that
//! restarts the VM has the storage server put the child in the disk's place, which takes both; nothing of it is the lab's to decide.
//! Afterwards the lab makes a snapshot of what is found under the second name, which is what the disk held when its host failed,
//! and prepares the next restart.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use host_protocol::VmConfig;
use host_protocol::pool::RestartPoint;
use lab_protocol::RestartFrom;
use nfs_sr::sr::store::Store;
use nfs_sr::sr::{chain, vdi};
use vhd::Uuid;

use super::snapshots::{self, Snapshot};
use super::suspended::Repository;
use super::{Inner, records};

/// What the second name of a disk's file ends with.
const KEPT: &str = ".kept";

/// The only disk that a VM writes.
fn only_disk(config: &VmConfig) -> Result<Uuid> {
    let mut written = config.disks.iter().filter(|disk| !disk.read_only);
    match (written.next(), written.next()) {
        (Some(disk), None) => {
            let file = disk.path.rsplit('/').next().unwrap_or_default();
            let uuid = file.strip_suffix(".vhd").and_then(|uuid| uuid.parse().ok());
            uuid.with_context(|| format!("{} is not named by a UUID", disk.path))
        }
        (None, _) => bail!("it has no disk of its own"),
        (Some(_), Some(_)) => bail!("it has several disks, which cannot go back in one step"),
    }
}

impl Inner {
    /// Prepares a restart from the last checkpoint, if the VM is to be restarted from there, and has the pool know; says so when
    /// that is not possible.
    pub(super) fn prepare_restart(&self, vm: &str) {
        let (config, wanted) = {
            let state = self.lock();
            let Some(entry) = state.vms.get(vm) else {
                return;
            };
            (entry.config.clone(), entry.restart.from)
        };
        let point = self.in_turn(|| self.renew_restart_point(&config, wanted));
        let told = match point {
            Ok(Some(checkpoint)) => Ok(format!(
                "VM \"{vm}\" goes on from its checkpoint \"{checkpoint}\" when its host fails"
            )),
            Ok(None) if wanted == RestartFrom::Boot => return self.tell_of(vm, Ok(None)),
            Ok(None) => Err("it has no checkpoint yet; `elab vm checkpoint` takes one".into()),
            Err(why) => Err(format!("{why:#}")),
        };
        self.tell_of(vm, told.map(Some));
    }

    /// Before the VM's disk gets other contents by command: what it holds now is not to be kept.
    pub(super) fn drop_restart_point(&self, vm: &str) -> Result<()> {
        let config = self.config(vm)?;
        self.in_turn(|| self.renew_restart_point(&config, RestartFrom::Boot))
            .map(drop)
    }

    fn tell_of(&self, vm: &str, told: Result<Option<String>, String>) {
        match told {
            Ok(Some(text)) => self.message("info", text),
            Ok(None) => {}
            Err(why) => self.message(
                "warning",
                format!("VM \"{vm}\" boots when its host fails: {why}"),
            ),
        }
        if let Err(why) = self.change_pool(vm) {
            self.message("warning", format!("{why:#}"));
        }
    }

    /// A host says that it has restarted a VM. What it needs for the next time is not to be waited for here.
    pub(super) fn was_restarted(self: &Arc<Self>, vm: &str) {
        let from = {
            let state = self.lock();
            state.vms.get(vm).map(|entry| entry.restart.from)
        };
        if from != Some(RestartFrom::Checkpoint) {
            return;
        }
        let (inner, vm) = (Arc::clone(self), vm.to_owned());
        let spawned = std::thread::Builder::new()
            .name("restart point".into())
            .spawn(move || inner.prepare_restart(&vm));
        if let Err(why) = spawned {
            self.message("warning", format!("cannot start a thread: {why}"));
        }
    }

    /// Removes what was prepared, keeps what a restart has left, and prepares anew. Gives the checkpoint's name.
    fn renew_restart_point(
        &self,
        config: &VmConfig,
        wanted: RestartFrom,
    ) -> Result<Option<String>> {
        let before = self.update(|state| {
            let entry = state.vms.get_mut(&config.name)?;
            entry.restart_point.take()
        });
        if before.is_none() && wanted == RestartFrom::Boot {
            return Ok(None);
        }
        let disk = only_disk(config)?;
        let repository = Repository::of(self.export()?, config)?;
        let store = repository.store();
        let _chains = self.lock_chains();
        let leaf = vdi::file_name(disk);
        let kept = format!("{leaf}{KEPT}");
        self.keep_what_was_lost(config, &repository, &kept)?;
        if let Some(before) = before {
            let file = before.disk.rsplit('/').next().unwrap_or_default();
            if store.length(file).is_ok()
                && let Some(uuid) = vdi::uuid_of(file)
            {
                chain::delete(&store, uuid)?;
            }
        }
        if wanted == RestartFrom::Boot {
            return Ok(None);
        }
        let id = Uuid(config.id).to_string();
        let known = snapshots::all(&repository.path)?;
        let checkpoints = known.into_iter().filter(|one| one.vm.uuid == id);
        let with_memory = |one: Snapshot| Some((one.memory.clone()?, one));
        let Some((memory, last)) = checkpoints.filter_map(with_memory).next_back() else {
            return Ok(None);
        };
        let then = last
            .vm
            .disks
            .first()
            .context("the checkpoint has no disk")?;
        let identity = |text: &str| text.parse::<Uuid>().ok().context("a disk has no UUID");
        let child = vdi::new_uuid();
        // A disk that has written nothing yet: this is another child of the same base copy.
        chain::snapshot(&store, identity(&then.uuid)?, child)?;
        store
            .link(&leaf, &kept)
            .and_then(|()| store.sync_names())
            .with_context(|| format!("cannot give {leaf} the name {kept}"))?;
        let point = RestartPoint {
            memory: repository.disk(identity(&memory)?),
            disk: repository.disk(child),
            kept,
        };
        self.update(|state| {
            if let Some(entry) = state.vms.get_mut(&config.name) {
                entry.restart_point = Some(point);
            }
        });
        Ok(Some(last.name))
    }

    /// The second name is gone afterwards. If it is the only name of a file, another took the place of that: it becomes a snapshot.
    fn keep_what_was_lost(
        &self,
        config: &VmConfig,
        repository: &Repository,
        kept: &str,
    ) -> Result<()> {
        let store = repository.store();
        let names_of_it = match fs::metadata(repository.path.join(kept)) {
            Ok(file) => file.nlink(),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(why) => return Err(why).with_context(|| format!("cannot look at {kept}")),
        };
        if names_of_it > 1 {
            // It is the disk's file still, or has become a base copy.
            store.remove(kept)?;
            return Ok(());
        }
        let lost = vdi::new_uuid();
        store.rename(kept, &vdi::file_name(lost))?;
        store.sync_names()?;
        let known = snapshots::all(&repository.path)?;
        let names: Vec<_> = known.iter().map(|one| one.name.as_str()).collect();
        let name = (1..)
            .map(|number| format!("before-restart-{number}"))
            .find(|name| !names.contains(&name.as_str()))
            .context("there are too many snapshots")?;
        let mut machine = records::described(&repository.path, config)?;
        let described = machine.disks.iter_mut().zip(&config.disks);
        for (disk, _) in described.filter(|(_, disk)| !disk.read_only) {
            disk.uuid = lost.to_string();
        }
        repository.write(&Snapshot {
            uuid: vdi::new_uuid().to_string(),
            name: name.clone(),
            taken_unix_ns: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            vm: machine,
            memory: None,
        })?;
        self.message(
            "info",
            format!(
                "what the disk of VM \"{}\" held when its host failed is its snapshot \"{name}\"",
                config.name
            ),
        );
        Ok(())
    }
}
