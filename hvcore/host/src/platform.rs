//! What the host needs from whatever it runs on: bare metal in `hvcore/image`, ordinary memory in
//! simulations.

use guest_memory::{GuestMemory, PageSet};
use machine::vcpu::Vcpu;

/// The network cards of a host, one for each network of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nic {
    /// Control, heartbeat, migration.
    Management = 0,
    /// NFS.
    Storage = 1,
    /// The guests' own network; the host has no address on it.
    Session = 2,
}

impl Nic {
    /// All of them, in the order in which they sit on the PCI bus.
    pub const ALL: [Self; 3] = [Self::Management, Self::Storage, Self::Session];
}

/// Not enough memory for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// Bytes the VM needs, its overhead included.
    pub needed: u64,
    /// Bytes free.
    pub free: u64,
}

/// The hardware half of one VM: its RAM, its nested page tables, its vCPUs.
pub trait VmHardware {
    /// The vCPU type.
    type Vcpu: Vcpu;
    /// A vCPU by number.
    fn vcpu(&mut self, index: usize) -> &mut Self::Vcpu;
    /// Exits of all vCPUs so far.
    fn exits(&self) -> u64;
    /// Moves the dirty marks of the nested page tables into `into` and clears them, with whatever
    /// flush makes the clearing take effect before the guest runs again.
    fn harvest_dirty(&mut self, into: &mut PageSet);
}

/// What the host runs on.
///
/// `create_vm` gives RAM and hardware apart: the machine's devices write RAM while a vCPU is
/// borrowed for its run. The memory is free again when both are dropped.
pub trait Platform {
    /// The hardware half of a VM.
    type Vm: VmHardware;

    /// Nanoseconds since the host started; never goes back.
    fn now_ns(&self) -> u64;
    /// The host's time-stamp counter.
    fn tsc(&self) -> u64;
    /// Ticks of the time-stamp counter in a second.
    fn tsc_hz(&self) -> u64;
    /// Wall-clock time, nanoseconds since 1970.
    fn unix_ns(&self) -> u64;
    /// Fills a buffer with random bytes.
    fn random(&self, buf: &mut [u8]);
    /// Raises a physical interrupt at this moment of [`Self::now_ns`], so that a running guest
    /// exits then. Replaces what was set before; a moment that has passed fires at once.
    fn interrupt_at(&mut self, at_ns: u64);
    /// Bytes of RAM for VMs: total and free.
    fn memory(&self) -> (u64, u64);
    /// Builds the hardware half of a VM with zeroed RAM.
    ///
    /// # Errors
    /// When it does not fit.
    fn create_vm(&mut self, memory: u64, vcpus: usize)
    -> Result<(Self::Vm, GuestMemory), NoMemory>;
    /// The physical CPU's CPUID leaf.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// The card's own MAC address.
    fn mac(&self, nic: Nic) -> [u8; 6];
    /// How many frames the card's ring can take now.
    fn transmit_room(&mut self, nic: Nic) -> usize;
    /// Sends an Ethernet frame; one that does not fit the ring is dropped, as on a wire.
    fn transmit(&mut self, nic: Nic, frame: &[u8]);
    /// Writes a line to the host's own console.
    fn log(&mut self, line: &str);
    /// Switches the host off. Guests are stopped and leases released by then.
    fn power_off(&mut self);
}
