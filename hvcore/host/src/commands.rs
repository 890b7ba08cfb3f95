//! What the lab can tell a host.

use alloc::{format, string::String, vec::Vec};

use core::net::Ipv4Addr;

use host_protocol::{
    Command, HostStatus, Notice, Reply, Request, StopReason, VmId, VmState, VmStatus,
};

use migration::MemoryHash;

use crate::{
    Host,
    control::ConnectionId,
    migrate::MigrationRequest,
    platform::{Platform, VmHardware},
    vm::{Asker, Stage},
};

/// Pages hashed before anything else gets its turn.
const HASH_STRIDE: usize = 64;

/// A VM that stands still while its RAM is being hashed.
pub(crate) struct Hashing {
    vm: u32,
    hash: MemoryHash,
    asker: Asker,
}

impl<P: Platform> Host<P> {
    /// Does what proved clients ask for.
    pub(crate) fn take_requests(&mut self) {
        let mut requests = Vec::new();
        self.control
            .poll(&mut self.management, &mut self.platform, &mut requests);
        for (connection, request) in requests {
            match request {
                Request::Command { number, command } => {
                    let asker = Asker { connection, number };
                    match self.command(asker, command) {
                        Ok(Some(reply)) => self.answer(asker, Ok(reply)),
                        Ok(None) => {}
                        Err(why) => self.answer(asker, Err(why)),
                    }
                }
                Request::ConsoleInput { vm, bytes } => {
                    if let Some(guest) = self
                        .vms
                        .iter_mut()
                        .find(|candidate| candidate.config.id == vm)
                        .and_then(|vm| vm.running())
                    {
                        guest.machine.console_input(&bytes);
                    }
                }
                Request::Hello { .. } | Request::Prove { .. } | Request::Ping { .. } => {}
            }
        }
        // Answers leave at once.
        self.control
            .poll(&mut self.management, &mut self.platform, &mut Vec::new());
    }

    /// Carries out a command. `None`: the answer comes later.
    fn command(&mut self, asker: Asker, command: Command) -> Result<Option<Reply>, String> {
        match command {
            Command::Start(config) => {
                self.admit_to_pool(&config)?;
                self.start(config, Some(asker))?;
                Ok(None)
            }
            Command::Protect(setup) => {
                self.protect(setup)?;
                Ok(Some(Reply::Ok))
            }
            Command::PoolStatus => Ok(Some(Reply::Pool(self.pool_status()?))),
            Command::Shutdown(vm) => {
                let index = self.find(vm)?;
                let guest = self.vms[index]
                    .running()
                    .ok_or("the VM is not running, so nobody would notice its power button")?;
                guest.machine.press_power_button();
                Ok(Some(Reply::Ok))
            }
            Command::Destroy(vm) => {
                let index = self.find(vm)?;
                self.destroy(index, asker)?;
                Ok(None)
            }
            Command::Migrate {
                vm,
                destination,
                config,
            } => {
                let index = self.find(vm)?;
                let request = MigrationRequest {
                    destination: Ipv4Addr::from(destination),
                    config,
                    asker,
                };
                self.migrate(index, request)?;
                Ok(None)
            }
            Command::Suspend {
                vm,
                path,
                keep_running,
            } => {
                let index = self.find(vm)?;
                self.suspend(index, path, keep_running, asker)?;
                Ok(None)
            }
            Command::Snapshot(vm) => {
                let index = self.find(vm)?;
                self.snapshot(index, asker)?;
                Ok(None)
            }
            Command::Reopen(vm) => {
                let index = self.find(vm)?;
                self.reopen(index, asker)?;
                Ok(None)
            }
            Command::Resume { path } => {
                self.restore(path, asker)?;
                Ok(None)
            }
            Command::CancelMigration(vm) => {
                let index = self.find(vm)?;
                self.cancel_migration(index)?;
                Ok(Some(Reply::Ok))
            }
            Command::Status => Ok(Some(Reply::Status(self.status()))),
            Command::AttachConsole(vm) => {
                let index = self.find(vm)?;
                self.attach_console(asker.connection, index);
                Ok(Some(Reply::Ok))
            }
            Command::DetachConsole(vm) => {
                self.control.detach(asker.connection, vm);
                Ok(Some(Reply::Ok))
            }
            Command::HashMemory(vm) => {
                let index = self.find(vm)?;
                self.begin_hash(index, asker)?;
                Ok(None)
            }
            Command::PowerOff => {
                self.power_off = Some(asker);
                for index in 0..self.vms.len() {
                    if !matches!(self.vms[index].stage, Stage::Closing(_)) {
                        self.close(index, Some(StopReason::Destroyed), Ok(()));
                    }
                }
                Ok(None)
            }
        }
    }

    fn find(&self, id: VmId) -> Result<usize, String> {
        self.vms
            .iter()
            .position(|vm| vm.config.id == id)
            .ok_or_else(|| format!("this host ({}) has no such VM", self.config.name))
    }

    /// Stops a guest and begins to hash its RAM.
    fn begin_hash(&mut self, index: usize, asker: Asker) -> Result<(), String> {
        let vm = &mut self.vms[index];
        let number = vm.number;
        let name = vm.config.name.clone();
        if self.is_departing(number) || self.is_being_suspended(number) {
            return Err(format!(
                "VM {name} is being migrated or suspended; hash it before or after"
            ));
        }
        if self.hashing.is_some() {
            return Err(format!("VM {name}: another VM's memory is being hashed"));
        }
        if !self.vms[index].pause() {
            return Err(format!("VM {name} is not running"));
        }
        self.hashing = Some(Hashing {
            vm: number,
            hash: MemoryHash::default(),
            asker,
        });
        Ok(())
    }

    /// Hashes on for a while. False when there is nothing to hash.
    pub(crate) fn run_hash(&mut self) -> bool {
        let Some(mut hashing) = self.hashing.take() else {
            return false;
        };
        let Some(index) = self.index_of(hashing.vm) else {
            return false;
        };
        let Some(guest) = self.vms[index].guest() else {
            return false;
        };
        match hashing.hash.step(guest.machine.memory(), HASH_STRIDE) {
            Some(hash) => {
                self.vms[index].resume();
                self.answer(hashing.asker, Ok(Reply::Hash(hash)));
            }
            None => self.hashing = Some(hashing),
        }
        true
    }

    fn attach_console(&mut self, connection: ConnectionId, index: usize) {
        let vm = &self.vms[index];
        let (position, bytes) = vm.console.replay();
        let replay = Notice::Console {
            vm: vm.config.id,
            stay: vm.number,
            position,
            bytes,
        };
        self.control.attach(connection, vm.config.id, &replay);
    }

    /// Pulls the guest's plug.
    fn destroy(&mut self, index: usize, asker: Asker) -> Result<(), String> {
        let number = self.vms[index].number;
        let handed_over = self.is_departing(number) && self.vms[index].state() == VmState::Paused;
        let vm = &mut self.vms[index];
        if matches!(vm.stage, Stage::Closing(_)) {
            return Err(format!("VM {} is being taken down already", vm.config.name));
        }
        if handed_over {
            return Err(format!(
                "VM {} is being handed over to another host; ask again in a moment",
                vm.config.name
            ));
        }
        let starter = vm.asker.replace(asker);
        let name = vm.config.name.clone();
        self.close(index, Some(StopReason::Destroyed), Ok(()));
        if let Some(starter) = starter {
            let why = format!("VM {name} was destroyed while it was being built");
            self.answer(starter, Err(why));
        }
        Ok(())
    }

    fn status(&self) -> HostStatus {
        let (memory_total, memory_free) = self.platform.memory();
        let vms = self
            .vms
            .iter()
            .map(|vm| VmStatus {
                id: vm.config.id,
                name: vm.config.name.clone(),
                state: vm.state(),
                memory_mib: vm.config.memory_mib,
                cpu_ns: vm.cpu_ns,
                exits: match &vm.stage {
                    Stage::Arriving(guest) | Stage::Running(guest) | Stage::Paused(guest) => {
                        guest.hardware.exits()
                    }
                    _ => 0,
                },
            })
            .collect();
        HostStatus {
            memory_total,
            memory_free,
            storage_up: self.storage.peek().is_up(),
            vms,
        }
    }
}
