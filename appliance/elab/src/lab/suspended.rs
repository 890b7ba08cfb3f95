//! Suspended VMs: memory and state of a guest on a virtual disk of the repository, and the record that says which.
//!
//! The record (`<vm>.suspended`, beside the disks) is there before the host begins to write, so no crash leaves memory that
//! nobody knows of; whether what is on the disk is whole, and still fits the guest's own disks, is for the host to say.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use host_protocol::{Command, VmConfig, VmState};
use images::guest::SR_UUID;
use nfs_sr::sr::store::{Directory, Store};
use nfs_sr::sr::{chain, vdi, write_durably};
use vhd::{DiskKind, Uuid};

use super::state::GaveUp;
use super::{Inner, records};

/// All of a guest's memory goes over the storage network, on a machine that may be busy.
pub(super) const MEMORY_PATIENCE: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(10);

/// The repository that a VM's disks are in.
pub(super) struct Repository {
    /// Its directory below the export, as hosts name it.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Repository {
    /// The one that every machine of a lab is recorded in.
    pub(super) fn main(export: &Path) -> Self {
        Self {
            name: SR_UUID.into(),
            path: records::repository(export),
        }
    }

    pub(super) fn of(export: &Path, config: &VmConfig) -> Result<Self> {
        let disk = config.disks.iter().find(|disk| !disk.read_only);
        let (name, _) = disk
            .and_then(|disk| disk.path.split_once('/'))
            .with_context(|| format!("VM \"{}\" has no disk of its own", config.name))?;
        Ok(Self {
            name: name.into(),
            path: export.join(name),
        })
    }

    pub(super) fn store(&self) -> Directory {
        Directory::new(&self.path)
    }

    /// What hosts call a disk.
    pub(super) fn disk(&self, uuid: Uuid) -> String {
        format!("{}/{}", self.name, vdi::file_name(uuid))
    }

    /// A new disk with room for the memory and state of a VM; it takes no space yet.
    pub(super) fn create_memory(&self, config: &VmConfig) -> Result<Uuid> {
        let uuid = vdi::new_uuid();
        let memory = u64::from(config.memory_mib) << 20;
        // Beside the pages: a header of each batch of them, and the state of devices and disks.
        let bytes = memory + memory / 64 + (4 << 20);
        vdi::create(&self.store(), uuid, bytes, DiskKind::Dynamic)
            .context("cannot make the disk for the guest's memory")?;
        Ok(uuid)
    }

    fn record(&self, config: &VmConfig) -> PathBuf {
        self.path.join(format!("{}.suspended", Uuid(config.id)))
    }

    /// The disk with the memory of a VM, if it is suspended.
    fn suspended(&self, config: &VmConfig) -> Result<Option<Uuid>> {
        let record = self.record(config);
        match fs::read_to_string(&record) {
            Ok(text) => {
                let uuid = text.trim().parse().ok();
                let uuid = uuid.with_context(|| format!("{} is damaged", record.display()))?;
                Ok(Some(uuid))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", record.display())),
        }
    }

    fn record_suspended(&self, config: &VmConfig, memory: Uuid) -> Result<()> {
        let record = self.record(config);
        write_durably(&record, memory.to_string().as_bytes())
            .and_then(|()| self.store().sync_names())
            .with_context(|| format!("cannot write {}", record.display()))
    }

    /// Forgets the memory of a VM, and then the disk that it is on.
    fn forget_suspended(&self, config: &VmConfig, memory: Uuid) -> Result<()> {
        let record = self.record(config);
        fs::remove_file(&record)
            .and_then(|()| self.store().sync_names())
            .with_context(|| format!("cannot remove {}", record.display()))?;
        chain::delete(&self.store(), memory).context("cannot remove the guest's memory")
    }
}

impl Inner {
    pub(super) fn export(&self) -> Result<&Path> {
        let program = self.storage_program.as_ref();
        Ok(&program.context("this lab has no storage server")?.export)
    }

    /// The disk with the memory of a VM, if it is suspended.
    fn memory_of(&self, config: &VmConfig) -> Result<Option<(Repository, Uuid)>> {
        if self.storage_program.is_none() || config.disks.iter().all(|disk| disk.read_only) {
            return Ok(None);
        }
        let repository = Repository::of(self.export()?, config)?;
        let memory = repository.suspended(config)?;
        Ok(memory.map(|memory| (repository, memory)))
    }

    /// Refuses to boot a VM whose memory waits to be resumed: its disk would move on, and the memory would be of no use.
    pub(super) fn refuse_suspended(&self, config: &VmConfig) -> Result<()> {
        let vm = &config.name;
        match self.memory_of(config)? {
            Some(_) => bail!(
                "VM \"{vm}\" is suspended; `elab vm resume {vm}` lets it go on, \
                 `elab vm stop {vm} --force` throws its memory away"
            ),
            None => Ok(()),
        }
    }

    /// Throws the memory of a suspended VM away; false when it is not suspended.
    pub(super) fn discard_suspended(&self, vm: &str) -> Result<bool> {
        let config = self.config(vm)?;
        let off = self.lock().vms[vm].state == VmState::Halted;
        match self.memory_of(&config)?.filter(|_| off) {
            Some((repository, memory)) => {
                repository.forget_suspended(&config, memory)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    pub(crate) fn vm_suspend(self: &Arc<Self>, vm: &str) -> Result<()> {
        let (id, host) = self.running(vm)?;
        let config = self.config(vm)?;
        let repository = Repository::of(self.export()?, &config)?;
        let connection = self.connection(&host)?;
        let memory = repository.create_memory(&config)?;
        repository.record_suspended(&config, memory)?;
        let command = Command::Suspend {
            vm: id,
            path: repository.disk(memory),
            keep_running: false,
        };
        if let Err(error) = connection.call(command, MEMORY_PATIENCE) {
            // It may have come to its end without us: then the guest is off and its memory is kept.
            let runs = self.lock().vms[vm].state != VmState::Halted;
            let refused = matches!(error, crate::control::CallError::Refused(_));
            if refused && runs {
                repository.forget_suspended(&config, memory)?;
            }
            return Err(error).with_context(|| format!("{host} did not suspend VM \"{vm}\""));
        }
        let halted = self.wait(PATIENCE, |state| {
            (state.vms[vm].state == VmState::Halted).then_some(())
        });
        match halted {
            Ok(()) => Ok(()),
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => bail!("{host} does not say that VM \"{vm}\" is off"),
        }
    }

    /// Lets a suspended VM go on, by default on the host that it was on.
    pub(crate) fn vm_resume(self: &Arc<Self>, vm: &str, host: Option<&str>) -> Result<()> {
        let config = self.config(vm)?;
        let Some((repository, memory)) = self.memory_of(&config)? else {
            bail!("VM \"{vm}\" is not suspended; `elab vm suspend {vm}` suspends it while it runs");
        };
        let host = match host {
            Some(host) => host.to_owned(),
            None => {
                let state = self.lock();
                let last = state.vms[vm].host.clone();
                last.unwrap_or_else(|| self.specs[0].name.clone())
            }
        };
        self.restore(vm, &host, repository.disk(memory))?;
        repository.forget_suspended(&config, memory)
    }

    /// Has a host build a VM from a checkpoint.
    pub(super) fn restore(&self, vm: &str, host: &str, path: String) -> Result<()> {
        let connection = self.connection(host)?;
        self.update(|state| {
            let entry = state.vms.get_mut(vm).context("the VM has vanished")?;
            if entry.state != VmState::Halted {
                bail!("VM \"{vm}\" is not off");
            }
            entry.host = Some(host.into());
            entry.state = VmState::Starting;
            entry.starting = true;
            entry.stopped = None;
            Ok(())
        })?;
        let result = connection.call(Command::Resume { path }, MEMORY_PATIENCE);
        self.update(|state| {
            if let Some(entry) = state.vms.get_mut(vm) {
                entry.starting = false;
                if let Err(error) = &result {
                    entry.state = VmState::Halted;
                    entry.stopped = Some(format!("not resumed: {error}"));
                }
            }
        });
        result.with_context(|| format!("{host} did not resume VM \"{vm}\""))?;
        Ok(())
    }
}
