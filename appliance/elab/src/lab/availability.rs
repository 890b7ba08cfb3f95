//! Availability: telling the hosts of their pool, and asking them about it.
//!
//! The hosts decide by themselves; the lab only hands each the same configuration, after each of its boots.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use host_protocol::pool::{LEASE_FILE, MAX_VMS, PoolHost, PoolSetup, PoolStatus, ProtectedVm};
use host_protocol::{Command, Reply, VmState};
use lab_protocol::Restart;
use nfs_sr::sr::{statefile, store::Directory};
use serde_json::{Value, json};

use super::Inner;
use super::state::{GaveUp, Power, State, Vm};

const PATIENCE: Duration = Duration::from_secs(10);
/// A host that stands still shall not keep the others' words back.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// For a status of the lab, which people look at again and again.
const AT_ONCE: Duration = Duration::from_millis(300);
/// Between two looks at a pool that forms.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Inner {
    /// Makes the lab's hosts a pool that restarts the VMs of hosts that fail; it protects them when this returns. Hosts that
    /// are off join when they are switched on, and VMs that come later are protected as they come.
    pub(crate) fn ha_enable(&self, failures_to_tolerate: u8) -> Result<Value> {
        if usize::from(failures_to_tolerate) >= self.specs.len() {
            bail!(
                "{failures_to_tolerate} of {} hosts cannot fail at once with every VM restarted: at least one must be left",
                self.specs.len()
            );
        }
        let on: Vec<_> = {
            let state = self.lock();
            let names = self.specs.iter().map(|spec| spec.name.clone());
            names
                .filter(|name| state.hosts[name].power != Power::Off)
                .collect()
        };
        self.in_turn(|| {
            let setup = self.pool_setup(failures_to_tolerate)?;
            make_files(&self.export()?.join(&setup.repository))?;
            self.update(|state| state.pool = Some(setup.clone()));
            self.tell_pool(&setup, &on)
        })?;
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

    /// One change of the pool at a time.
    pub(super) fn in_turn<T>(&self, act: impl FnOnce() -> T) -> T {
        let turn = Arc::clone(&self.lock().pool_turn);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        act()
    }

    fn tell_pool(&self, setup: &PoolSetup, hosts: &[String]) -> Result<()> {
        for host in hosts {
            let command = Command::Protect(setup.clone());
            self.connection(host)?
                .call(command, PATIENCE)
                .with_context(|| format!("{host} was told of the pool, and does not agree"))?;
        }
        Ok(())
    }

    /// Changes what the pool knows of a VM, if there is a pool, and of a VM that has come since. Hosts that cannot be reached are
    /// told when they can.
    pub(super) fn change_pool(&self, vm: &str) -> Result<()> {
        self.in_turn(|| {
            let setup = self.update(|state| {
                let now = protected(state.vms.get(vm)?);
                let pool = state.pool.as_mut()?;
                match pool.vms.iter_mut().find(|of| of.config.id == now.config.id) {
                    Some(known) if *known == now => return None,
                    Some(known) => *known = now,
                    None => pool.vms.push(now),
                }
                Some(pool.clone())
            });
            let Some(setup) = setup else {
                return Ok(());
            };
            let reached: Vec<_> = {
                let state = self.lock();
                let hosts = state.hosts.iter();
                let reached = hosts.filter(|(_, host)| host.connection.is_some());
                reached.map(|(name, _)| name.clone()).collect()
            };
            self.tell_pool(&setup, &reached)
        })
    }

    /// Has the pool protect a VM that the lab did not know before; says so, or why it does not.
    pub(super) fn protect_newcomer(&self, vm: &str) {
        let refused = {
            let state = self.lock();
            let (Some(pool), Some(entry)) = (&state.pool, state.vms.get(vm)) else {
                return;
            };
            let in_repository = |disk: &host_protocol::DiskConfig| {
                disk.path.split_once('/').map(|(name, _)| name) == Some(&pool.repository)
            };
            let mut written = entry.config.disks.iter().filter(|disk| !disk.read_only);
            if pool.vms.len() >= MAX_VMS {
                Some(format!("the pool protects {MAX_VMS} VMs already"))
            } else if !written.any(in_repository) {
                Some("it writes no disk in the pool's repository, so nothing fences it".into())
            } else {
                None
            }
        };
        let outcome = match refused {
            Some(why) => Err(why),
            None => self.change_pool(vm).map_err(|why| format!("{why:#}")),
        };
        match outcome {
            Ok(()) => self.message(
                "info",
                format!("VM \"{vm}\" is restarted from now on when its host fails"),
            ),
            Err(why) => self.message(
                "warning",
                format!("VM \"{vm}\" is NOT restarted when its host fails: {why}"),
            ),
        }
    }

    /// Has a VM restarted in another way.
    pub(crate) fn vm_set(&self, vm: &str, change: impl FnOnce(&mut Restart)) -> Result<Value> {
        // Also one that was imported while the lab runs.
        self.config(vm)?;
        let (before, now) = self.update(|state| {
            let entry = state.vms.get_mut(vm).context("the VM has vanished")?;
            let before = entry.restart;
            change(&mut entry.restart);
            anyhow::Ok((before, entry.restart))
        })?;
        if before != now {
            let words = match now.words() {
                usual if usual.is_empty() => "as is usual".into(),
                words => words,
            };
            self.message("info", format!("VM \"{vm}\" is restarted with: {words}"));
            self.change_pool(vm)?;
        }
        if before.from != now.from {
            self.prepare_restart(vm);
        }
        Ok(json!(now))
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

    /// What the hosts are told: of a pool that there is, the same hosts, and its VMs in their places.
    fn pool_setup(&self, failures_to_tolerate: u8) -> Result<PoolSetup> {
        let state = self.lock();
        let mut setup = match &state.pool {
            Some(known) => known.clone(),
            None => self.new_pool(&state)?,
        };
        setup.failures_to_tolerate = failures_to_tolerate;
        for vm in state.vms.values() {
            let now = protected(vm);
            match setup
                .vms
                .iter_mut()
                .find(|of| of.config.id == now.config.id)
            {
                Some(known) => *known = now,
                None => setup.vms.push(now),
            }
        }
        Ok(setup)
    }

    fn new_pool(&self, state: &State) -> Result<PoolSetup> {
        let mut disks = state.vms.values().flat_map(|vm| &vm.config.disks);
        let disk = disks
            .next()
            .context("no VM has a disk, so there is nothing to protect")?;
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
            vms: Vec::new(),
            failures_to_tolerate: 0,
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
        let vms = status.vms.iter().map(|(id, place, protection)| {
            let vm = state.vms.iter().find(|(_, vm)| vm.config.id == *id);
            let (name, restart) =
                vm.map_or(("?", Restart::default()), |(name, vm)| (name, vm.restart));
            json!({ "vm": name, "place": place, "protection": protection, "restart": restart.words() })
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

fn protected(vm: &Vm) -> ProtectedVm {
    ProtectedVm {
        config: vm.config.clone(),
        priority: vm.restart.priority,
        order: vm.restart.order,
        start_delay_ms: vm.restart.start_delay_ms,
        best_effort: vm.restart.best_effort,
        restart_point: vm.restart_point.clone(),
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
