//! Availability: telling the hosts of their pool, and asking them about it.
//!
//! The hosts decide by themselves; the lab only hands each the same configuration, after each of its boots.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use host_protocol::pool::{LEASE_FILE, PoolHost, PoolSetup, PoolStatus, ProtectedVm};
use host_protocol::{Command, Reply};
use nfs_sr::sr::{statefile, store::Directory};
use serde_json::{Value, json};

use super::Inner;

const PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    /// Makes the lab's hosts a pool that restarts the VMs of hosts that fail.
    pub(crate) fn ha_enable(&self, failures_to_tolerate: u8) -> Result<()> {
        let setup = self.pool_setup(failures_to_tolerate)?;
        let program = self.storage_program.as_ref();
        let export = &program.context("the lab has no storage server")?.export;
        make_files(&export.join(&setup.repository))?;
        self.update(|state| state.pool = Some(setup.clone()));
        for spec in &self.specs {
            let command = Command::Protect(setup.clone());
            self.connection(&spec.name)?
                .call(command, PATIENCE)
                .with_context(|| format!("{} did not join the pool", spec.name))?;
        }
        Ok(())
    }

    fn pool_setup(&self, failures_to_tolerate: u8) -> Result<PoolSetup> {
        let state = self.lock();
        let configs: Vec<_> = state.vms.values().map(|vm| vm.config.clone()).collect();
        let disk = configs.iter().flat_map(|config| &config.disks).next();
        let disk = disk.context("no VM has a disk, so there is nothing to protect")?;
        let (repository, _) = disk
            .path
            .split_once('/')
            .ok_or_else(|| anyhow!("the disk {} is in no repository", disk.path))?;
        let hosts = self.specs.iter().map(|spec| {
            let status = state.hosts[&spec.name].status.as_ref();
            let memory = status.map(|status| status.memory_total >> 20);
            PoolHost {
                name: spec.name.clone(),
                memory_mib: memory
                    .and_then(|mib| u32::try_from(mib).ok())
                    .unwrap_or(spec.memory_mib),
            }
        });
        let mut pool = [0; 16];
        for (to, from) in pool.iter_mut().zip(self.name.bytes()) {
            *to = from;
        }
        Ok(PoolSetup {
            pool,
            repository: repository.into(),
            hosts: hosts.collect(),
            vms: configs
                .into_iter()
                .map(|config| ProtectedVm {
                    config,
                    priority: 0,
                    order: 0,
                    start_delay_ms: 0,
                    best_effort: false,
                })
                .collect(),
            failures_to_tolerate,
        })
    }

    /// The pool as each host that answers sees it.
    pub(crate) fn ha_status(&self) -> Result<Value> {
        let mut views = Vec::new();
        for spec in &self.specs {
            let Ok(connection) = self.connection(&spec.name) else {
                continue;
            };
            match connection.call(Command::PoolStatus, PATIENCE) {
                Ok(Reply::Pool(status)) => views.push(self.view(&spec.name, &status)),
                Ok(_) => {}
                Err(error) => views.push(json!({ "host": spec.name, "error": error.to_string() })),
            }
        }
        Ok(Value::Array(views))
    }

    fn view(&self, host: &str, status: &PoolStatus) -> Value {
        let state = self.lock();
        let name = |id| {
            let vm = state.vms.iter().find(|(_, vm)| vm.config.id == id);
            vm.map_or("?", |(name, _)| name.as_str())
        };
        let vms = status.vms.iter().map(|(id, place, protection)| {
            json!({ "vm": name(*id), "place": place, "protection": protection })
        });
        let hosts = status.hosts.iter().map(|(name, member, silent_ms)| {
            json!({ "host": name, "member": member, "silent_ms": silent_ms })
        });
        json!({
            "host": host,
            "standing": status.standing,
            "guests_may_run": status.permitted,
            "statefile_up": status.statefile_up,
            "generation": status.generation,
            "coordinator": status.coordinator,
            "hosts": hosts.collect::<Vec<_>>(),
            "vms": vms.collect::<Vec<_>>(),
            "tolerated_failures": status.tolerated,
            "shortage": status.shortage,
            "plan": status.plan,
        })
    }
}

/// The statefile and the file whose lease is the pool's generation.
fn make_files(repository: &Path) -> Result<()> {
    let name = repository.file_name().unwrap_or_default().to_string_lossy();
    if !repository.join(::statefile::NAME).exists() {
        let uuid = name
            .parse()
            .map_err(|_| anyhow!("the repository's directory {name} is not named by a UUID"))?;
        statefile::create(&Directory::new(repository), uuid)
            .with_context(|| format!("cannot make the statefile of repository {name}"))?;
    }
    let lease = repository.join(LEASE_FILE);
    if !lease.exists() {
        std::fs::write(&lease, []).with_context(|| format!("cannot make {}", lease.display()))?;
    }
    Ok(())
}
