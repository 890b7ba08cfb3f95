//! VMs that arrive: the destination's engine between its socket and its guest.
//!
//! # A VM that comes again
//!
//! A connection that was cut is noticed here only when TCP's time is over. Its source may have noticed before, and try
//! again: then a place and a half-arrived VM of the first attempt are still here. They make room for the newcomer once it
//! has proved that it holds the pool's key.
//!
//! That is safe, since no message decides who has a guest. An attempt that is superseded has not asked for the
//! lease, and cannot any more: its engine has ended and its disks are forgotten. So one engine here at most ever asks
//! for it, with the epoch that its own source has told it; and that succeeds only if nobody has changed the epoch since,
//! whoever that is. An attempt that has asked for the lease is not superseded: the newcomer is refused, and the
//! answer of the storage server says whether the guest is here. At worst, a newcomer that should not have come costs a
//! migration, never a guest.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use guest_memory::GuestMemory;
use host_protocol::{MIGRATION_PORT, VmConfig, VmId, auth::Nonce};
use machine::{Machine, vcpu::Vcpu as _};
use migration::{Destination, DestinationOutcome, DestinationVm, Snapshot};
use smoltcp::iface::SocketHandle;
use vdi::DiskState;

use super::{COPY_NS, LINGER_NS, LINK_TIMEOUT_MS, rehearsal::Rehearsal};
use crate::{
    Host,
    net::stack::Buffers,
    platform::{Platform, VmHardware},
    vm::{Closing, Guest, Stage},
};

/// Places to arrive at: for two VMs at a time, and for a newcomer to prove itself that supersedes one of them.
const PLACES: usize = 3;

const BUFFERS: Buffers = Buffers {
    receive: 1 << 20,
    send: 64 << 10,
    timeout_ms: LINK_TIMEOUT_MS,
};

/// A place for a VM on its way to here.
pub(crate) struct Arrival {
    socket: SocketHandle,
    pub(super) destination: Option<Destination>,
    pub(super) vm: Option<u32>,
    pub(super) linger_until_ns: Option<u64>,
}

/// The guest as the destination's engine sees it.
pub(crate) struct ArrivingVm<'a, P: Platform> {
    pub(crate) host: &'a mut Host<P>,
    pub(crate) vm: &'a mut Option<u32>,
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
        self.host.make_way_for(config.id);
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
        let Stage::Arriving(guest) = &mut vm.stage else {
            return Err("the VM is gone".to_string());
        };
        vm.rehearsal = Some(Rehearsal::begin(&self.host.platform, guest, snapshot)?);
        Ok(())
    }

    fn deliver_to_copy(&mut self, nic: usize, frame: &[u8]) {
        if let Some(index) = self.index()
            && let Some(rehearsal) = &mut self.host.vms[index].rehearsal
        {
            rehearsal.deliver(nic, frame);
        }
    }

    fn rehearsed(&mut self) -> Option<Vec<u32>> {
        let Some(index) = self.index() else {
            return Some(Vec::new());
        };
        let vm = &mut self.host.vms[index];
        let platform = &self.host.platform;
        if let Some(rehearsal) = &vm.rehearsal
            && !rehearsal.is_over(platform.now_ns())
        {
            return None;
        }
        vm.rehearsal = None;
        let placeholder = Stage::Closing(Closing::default());
        let Stage::Arriving(guest) = core::mem::replace(&mut vm.stage, placeholder) else {
            return Some(Vec::new());
        };
        let (guest, spoilt) = Rehearsal::end(platform, guest);
        vm.stage = Stage::Arriving(guest);
        Some(spoilt)
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

/// Loads the vCPUs of a snapshot, if there are as many as the guest has.
pub(super) fn load_vcpus<H: VmHardware>(
    guest: &mut Guest<H>,
    snapshot: &Snapshot,
) -> Result<(), String> {
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
        for _ in 0..PLACES {
            let socket = self.management.add_socket(BUFFERS);
            self.management.listen(socket, MIGRATION_PORT);
            self.arrivals.push(Arrival {
                socket,
                destination: None,
                vm: None,
                linger_until_ns: None,
            });
        }
    }

    /// Ends what is here of earlier attempts of a VM to arrive.
    pub(crate) fn make_way_for(&mut self, id: VmId) {
        for mut arrival in core::mem::take(&mut self.arrivals) {
            if let Some(destination) = &mut arrival.destination
                && destination.vm() == id
            {
                let mut vm = ArrivingVm {
                    host: self,
                    vm: &mut arrival.vm,
                };
                if destination.supersede(&mut vm) {
                    for (at, event) in destination.take_events() {
                        self.control.report(at, event);
                    }
                    self.vacate(&mut arrival);
                }
            }
            self.arrivals.push(arrival);
        }
        self.remove_what_never_arrived(id);
    }

    /// When all places are taken, the oldest of several connections that have not proved themselves gives way: a proof takes
    /// a round trip, so it was cut off.
    pub(super) fn keep_a_place_free(&mut self) {
        if self.arrivals.iter().any(|one| one.destination.is_none()) {
            return;
        }
        let unproved = self.arrivals.iter().enumerate().filter_map(|(index, one)| {
            let until_ns = one.destination.as_ref()?.unproved_until_ns()?;
            Some((until_ns, index))
        });
        if unproved.clone().count() > 1
            && let Some((_, oldest)) = unproved.min()
        {
            let mut arrival = self.arrivals.remove(oldest);
            self.vacate(&mut arrival);
            self.arrivals.push(arrival);
        }
    }

    /// Cuts a connection; the place is free.
    fn vacate(&mut self, arrival: &mut Arrival) {
        self.management.socket(arrival.socket).abort();
        arrival.destination = None;
        arrival.vm = None;
        arrival.linger_until_ns = None;
    }

    pub(super) fn advance_arrival(&mut self, arrival: &mut Arrival) {
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
                self.vacate(arrival);
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
            .read(arrival.socket, |bytes| destination.receive(bytes));
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
}
