//! What each end of a migration asks of its host, so that one code moves guests between real hosts and in a simulation.

use alloc::{string::String, vec::Vec};

use guest_memory::{GuestMemory, PageSet};
use host_protocol::VmConfig;
use vdi::DiskState;

use crate::wire::Snapshot;

/// What a source does to its guest.
pub trait SourceVm {
    /// The host's clock.
    fn now_ns(&self) -> u64;
    /// The guest's RAM.
    fn memory(&self) -> &GuestMemory;
    /// Moves the dirty marks of the nested page tables into `into` and clears them.
    fn harvest_dirty(&mut self, into: &mut PageSet);
    /// vCPUs and devices as they are now.
    fn snapshot(&mut self) -> Snapshot;
    /// From now on, what the guest receives is also given to [`Source::forward`], as long as
    /// [`Source::takes_copies`].
    fn copy_frames(&mut self);
    /// The guest still runs, but not for long: does what makes the drain short.
    fn settle(&mut self);
    /// Stops the vCPUs.
    fn stop(&mut self);
    /// Stops the devices: nothing new is begun, what has begun ends. True when all has ended. Called until then.
    fn drain(&mut self) -> bool;
    /// The state of the drained disks.
    ///
    /// # Errors
    /// A sentence for people; the guest then runs on here.
    fn disks(&mut self) -> Result<Vec<Option<DiskState>>, String>;
    /// Begins to take the deciding lease back; the result is for [`Source::on_taken`].
    fn reclaim(&mut self);
    /// The guest runs on here.
    fn resume(&mut self);
}

/// What a destination does to its guest.
pub trait DestinationVm {
    /// The host's clock.
    fn now_ns(&self) -> u64;
    /// Begins to build the VM: memory, machine, disks.
    ///
    /// # Errors
    /// A sentence for people: the VM does not fit, or is here already.
    fn build(&mut self, vm: &VmConfig) -> Result<(), String>;
    /// Whether it is built.
    ///
    /// # Errors
    /// A sentence for people: it cannot be.
    fn is_built(&mut self) -> Result<bool, String>;
    /// The guest's RAM, zeroed when it was built.
    fn memory(&self) -> &GuestMemory;
    /// Begins to run a copy of the guest in its RAM, as `snapshot` says. Whatever it sends or writes elsewhere is
    /// thrown away.
    ///
    /// # Errors
    /// A sentence for people: the state does not fit this host.
    fn rehearse(&mut self, snapshot: &Snapshot) -> Result<(), String>;
    /// Gives the copy a frame that the guest has received.
    fn deliver_to_copy(&mut self, nic: usize, frame: &[u8]);
    /// When the rehearsal is over, the pages it has changed. Nothing else of it is left then.
    fn rehearsed(&mut self) -> Option<Vec<u32>>;
    /// Loads the final state.
    ///
    /// # Errors
    /// A sentence for people: the state does not fit this host.
    fn restore(&mut self, snapshot: &Snapshot, disks: &[Option<DiskState>]) -> Result<(), String>;
    /// Begins to take the next lease of the guest's disks, the deciding one first; the result is for
    /// [`Destination::on_taken`]. False when all are taken.
    fn take_lease(&mut self) -> bool;
    /// Sets the guest's clock `elapsed_ns` after the reading in `snapshot`, announces the guest if `announce`,
    /// and lets its vCPUs run.
    fn resume(&mut self, snapshot: &Snapshot, elapsed_ns: u64, announce: bool);
    /// Delivers a frame that the source forwarded.
    fn deliver(&mut self, nic: usize, frame: &[u8]);
    /// Lets frames that arrived directly reach the guest.
    fn release_direct_frames(&mut self);
    /// Throws the VM away; nothing of it was ever here.
    fn discard(&mut self);
}
