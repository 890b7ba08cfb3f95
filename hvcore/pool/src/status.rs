//! What people can ask a pool: who is there, what is protected, and what would happen if hosts failed.

use alloc::vec::Vec;

use crate::{
    capacity::{self, Plan, Shortage},
    config::{HostId, VmIndex},
    peer::MS,
    pool::Pool,
    table::Place,
    wire::Standing,
};

/// A host of the pool, as another sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// Which.
    pub host: HostId,
    /// It is in the liveset.
    pub member: bool,
    /// How long ago it gave the last sign, in milliseconds; 0 for this host.
    pub silent_ms: u64,
}

/// How far a VM is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Restarted if its host fails.
    Restart,
    /// Restarted if there is room.
    BestEffort,
    /// Not restarted: it is off, it failed, or the pool could not bear the failure of a host.
    None,
}

/// A pool, as one of its hosts sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where this host stands.
    pub standing: Standing,
    /// Its guests may run.
    pub permitted: bool,
    /// The storage answers.
    pub storage_up: bool,
    /// The generation.
    pub generation: u64,
    /// The coordinator, if there is one.
    pub coordinator: Option<HostId>,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
    /// The VMs.
    pub vms: Vec<(VmIndex, Place, Protection)>,
    /// What happens when hosts fail.
    pub plan: Plan,
}

impl Pool {
    /// The pool as seen from here.
    #[must_use]
    pub fn status(&self) -> Status {
        let steady = self.clocks.steady();
        let plan = capacity::plan(&self.config, &self.table);
        let hosts = (0_u16..)
            .map(HostId)
            .zip(&self.peers)
            .map(|(host, peer)| HostStatus {
                host,
                member: self.table.incarnation(host) != 0,
                silent_ms: if host == self.me {
                    0
                } else {
                    (steady - peer.sign(true)) / MS
                },
            })
            .collect();
        let vms = self
            .table
            .places()
            .map(|(vm, place)| {
                let promised = plan.tolerated > 0;
                let protection = match place {
                    Place::Off | Place::Failed | Place::Unknown => Protection::None,
                    _ if self.config.vms[vm.index()].best_effort => Protection::BestEffort,
                    _ if promised => Protection::Restart,
                    _ => Protection::None,
                };
                (vm, place, protection)
            })
            .collect();
        Status {
            standing: self.standing,
            permitted: self.may_run(self.clocks.raw()),
            storage_up: self.storage_up,
            generation: self.table.generation,
            coordinator: (self.table.generation != 0).then_some(self.table.author),
            hosts,
            vms,
            plan,
        }
    }

    /// Whether this VM may start here by command: with it, the pool must still bear the failures it is to tolerate.
    ///
    /// # Errors
    /// The set of hosts whose failure would leave a VM without room.
    pub fn admit(&self, vm: VmIndex) -> Result<(), Shortage> {
        capacity::admit(&self.config, &self.table, vm, self.me)
    }
}
