//! What a pool is: its hosts, its protected VMs, its timing. Checked once, at the edge; the rest relies on it.
//!
//! Hosts and VMs are known by their place in the configuration, which is the same on every host. How many places there are
//! never changes while the pool runs, since that would need an agreement of its own: places for VMs are held vacant instead, and
//! what is told of one later need not reach all hosts at once. A host that is to start a VM of which it knows nothing fails to.

use alloc::{string::String, vec::Vec};

use host_protocol::auth::PoolKey;
use serde::{Deserialize, Serialize};

/// A host, by its place in [`PoolConfig::hosts`]. The lowest one that lives decides first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct HostId(pub u16);

impl HostId {
    /// Place in lists that have an entry for each host.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A protected VM, by its place in [`PoolConfig::vms`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct VmIndex(pub u16);

impl VmIndex {
    /// Place in lists that have an entry for each VM.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A host of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPolicy {
    /// Name; also the owner of its leases at the storage server.
    pub name: String,
    /// MiB of RAM for VMs.
    pub memory_mib: u32,
}

/// How a VM is restarted. The default is a vacant place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmPolicy {
    /// Name for people; empty for a place that is held for a VM to come.
    pub name: String,
    /// MiB of RAM it takes.
    pub memory_mib: u32,
    /// Disks with a lease of their own: those it writes.
    pub disks: u8,
    /// Who gets memory first when there is not enough for all: lower first.
    pub priority: u8,
    /// Who starts first: a VM waits until those of lower order run or have failed.
    pub order: u16,
    /// Waits so long when its turn has come.
    pub start_delay_ms: u32,
    /// Restarted if there is room, without a promise.
    pub best_effort: bool,
}

impl VmPolicy {
    /// No VM has this place yet.
    #[must_use]
    pub fn is_vacant(&self) -> bool {
        self.name.is_empty()
    }
}

/// The pool's times, in milliseconds. See [`crate`] for why they are what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// Between two writes to the statefile, and between two looks at what others wrote.
    pub statefile_ms: u64,
    /// A host that the management network has not vouched for so long is looked for in the statefile.
    pub quiet_ms: u64,
    /// How long guests may run on one sign that the others know of this host.
    pub run_ms: u64,
    /// How long a host must give no sign on either path to be declared dead.
    pub dead_ms: u64,
    /// The most that one look at the clock may add to another host's silence.
    pub step_ms: u64,
    /// A host whose storage fails so long, while it works for another, fences itself.
    pub storage_ms: u64,
    /// A host whose guests may not run for so long fences itself.
    pub fence_ms: u64,
    /// How long guests may run on without storage when all hosts see each other. The leases'
    /// time to live at the storage server: after it they could not write anyway.
    pub outage_ms: u64,
    /// How long a host's report may lag before a VM that nobody reports counts as lost.
    pub grace_ms: u64,
    /// How long a VM may take to start.
    pub start_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            statefile_ms: 200,
            quiet_ms: 250,
            run_ms: 900,
            dead_ms: 1250,
            step_ms: 200,
            storage_ms: 3000,
            fence_ms: 5000,
            outage_ms: 10_000,
            grace_ms: 3000,
            start_ms: 60_000,
        }
    }
}

/// What keeps the pool's promises. Each is off only as a negative control of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Safeguards {
    /// Guests stand still when no other host can be sure that this one lives.
    pub permit: bool,
    /// After such a standstill, guests run again only when the generation is seen not to have moved.
    pub check_after_lapse: bool,
    /// A standstill that is over by the clock counts, even if the next sign comes before anybody looked.
    pub late_signs_refused: bool,
    /// After the generation has moved, the others' slots are read once more before one is excluded.
    pub look_again: bool,
    /// Signs in the statefile count.
    pub statefile_signs: bool,
    /// One that may have been excluded by a table it cannot read waits for the end of the others' leases.
    pub excluded_wait: bool,
    /// One that is alone in the liveset and stood still does not go on by its own word.
    pub alone_asks: bool,
    /// A member moves on from a generation without a table when nobody else does.
    pub orphans_skipped: bool,
    /// When the storage fails for all, hosts that all see each other go on.
    pub peers_vouch: bool,
    /// A stall of the observer's own is no silence of others.
    pub own_stalls_excused: bool,
    /// Heartbeats must be newer than the last, and from someone who knows of our present boot.
    pub replay_protection: bool,
    /// A host's lives are told apart even if the statefile has not learnt of one.
    pub lives_apart: bool,
    /// Heartbeats and slots must be sealed with the pool's key.
    pub authenticate: bool,
    /// When the coordinator is dead, another takes its place.
    pub succession: bool,
    /// A VM's leases are taken before it is restarted.
    pub fence_first: bool,
    /// When the statefile has lost the table, the leases of disks tell what ran.
    pub leases_remember: bool,
    /// When a VM has left its host and nobody reports it, the lease tells whether it went to one that is dead.
    pub leases_tell_where: bool,
}

impl Default for Safeguards {
    fn default() -> Self {
        Self {
            permit: true,
            check_after_lapse: true,
            late_signs_refused: true,
            look_again: true,
            statefile_signs: true,
            excluded_wait: true,
            alone_asks: true,
            orphans_skipped: true,
            peers_vouch: true,
            own_stalls_excused: true,
            replay_protection: true,
            lives_apart: true,
            authenticate: true,
            succession: true,
            fence_first: true,
            leases_remember: true,
            leases_tell_where: true,
        }
    }
}

/// A pool, as all its hosts are told.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Identity: heartbeats and slots of another pool are not ours.
    pub pool: [u8; 16],
    /// The pool's key.
    pub key: PoolKey,
    /// The hosts.
    pub hosts: Vec<HostPolicy>,
    /// The protected VMs.
    pub vms: Vec<VmPolicy>,
    /// How many hosts may fail at once with all VMs restarted, best-effort ones aside.
    pub failures_to_tolerate: u8,
    /// Times.
    pub timing: Timing,
    /// Negative controls.
    pub safeguards: Safeguards,
}

/// A pool cannot be like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few or too many hosts.
    #[error("a pool has 1 to {most} hosts, and this one has {0}", most = statefile::SLOTS)]
    Hosts(usize),
    /// This host is not in the list.
    #[error("host number {0} is not in the pool's list of hosts")]
    NotListed(u16),
    /// A running pool was told of other places for VMs.
    #[error("places for VMs neither come nor go while a pool runs")]
    Places,
    /// Two of a kind.
    #[error("{0} is in the pool's configuration twice: names tell hosts and VMs apart")]
    Twice(String),
    /// A VM without any disk that it writes has no lease, and so cannot be fenced.
    #[error("VM {0} writes no disk, so nothing fences it: it cannot be protected")]
    NoLease(String),
    /// More failures than hosts that may fail.
    #[error(
        "{failures} host failures cannot be tolerated with {hosts} hosts: at least one must be left"
    )]
    Failures {
        /// Failures to tolerate.
        failures: u8,
        /// Hosts.
        hosts: usize,
    },
    /// Too many sets of hosts to look at.
    #[error(
        "{failures} failures of {hosts} hosts are too many cases to plan for: lower the failures to tolerate"
    )]
    TooManyCases {
        /// Failures to tolerate.
        failures: u8,
        /// Hosts.
        hosts: usize,
    },
    /// The table does not fit a slot.
    #[error(
        "{hosts} hosts and {vms} VMs do not fit a slot of the statefile: at most {most} VMs do"
    )]
    Table {
        /// Hosts.
        hosts: usize,
        /// VMs.
        vms: usize,
        /// VMs that fit.
        most: usize,
    },
    /// Times that contradict each other.
    #[error("the pool's timing is unsafe: {0}")]
    Timing(&'static str),
}

/// Most sets of failing hosts that are planned for.
const MAX_CASES: u64 = 20_000;

impl PoolConfig {
    /// Checks the whole.
    ///
    /// # Errors
    /// When it contradicts itself or does not fit.
    pub fn check(&self, me: HostId) -> Result<(), ConfigError> {
        let hosts = self.hosts.len();
        if hosts == 0 || hosts > statefile::SLOTS as usize {
            return Err(ConfigError::Hosts(hosts));
        }
        if me.index() >= hosts {
            return Err(ConfigError::NotListed(me.0));
        }
        let host_names = self.hosts.iter().map(|host| &host.name);
        let mut vms = self.vms.iter().filter(|vm| !vm.is_vacant());
        unique(host_names)?;
        unique(vms.clone().map(|vm| &vm.name))?;
        if let Some(vm) = vms.find(|vm| vm.disks == 0) {
            return Err(ConfigError::NoLease(vm.name.clone()));
        }
        let failures = self.failures_to_tolerate;
        if usize::from(failures) >= hosts && failures != 0 {
            return Err(ConfigError::Failures { failures, hosts });
        }
        if cases(hosts, failures) > MAX_CASES {
            return Err(ConfigError::TooManyCases { failures, hosts });
        }
        // An incarnation takes 5 bytes at most; a VM 7 in the table and 8 among those reported.
        let most = (statefile::MAX_PAYLOAD - 256 - hosts * 5) / 15;
        if self.vms.len() > most {
            return Err(ConfigError::Table {
                hosts,
                vms: self.vms.len(),
                most,
            });
        }
        self.timing.check()
    }

    /// Name of a host, for people.
    #[must_use]
    pub fn host_name(&self, host: HostId) -> &str {
        self.hosts
            .get(host.index())
            .map_or("?", |host| host.name.as_str())
    }

    /// Name of a VM, for people.
    #[must_use]
    pub fn vm_name(&self, vm: VmIndex) -> &str {
        self.vms.get(vm.index()).map_or("?", |vm| vm.name.as_str())
    }
}

impl Timing {
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |what| Err(ConfigError::Timing(what));
        if self.heartbeat_ms == 0 || self.statefile_ms < self.heartbeat_ms {
            return wrong("the statefile is written with every heartbeat at most");
        }
        if self.step_ms <= self.heartbeat_ms {
            return wrong("a step of the clock must be longer than the time between heartbeats");
        }
        // 2 % for clocks that run apart.
        if self.run_ms + self.run_ms / 50 + self.step_ms > self.dead_ms {
            return wrong("guests would run longer than others wait before they restart them");
        }
        if self.run_ms < 2 * self.statefile_ms {
            return wrong("one late write to the statefile would stop all guests");
        }
        Ok(())
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), ConfigError> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ConfigError::Twice(pair[0].clone())),
        None => Ok(()),
    }
}

/// How many sets of at most `failures` hosts there are.
fn cases(hosts: usize, failures: u8) -> u64 {
    let mut sets = 1_u64;
    let mut all = 0_u64;
    for failed in 1..=u64::from(failures) {
        sets = sets.saturating_mul((hosts as u64).saturating_sub(failed - 1)) / failed;
        all = all.saturating_add(sets);
    }
    all
}
