//! Starting, rebooting and ending VMs.

use alloc::{format, string::String, string::ToString, vec::Vec};

use guest_memory::GuestMemory;
use host_protocol::{HostEvent, Notice, Reply, StopReason, VmConfig, VmId, VmState};
use machine::{DiskError, Machine, vcpu::Vcpu as _};
use vdi::{Access, Completion, DiskId, DiskInfo, StorageError, Token};

use crate::{
    Host,
    net::bridge::Vif,
    platform::{NoMemory, Platform, VmHardware},
    vm::{self, Asker, Building, Closing, Guest, Inbox, Part, Stage, Vm},
};

/// How long the disks of a VM that has ended may take to be closed.
const CLOSE_TIMEOUT_NS: u64 = 5_000_000_000;

impl<P: Platform> Host<P> {
    /// Begins to build a VM that will boot here.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn start(&mut self, config: VmConfig, asker: Option<Asker>) -> Result<(), String> {
        self.admit(&config)?;
        let (hardware, memory) = self.reserve(&config)?;
        let number = self.add_vm(config, hardware, memory, asker, Stage::Building);
        let index = self.index_of(number).expect("it was added just now");
        self.request_boot_files(index);
        self.open_disks(index, false);
        Ok(())
    }

    /// Begins to open a VM's disks. With `prepare`, those that are to be written stay another host's for now.
    pub(crate) fn open_disks(&mut self, index: usize, prepare: bool) {
        let now = self.platform.now_ns();
        let storage = self.storage.storage();
        let tokens: Vec<_> = self.vms[index]
            .config
            .disks
            .iter()
            .enumerate()
            .map(|(disk, config)| {
                let token = match (config.read_only, prepare) {
                    (true, _) => storage.open_disk(&config.path, Access::ReadOnly, now),
                    (false, true) => storage.prepare_disk(&config.path, now),
                    (false, false) => storage.open_disk(&config.path, Access::ReadWrite, now),
                };
                (token, Part::Disk(disk))
            })
            .collect();
        self.await_parts(index, tokens);
    }

    /// Lets go of a VM's disks without a word to the server: they are another host's.
    pub(crate) fn forget_disks(&mut self, index: usize) {
        let storage = self.storage.storage();
        for disk in &mut self.vms[index].disks {
            if let Some((id, _)) = disk.take() {
                storage.forget_disk(id);
            }
        }
    }

    /// Refuses a VM whose configuration is wrong or collides with what is here.
    pub(crate) fn admit(&self, config: &VmConfig) -> Result<(), String> {
        vm::check(config)?;
        let name = &config.name;
        if self.power_off.is_some() {
            return Err(format!("VM {name}: this host is being switched off"));
        }
        if self.vms.iter().any(|vm| vm.config.id == config.id) {
            return Err(format!("VM {name} is on this host already"));
        }
        if self
            .availability
            .as_ref()
            .is_some_and(|pool| !pool.may_host(config.id))
        {
            return Err(format!(
                "VM {name}: this host is not in the pool's liveset now; start it elsewhere, or wait a moment"
            ));
        }
        for vm in &self.vms {
            if let Some(mac) = config.nics.iter().find(|mac| vm.config.nics.contains(*mac)) {
                return Err(format!(
                    "VM {name}: its MAC address {mac:02x?} belongs to VM {} on this host",
                    vm.config.name
                ));
            }
        }
        Ok(())
    }

    /// Takes the memory for a VM, or says how much there is.
    pub(crate) fn reserve(&mut self, config: &VmConfig) -> Result<(P::Vm, GuestMemory), String> {
        let bytes = vm::memory_bytes(config);
        self.platform
            .create_vm(bytes, usize::from(config.vcpus))
            .map_err(|NoMemory { needed, free }| {
                format!(
                    "VM {} does not fit: it needs {} MiB ({} MiB of its own and what the host keeps for it), \
                     and {} MiB are free; give it less memory or move another VM away",
                    config.name,
                    needed.div_ceil(1 << 20),
                    config.memory_mib,
                    free >> 20
                )
            })
    }

    /// Puts a VM on the list whose parts are yet to be asked for.
    pub(crate) fn add_vm(
        &mut self,
        config: VmConfig,
        hardware: P::Vm,
        memory: GuestMemory,
        asker: Option<Asker>,
        stage: impl FnOnce(Building<P::Vm>) -> Stage<P::Vm>,
    ) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        let building = Building {
            hardware,
            memory,
            awaited: Vec::new(),
            kernel: Vec::new(),
            initrd: None,
        };
        let vm = Vm::new(number, config, stage(building), asker);
        self.vms.push(vm);
        let index = self.vms.len() - 1;
        self.report_state(index);
        number
    }

    fn request_boot_files(&mut self, index: usize) {
        let now = self.platform.now_ns();
        let config = &self.vms[index].config;
        let storage = self.storage.storage();
        let mut tokens = Vec::new();
        tokens.push((storage.read_file(&config.kernel, now), Part::Kernel));
        if let Some(initrd) = &config.initrd {
            tokens.push((storage.read_file(initrd, now), Part::Initrd));
        }
        self.await_parts(index, tokens);
    }

    pub(crate) fn await_parts(&mut self, index: usize, tokens: Vec<(Token, Part)>) {
        if let Stage::Building(building) | Stage::Preparing(building) = &mut self.vms[index].stage {
            building.awaited.extend(tokens);
        }
    }

    /// Takes in what storage has finished.
    pub(crate) fn take_completions(&mut self) {
        while let Some(completion) = self.storage.storage().next_completion() {
            match completion {
                Completion::File { token, result } => self.on_file(token, result),
                Completion::Opened { token, result } if self.on_medium_opened(token, &result) => {}
                Completion::Opened { token, result } => self.on_opened(token, result),
                Completion::Io { disk, result, .. } if self.on_medium_io(disk, &result) => {}
                Completion::Io { disk, id, result } => {
                    let vm = self.vms.iter_mut().find(|vm| vm.disk_index(disk).is_some());
                    // The completions of a machine that is gone concern nobody.
                    if let Some(guest) = vm.and_then(Vm::guest) {
                        guest
                            .machine
                            .complete_disk(id, result.map_err(|_| DiskError));
                    }
                }
                Completion::Taken { disk, result } => self.on_taken(disk, &result),
                Completion::Branched { disk, result } => self.on_branched(disk, &result),
                Completion::Closed { disk, .. } if self.on_medium_closed(disk) => {}
                Completion::Closed { disk, result } => self.on_closed(disk, result),
                Completion::LeaseLost { disk, why } => self.on_lease_lost(disk, why),
            }
        }
        let up = self.storage.peek().is_up();
        if up != self.storage_was_up {
            self.storage_was_up = up;
            self.report(HostEvent::Storage { up });
        }
    }

    /// The VM that waits for this token, and for what.
    fn awaiting(&mut self, token: Token) -> Option<(usize, Part)> {
        self.vms.iter_mut().enumerate().find_map(|(index, vm)| {
            let awaited = match &mut vm.stage {
                Stage::Building(building) | Stage::Preparing(building) => &mut building.awaited,
                Stage::Closing(closing) => &mut closing.awaited,
                _ => return None,
            };
            let position = awaited.iter().position(|(waiting, _)| *waiting == token)?;
            Some((index, awaited.swap_remove(position).1))
        })
    }

    fn on_file(&mut self, token: Token, result: Result<Vec<u8>, StorageError>) {
        let Some((index, part)) = self.awaiting(token) else {
            return;
        };
        let vm = &mut self.vms[index];
        match (result, &mut vm.stage) {
            (Ok(bytes), Stage::Building(building)) => match part {
                Part::Kernel => building.kernel = bytes,
                Part::Initrd => building.initrd = Some(bytes),
                Part::Disk(_) => {}
            },
            (Err(error), Stage::Building(_)) => {
                let answer = format!("VM {} cannot start: {error}", vm.config.name);
                self.close(index, None, Err(answer));
            }
            _ => {}
        }
    }

    fn on_opened(&mut self, token: Token, result: Result<(DiskId, DiskInfo), StorageError>) {
        let now = self.platform.now_ns();
        let Some((index, Part::Disk(disk))) = self.awaiting(token) else {
            // Its VM is gone.
            if let Ok((disk, _)) = result {
                self.storage.storage().close_disk(disk, now);
            }
            return;
        };
        let vm = &mut self.vms[index];
        match result {
            Ok(opened) => {
                vm.disks[disk] = Some(opened);
                if matches!(vm.stage, Stage::Closing(_)) {
                    self.storage.storage().close_disk(opened.0, now);
                }
            }
            Err(error) if !matches!(vm.stage, Stage::Closing(_)) => {
                let answer = format!("VM {} cannot start: {error}", vm.config.name);
                self.close(index, None, Err(answer));
            }
            Err(_) => {}
        }
    }

    fn on_closed(&mut self, disk: DiskId, result: Result<(), StorageError>) {
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.disk_index(disk).is_some()) else {
            return;
        };
        if let Err(error) = result {
            let line = format!("VM {}: {error}", vm.config.name);
            self.platform.log(&line);
        }
        let index = vm.disk_index(disk).expect("it was found by this disk");
        vm.disks[index] = None;
    }

    fn on_lease_lost(&mut self, disk: DiskId, why: String) {
        let Some(index) = self.vms.iter().position(|vm| vm.disk_index(disk).is_some()) else {
            return;
        };
        if self.lease_moved_by_migration(self.vms[index].number) {
            return;
        }
        self.storage.storage().forget_disk(disk);
        let vm = &mut self.vms[index];
        let slot = vm.disk_index(disk).expect("it was found by this disk");
        vm.disks[slot] = None;
        if !matches!(vm.stage, Stage::Closing(_)) {
            self.close(index, Some(StopReason::LeaseLost(why)), Ok(()));
        }
    }

    /// Moves VMs on that wait for something.
    pub(crate) fn advance_lifecycles(&mut self) {
        let now = self.platform.now_ns();
        let mut index = 0;
        while index < self.vms.len() {
            let vm = &self.vms[index];
            match &vm.stage {
                Stage::Building(building) if building.awaited.is_empty() => {
                    // After a reboot, what the old machine had in flight must be over.
                    let storage = self.storage.peek();
                    if vm.open_disks().all(|disk| storage.in_flight(disk) == 0) {
                        self.boot(index);
                    }
                }
                Stage::Closing(closing)
                    if closing.deadline_ns <= now
                        || closing.awaited.is_empty() && vm.open_disks().next().is_none() =>
                {
                    self.remove(index);
                    continue;
                }
                _ => {}
            }
            index += 1;
        }
        if self.power_off.is_some() && self.vms.is_empty() {
            if let Some(asker) = self.power_off.take() {
                self.answer(asker, Ok(Reply::Ok));
            }
            self.control
                .poll(&mut self.management, &mut self.platform, &mut Vec::new());
            self.management.poll(&mut self.platform);
            self.platform.power_off();
        }
    }

    /// Everything is there: loads the kernel and lets the boot vCPU go.
    fn boot(&mut self, index: usize) {
        let vm = &mut self.vms[index];
        let Some(machine_config) = vm.machine_config() else {
            return;
        };
        let placeholder = Stage::Closing(Closing::default());
        let Stage::Building(building) = core::mem::replace(&mut vm.stage, placeholder) else {
            return;
        };
        let platform = &self.platform;
        let mut machine = Machine::new(&machine_config, building.memory, |leaf, subleaf| {
            platform.cpuid(leaf, subleaf)
        });
        let loaded = machine.load_linux(
            &building.kernel,
            building.initrd.as_deref(),
            &vm.config.cmdline,
        );
        let mut hardware = building.hardware;
        match loaded {
            Ok(state) => {
                hardware.vcpu(0).load(&state);
                // The guest's counter starts at zero.
                let offset = 0_u64.wrapping_sub(platform.tsc());
                for vcpu in 0..usize::from(vm.config.vcpus) {
                    hardware.vcpu(vcpu).set_tsc_offset(offset);
                }
                vm.stage = Stage::Running(Guest { hardware, machine });
                vm.awaits_first_instruction = true;
                vm.awaits_first_frame = true;
                vm.awaits_catch_up = true;
                let asker = vm.asker.take();
                self.connect(index);
                self.report_state(index);
                if let Some(asker) = asker {
                    self.answer(asker, Ok(Reply::Ok));
                }
            }
            Err(error) => {
                let answer = format!("VM {} cannot start: {error}", vm.config.name);
                self.close(index, None, Err(answer));
            }
        }
    }

    /// Lets a VM's vCPUs be scheduled and its cards be reached.
    pub(crate) fn connect(&mut self, index: usize) {
        let now = self.platform.now_ns();
        let vm = &self.vms[index];
        self.scheduler
            .add(vm.number, usize::from(vm.config.vcpus), vm.config.weight);
        for (nic, mac) in vm.config.nics.iter().enumerate() {
            let vif = Vif { vm: vm.number, nic };
            self.bridge.connect(vif, *mac, now);
        }
    }

    fn disconnect(&mut self, index: usize) {
        let number = self.vms[index].number;
        self.scheduler.remove(number);
        self.bridge.disconnect(number);
    }

    /// Builds the machine anew and boots it.
    pub(crate) fn reboot(&mut self, index: usize, cause: &str) {
        self.disconnect(index);
        let vm = &mut self.vms[index];
        // The old machine's memory is free before the new one's is taken, so it fits.
        vm.stage = Stage::Closing(Closing::default());
        vm.inbox
            .iter_mut()
            .for_each(|inbox| *inbox = Inbox::default());
        let event = HostEvent::Rebooted {
            vm: vm.config.id,
            cause: cause.to_string(),
        };
        let config = vm.config.clone();
        self.report(event);
        match self.reserve(&config) {
            Ok((hardware, memory)) => {
                self.vms[index].stage = Stage::Building(Building {
                    hardware,
                    memory,
                    awaited: Vec::new(),
                    kernel: Vec::new(),
                    initrd: None,
                });
                self.report_state(index);
                self.request_boot_files(index);
            }
            Err(error) => self.close(index, Some(StopReason::Misbehaved(error)), Ok(())),
        }
    }

    pub(crate) fn guest_powered_off(&mut self, index: usize) {
        self.close(index, Some(StopReason::PowerOff), Ok(()));
    }

    pub(crate) fn guest_misbehaved(&mut self, index: usize, what: String) {
        let line = format!("VM {} is stopped: {what}", self.vms[index].config.name);
        self.platform.log(&line);
        self.close(index, Some(StopReason::Misbehaved(what)), Ok(()));
    }

    /// Ends a VM: its memory is free at once, its disks are closed, then it is reported as stopped (if it ever
    /// ran) and `answer` goes to who asked.
    pub(crate) fn close(
        &mut self,
        index: usize,
        reason: Option<StopReason>,
        answer: Result<(), String>,
    ) {
        self.disconnect(index);
        let now = self.platform.now_ns();
        let vm = &mut self.vms[index];
        let closing = Stage::Closing(Closing::default());
        let (awaited, owned) = match core::mem::replace(&mut vm.stage, closing) {
            Stage::Building(building) => (building.awaited, true),
            Stage::Running(_) | Stage::Paused(_) => (Vec::new(), true),
            // Its disks are another host's.
            Stage::Preparing(building) => (building.awaited, false),
            Stage::Arriving(_) => (Vec::new(), false),
            Stage::Closing(closing) => (closing.awaited, !closing.never_arrived),
        };
        if owned {
            let storage = self.storage.storage();
            vm.open_disks()
                .for_each(|disk| storage.close_disk(disk, now));
        } else {
            self.forget_disks(index);
        }
        let vm = &mut self.vms[index];
        vm.stage = Stage::Closing(Closing {
            awaited,
            never_arrived: !owned,
            reason,
            answer,
            deadline_ns: now + CLOSE_TIMEOUT_NS,
        });
        self.report_state(index);
    }

    /// Takes a VM off the list that was to arrive and did not, whatever storage has yet to say about it.
    pub(crate) fn remove_what_never_arrived(&mut self, id: VmId) {
        let gone = |vm: &Vm<P::Vm>| {
            vm.config.id == id
                && matches!(&vm.stage, Stage::Closing(closing) if closing.never_arrived)
        };
        while let Some(index) = self.vms.iter().position(gone) {
            self.remove(index);
        }
    }

    /// Takes an ended VM off the list.
    fn remove(&mut self, index: usize) {
        let vm = self.vms.remove(index);
        let storage = self.storage.storage();
        for disk in vm.open_disks() {
            storage.forget_disk(disk);
        }
        let Stage::Closing(closing) = vm.stage else {
            return;
        };
        if let Some(reason) = closing.reason {
            self.report(HostEvent::Stopped {
                vm: vm.config.id,
                reason,
            });
        }
        if let Some(asker) = vm.asker {
            self.answer(asker, closing.answer.map(|()| Reply::Ok));
        }
    }

    pub(crate) fn index_of(&self, number: u32) -> Option<usize> {
        self.vms.iter().position(|vm| vm.number == number)
    }

    pub(crate) fn answer(&mut self, asker: Asker, result: Result<Reply, String>) {
        let notice = Notice::Done {
            number: asker.number,
            result,
        };
        self.control.send(asker.connection, &notice);
    }

    pub(crate) fn report_state(&mut self, index: usize) {
        let vm = &self.vms[index];
        let (id, state) = (vm.config.id, vm.state());
        if state != VmState::Halted {
            self.report(HostEvent::Vm { vm: id, state });
        }
    }
}
