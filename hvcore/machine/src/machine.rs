//! The machine as a whole: its configuration, its parts, and what its user may do with it.

use alloc::{string::String, vec::Vec};

use guest_memory::GuestMemory;

use crate::{
    state::{Section, StateError},
    vcpu::{Vcpu, VcpuState},
};

/// Most vCPUs a machine can have: x2APIC ids fit one logical cluster, so that one word addresses all.
pub const MAX_VCPUS: u8 = 16;

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
    /// The guest rang a queue or wrote to its console: look at the backends. The vCPU can go on.
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
    memory: GuestMemory,
    config: MachineConfig,
}

impl Machine {
    /// Builds a machine in its state after power-on. `cpuid` reads the physical CPU's leaves, of which the
    /// guest is shown what this machine supports.
    ///
    /// # Panics
    /// When the number of vCPUs is not between 1 and [`MAX_VCPUS`]: whoever parses a VM's
    /// configuration checks that.
    #[must_use]
    pub fn new(
        config: &MachineConfig,
        memory: GuestMemory,
        cpuid: impl Fn(u32, u32) -> [u32; 4],
    ) -> Self {
        assert!((1..=MAX_VCPUS).contains(&config.vcpus), "1 to 16 vCPUs");
        let _ = cpuid(0, 0);
        Self {
            memory,
            config: config.clone(),
        }
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

    /// Puts a Linux kernel into RAM, with the tables it expects, and gives the boot vCPU's state. The other
    /// vCPUs need none: the boot vCPU starts them.
    ///
    /// # Errors
    /// When the image is no bootable kernel or does not fit; RAM may then be partly written.
    pub fn load_linux(
        &mut self,
        _kernel: &[u8],
        _initrd: Option<&[u8]>,
        _command_line: &str,
    ) -> Result<VcpuState, LoadError> {
        Err(LoadError::BadKernel("no loader"))
    }

    /// Runs a vCPU: delivers what is due, enters the guest and answers its exits, until the host is needed.
    pub fn run(&mut self, _index: usize, _vcpu: &mut impl Vcpu, _clock: &impl Clock) -> Outcome {
        Outcome::Halted
    }

    /// Whether a vCPU has something to do now.
    #[must_use]
    pub fn runnable(&self, _index: usize, _clock: &impl Clock) -> bool {
        false
    }

    /// When the next timer of any vCPU fires, on [`Clock::now_ns`]'s scale. Timers already due do not count: they
    /// make their vCPU [`runnable`](Self::runnable).
    #[must_use]
    pub fn next_deadline_ns(&self, _clock: &impl Clock) -> Option<u64> {
        None
    }

    /// The next request of the guest to any of its disks. Gives none while
    /// the requests in flight hold too much memory; ask again after each completion.
    pub fn next_disk_request(&mut self) -> Option<DiskRequest> {
        None
    }

    /// Ends a request: with the data for a read, with anything for the rest.
    pub fn complete_disk(&mut self, _id: u64, _result: Result<Vec<u8>, DiskError>) {}

    /// Requests taken by [`Self::next_disk_request`] and not completed. They are part of the saved state, and
    /// are issued again after a restore, so a host that does not wait for zero must
    /// be sure that the old ones have no effect later.
    #[must_use]
    pub fn disk_in_flight(&self) -> usize {
        0
    }

    /// The next Ethernet frame that the guest sends, and the card it leaves by.
    pub fn next_frame(&mut self) -> Option<(usize, Vec<u8>)> {
        None
    }

    /// Hands a frame to a card. `false`: no buffer is free; keep the frame and try again after the vCPU
    /// has run. A frame longer than the card's MTU, or for a card without driver, is dropped as a wire would (`true`).
    pub fn deliver_frame(&mut self, _nic: usize, _frame: &[u8]) -> bool {
        true
    }

    /// What the guest wrote to its console since the last call.
    pub fn take_console_output(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Types into the guest's console.
    pub fn console_input(&mut self, _bytes: &[u8]) {}

    /// Presses the power button: a guest that listens shuts down cleanly and ends in [`Outcome::PowerOff`].
    pub fn press_power_button(&mut self) {}

    /// The state of all that is neither RAM nor a vCPU's registers. No vCPU may be running.
    #[must_use]
    pub fn save(&self) -> Vec<Section> {
        Vec::new()
    }

    /// Takes over a saved state. Afterwards every queue is rung and every interrupt line
    /// recomputed, so that nothing the old host still had in hand is lost.
    ///
    /// # Errors
    /// When the sections are not exactly those of a machine of this configuration; nothing has changed then.
    pub fn restore(&mut self, _sections: &[Section]) -> Result<(), StateError> {
        Ok(())
    }
}
