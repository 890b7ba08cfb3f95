//! Availability: telling the hosts of their pool, and asking them about it.
//!
//! The hosts decide by themselves; the lab only hands each the same configuration, after each of its boots.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use host_protocol::pool::{LEASE_FILE, PoolHost, PoolSetup, PoolStatus, ProtectedVm};
use host_protocol::{Command, Reply, VmState};
use nfs_sr::sr::{statefile, store::Directory};
use serde_json::{Value, json};

use super::Inner;
use super::state::{GaveUp, Power};

const PATIENCE: Duration = Duration::from_secs(10);
/// A host that stands still shall not keep the others' words back.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// For a status of the lab, which people look at again and again.
const AT_ONCE: Duration = Duration::from_millis(300);
/// Between two looks at a pool that forms.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Inner {
    /// Makes the lab's hosts a pool that restarts the VMs of hosts that fail; it protects them when this returns. Hosts that
    /// are off join when they are switched on.
    pub(crate) fn ha_enable(&self, failures_to_tolerate: u8) -> Result<Value> {
        let setup = self.pool_setup(failures_to_tolerate)?;
        let program = self.storage_program.as_ref();
        let export = &program.context("the lab has no storage server")?.export;
        make_files(&export.join(&setup.repository))?;
        self.update(|state| state.pool = Some(setup.clone()));
        let on: Vec<_> = {
            let state = self.lock();
            let names = self.specs.iter().map(|spec| spec.name.clone());
            names
                .filter(|name| state.hosts[name].power != Power::Off)
                .collect()
        };
        for host in &on {
            let command = Command::Protect(setup.clone());
            self.connection(host)?
                .call(command, PATIENCE)
                .with_context(|| format!("{host} did not join the pool"))?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.formed(&on) {
                Ok(view) => return Ok(view),
                Err(missing) if Instant::now() > deadline => bail!(
                    "the pool did not form within {} s: {missing}; `elab ha status` tells more",
                    PATIENCE.as_secs()
                ),
                Err(_) => {}
            }
            if self.wait(LOOK_AGAIN, |_| None::<()>) == Err(GaveUp::Stopping) {
                bail!("interrupted");
            }
        }
    }

    /// The pool, once all these hosts are in it and it knows of each VM that runs; or what is missing.
    fn formed(&self, hosts: &[String]) -> Result<Value, String> {
        let mut last = Value::Null;
        for host in hosts {
            let status = self
                .ask_pool(host, PATIENCE)
                .map_err(|why| why.to_string())?;
            if status.standing != "member" || !status.permitted {
                return Err(format!("{host} is {}", status.standing));
            }
            let state = self.lock();
            for (vm, place, _) in &status.vms {
                let running = state
                    .vms
                    .values()
                    .any(|of| of.config.id == *vm && of.state == VmState::Running);
                if running && place == "off" {
                    return Err(format!("{host} does not know of a VM that runs"));
                }
            }
            drop(state);
            last = self.view(host, &status);
        }
        Ok(last)
    }

    fn ask_pool(&self, host: &str, patience: Duration) -> Result<PoolStatus> {
        match self.connection(host)?.call(Command::PoolStatus, patience)? {
            Reply::Pool(status) => Ok(status),
            other => bail!("{host} answers {other:?} when asked for its pool"),
        }
    }

    /// How far each VM is protected, as the first host says that answers at once; `None` when none does. Empty without a pool.
    pub(crate) fn protection(&self) -> Option<BTreeMap<String, String>> {
        if self.lock().pool.is_none() {
            return Some(BTreeMap::new());
        }
        let on: Vec<_> = {
            let state = self.lock();
            let on = state
                .hosts
                .iter()
                .filter(|(_, host)| host.power == Power::On && host.connection.is_some());
            on.map(|(name, _)| name.clone()).collect()
        };
        let status = on.iter().find_map(|host| {
            let status = self.ask_pool(host, AT_ONCE).ok()?;
            (status.standing == "member").then_some(status)
        })?;
        let state = self.lock();
        let named = status.vms.iter().filter_map(|(id, _, protection)| {
            let vm = state.vms.iter().find(|(_, vm)| vm.config.id == *id)?;
            Some((vm.0.clone(), protection.clone()))
        });
        Some(named.collect())
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
            match self.ask_pool(&spec.name, STATUS_PATIENCE) {
                Ok(status) => views.push(self.view(&spec.name, &status)),
                Err(error) => {
                    views.push(json!({ "host": spec.name, "error": format!("{error:#}") }))
                }
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
