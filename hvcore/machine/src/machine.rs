//! The machine as a whole: its configuration, its parts, and what its user may do with it.

use alloc::{format, string::String, vec::Vec};

use guest_memory::GuestMemory;

use crate::{
    acpi,
    apic::{Delivery, IoApic, Message},
    clock::GuestClock,
    cpuid::Policy,
    frames::PutOff,
    linux,
    pci::{self, ConfigAddress, ConfigSpace},
    processor::Processor,
    run::ExitCounts,
    serial::{self, Serial},
    vcpu::VcpuState,
    virtio::{
        balloon::Balloon,
        block::Block,
        net::Net,
        transport::{self, Device, Function},
    },
};

/// Most vCPUs a machine can have: x2APIC ids fit one logical cluster, so that one word addresses all.
pub const MAX_VCPUS: u8 = 16;

/// Most disks and network cards a machine can have: slots on its PCI bus.
pub const MAX_DEVICES: usize = 24;

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
    /// Whether the guest has a memory balloon.
    pub balloon: bool,
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
    pub(crate) rung: u64,
    pub(crate) put_off: PutOff,
    /// Host time when somebody looked at the clock last.
    pub(crate) seen_ns: u64,
    pub(crate) next_request: u64,
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
        let functions = (0..=config.disks.len() + config.nics.len() + usize::from(config.balloon))
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
            put_off: PutOff::default(),
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
            || self.put_off.is_due(clock.now_ns())
            || processor.is_runnable()
            || processor
                .apic
                .deadline_ns()
                .is_some_and(|deadline| deadline <= clock.now_ns())
    }

    /// When the next timer of any vCPU fires, or queues must be looked at, on [`Clock::now_ns`]'s scale. A timer that is
    /// due and that no [`run`](Self::run) has noticed yet counts, with its moment in the past: a host that finds
    /// nothing [`runnable`](Self::runnable), reads this a moment later and halts until then must not miss a
    /// timer that fell due in between.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.processors
            .iter()
            .filter_map(|processor| processor.apic.deadline_ns())
            .chain(self.put_off.deadlines_ns())
            .min()
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
            i if i == disks + nics => String::from("entropy source"),
            _ => String::from("memory balloon"),
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
        (None, None) if index == disks + config.nics.len() => Device::Entropy,
        (None, None) => Device::Balloon(Balloon::default()),
    };
    let base = pci::MEMORY_BASE as u32 + index as u32 * transport::WINDOW;
    Function::new(device, base)
}
