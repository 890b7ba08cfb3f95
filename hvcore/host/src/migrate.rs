//! Live migration on this host: the engines of [`migration`] between sockets and VMs.
//!
//! Which end knows what, and who has the guest when something fails, is decided there. This module gives the engines
//! the connection, the guest, and CPU time that no guest needs: pages are copied when the guests
//! sleep, or for [`COPY_NS`] after a guest's slice.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::net::Ipv4Addr;

use guest_memory::{GuestMemory, PageSet, Ram};
use host_protocol::{MIGRATION_PORT, MigrationConfig, Reply, StopReason, VmConfig, auth::Nonce};
use machine::{Machine, vcpu::Vcpu as _};
use migration::{
    Destination, DestinationOutcome, DestinationVm, Snapshot, Source, SourceOutcome, SourceVm,
};
use smoltcp::iface::SocketHandle;
use vdi::{DiskId, DiskState, StorageError};

use crate::{
    Host,
    net::{announce, stack::Buffers},
    platform::{Nic, Platform, VmHardware},
    vm::{Asker, Closing, Guest, Stage, Vm},
};

/// Longest stretch of copying or loading pages while a guest may want the CPU.
const COPY_NS: u64 = 1_000_000;

/// VMs that can arrive at a time.
const ARRIVALS: usize = 2;

/// How long an ended connection may take to deliver its last words.
const LINGER_NS: u64 = 2_000_000_000;

/// A peer that acknowledges nothing for so long is gone.
const LINK_TIMEOUT_MS: u64 = 4_000;

const SOURCE_BUFFERS: Buffers = Buffers {
    receive: 64 << 10,
    send: 512 << 10,
    timeout_ms: LINK_TIMEOUT_MS,
};

const DESTINATION_BUFFERS: Buffers = Buffers {
    receive: 1 << 20,
    send: 64 << 10,
    timeout_ms: LINK_TIMEOUT_MS,
};

/// A VM on its way to another host.
pub(crate) struct Departure {
    vm: u32,
    source: Source,
    socket: SocketHandle,
    asker: Option<Asker>,
    /// Frames of each card that have been handed over. They stay in the VM's inbox for the case that
    /// the guest runs on here.
    forwarded: Vec<usize>,
    draining: bool,
    /// When the socket is dropped, once the migration has ended.
    linger_until_ns: Option<u64>,
}

/// A place for a VM on its way to here.
pub(crate) struct Arrival {
    socket: SocketHandle,
    destination: Option<Destination>,
    vm: Option<u32>,
    linger_until_ns: Option<u64>,
}

/// A MAC address to be announced.
pub(crate) struct Announcement {
    at_ns: u64,
    mac: [u8; 6],
}

/// The guest as the source's engine sees it. It is only made while the VM has a whole guest.
struct DepartingVm<'a, P: Platform> {
    host: &'a mut Host<P>,
    vm: u32,
    draining: &'a mut bool,
}

impl<P: Platform> DepartingVm<'_, P> {
    fn vm(&mut self) -> &mut Vm<P::Vm> {
        let vm = self.vm;
        self.host
            .vms
            .iter_mut()
            .find(|candidate| candidate.number == vm)
            .expect("a departing VM is on this host")
    }

    fn guest(&mut self) -> &mut Guest<P::Vm> {
        self.vm().guest().expect("a departing VM has a whole guest")
    }

    fn writable_disks(&mut self) -> Vec<DiskId> {
        let disks = self.vm().disks.iter().flatten();
        disks
            .filter(|(_, info)| !info.read_only)
            .map(|(disk, _)| *disk)
            .collect()
    }
}

impl<P: Platform> SourceVm for DepartingVm<'_, P> {
    fn now_ns(&self) -> u64 {
        self.host.platform.now_ns()
    }

    fn memory(&self) -> &GuestMemory {
        let vm = self
            .host
            .vms
            .iter()
            .find(|candidate| candidate.number == self.vm);
        match vm.map(|vm| &vm.stage) {
            Some(Stage::Running(guest) | Stage::Paused(guest)) => guest.machine.memory(),
            _ => unreachable!("a departing VM is running or paused"),
        }
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) {
        self.guest().hardware.harvest_dirty(into);
    }

    fn snapshot(&mut self) -> Snapshot {
        let vcpus = usize::from(self.vm().config.vcpus);
        let Guest { hardware, machine } = self.guest();
        Snapshot {
            vcpus: (0..vcpus)
                .map(|index| hardware.vcpu(index).save())
                .collect(),
            devices: machine.save(),
        }
    }

    fn settle(&mut self) {
        let now = self.now_ns();
        for disk in self.writable_disks() {
            self.host.storage.storage().commit_early(disk, now);
        }
    }

    fn stop(&mut self) {
        self.vm().pause();
    }

    fn drain(&mut self) -> bool {
        let now = self.now_ns();
        let disks = self.writable_disks();
        let storage = self.host.storage.storage();
        if !*self.draining {
            *self.draining = true;
            for disk in &disks {
                storage.drain(*disk, now);
            }
        }
        let drained = disks.iter().all(|disk| storage.is_drained(*disk));
        // What the devices have produced by now belongs to this host's attached consoles.
        let index = self
            .host
            .index_of(self.vm)
            .expect("a departing VM is on this host");
        self.host.take_console_output(index);
        drained && self.guest().machine.disk_in_flight() == 0
    }

    fn disks(&mut self) -> Result<Vec<Option<DiskState>>, String> {
        let disks: Vec<_> = self.vm().disks.iter().flatten().copied().collect();
        let storage = self.host.storage.storage();
        disks
            .into_iter()
            .map(|(disk, info)| {
                if info.read_only {
                    Ok(None)
                } else {
                    storage
                        .save_disk(disk)
                        .map(Some)
                        .map_err(|error| error.to_string())
                }
            })
            .collect()
    }

    fn reclaim(&mut self) {
        let now = self.now_ns();
        let deciding = self.writable_disks()[0];
        let storage = self.host.storage.storage();
        // Without a lease there is an epoch that nobody can have: the answer is then that it is lost.
        let epoch = storage.lease_epoch(deciding).unwrap_or(u64::MAX);
        storage.take_lease(deciding, epoch, now);
    }

    fn resume(&mut self) {
        *self.draining = false;
        self.vm().resume();
    }
}

/// RAM without content, for a machine that is built only to be restored once.
struct NoRam(u64);

impl Ram for NoRam {
    fn size(&self) -> u64 {
        self.0
    }
    fn read(&self, _: u64, buf: &mut [u8]) {
        buf.fill(0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// The guest as the destination's engine sees it.
struct ArrivingVm<'a, P: Platform> {
    host: &'a mut Host<P>,
    vm: &'a mut Option<u32>,
}

impl<P: Platform> ArrivingVm<'_, P> {
    fn index(&self) -> Option<usize> {
        self.vm.and_then(|number| self.host.index_of(number))
    }
}

impl<P: Platform> DestinationVm for ArrivingVm<'_, P> {
    fn now_ns(&self) -> u64 {
        self.host.platform.now_ns()
    }

    fn build(&mut self, config: &VmConfig) -> Result<(), String> {
        self.host.admit(config)?;
        let (hardware, memory) = self.host.reserve(config)?;
        let number = self
            .host
            .add_vm(config.clone(), hardware, memory, None, Stage::Preparing);
        *self.vm = Some(number);
        let index = self.index().expect("it was added just now");
        self.host.open_disks(index, true);
        Ok(())
    }

    fn is_built(&mut self) -> Result<bool, String> {
        let Some(index) = self.index() else {
            return Err("the VM was destroyed while it was being built".to_string());
        };
        let vm = &mut self.host.vms[index];
        match &vm.stage {
            Stage::Arriving(_) => return Ok(true),
            Stage::Preparing(building) if building.awaited.is_empty() => {}
            Stage::Preparing(_) => return Ok(false),
            Stage::Closing(closing) => {
                return Err(match &closing.answer {
                    Err(why) => why.clone(),
                    Ok(()) => "the VM was destroyed while it was being built".to_string(),
                });
            }
            _ => return Err("the VM runs here already".to_string()),
        }
        let Some(machine_config) = vm.machine_config() else {
            return Ok(false);
        };
        let placeholder = Stage::Closing(Closing::default());
        let Stage::Preparing(building) = core::mem::replace(&mut vm.stage, placeholder) else {
            return Ok(false);
        };
        let platform = &self.host.platform;
        let machine = Machine::new(&machine_config, building.memory, |leaf, subleaf| {
            platform.cpuid(leaf, subleaf)
        });
        vm.stage = Stage::Arriving(Guest {
            hardware: building.hardware,
            machine,
        });
        Ok(true)
    }

    fn memory(&self) -> &GuestMemory {
        let stage = self.index().map(|index| &self.host.vms[index].stage);
        match stage {
            Some(Stage::Arriving(guest)) => guest.machine.memory(),
            _ => unreachable!("pages are only loaded into a VM that is built"),
        }
    }

    fn rehearse(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let index = self.index().ok_or("the VM is gone")?;
        let vm = &mut self.host.vms[index];
        let size = crate::vm::memory_bytes(&vm.config);
        let machine_config = vm.machine_config().ok_or("the VM's disks are gone")?;
        let platform = &self.host.platform;
        // Not the machine itself: a device whose queue is rung may write to RAM.
        let mut machine = Machine::new(
            &machine_config,
            GuestMemory::new(Box::new(NoRam(size))),
            |leaf, subleaf| platform.cpuid(leaf, subleaf),
        );
        machine
            .restore(&snapshot.devices)
            .map_err(|error| error.to_string())?;
        let guest = vm.guest().ok_or("the VM is gone")?;
        load_vcpus(guest, snapshot)
    }

    fn restore(&mut self, snapshot: &Snapshot, disks: &[Option<DiskState>]) -> Result<(), String> {
        let index = self.index().ok_or("the VM is gone")?;
        let vm = &mut self.host.vms[index];
        if disks.len() != vm.disks.len() {
            return Err(format!(
                "the source sent the state of {} disks, and the VM has {}",
                disks.len(),
                vm.disks.len()
            ));
        }
        let storage = self.host.storage.storage();
        vm.leases_to_take.clear();
        for (disk, state) in vm.disks.iter().zip(disks) {
            let (Some((disk, info)), Some(state)) = (disk, state) else {
                continue;
            };
            if info.read_only {
                continue;
            }
            storage
                .restore_disk(*disk, state)
                .map_err(|error| error.to_string())?;
            vm.leases_to_take.push_back((*disk, state.epoch));
        }
        let guest = vm.guest().ok_or("the VM is gone")?;
        load_vcpus(guest, snapshot)?;
        guest
            .machine
            .restore(&snapshot.devices)
            .map_err(|error| error.to_string())
    }

    fn take_lease(&mut self) -> bool {
        let now = self.now_ns();
        let Some(index) = self.index() else {
            return false;
        };
        let Some((disk, epoch)) = self.host.vms[index].leases_to_take.pop_front() else {
            return false;
        };
        self.host.storage.storage().take_lease(disk, epoch, now);
        true
    }

    fn resume(&mut self, snapshot: &Snapshot, elapsed_ns: u64, announce: bool) {
        let Some(index) = self.index() else {
            return;
        };
        let platform = &self.host.platform;
        let vm = &mut self.host.vms[index];
        let placeholder = Stage::Closing(Closing::default());
        let Stage::Arriving(mut guest) = core::mem::replace(&mut vm.stage, placeholder) else {
            return;
        };
        // One offset for all vCPUs: their counters agreed at the source.
        let saved = snapshot.vcpus.first().map_or(0, |vcpu| vcpu.tsc);
        let passed = u128::from(elapsed_ns) * u128::from(platform.tsc_hz()) / 1_000_000_000;
        let offset = saved
            .wrapping_add(passed as u64)
            .wrapping_sub(platform.tsc());
        for vcpu in 0..snapshot.vcpus.len() {
            guest.hardware.vcpu(vcpu).set_tsc_offset(offset);
        }
        vm.stage = Stage::Running(guest);
        vm.inbox.iter_mut().for_each(|inbox| inbox.held = true);
        let macs = vm.config.nics.clone();
        self.host.connect(index);
        if announce {
            self.host.announce(&macs);
        }
        self.host.report_state(index);
    }

    fn deliver(&mut self, nic: usize, frame: &[u8]) {
        if let Some(index) = self.index() {
            self.host.vms[index].deliver_forwarded(nic, frame);
        }
    }

    fn release_direct_frames(&mut self) {
        if let Some(index) = self.index() {
            let vm = &mut self.host.vms[index];
            vm.inbox.iter_mut().for_each(|inbox| inbox.held = false);
            vm.deliver_waiting();
        }
    }

    fn discard(&mut self) {
        if let Some(index) = self.index() {
            self.host.close(index, None, Ok(()));
        }
    }
}

fn load_vcpus<H: VmHardware>(guest: &mut Guest<H>, snapshot: &Snapshot) -> Result<(), String> {
    let expected = usize::from(guest.machine.config().vcpus);
    if snapshot.vcpus.len() != expected {
        return Err(format!(
            "the source sent the state of {} vCPUs, and the VM has {expected}",
            snapshot.vcpus.len()
        ));
    }
    for (index, state) in snapshot.vcpus.iter().enumerate() {
        guest.hardware.vcpu(index).load(state);
    }
    Ok(())
}

impl<P: Platform> Host<P> {
    /// Sockets for VMs to arrive at.
    pub(crate) fn open_arrivals(&mut self) {
        for _ in 0..ARRIVALS {
            let socket = self.management.add_socket(DESTINATION_BUFFERS);
            self.management.listen(socket, MIGRATION_PORT);
            self.arrivals.push(Arrival {
                socket,
                destination: None,
                vm: None,
                linger_until_ns: None,
            });
        }
    }

    /// Begins to move a VM.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn migrate(
        &mut self,
        index: usize,
        destination: Ipv4Addr,
        config: MigrationConfig,
        asker: Asker,
    ) -> Result<(), String> {
        let vm = &self.vms[index];
        let name = &vm.config.name;
        let Stage::Running(guest) = &vm.stage else {
            return Err(format!(
                "VM {name} is not running, and only a running VM can be migrated"
            ));
        };
        if destination == self.config.management.0 {
            return Err(format!("VM {name} is on that host already"));
        }
        if self
            .departures
            .iter()
            .any(|departure| departure.vm == vm.number)
        {
            return Err(format!("VM {name} is being migrated already"));
        }
        if !vm.disks.iter().flatten().any(|(_, info)| !info.read_only) {
            return Err(format!(
                "VM {name} has no writable disk, and so no lease that could decide which host has it"
            ));
        }
        let mut nonce = Nonce::default();
        self.platform.random(&mut nonce);
        let source = Source::new(
            self.config.key.clone(),
            nonce,
            vm.config.clone(),
            config,
            guest.machine.memory().pages(),
            self.platform.now_ns(),
        );
        let socket = self.management.add_socket(SOURCE_BUFFERS);
        self.management.connect(socket, destination, MIGRATION_PORT);
        self.departures.push(Departure {
            vm: vm.number,
            source,
            socket,
            asker: Some(asker),
            forwarded: vec![0; vm.config.nics.len()],
            draining: false,
            linger_until_ns: None,
        });
        Ok(())
    }

    /// Asks for a migration to be given up; its command's answer says whether it was.
    pub(crate) fn cancel_migration(&mut self, index: usize) -> Result<(), String> {
        let vm = &self.vms[index];
        let name = &vm.config.name;
        let number = vm.number;
        let departure = self
            .departures
            .iter_mut()
            .find(|departure| departure.vm == number)
            .ok_or_else(|| format!("VM {name} is not being migrated"))?;
        if departure.source.is_committed() {
            return Err(format!(
                "VM {name} runs on the destination already; migrate it back instead"
            ));
        }
        departure.source.cancel("cancelled by command".to_string());
        Ok(())
    }

    /// Whether a VM is leaving.
    pub(crate) fn is_departing(&self, number: u32) -> bool {
        self.departures
            .iter()
            .any(|departure| departure.vm == number && departure.linger_until_ns.is_none())
    }

    /// Moves all migrations on.
    pub(crate) fn advance_migrations(&mut self) {
        for mut departure in core::mem::take(&mut self.departures) {
            if self.advance_departure(&mut departure) {
                self.departures.push(departure);
            }
        }
        let mut arrivals = core::mem::take(&mut self.arrivals);
        for arrival in &mut arrivals {
            self.advance_arrival(arrival);
        }
        self.arrivals = arrivals;
        self.send_announcements();
    }

    /// Does a piece of the work that only needs CPU time. False when there is none.
    pub(crate) fn run_background(&mut self) -> bool {
        let until_ns = self.platform.now_ns() + COPY_NS;
        let mut worked = false;
        let mut departures = core::mem::take(&mut self.departures);
        for departure in &mut departures {
            if departure.source.wants_cpu() && departure.linger_until_ns.is_none() {
                worked = true;
                let mut vm = DepartingVm {
                    host: self,
                    vm: departure.vm,
                    draining: &mut departure.draining,
                };
                departure.source.copy(&mut vm, until_ns);
            }
        }
        self.departures = departures;
        worked
    }

    /// False when nothing is left of it.
    fn advance_departure(&mut self, departure: &mut Departure) -> bool {
        let now = self.platform.now_ns();
        let socket = self.management.peek(departure.socket);
        let (open, usable) = (socket.is_open(), socket.may_send());
        if let Some(until) = departure.linger_until_ns {
            self.transmit_departure(departure);
            if departure.source.is_sent() && usable {
                self.management.socket(departure.socket).close();
            }
            if !open || until <= now {
                self.management.remove_socket(departure.socket);
                return false;
            }
            return true;
        }
        if usable {
            departure.source.on_connected();
        }
        let source = &mut departure.source;
        self.management.read(departure.socket, |bytes| {
            source.receive(bytes);
            bytes.len()
        });
        if !open || self.management.is_finished(departure.socket) {
            departure.source.on_disconnected();
        }
        let gone = self
            .index_of(departure.vm)
            .is_none_or(|index| self.vms[index].guest().is_none());
        if gone {
            let why = "the guest ended before it had moved".to_string();
            departure.source.on_guest_gone(now, why);
        } else {
            let mut vm = DepartingVm {
                host: self,
                vm: departure.vm,
                draining: &mut departure.draining,
            };
            departure.source.advance(&mut vm);
            if departure.source.takes_frames() {
                self.forward_frames(departure);
            }
        }
        self.transmit_departure(departure);
        for (at, event) in departure.source.take_events() {
            self.control.report(at, event);
        }
        if let Some(outcome) = departure.source.outcome().cloned() {
            departure.linger_until_ns = Some(now + LINGER_NS);
            self.departed(departure, outcome);
        }
        true
    }

    fn transmit_departure(&mut self, departure: &mut Departure) {
        let source = &mut departure.source;
        self.management
            .write(departure.socket, |room| source.transmit(room));
    }

    fn forward_frames(&mut self, departure: &mut Departure) {
        let Some(vm) = self.vms.iter().find(|vm| vm.number == departure.vm) else {
            return;
        };
        for (nic, inbox) in vm.inbox.iter().enumerate() {
            let card = u8::try_from(nic).expect("a VM has few cards");
            for frame in inbox.waiting().skip(departure.forwarded[nic]) {
                departure.source.forward(card, frame);
                departure.forwarded[nic] += 1;
            }
        }
    }

    fn departed(&mut self, departure: &mut Departure, outcome: SourceOutcome) {
        let answer = match outcome {
            SourceOutcome::Moved => {
                if let Some(index) = self.index_of(departure.vm) {
                    self.forget_disks(index);
                    self.close(index, Some(StopReason::Migrated), Ok(()));
                }
                Ok(Reply::Ok)
            }
            SourceOutcome::Kept { why } => Err(format!("not migrated: {why}")),
        };
        if let Some(asker) = departure.asker.take() {
            self.answer(asker, answer);
        }
    }

    fn advance_arrival(&mut self, arrival: &mut Arrival) {
        let now = self.platform.now_ns();
        let socket = self.management.peek(arrival.socket);
        let (open, usable, active) = (socket.is_open(), socket.may_send(), socket.is_active());
        if let Some(until) = arrival.linger_until_ns {
            let sent = arrival
                .destination
                .as_ref()
                .is_none_or(Destination::is_sent);
            self.transmit_arrival(arrival);
            if sent && usable {
                self.management.socket(arrival.socket).close();
            }
            if !open || until <= now {
                self.management.socket(arrival.socket).abort();
                arrival.destination = None;
                arrival.vm = None;
                arrival.linger_until_ns = None;
            }
            return;
        }
        if arrival.destination.is_none() {
            if active {
                let mut nonce = Nonce::default();
                self.platform.random(&mut nonce);
                let key = self.config.key.clone();
                arrival.destination = Some(Destination::new(key, nonce, now));
            } else if !open {
                self.management.listen(arrival.socket, MIGRATION_PORT);
            }
        }
        let Some(destination) = &mut arrival.destination else {
            return;
        };
        self.management
            .read(arrival.socket, |bytes| destination.receive(bytes, now));
        if !active || self.management.is_finished(arrival.socket) {
            destination.on_disconnected();
        }
        let mut vm = ArrivingVm {
            host: self,
            vm: &mut arrival.vm,
        };
        self.arrivals_busy |= destination.advance(&mut vm, now + COPY_NS);
        for (at, event) in destination.take_events() {
            self.control.report(at, event);
        }
        let ended = destination.outcome().cloned();
        self.transmit_arrival(arrival);
        if let Some(outcome) = ended {
            if let DestinationOutcome::Refused { why } = outcome {
                let line = format!("an arriving VM was refused: {why}");
                self.platform.log(&line);
            }
            arrival.linger_until_ns = Some(now + LINGER_NS);
        }
    }

    fn transmit_arrival(&mut self, arrival: &mut Arrival) {
        if let Some(destination) = &mut arrival.destination {
            self.management
                .write(arrival.socket, |room| destination.transmit(room));
        }
    }

    /// Routes the answer about a lease to the migration that asked for it.
    pub(crate) fn on_taken(&mut self, disk: DiskId, result: &Result<u64, StorageError>) {
        let Some(number) = self
            .vms
            .iter()
            .find(|vm| vm.disk_index(disk).is_some())
            .map(|vm| vm.number)
        else {
            return;
        };
        let mut departures = core::mem::take(&mut self.departures);
        for departure in departures.iter_mut().filter(|one| one.vm == number) {
            let mut vm = DepartingVm {
                host: self,
                vm: number,
                draining: &mut departure.draining,
            };
            departure.source.on_taken(&mut vm, result);
        }
        self.departures = departures;
        let mut arrivals = core::mem::take(&mut self.arrivals);
        for arrival in arrivals.iter_mut().filter(|one| one.vm == Some(number)) {
            if let Some(destination) = &mut arrival.destination {
                let mut vm = ArrivingVm {
                    host: self,
                    vm: &mut arrival.vm,
                };
                destination.on_taken(&mut vm, result);
            }
        }
        self.arrivals = arrivals;
    }

    /// Whether a lost lease is the doing of this VM's migration, which then knows what to do.
    pub(crate) fn lease_moved_by_migration(&mut self, number: u32) -> bool {
        let now = self.platform.now_ns();
        self.departures
            .iter_mut()
            .filter(|departure| departure.vm == number)
            .any(|departure| departure.source.on_lease_lost(now))
    }

    /// A frame from the session network: an announcement there means that it knows a departed guest's place.
    pub(crate) fn notice_announcement(&mut self, frame: &[u8]) {
        for departure in &mut self.departures {
            let vm = self.vms.iter().find(|vm| vm.number == departure.vm);
            // The last card's is sent last.
            let mac = vm.and_then(|vm| vm.config.nics.last());
            if mac.is_some_and(|mac| announce::announces(frame, *mac)) {
                departure.source.announce_seen();
            }
        }
    }

    fn announce(&mut self, macs: &[[u8; 6]]) {
        let now = self.platform.now_ns();
        for delay in announce::REPEATS_NS {
            self.announcements
                .extend(macs.iter().map(|mac| Announcement {
                    at_ns: now + delay,
                    mac: *mac,
                }));
        }
        let all = self.announcements.make_contiguous();
        all.sort_by_key(|announcement| announcement.at_ns);
        self.send_announcements();
    }

    fn send_announcements(&mut self) {
        let now = self.platform.now_ns();
        while let Some(next) = self.announcements.front()
            && next.at_ns <= now
        {
            let frame = announce::frame(next.mac);
            // A guest that has left again is not announced from here.
            if self.bridge.has(next.mac) {
                self.platform.transmit(Nic::Session, &frame);
            }
            self.announcements.pop_front();
        }
    }

    pub(crate) fn migrations_deadline_ns(&self) -> Option<u64> {
        let departures = self.departures.iter().map(|departure| {
            departure
                .linger_until_ns
                .or(departure.source.next_deadline_ns())
        });
        let arrivals = self.arrivals.iter().map(|arrival| {
            let destination = arrival.destination.as_ref();
            arrival
                .linger_until_ns
                .or(destination.and_then(Destination::next_deadline_ns))
        });
        departures
            .chain(arrivals)
            .flatten()
            .chain(self.announcements.front().map(|next| next.at_ns))
            .min()
    }
}
