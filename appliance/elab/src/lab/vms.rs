//! VMs: start, stop, migrate, console.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use host_protocol::{Command, MigrationConfig, NegativeControls, VmConfig, VmId, VmState};
use lab_protocol::Event;

use super::Inner;
use super::records;
use super::state::{ConsolePosition, GaveUp, Move, Power, State, Vm};
use crate::control::CallError;
use crate::network::MANAGEMENT;

/// A host reads kernel and initial RAM disk from the storage server before it answers a start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// A guest that is asked to shut down may take its time.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);
/// A destination whose source has died takes the disk's lease and resumes, or finds that it has not all of the guest.
const TAKE_OVER: Duration = Duration::from_secs(5);

impl Inner {
    fn no_vm(state: &State, vm: &str) -> anyhow::Error {
        let names: Vec<_> = state.vms.keys().map(String::as_str).collect();
        anyhow!("there is no VM \"{vm}\"; the VMs are: {}", names.join(", "))
    }

    /// What a VM is.
    pub(super) fn config(&self, vm: &str) -> Result<VmConfig> {
        self.know(vm)?;
        let state = self.lock();
        let entry = state.vms.get(vm).ok_or_else(|| Self::no_vm(&state, vm))?;
        Ok(entry.config.clone())
    }

    /// Identity and host of a VM that runs.
    pub(super) fn running(&self, vm: &str) -> Result<(VmId, String)> {
        let state = self.lock();
        let entry = state.vms.get(vm).ok_or_else(|| Self::no_vm(&state, vm))?;
        match (&entry.host, entry.state) {
            (Some(host), VmState::Running | VmState::Paused | VmState::Starting) => {
                Ok((entry.config.id, host.clone()))
            }
            _ => bail!("VM \"{vm}\" is off; `elab vm start {vm} --host h1` starts it"),
        }
    }

    /// A machine that was imported since the lab began is in its repository.
    pub(super) fn know(&self, vm: &str) -> Result<()> {
        let (Some(program), false) = (&self.storage_program, self.lock().vms.contains_key(vm))
        else {
            return Ok(());
        };
        if let Some(config) = records::read(&program.export, vm)? {
            self.update(|state| state.vms.insert(vm.into(), Vm::halted(config)));
            self.protect_newcomer(vm);
        }
        Ok(())
    }

    pub(crate) fn vm_start(self: &Arc<Self>, vm: &str, host: &str) -> Result<()> {
        let connection = self.connection(host)?;
        self.know(vm)?;
        let config = {
            let state = self.lock();
            let entry = state.vms.get(vm).ok_or_else(|| Self::no_vm(&state, vm))?;
            if let (Some(host), VmState::Running | VmState::Paused | VmState::Starting) =
                (&entry.host, entry.state)
            {
                bail!("VM \"{vm}\" is on {host} already");
            }
            entry.config.clone()
        };
        self.refuse_suspended(&config)?;
        self.update(|state| {
            if let Some(entry) = state.vms.get_mut(vm) {
                entry.host = Some(host.into());
                entry.state = VmState::Starting;
                entry.starting = true;
                entry.stopped = None;
                // What an earlier run has shown is no sign of this one.
                entry.console.clear();
            }
        });
        let result = connection.call(Command::Start(config), START_PATIENCE);
        self.update(|state| {
            if let Some(entry) = state.vms.get_mut(vm) {
                entry.starting = false;
            }
        });
        if let Err(error) = result {
            self.update(|state| {
                if let Some(entry) = state.vms.get_mut(vm) {
                    entry.state = VmState::Halted;
                    entry.stopped = Some(format!("not started: {error}"));
                }
            });
            return Err(error).with_context(|| format!("{host} did not start VM \"{vm}\""));
        }
        Ok(())
    }

    pub(crate) fn vm_shutdown(&self, vm: &str) -> Result<()> {
        let (id, host) = self.running(vm)?;
        self.connection(&host)?
            .call(Command::Shutdown(id), PATIENCE)
            .with_context(|| format!("{host} did not shut VM \"{vm}\" down"))?;
        let halted = self.wait(SHUTDOWN_PATIENCE, |state| {
            (state.vms[vm].state == VmState::Halted).then_some(())
        });
        match halted {
            Ok(()) => Ok(()),
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => bail!(
                "the guest did not shut down within {} s; `elab vm stop {vm} --force` pulls its plug",
                SHUTDOWN_PATIENCE.as_secs()
            ),
        }
    }

    pub(crate) fn vm_destroy(&self, vm: &str) -> Result<()> {
        if self.discard_suspended(vm)? {
            return Ok(());
        }
        let (id, host) = self.running(vm)?;
        self.connection(&host)?
            .call(Command::Destroy(id), PATIENCE)
            .with_context(|| format!("{host} did not destroy VM \"{vm}\""))?;
        Ok(())
    }

    /// Moves a VM; gives the migration's number.
    pub(crate) fn vm_migrate(
        self: &Arc<Self>,
        vm: &str,
        to: &str,
        verify: bool,
        controls: NegativeControls,
    ) -> Result<u32> {
        let (id, from) = self.running(vm)?;
        let destination = self.spec(to)?.number;
        if from == to {
            bail!("VM \"{vm}\" is on {to} already");
        }
        let source = self.connection(&from)?;
        // A destination that is off would be found out by a timeout only.
        self.connection(to)?;
        let number = self.update(|state| {
            let number = state.migrations + 1;
            let entry = state.vms.get_mut(vm).context("the VM has vanished")?;
            if let Some(running) = &entry.migration {
                bail!(
                    "VM \"{vm}\" is on its way from {} to {} already",
                    running.from,
                    running.to
                );
            }
            entry.migration = Some(Move {
                from: from.clone(),
                to: to.into(),
            });
            entry.last_migration = number;
            state.migrations = number;
            Ok(number)
        })?;
        self.record(Event::MigrationRequested {
            vm: vm.into(),
            migration: number,
            from: from.clone(),
            to: to.into(),
        });
        let config = MigrationConfig {
            verify,
            controls,
            ..MigrationConfig::default()
        };
        let patience = Duration::from_millis(config.timeout_ms.into()) + PATIENCE;
        let command = Command::Migrate {
            vm: id,
            destination: MANAGEMENT.host_address(destination).octets(),
            config,
        };
        let result = match source.call(command, patience) {
            Ok(_) => self.wait_for_arrival(vm, to, PATIENCE).map_err(|error| {
                error.context(format!(
                    "{from} handed the guest over, but {to} does not say that it runs"
                ))
            }),
            // Past the commit point the guest is the destination's, whatever becomes of the source.
            Err(CallError::Disconnected(_)) => self
                .wait_for_arrival(vm, to, TAKE_OVER)
                .map_err(|error| error.context(self.source_lost(vm, &from, to))),
            Err(error) => Err(error.into()),
        };
        let error = result
            .as_ref()
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        self.record(Event::MigrationEnded {
            vm: vm.into(),
            migration: number,
            error,
        });
        self.update(|state| {
            if let Some(entry) = state.vms.get_mut(vm) {
                entry.migration = None;
            }
        });
        result
            .map(|()| number)
            .with_context(|| format!("migration {number} of \"{vm}\" from {from} to {to} failed"))
    }

    /// What it means that the source was lost, and that the destination does not say that it has the guest.
    fn source_lost(&self, vm: &str, from: &str, to: &str) -> String {
        let state = self.lock();
        let (off, protected) = (state.hosts[from].power == Power::Off, state.pool.is_some());
        drop(state);
        if off && protected {
            format!(
                "{from} was lost before the guest had become {to}'s, and the guest with it; \
                 the pool restarts it, and `elab ha status` tells where"
            )
        } else if off {
            format!(
                "{from} was lost before the guest had become {to}'s, and the guest with it; \
                 start it again with: elab vm start {vm} --host {to}"
            )
        } else {
            format!(
                "{from} cannot be reached and {to} has not taken the guest over, which then goes on at {from}; \
                 `elab vm list` tells when {from} answers again"
            )
        }
    }

    /// The destination's own word that the guest runs there: it comes on another connection than the source's.
    fn wait_for_arrival(&self, vm: &str, to: &str, patience: Duration) -> Result<()> {
        let arrived = self.wait(patience, |state| {
            let entry = &state.vms[vm];
            match (entry.host.as_deref() == Some(to), entry.state) {
                (true, VmState::Running) => Some(Ok(())),
                (true, VmState::Halted) => Some(Err(entry.stopped.clone().unwrap_or_default())),
                _ => None,
            }
        });
        match arrived {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                bail!("it is off there ({why}); start it with: elab vm start {vm} --host HOST")
            }
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => bail!("no sign of it within {} s", patience.as_secs()),
        }
    }

    pub(crate) fn vm_migrate_cancel(&self, vm: &str) -> Result<()> {
        let (id, from) = {
            let state = self.lock();
            let entry = state.vms.get(vm).ok_or_else(|| Self::no_vm(&state, vm))?;
            let running = entry
                .migration
                .as_ref()
                .ok_or_else(|| anyhow!("VM \"{vm}\" is not being migrated"))?;
            (entry.config.id, running.from.clone())
        };
        self.connection(&from)?
            .call(Command::CancelMigration(id), PATIENCE)
            .with_context(|| format!("{from} did not cancel"))?;
        Ok(())
    }

    pub(crate) fn console_input(&self, vm: &str, text: &str) -> Result<()> {
        let (id, host) = self.running(vm)?;
        Ok(self.connection(&host)?.console_input(id, text.as_bytes())?)
    }

    /// Console output of a VM has arrived.
    pub(crate) fn console_output(
        &self,
        host: &str,
        id: VmId,
        (stay, position): (u32, u64),
        bytes: &[u8],
    ) {
        let new = self.update(|state| {
            let stay = (state.hosts.get(host)?.cycle, stay);
            let (name, vm) = state.vm_by_id(id)?;
            let name = name.to_owned();
            let bytes = vm.add_console(host, ConsolePosition { stay, position }, bytes);
            Some((name, bytes))
        });
        if let Some((name, bytes)) = new
            && !bytes.is_empty()
        {
            let path = self.folder.file(&format!("{name}.console.log"));
            let written = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(bytes));
            if let Err(error) = written {
                self.message(
                    "warning",
                    format!("cannot write {}: {error}", path.display()),
                );
            }
        }
    }

    pub(crate) fn wait_for_console(&self, vm: &str, text: &str, patience: Duration) -> Result<()> {
        let outcome = self.wait(patience, |state| {
            let entry = state.vms.get(vm)?;
            match &entry.stopped {
                Some(reason) => Some(Err(reason.clone())),
                None => entry.has_shown(text).then_some(Ok(())),
            }
        });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => bail!(
                "VM \"{vm}\" stopped: {reason}; its console is {vm}.console.log in the run folder"
            ),
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => bail!(
                "VM \"{vm}\" did not show \"{text}\" within {} s; its console is {vm}.console.log in the run folder",
                patience.as_secs()
            ),
        }
    }
}
