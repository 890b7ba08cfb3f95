//! Where VMs go when hosts fail, and whether they all find room: planned ahead, for every set of hosts that may fail.
//!
//! The plan and a real restart use the same [`assign`], with the same input; so a pool that has been found to bear a failure
//! bears it. First fit by size can miss a packing that a longer search would find: such a pool is refused,
//! though it would fit; never the other way round. A search for the best packing was left out: nobody could foresee its answers.

use alloc::vec::Vec;
use core::{cmp::Reverse, fmt};

use crate::{
    config::{HostId, PoolConfig, VmIndex},
    event::names,
    table::{Place, Table},
};

/// A set of failing hosts that leaves a VM without room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The hosts that fail together.
    pub failing: Vec<HostId>,
    /// The VM that would not be restarted.
    pub vm: VmIndex,
    /// MiB it needs.
    pub needed_mib: u32,
    /// MiB that the host with the most room would have left for it.
    pub largest_free_mib: u32,
}

impl Shortage {
    /// The sentence.
    pub fn explain<'a>(&'a self, config: &'a PoolConfig) -> impl fmt::Display + 'a {
        Explained(self, config)
    }
}

struct Explained<'a>(&'a Shortage, &'a PoolConfig);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(shortage, config) = self;
        write!(
            f,
            "if {} failed, VM {} could not restart: it needs {} MiB, and no host would have more than {} MiB free",
            names(config, &shortage.failing),
            config.vm_name(shortage.vm),
            shortage.needed_mib,
            shortage.largest_free_mib
        )
    }
}

/// Where VMs would go if hosts failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The hosts that fail together.
    pub failing: Vec<HostId>,
    /// Where each of their VMs goes, in the order in which they start; `None` for those without room.
    pub moves: Vec<(VmIndex, Option<HostId>)>,
}

/// How much the pool can bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// So many hosts may fail at once, and every VM that is not best-effort restarts.
    pub tolerated: u8,
    /// What breaks one more, if the configuration asks for more.
    pub shortage: Option<Shortage>,
    /// What happens if one host fails, for each.
    pub single: Vec<Case>,
}

/// Free memory of each host, in MiB; 0 for those that are not in the liveset.
pub(crate) fn free(config: &PoolConfig, table: &Table) -> Vec<u32> {
    let mut free: Vec<u32> = (0_u16..)
        .zip(&config.hosts)
        .map(|(id, host)| match table.incarnation(HostId(id)) {
            0 => 0,
            _ => host.memory_mib,
        })
        .collect();
    for (vm, place) in table.places() {
        if let (Some(host), Some(policy)) = (place.host(), config.vms.get(vm.index()))
            && let Some(free) = free.get_mut(host.index())
        {
            *free = free.saturating_sub(policy.memory_mib);
        }
    }
    free
}

/// Finds room for VMs: those with a promise first, by priority, the large before the small; each goes to the host with
/// the most room. `free` is what is left then.
pub(crate) fn assign(
    config: &PoolConfig,
    lost: &[VmIndex],
    free: &mut [u32],
) -> Vec<(VmIndex, Option<HostId>)> {
    let mut vms: Vec<_> = lost
        .iter()
        .filter_map(|vm| Some((*vm, config.vms.get(vm.index())?)))
        .collect();
    vms.sort_by_key(|(vm, policy)| {
        (
            policy.best_effort,
            policy.priority,
            Reverse(policy.memory_mib),
            *vm,
        )
    });
    vms.into_iter()
        .map(|(vm, policy)| {
            let most = (0_u16..)
                .zip(free.iter_mut())
                .max_by_key(|(id, free)| (**free, Reverse(*id)));
            let host = most
                .filter(|(_, free)| **free >= policy.memory_mib)
                .map(|(id, free)| {
                    *free -= policy.memory_mib;
                    HostId(id)
                });
            (vm, host)
        })
        .collect()
}

/// What happens if these hosts fail, and whether it leaves a VM without room that was promised some.
fn case(config: &PoolConfig, table: &Table, failing: &[HostId]) -> (Case, Option<Shortage>) {
    let mut free = free(config, table);
    for host in failing {
        free[host.index()] = 0;
    }
    let is_lost = |place: Place| match place {
        Place::Lost { .. } => true,
        Place::Running(host) | Place::Starting { host, .. } => failing.contains(&host),
        Place::Off | Place::Failed | Place::Unknown => false,
    };
    let lost: Vec<_> = table
        .places()
        .filter(|(_, place)| is_lost(*place))
        .map(|(vm, _)| vm)
        .collect();
    let mut moves = assign(config, &lost, &mut free);
    let shortage = moves
        .iter()
        .find(|(vm, host)| host.is_none() && !config.vms[vm.index()].best_effort)
        .map(|(vm, _)| Shortage {
            failing: failing.to_vec(),
            vm: *vm,
            needed_mib: config.vms[vm.index()].memory_mib,
            largest_free_mib: free.iter().copied().max().unwrap_or(0),
        });
    moves.sort_by_key(|(vm, _)| (config.vms[vm.index()].order, *vm));
    let case = Case {
        failing: failing.to_vec(),
        moves,
    };
    (case, shortage)
}

/// Plans for the liveset and the places of a table.
#[must_use]
pub fn plan(config: &PoolConfig, table: &Table) -> Plan {
    let live: Vec<_> = table.live().collect();
    let asked = config.failures_to_tolerate;
    let mut plan = Plan {
        tolerated: 0,
        shortage: None,
        single: Vec::new(),
    };
    for failures in 1..=usize::from(asked) {
        if failures >= live.len() {
            // With nobody left nothing restarts; that is not a matter of memory.
            break;
        }
        let mut found = None;
        each_set(&live, failures, &mut Vec::new(), &mut |set| {
            let (case, shortage) = case(config, table, set);
            if failures == 1 {
                plan.single.push(case);
            }
            found = found.take().or(shortage);
            // All single failures are told, whatever one of them breaks.
            failures == 1 || found.is_none()
        });
        match found {
            None => plan.tolerated += 1,
            Some(shortage) => {
                plan.shortage = Some(shortage);
                break;
            }
        }
    }
    plan
}

/// Whether the pool still bears what its configuration asks for when this VM runs on that host too.
///
/// # Errors
/// The set of failures that breaks it.
pub fn admit(
    config: &PoolConfig,
    table: &Table,
    vm: VmIndex,
    host: HostId,
) -> Result<(), Shortage> {
    let mut with = table.clone();
    if let Some(place) = with.vms.get_mut(vm.index()) {
        *place = Place::Running(host);
    }
    let free = free(config, table).get(host.index()).copied().unwrap_or(0);
    if table.incarnation(host) != 0
        && table.vms.get(vm.index()).and_then(|place| place.host()) != Some(host)
        && let Some(policy) = config.vms.get(vm.index())
        && policy.memory_mib > free
    {
        return Err(Shortage {
            failing: Vec::new(),
            vm,
            needed_mib: policy.memory_mib,
            largest_free_mib: free,
        });
    }
    match plan(config, &with).shortage {
        Some(shortage) => Err(shortage),
        None => Ok(()),
    }
}

/// Calls `visit` with every set of `count` hosts until it says false.
fn each_set(
    hosts: &[HostId],
    count: usize,
    chosen: &mut Vec<HostId>,
    visit: &mut dyn FnMut(&[HostId]) -> bool,
) -> bool {
    if count == 0 {
        return visit(chosen);
    }
    for (index, host) in hosts.iter().enumerate() {
        chosen.push(*host);
        let go_on = each_set(&hosts[index + 1..], count - 1, chosen, visit);
        chosen.pop();
        if !go_on {
            return false;
        }
    }
    true
}
