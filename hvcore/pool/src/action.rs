//! What a pool asks of its host, and what the storage server answers.
//!
//! Requests carry a token instead of a closure: answers can be late, lost or come twice, and are then told from the one that is
//! waited for.

use alloc::{string::String, vec::Vec};

use crate::{
    config::{HostId, VmIndex},
    event::{Event, FenceCause},
};

/// Names a request to the storage server until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// A file with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseFile {
    /// The pool's own: the epoch of its lease is the pool's generation.
    Pool,
    /// A disk of a VM: the number counts those that it writes.
    Disk(VmIndex, u8),
}

/// What is asked about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseCall {
    /// ACQUIRE, for the very first time.
    Create {
        /// Whose it shall be.
        owner: HostId,
    },
    /// TAKE: compare-and-swap on the epoch.
    Take {
        /// The epoch it must have.
        expected_epoch: u64,
        /// Whose it shall be.
        owner: HostId,
    },
    /// Its state only. [`LeaseAnswer::Granted`] then says that it is the asker's already.
    Look,
}

/// What the storage server said of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// It is taken.
    Granted {
        /// Its epoch now.
        epoch: u64,
    },
    /// It is not taken; this is its state.
    State {
        /// Its epoch; 0 if there never was a lease.
        epoch: u64,
        /// Name of its owner; empty if nobody.
        owner: String,
    },
    /// There is no such file.
    Missing,
    /// The server did not answer, or failed.
    Failed,
}

/// What the host shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this heartbeat to all other hosts over the management network.
    Heartbeat(Vec<u8>),
    /// Read slots of the statefile; answer by [`crate::Pool::on_slots`].
    ReadSlots {
        /// Names it.
        token: Token,
        /// The first host's.
        first: HostId,
        /// How many.
        count: u16,
    },
    /// Write this block as this host's slot, stable before it is answered by [`crate::Pool::on_written`].
    WriteSlot {
        /// Names it.
        token: Token,
        /// The block.
        block: Vec<u8>,
    },
    /// Ask the storage server about a lease; answer by [`crate::Pool::on_lease`].
    Lease {
        /// Names it.
        token: Token,
        /// Which.
        file: LeaseFile,
        /// What.
        call: LeaseCall,
    },
    /// Start this VM, whose leases are this host's; say what came of it by [`crate::Pool::set_vm`].
    Start {
        /// Which VM.
        vm: VmIndex,
        /// Which attempt, for [`VmReport::Failed`].
        attempt: u16,
    },
    /// Stop this VM now, without giving its leases back: it came here while this host was not in the liveset.
    Stop {
        /// Which VM.
        vm: VmIndex,
    },
    /// Stop all protected VMs now, without giving their leases back.
    Fence(FenceCause),
    /// Tell people.
    Event(Event),
}
