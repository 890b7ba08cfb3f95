//! The pool's table: who is in the liveset, and what became of each VM. Its generation is the epoch of the lease of the
//! pool's own file, so only one host can ever write the table of a generation; that host is the coordinator.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::config::{HostId, VmIndex};

/// What the pool knows of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// It is not to run.
    Off,
    /// It runs there.
    Running(HostId),
    /// It is to run and does not. So many attempts have been made.
    Lost {
        /// Attempts so far.
        attempts: u16,
    },
    /// Its leases are taken, and this host shall start it.
    Starting {
        /// Who.
        host: HostId,
        /// Which attempt.
        attempt: u16,
    },
    /// It could not be started; somebody must look at it.
    Failed,
    /// The table was lost with the statefile while no host had power. The leases of its disks tell whether it ran.
    Unknown,
}

impl Place {
    /// The host whose memory it takes.
    #[must_use]
    pub fn host(self) -> Option<HostId> {
        match self {
            Self::Running(host) | Self::Starting { host, .. } => Some(host),
            Self::Off | Self::Lost { .. } | Self::Failed | Self::Unknown => None,
        }
    }
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Epoch of the pool's lease at which it was decided. 0: there never was one.
    pub generation: u64,
    /// Grows with every change within the generation.
    pub version: u32,
    /// The coordinator: who took the lease.
    pub author: HostId,
    /// For each host its incarnation in the liveset; 0 if it is not in it.
    pub members: Vec<u32>,
    /// For each VM where it is.
    pub vms: Vec<Place>,
}

impl Table {
    /// That of a pool that has never met.
    #[must_use]
    pub fn empty(hosts: usize, vms: usize) -> Self {
        Self {
            generation: 0,
            version: 0,
            author: HostId(0),
            members: vec![0; hosts],
            vms: vec![Place::Off; vms],
        }
    }

    /// Whether it speaks of a pool with so many hosts and VMs, and of no others.
    #[must_use]
    pub fn fits(&self, hosts: usize, vms: usize) -> bool {
        self.members.len() == hosts
            && self.vms.len() == vms
            && self.author.index() < hosts
            && self
                .vms
                .iter()
                .all(|place| place.host().is_none_or(|host| host.index() < hosts))
    }

    /// Which of two tables is newer.
    #[must_use]
    pub fn stamp(&self) -> (u64, u32) {
        (self.generation, self.version)
    }

    /// Hosts in the liveset.
    pub fn live(&self) -> impl Iterator<Item = HostId> {
        (0_u16..)
            .zip(&self.members)
            .filter(|(_, incarnation)| **incarnation != 0)
            .map(|(host, _)| HostId(host))
    }

    /// The host's incarnation in the liveset; 0 if it is not in it.
    #[must_use]
    pub fn incarnation(&self, host: HostId) -> u32 {
        self.members.get(host.index()).copied().unwrap_or(0)
    }

    /// VMs and their places.
    pub fn places(&self) -> impl Iterator<Item = (VmIndex, Place)> {
        (0_u16..)
            .zip(&self.vms)
            .map(|(vm, place)| (VmIndex(vm), *place))
    }
}
