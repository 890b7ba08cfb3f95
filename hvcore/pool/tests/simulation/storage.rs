//! The storage server of a simulated pool: a statefile, leases that are changed by compare-and-swap, and disks whose
//! writes are checked against the epoch they come with.

use std::collections::BTreeMap;

use pool::{HostId, LeaseAnswer, LeaseCall, LeaseFile, VmIndex};

/// A lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    pub epoch: u64,
    pub owner: Option<HostId>,
}

/// The server.
pub struct Storage {
    pub slots: Vec<Vec<u8>>,
    pub leases: BTreeMap<LeaseFile, Lease>,
    /// Highest epoch under which a disk was written.
    written: BTreeMap<VmIndex, u64>,
    /// Off only as a negative control.
    pub enforced: bool,
}

impl Storage {
    pub fn new(hosts: usize) -> Self {
        Self {
            slots: vec![vec![0; 4096]; hosts],
            leases: BTreeMap::new(),
            written: BTreeMap::new(),
            enforced: true,
        }
    }

    fn lease(&mut self, file: LeaseFile) -> &mut Lease {
        self.leases.entry(file).or_default()
    }

    fn state(lease: Lease) -> LeaseAnswer {
        LeaseAnswer::State {
            epoch: lease.epoch,
            owner: lease.owner.map_or(String::new(), crate::world::host_name),
        }
    }

    /// What a host's pool asks.
    pub fn call(&mut self, asker: HostId, file: LeaseFile, call: LeaseCall) -> LeaseAnswer {
        let lease = self.lease(file);
        match call {
            // Hosts look by TAKE with an epoch that no lease has; of the asker's own first lease that is a repetition.
            LeaseCall::Look if lease.epoch == 1 && lease.owner == Some(asker) => {
                LeaseAnswer::Granted { epoch: 1 }
            }
            LeaseCall::Look => Self::state(*lease),
            LeaseCall::Create { owner } => {
                if lease.owner.is_some() {
                    return Self::state(*lease);
                }
                lease.epoch += 1;
                lease.owner = Some(owner);
                LeaseAnswer::Granted { epoch: lease.epoch }
            }
            LeaseCall::Take {
                expected_epoch,
                owner,
            } => {
                let repeated = lease.epoch == expected_epoch + 1 && lease.owner == Some(owner);
                if repeated && expected_epoch != 0 {
                    return LeaseAnswer::Granted { epoch: lease.epoch };
                }
                if lease.epoch != expected_epoch || lease.epoch == 0 {
                    return Self::state(*lease);
                }
                lease.epoch += 1;
                lease.owner = Some(owner);
                LeaseAnswer::Granted { epoch: lease.epoch }
            }
        }
    }

    /// A host opens a disk to write it: a lease that is free, or its own.
    pub fn acquire(&mut self, vm: VmIndex, host: HostId) -> Option<u64> {
        let enforced = self.enforced;
        let lease = self.lease(LeaseFile::Disk(vm, 0));
        if enforced && lease.owner.is_some_and(|owner| owner != host) {
            return None;
        }
        lease.epoch += 1;
        lease.owner = Some(host);
        Some(lease.epoch)
    }

    /// A guest's write, under the epoch of its host's handle. `Ok(false)`: refused as stale.
    pub fn write(&mut self, vm: VmIndex, epoch: u64) -> Result<bool, String> {
        let current = self.lease(LeaseFile::Disk(vm, 0)).epoch;
        if self.enforced && epoch != current {
            return Ok(false);
        }
        let last = self.written.entry(vm).or_default();
        if epoch < *last {
            return Err(format!(
                "two writers: VM {} was written under epoch {epoch} after epoch {last}",
                vm.0
            ));
        }
        *last = epoch;
        Ok(true)
    }
}
