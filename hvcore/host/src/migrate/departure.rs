//! VMs that leave: the source's engine between its socket and its guest.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::net::Ipv4Addr;

use guest_memory::{GuestMemory, PageSet};
use host_protocol::{MIGRATION_PORT, MigrationConfig, Reply, StopReason, auth::Nonce};
use machine::vcpu::Vcpu as _;
use migration::{Snapshot, Source, SourceOutcome, SourceVm};
use smoltcp::{iface::SocketHandle, socket::tcp};
use vdi::{DiskId, DiskState};

use super::{LINGER_NS, LINK_TIMEOUT_MS, STOPPED_TIMEOUT_MS};
use crate::{
    Host,
    net::stack::Buffers,
    platform::{Platform, VmHardware},
    vm::{Asker, Guest, Stage, Vm},
};

/// What the link takes in a round trip. More would only wait in line, and the guest with it: a full buffer is sent
/// in one go.
const BUFFERS: Buffers = Buffers {
    receive: 64 << 10,
    send: 512 << 10,
    timeout_ms: LINK_TIMEOUT_MS,
};

/// A VM on its way to another host.
pub(crate) struct Departure {
    pub(super) vm: u32,
    pub(super) source: Source,
    socket: SocketHandle,
    asker: Option<Asker>,
    /// What was asked for after this one was cancelled: it begins if the guest stays.
    next: Option<Request>,
    /// Frames of each card that have been handed over. They stay in the VM's inbox for the case that
    /// the guest runs on here.
    forwarded: Vec<usize>,
    pub(super) draining: bool,
    /// The connection is held to [`STOPPED_TIMEOUT_MS`].
    impatient: bool,
    /// When the socket is dropped, once the migration has ended.
    pub(super) linger_until_ns: Option<u64>,
}

/// A migration that was asked for.
pub(crate) struct Request {
    pub destination: Ipv4Addr,
    pub config: MigrationConfig,
    pub asker: Asker,
}

/// The guest as the source's engine sees it. It is only made while the VM has a whole guest.
pub(crate) struct DepartingVm<'a, P: Platform> {
    pub(crate) host: &'a mut Host<P>,
    pub(crate) vm: u32,
    pub(crate) draining: &'a mut bool,
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

    fn copy_frames(&mut self) {
        self.vm().copies = Some(Vec::new());
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

impl<P: Platform> Host<P> {
    /// False when nothing is left of it.
    pub(super) fn advance_departure(&mut self, departure: &mut Departure) -> bool {
        let now = self.platform.now_ns();
        let socket = self.management.peek(departure.socket);
        let (open, usable, socket_state) = (socket.is_open(), socket.may_send(), socket.state());
        if let Some(until) = departure.linger_until_ns {
            self.transmit_departure(departure);
            if departure.source.is_sent() && usable {
                self.management.socket(departure.socket).close();
            }
            // A socket in TIME-WAIT is no longer open, but has still to acknowledge the peer's FIN: dropped before, the
            // peer would wait for that in the place where the next VM is to arrive.
            let closed = !open && socket_state != tcp::State::TimeWait;
            if closed || until <= now {
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
            // What came in one batch with the announcement came before it: it goes along, before the announcement ends
            // the forwarding.
            if departure.source.takes_frames() {
                self.forward_frames(departure);
            }
            let mut vm = DepartingVm {
                host: self,
                vm: departure.vm,
                draining: &mut departure.draining,
            };
            departure.source.advance(&mut vm);
            if departure.source.takes_frames() {
                self.forward_frames(departure);
            }
            self.forward_copies(departure);
            if departure.source.has_stopped_guest() && !departure.impatient {
                departure.impatient = true;
                self.management
                    .set_patience(departure.socket, STOPPED_TIMEOUT_MS);
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

    /// Hands over what the guest has received while its copy runs at the destination.
    fn forward_copies(&mut self, departure: &mut Departure) {
        let vm = self.vms.iter_mut().find(|vm| vm.number == departure.vm);
        let Some(copies) = vm.map(|vm| &mut vm.copies) else {
            return;
        };
        if !departure.source.takes_copies() {
            *copies = None;
        }
        for (nic, frame) in copies.iter_mut().flat_map(|frames| frames.drain(..)) {
            let card = u8::try_from(nic).expect("a VM has few cards");
            departure.source.forward(card, &frame);
        }
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
        if let Some(index) = self.index_of(departure.vm) {
            self.vms[index].copies = None;
        }
        let moved = outcome == SourceOutcome::Moved;
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
        if let Some(next) = departure.next.take() {
            let asker = next.asker;
            let begun = match self.index_of(departure.vm) {
                _ if moved => {
                    Err("the VM had moved before its migration was cancelled".to_string())
                }
                Some(index) => self.migrate(index, next),
                None => Err("the VM is gone".to_string()),
            };
            if let Err(why) = begun {
                self.answer(asker, Err(why));
            }
        }
    }

    /// Begins to move a VM.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn migrate(&mut self, index: usize, request: Request) -> Result<(), String> {
        let vm = &self.vms[index];
        let name = &vm.config.name;
        // One that has ended only lingers to deliver its last words.
        let under_way = |one: &&mut Departure| one.vm == vm.number && one.linger_until_ns.is_none();
        if let Some(earlier) = self.departures.iter_mut().find(under_way) {
            if !earlier.source.is_ending() || earlier.next.is_some() {
                return Err(format!("VM {name} is being migrated already"));
            }
            earlier.next = Some(request);
            return Ok(());
        }
        if self.is_being_suspended(vm.number) {
            return Err(format!(
                "VM {name} is being suspended; migrate it before or after"
            ));
        }
        let Request {
            destination,
            config,
            asker,
        } = request;
        let Stage::Running(guest) = &vm.stage else {
            return Err(format!(
                "VM {name} is not running, and only a running VM can be migrated"
            ));
        };
        if destination == self.config.management.0 {
            return Err(format!("VM {name} is on that host already"));
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
        let socket = self.management.add_socket(BUFFERS);
        self.management.connect(socket, destination, MIGRATION_PORT);
        let forwarded = vec![0; vm.config.nics.len()];
        let number = vm.number;
        self.departures.push(Departure {
            vm: number,
            source,
            socket,
            asker: Some(asker),
            next: None,
            forwarded,
            draining: false,
            impatient: false,
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
            .find(|departure| departure.vm == number && departure.linger_until_ns.is_none())
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

    /// Whether a lost lease is the doing of this VM's migration, which then knows what to do.
    pub(crate) fn lease_moved_by_migration(&mut self, number: u32) -> bool {
        let now = self.platform.now_ns();
        self.departures
            .iter_mut()
            .filter(|departure| departure.vm == number)
            .any(|departure| departure.source.on_lease_lost(now))
    }
}
