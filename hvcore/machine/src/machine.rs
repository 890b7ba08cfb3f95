//! The machine as a whole: its configuration, its parts, and what its user may do with it.

use alloc::{format, string::String, vec::Vec};

use guest_memory::GuestMemory;

use crate::{
    acpi,
    apic::{Delivery, IoApic, Message},
    clock::GuestClock,
    cpuid::Policy,
    linux,
    pci::{self, ConfigAddress, ConfigSpace},
    processor::Processor,
    run::ExitCounts,
    serial::{self, Serial},
    vcpu::VcpuState,
    virtio::{
        block::Block,
        net::{self, Net},
        queue::RingError,
        transport::{self, Device, Function},
    },
};

/// Most vCPUs a machine can have: x2APIC ids fit one logical cluster, so that one word addresses all.
pub const MAX_VCPUS: u8 = 16;

/// Most disks and network cards a machine can have: slots on its PCI bus.
pub const MAX_DEVICES: usize = 24;

/// How long a guest is left in the dark about frames that have left: longer than between two frames of a
/// steady conversation, shorter than a sender notices.
const TELL_AFTER_NS: u64 = 2_000_000;

/// How long a guest that is busy and has sent a frame need not ring for the next ones, because somebody will look anyway.
pub(crate) const WATCH_NS: u64 = 1_000_000;

/// Readings of the host's clocks, and randomness.
pub trait Clock {
    /// Nanoseconds since some fixed point; never goes back.
    fn now_ns(&self) -> u64;
    /// Ticks of the host's time-stamp counter in a second.
    fn tsc_hz(&self) -> u64;
    /// Wall-clock time, nanoseconds since 1970.
    fn unix_ns(&self) -> u64;
    /// Fills a buffer with random bytes.
    fn random(&self, buf: &mut [u8]);
}

/// A virtual disk as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskModel {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number; 20 bytes at most are shown.
    pub serial: String,
}

/// A virtual network card as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicModel {
    /// Its address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, Ethernet header not counted.
    pub mtu: u16,
}

/// What a machine is made of. A machine that takes over a saved state has the same configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskModel>,
    /// Network cards, in the order in which the guest finds them.
    pub nics: Vec<NicModel>,
}

/// Why the guest wants to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// It asked: by a reset port, the keyboard controller or its ACPI reset register.
    Requested,
    /// A triple fault.
    TripleFault,
}

/// Why [`Machine::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A physical interrupt: time slice over, or work for the host. The vCPU can go on.
    Interrupted,
    /// The vCPU has nothing to do until [`Machine::runnable`] says otherwise.
    Halted,
    /// The vCPU spins; another one should run.
    Yield,
    /// The guest rang a queue: look at the backends. The vCPU can go on. Console output alone is no reason to come
    /// back; it waits for the next turn.
    Work,
    /// The guest set its timer: read [`Machine::next_deadline_ns`] again, arm the host's timer
    /// accordingly, and run the vCPU on.
    TimerSet,
    /// The guest asks for a restart: drop this machine and build it anew.
    Reset {
        /// Why.
        cause: ResetCause,
    },
    /// The guest switched itself off.
    PowerOff,
    /// The guest did what no sane guest does, and cannot go on; the text says what and where.
    Misbehaved(String),
}

/// What a disk shall do. Offsets and lengths are in bytes, multiples of 512 and inside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Read `len` bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Put all completed writes on stable storage.
    Flush,
}

/// A request of the guest to one of its disks, to be answered by [`Machine::complete_disk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// Names the request in the answer.
    pub id: u64,
    /// Index into [`MachineConfig::disks`].
    pub disk: usize,
    /// What to do.
    pub op: DiskOp,
}

/// The backend could not serve a disk request; the guest sees an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError;

/// Why a kernel could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Not a bzImage, or too old.
    #[error(
        "the kernel image is not bootable: {0}; a Linux bzImage of protocol 2.12 or later is needed"
    )]
    BadKernel(&'static str),
    /// Kernel, initrd and command line do not fit.
    #[error(
        "{what} needs {needed} bytes, and the guest's RAM leaves {available}; give the guest more memory"
    )]
    NoRoom {
        /// What did not fit.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
}

/// The guest's machine.
pub struct Machine {
    // Fixed configuration.
    pub(crate) config: MachineConfig,
    pub(crate) host_bridge: ConfigSpace,
    // Volatile state.
    pub(crate) memory: GuestMemory,
    pub(crate) cpuid: Policy,
    /// None before the guest asked for it.
    pub(crate) clock: Option<GuestClock>,
    pub(crate) processors: Vec<Processor>,
    pub(crate) io_apic: IoApic,
    pub(crate) serial: Serial,
    pub(crate) pci_address: ConfigAddress,
    /// On slots 1 and up: disks, network cards, the entropy source.
    pub(crate) functions: Vec<Function>,
    // Runtime glue.
    /// Whether timers are in this host's units.
    pub(crate) synchronised: bool,
    /// Functions with queues to look at, as bits.
    rung: u64,
    /// Cards with frames that have left and that the guest was not told of, as bits.
    pub(crate) untold: u64,
    /// When it must be told.
    pub(crate) tell_ns: u64,
    /// Cards whose guest need not ring for frames, as bits.
    watched: u64,
    /// Until when.
    watch_until_ns: u64,
    /// Host time when somebody looked at the clock last.
    pub(crate) seen_ns: u64,
    next_request: u64,
    pub(crate) misbehaviour: Option<String>,
    pub(crate) exits: ExitCounts,
}

impl Machine {
    /// Builds a machine in its state after power-on. `cpuid` reads the physical CPU's leaves, of which the
    /// guest is shown what this machine supports.
    ///
    /// # Panics
    /// When the numbers of vCPUs or devices are beyond [`MAX_VCPUS`] and [`MAX_DEVICES`]: whoever parses a VM's
    /// configuration checks them.
    #[must_use]
    pub fn new(
        config: &MachineConfig,
        memory: GuestMemory,
        cpuid: impl Fn(u32, u32) -> [u32; 4],
    ) -> Self {
        assert!(
            (1..=MAX_VCPUS).contains(&config.vcpus),
            "a machine has 1 to {MAX_VCPUS} vCPUs"
        );
        assert!(
            config.disks.len() + config.nics.len() <= MAX_DEVICES,
            "a machine has at most {MAX_DEVICES} disks and network cards"
        );
        let functions = (0..=config.disks.len() + config.nics.len())
            .map(|index| function(config, index))
            .collect();
        Self {
            config: config.clone(),
            host_bridge: pci::host_bridge(),
            memory,
            cpuid: Policy::new(config.vcpus, cpuid),
            clock: None,
            processors: (0..config.vcpus).map(Processor::new).collect(),
            io_apic: IoApic::default(),
            serial: Serial::default(),
            pci_address: ConfigAddress::default(),
            functions,
            synchronised: false,
            rung: 0,
            untold: 0,
            tell_ns: 0,
            watched: 0,
            watch_until_ns: 0,
            seen_ns: 0,
            next_request: 0,
            misbehaviour: None,
            exits: ExitCounts::default(),
        }
    }

    /// Takes the machine apart and gives its RAM back, for a new machine.
    #[must_use]
    pub fn into_memory(self) -> GuestMemory {
        self.memory
    }

    /// The guest's RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What the machine was built from.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// How often its vCPUs came out of the guest.
    #[must_use]
    pub fn exits(&self) -> ExitCounts {
        self.exits
    }

    /// Puts a Linux kernel into RAM, with the tables it expects, and gives the boot vCPU's state. The other
    /// vCPUs need none: the boot vCPU starts them.
    ///
    /// # Errors
    /// When the image is no bootable kernel or does not fit; RAM may then be partly written.
    pub fn load_linux(
        &mut self,
        kernel: &[u8],
        initrd: Option<&[u8]>,
        command_line: &str,
    ) -> Result<VcpuState, LoadError> {
        let state = linux::load(&self.memory, kernel, initrd, command_line, acpi::BASE)?;
        linux::place(&self.memory, acpi::BASE, &acpi::tables(self.config.vcpus))?;
        Ok(state)
    }

    /// Whether a vCPU has something to do now.
    #[must_use]
    pub fn runnable(&self, index: usize, clock: &impl Clock) -> bool {
        let processor = &self.processors[index];
        !self.synchronised
            || self.misbehaviour.is_some()
            || self.untold != 0 && self.tell_ns <= clock.now_ns()
            || processor.is_runnable()
            || processor
                .apic
                .deadline_ns()
                .is_some_and(|deadline| deadline <= clock.now_ns())
    }

    /// When the next timer of any vCPU fires, or the guest must be told that frames have left, on [`Clock::now_ns`]'s scale. A timer that is due and
    /// that no [`run`](Self::run) has noticed yet counts, with its moment in the past: a host that finds nothing
    /// [`runnable`](Self::runnable), reads this a moment later and halts until then must not miss a timer
    /// that fell due in between.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.processors
            .iter()
            .filter_map(|processor| processor.apic.deadline_ns())
            .chain((self.untold != 0).then_some(self.tell_ns))
            .chain((self.watched != 0).then_some(self.watch_until_ns))
            .min()
    }

    /// The next request of the guest to any of its disks. Gives none while
    /// the requests in flight hold too much memory; ask again after each completion.
    pub fn next_disk_request(&mut self) -> Option<DiskRequest> {
        for disk in 0..self.config.disks.len() {
            if !self.take_rung(disk) {
                continue;
            }
            let id = self.next_request;
            let next = match self.functions[disk].device_and_queue(0) {
                Some((Device::Block(block), queue)) => block.next_request(queue, &self.memory, id),
                _ => Ok(None),
            };
            if let Ok(Some(op)) = next {
                self.next_request += 1;
                self.ring(disk);
                return Some(DiskRequest { id, disk, op });
            }
            // Some requests may have been answered without the backend.
            self.finish_queue(disk, 0, next.map(|_| ()));
        }
        None
    }

    /// Ends a request: with the data for a read, with anything for the rest. An id that the guest's driver no longer
    /// waits for, because it reset the device, has no effect.
    pub fn complete_disk(&mut self, id: u64, result: Result<Vec<u8>, DiskError>) {
        for disk in 0..self.config.disks.len() {
            let Device::Block(block) = self.functions[disk].device_mut() else {
                continue;
            };
            let Some(request) = block.take(id) else {
                continue;
            };
            // There may be memory for further requests now.
            self.ring(disk);
            if let Some((_, queue)) = self.functions[disk].device_and_queue(0) {
                let finished = request.finish(queue, &self.memory, &result);
                self.finish_queue(disk, 0, finished);
            }
            return;
        }
    }

    /// Requests taken by [`Self::next_disk_request`] and not completed. They are part of the saved state, and
    /// are issued again after a restore, so a host that does not wait for zero must
    /// be sure that the old ones have no effect later.
    #[must_use]
    pub fn disk_in_flight(&self) -> usize {
        self.functions
            .iter()
            .map(|function| match function.device() {
                Device::Block(block) => block.in_flight(),
                _ => 0,
            })
            .sum()
    }

    /// The next Ethernet frame that the guest sends, and the card it leaves by.
    pub fn next_frame(&mut self) -> Option<(usize, Vec<u8>)> {
        for nic in 0..self.config.nics.len() {
            let function = self.config.disks.len() + nic;
            let rung = self.take_rung(function);
            if !rung && self.watched & 1 << function == 0 {
                continue;
            }
            let mut next = self.take_frame(function);
            let quiet = matches!(next, Ok(None));
            if quiet && !self.keep_watching(function, rung) {
                next = match self.ask_to_ring(function) {
                    Ok(true) => self.take_frame(function),
                    Ok(false) => Ok(None),
                    Err(error) => Err(error),
                };
            }
            match next {
                Ok(Some(frame)) => {
                    self.ring(function);
                    self.tell_later(function);
                    return Some((nic, frame));
                }
                Ok(None) => {}
                Err(error) => self.finish_queue(function, net::TRANSMIT, Err(error)),
            }
        }
        None
    }

    fn take_frame(&mut self, function: usize) -> Result<Option<Vec<u8>>, RingError> {
        match self.functions[function].device_and_queue(net::TRANSMIT) {
            Some((Device::Net(card), queue)) => card.next_frame(queue, &self.memory),
            _ => Ok(None),
        }
    }

    fn ask_to_ring(&mut self, function: usize) -> Result<bool, RingError> {
        match self.functions[function].device_and_queue(net::TRANSMIT) {
            Some((_, queue)) => queue.ask_to_ring(&self.memory),
            None => Ok(false),
        }
    }

    /// Whether a guest that has no frame to send at the moment need not ring for its next one: it has sent some
    /// lately and is still at work, so it will come out soon for other reasons, and an exit for each frame
    /// costs it more than the wait. `sent`: it has just done so.
    fn keep_watching(&mut self, function: usize, sent: bool) -> bool {
        let bit = 1 << function;
        if sent {
            self.watch_until_ns = self.seen_ns + WATCH_NS;
        }
        let watch = self.seen_ns < self.watch_until_ns && self.is_busy();
        self.watched = if watch {
            self.watched | bit
        } else {
            self.watched & !bit
        };
        watch
    }

    /// Whether any vCPU is at work.
    fn is_busy(&self) -> bool {
        self.processors.iter().any(Processor::is_runnable)
    }

    /// A vCPU has nothing more to do: if it was the last one, what it has sent without ringing is looked at now.
    pub(crate) fn ring_watched(&mut self) -> bool {
        if self.watched == 0 || self.is_busy() {
            return false;
        }
        self.rung |= self.watched;
        true
    }

    /// Hands a frame to a card. `false`: no buffer is free; keep the frame and try again after the vCPU
    /// has run. A frame longer than the card's MTU, or for a card without driver, is dropped as a wire would (`true`).
    pub fn deliver_frame(&mut self, nic: usize, frame: &[u8]) -> bool {
        let function = self.config.disks.len() + nic;
        let delivered = match self.functions[function].device_and_queue(net::RECEIVE) {
            Some((Device::Net(card), queue)) => card.deliver(queue, &self.memory, frame),
            _ => return true,
        };
        let taken = !matches!(delivered, Ok(false));
        self.finish_queue(function, net::RECEIVE, delivered.map(|_| ()));
        taken
    }

    /// Asks the guest to announce its addresses on all its networks, which it does once it runs, where its driver
    /// can.
    pub fn announce(&mut self) {
        for function in 0..self.functions.len() {
            let function = &mut self.functions[function];
            let negotiated = function.driver_features();
            let live = function.is_live();
            let announces = match function.device_mut() {
                Device::Net(card) => live && card.announce(negotiated),
                _ => false,
            };
            if announces {
                let message = function.config_changed();
                self.send(message);
            }
        }
    }

    /// What the guest wrote to its console since the last call.
    pub fn take_console_output(&mut self) -> Vec<u8> {
        self.serial.take_output()
    }

    /// Types into the guest's console.
    pub fn console_input(&mut self, bytes: &[u8]) {
        self.serial.receive(bytes);
        self.update_serial_line();
    }

    /// Presses the power button, an ACPI device: a guest that listens shuts down cleanly and ends in
    /// [`Outcome::PowerOff`].
    pub fn press_power_button(&mut self) {
        let message = self.io_apic.set_line(acpi::POWER_BUTTON_PIN, true);
        self.send(message);
        let message = self.io_apic.set_line(acpi::POWER_BUTTON_PIN, false);
        self.send(message);
    }

    /// Delivers a message that no processor sent.
    pub(crate) fn send(&mut self, message: Option<Message>) {
        if let Some(message) = message {
            // Devices address by id or by mask; only processors say "myself" and "others".
            self.send_from(0, &message);
        }
    }

    /// Delivers a message that a processor sent.
    pub(crate) fn send_from(&mut self, sender: usize, message: &Message) {
        let sender = self.processors[sender].apic.id();
        let addressed = self
            .processors
            .iter_mut()
            .filter(|p| message.destination.includes(p.apic.id(), sender));
        let one = message.delivery == Delivery::LowestPriority;
        for processor in addressed.take(if one { 1 } else { usize::MAX }) {
            processor.receive(message);
        }
    }

    pub(crate) fn update_serial_line(&mut self) {
        let message = self.io_apic.set_line(serial::PIN, self.serial.line());
        self.send(message);
    }

    pub(crate) fn read_config(&self, slot: usize, register: usize, size: u8) -> u32 {
        match slot {
            0 => self.host_bridge.read(register, size),
            // An empty slot answers with all ones.
            _ => self
                .functions
                .get(slot - 1)
                .map_or(u32::MAX, |function| function.config().read(register, size)),
        }
    }

    pub(crate) fn write_config(&mut self, slot: usize, register: usize, size: u8, value: u32) {
        let Some(function) = slot.checked_sub(1).and_then(|i| self.functions.get_mut(i)) else {
            return;
        };
        for message in function.write_config(register, size, value) {
            self.send(Some(message));
        }
    }

    /// The guest's clock, which begins with the first question.
    pub(crate) fn guest_clock(&mut self, clock: &impl Clock) -> (&GuestClock, &GuestMemory) {
        let guest_clock = self
            .clock
            .get_or_insert_with(|| GuestClock::new(clock.tsc_hz()));
        (guest_clock, &self.memory)
    }

    /// Notes that a function has a queue to look at.
    pub(crate) fn ring(&mut self, function: usize) {
        self.rung |= 1 << function;
    }

    /// After a restore: whatever waits in any queue, on either side, is looked at.
    pub(crate) fn ring_all(&mut self) {
        self.rung = u64::MAX;
        self.untold = u64::MAX;
        self.tell_ns = 0;
    }

    /// That a frame has left interests the guest little, and a driver looks for it anyway when the next one arrives:
    /// most of these interrupts need never be sent if they wait a little.
    fn tell_later(&mut self, function: usize) {
        if self.untold == 0 {
            self.tell_ns = self.seen_ns + TELL_AFTER_NS;
        }
        self.untold |= 1 << function;
    }

    /// Tells the guest of frames that have left, when it is time; forgets those that its driver has found by itself.
    pub(crate) fn tell_of_frames(&mut self, now_ns: u64) {
        let due = self.tell_ns <= now_ns;
        let disks = self.config.disks.len();
        let cards = disks..disks + self.config.nics.len();
        self.untold &= cards.clone().fold(0, |bits, card| bits | 1 << card);
        for function in cards {
            let bit = 1 << function;
            if self.untold & bit == 0 {
                continue;
            }
            let wanted = self.functions[function].wants_interrupt(net::TRANSMIT, &self.memory);
            if due || wanted != Ok(true) {
                self.untold &= !bit;
                self.finish_queue(function, net::TRANSMIT, wanted.map(|_| ()));
            }
        }
    }

    fn take_rung(&mut self, function: usize) -> bool {
        let bit = 1 << function;
        let rung = self.rung & bit != 0;
        self.rung &= !bit;
        rung && self.misbehaviour.is_none()
    }

    /// After work on a queue: interrupts the guest if it wants that, or stops it if its ring was bad.
    pub(crate) fn finish_queue(
        &mut self,
        function: usize,
        queue: usize,
        result: Result<(), RingError>,
    ) {
        let interrupt =
            result.and_then(|()| self.functions[function].interrupt(queue, &self.memory));
        match interrupt {
            Ok(message) => self.send(message),
            Err(error) => {
                let name = self.function_name(function);
                self.misbehaved(format!("{name}, queue {queue}: {error}"));
            }
        }
    }

    /// A function as it is after power-on.
    pub(crate) fn fresh_function(&self, index: usize) -> Function {
        function(&self.config, index)
    }

    pub(crate) fn function_name(&self, function: usize) -> String {
        let disks = self.config.disks.len();
        let nics = self.config.nics.len();
        match function {
            i if i < disks => format!("disk {i}"),
            i if i < disks + nics => format!("network card {}", i - disks),
            _ => String::from("entropy source"),
        }
    }
}

/// The function of a configuration that has this number, with its window where a firmware would put it.
fn function(config: &MachineConfig, index: usize) -> Function {
    let disks = config.disks.len();
    let device = match (
        config.disks.get(index),
        config.nics.get(index.wrapping_sub(disks)),
    ) {
        (Some(disk), _) => Device::Block(Block::new(disk)),
        (None, Some(nic)) => Device::Net(Net::new(nic)),
        (None, None) => Device::Entropy,
    };
    let base = pci::MEMORY_BASE as u32 + index as u32 * transport::WINDOW;
    Function::new(device, base)
}
