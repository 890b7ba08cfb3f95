//! Availability: how a host is told of its pool, and what it reports of it.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{VmConfig, VmId};

/// UDP port of heartbeats on the management network. They are broadcast.
pub const HEARTBEAT_PORT: u16 = 7002;
/// Name of the file in the repository whose lease's epoch is the pool's generation.
pub const LEASE_FILE: &str = "pool";

/// A host of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolHost {
    /// Its name, which is also the owner of its leases.
    pub name: String,
    /// MiB of RAM for VMs.
    pub memory_mib: u32,
}

/// A pool protects so many VMs at most. The number is fixed, so that VMs can be added while the pool runs.
pub const MAX_VMS: usize = 64;

/// What a VM goes on from when its host has failed, instead of booting: its last checkpoint, with its disk as it was then. It is
/// prepared while the VM runs, and good for one restart: whoever puts `disk` in the place of the VM's own has used it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPoint {
    /// Path of the VHD with the memory below the NFS export.
    pub memory: String,
    /// Path of an empty child of what the VM's only writable disk held then.
    pub disk: String,
    /// Name, beside the disk, under which the disk's present file is kept: what was written since is not in the VM any more.
    pub kept: String,
}

/// A VM that is restarted when its host fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedVm {
    /// What is restarted.
    pub config: VmConfig,
    /// Who gets memory first when there is not enough for all: lower first.
    pub priority: u8,
    /// Who starts first: a VM waits until those of lower order run or have failed.
    pub order: u16,
    /// Waits so long when its turn has come.
    pub start_delay_ms: u32,
    /// Restarted if there is room, without a promise.
    pub best_effort: bool,
    /// Goes on from there. Without one, and when it is not to be had, the VM boots.
    pub restart_point: Option<RestartPoint>,
}

/// A pool, told to all its hosts alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSetup {
    /// Identity.
    pub pool: [u8; 16],
    /// Directory of the repository below the export; its statefile and [`LEASE_FILE`] are used.
    pub repository: String,
    /// The hosts; the order is that of precedence.
    pub hosts: Vec<PoolHost>,
    /// The VMs.
    pub vms: Vec<ProtectedVm>,
    /// How many hosts may fail at once with all VMs restarted, best-effort ones aside.
    pub failures_to_tolerate: u8,
}

/// What kind of thing has happened in the pool. The steps of a restart are marks in a run's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMark {
    /// A host gives no sign.
    Suspected,
    /// A host is declared dead: detection ends.
    DeclaredDead,
    /// The hosts agree on who is there.
    Liveset,
    /// A VM's leases are taken.
    Fenced,
    /// A VM is to start: the decision ends.
    Restart,
    /// A VM runs again.
    Restarted,
    /// A VM is not restarted.
    NotRestarted,
    /// The pool can bear more or fewer failures than before.
    Protection,
    /// This host has stopped its guests.
    SelfFenced,
    /// Guests of this host stand still.
    PermitLapsed,
    /// They may run again.
    PermitBack,
    /// Anything else.
    Note,
}

/// The pool as a host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Where this host stands, in a word.
    pub standing: String,
    /// Its protected guests may run.
    pub permitted: bool,
    /// The statefile answers.
    pub statefile_up: bool,
    /// Generation of the liveset.
    pub generation: u64,
    /// Who decides.
    pub coordinator: Option<String>,
    /// Hosts: name, in the liveset, milliseconds since the last sign.
    pub hosts: Vec<(String, bool, u64)>,
    /// VMs: which, where it is, how far it is protected.
    pub vms: Vec<(VmId, String, String)>,
    /// So many hosts may fail at once.
    pub tolerated: u8,
    /// What breaks one more, if more is asked for.
    pub shortage: Option<String>,
    /// What happens if one host fails: a sentence for each.
    pub plan: Vec<String>,
}
