//! Availability on this host: the pool of [`pool`] between sockets, storage and VMs.
//!
//! What is decided, and when, is decided there. This module carries heartbeats and requests, starts and stops VMs as it is
//! told, and says what became of them. A host that was told of no pool does nothing of this.
//!
//! Heartbeats are broadcast: one frame for all, and no address to be resolved just when a host has died.

mod statelink;
mod status;

use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec::Vec,
};

use host_protocol::{
    HostEvent, StopReason, VmConfig, VmId,
    pool::{HEARTBEAT_PORT, LEASE_FILE, MAX_VMS, PoolMark, PoolSetup, ProtectedVm},
};
use pool::{
    Action, Event, HostId, HostPolicy, LeaseCall, LeaseFile, MAX_HEARTBEAT, Pool, PoolConfig,
    Safeguards, Timing, VmIndex, VmPolicy, VmReport,
};
use smoltcp::iface::SocketHandle;
use statelink::{Job, Outcome, StateLink};

use crate::{
    Host,
    platform::Platform,
    vm::{Stage, Vm},
};

/// The time to live of a disk's lease that is taken for a host: that of the hosts' own.
const DISK_TTL_MS: u32 = 10_000;
/// That of the pool's lease, which nobody renews: only its epoch counts.
const POOL_TTL_MS: u32 = nfs3::lease::MAX_TTL_MS;

/// This host's part in a pool.
pub(crate) struct Availability {
    setup: PoolSetup,
    me: HostId,
    pool: Pool,
    heartbeats: SocketHandle,
    link: StateLink,
    /// What the pool was told of each VM last.
    told: Vec<Option<VmReport>>,
    /// The attempt to start each VM that is being made.
    attempts: Vec<u16>,
    /// VMs that ran here before the host was told of the pool. Nobody restarts a VM of which nobody was told, so they
    /// run on, and are reported once this host is in the liveset.
    brought: Vec<bool>,
    /// VMs that are to go on from their checkpoints, one after another; the first is being restored.
    resuming: VecDeque<Resuming>,
}

/// A VM that is to go on from its checkpoint.
struct Resuming {
    vm: VmIndex,
    attempt: u16,
    begun: bool,
}

impl Availability {
    fn index(&self, vm: VmId) -> Option<VmIndex> {
        let place = self.setup.vms.iter().position(|it| it.config.id == vm)?;
        u16::try_from(place).ok().map(VmIndex)
    }

    fn config(&self, vm: VmIndex) -> Option<&VmConfig> {
        Some(&self.setup.vms.get(vm.index())?.config)
    }

    /// Whether a VM's vCPUs may run now. One that the pool does not protect always may.
    pub fn may_run(&self, vm: VmId, now_ns: u64) -> bool {
        self.index(vm)
            .is_none_or(|vm| self.brought[vm.index()] || self.pool.may_run(now_ns))
    }

    /// Whether a VM may come to this host.
    pub fn may_host(&self, vm: VmId) -> bool {
        self.index(vm).is_none() || self.pool.may_host()
    }

    /// Takes over what is told anew of the pool's VMs, and VMs that were added. `is_here`: whether one of those runs here.
    fn amend(
        &mut self,
        setup: PoolSetup,
        is_here: impl Fn(&ProtectedVm) -> bool,
    ) -> Result<(), String> {
        let known = &self.setup;
        let same_pool = (&known.pool, &known.repository, &known.hosts)
            == (&setup.pool, &setup.repository, &setup.hosts);
        let same = |(old, new): (&ProtectedVm, &ProtectedVm)| {
            old.config.id == new.config.id && old.config.disks == new.config.disks
        };
        let same_vms =
            known.vms.len() <= setup.vms.len() && known.vms.iter().zip(&setup.vms).all(same);
        if !same_pool || !same_vms {
            return Err(String::from(
                "this host is in a pool already, with other hosts or VMs; switch it off and on to put it into another",
            ));
        }
        self.pool
            .set_policies(policies(&setup)?, setup.failures_to_tolerate)
            .map_err(|why| why.to_string())?;
        let added = &setup.vms[known.vms.len()..];
        self.told.extend(added.iter().map(|_| None));
        self.attempts.extend(added.iter().map(|_| 0));
        self.brought.extend(added.iter().map(is_here));
        self.setup = setup;
        Ok(())
    }
}

/// How VMs are restarted, and places for those to come.
fn policies(setup: &PoolSetup) -> Result<Vec<VmPolicy>, String> {
    if setup.vms.len() > MAX_VMS {
        return Err(format!(
            "a pool protects {MAX_VMS} VMs at most, and these are {}",
            setup.vms.len()
        ));
    }
    let mut policies: Vec<_> = setup
        .vms
        .iter()
        .map(|vm| VmPolicy {
            name: vm.config.name.clone(),
            memory_mib: vm.config.memory_mib,
            disks: u8::try_from(written(&vm.config).count()).unwrap_or(u8::MAX),
            priority: vm.priority,
            order: vm.order,
            start_delay_ms: vm.start_delay_ms,
            best_effort: vm.best_effort,
        })
        .collect();
    policies.resize(MAX_VMS, VmPolicy::default());
    Ok(policies)
}

/// The library's configuration out of what the host was told.
fn configuration(
    setup: &PoolSetup,
    key: host_protocol::auth::PoolKey,
) -> Result<PoolConfig, String> {
    Ok(PoolConfig {
        pool: setup.pool,
        key,
        hosts: setup
            .hosts
            .iter()
            .map(|host| HostPolicy {
                name: host.name.clone(),
                memory_mib: host.memory_mib,
            })
            .collect(),
        vms: policies(setup)?,
        failures_to_tolerate: setup.failures_to_tolerate,
        timing: Timing::default(),
        safeguards: Safeguards::default(),
    })
}

/// Paths of the disks that a VM writes: those with leases of their own.
fn written(config: &VmConfig) -> impl Iterator<Item = &str> {
    config
        .disks
        .iter()
        .filter(|disk| !disk.read_only)
        .map(|disk| disk.path.as_str())
}

impl<P: Platform> Host<P> {
    /// Becomes a host of a pool, or takes over what has changed in it.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn protect(&mut self, setup: PoolSetup) -> Result<(), String> {
        let is_here = |of: &ProtectedVm| self.vms.iter().any(|vm| vm.config.id == of.config.id);
        if let Some(availability) = &mut self.availability {
            return availability.amend(setup, is_here);
        }
        let name = &self.config.name;
        let me = setup.hosts.iter().position(|host| host.name == *name);
        let me = me
            .and_then(|me| u16::try_from(me).ok())
            .map(HostId)
            .ok_or_else(|| format!("the pool has no host of this one's name, {name}"))?;
        let now = self.platform.now_ns();
        let config = configuration(&setup, self.config.key.clone())?;
        let pool = Pool::new(config, me, now).map_err(|why| why.to_string())?;
        let vms = setup.vms.len();
        let brought = setup.vms.iter().map(is_here).collect();
        self.availability = Some(Availability {
            me,
            pool,
            heartbeats: self
                .management
                .add_datagram_socket(HEARTBEAT_PORT, MAX_HEARTBEAT),
            link: StateLink::new(&mut self.storage.stack, &self.platform, &self.config),
            told: alloc::vec![None; vms],
            attempts: alloc::vec![0; vms],
            brought,
            resuming: VecDeque::new(),
            setup,
        });
        Ok(())
    }

    /// Refuses a VM with which the pool could not bear the failures that it shall.
    pub(crate) fn admit_to_pool(&self, config: &VmConfig) -> Result<(), String> {
        let Some(availability) = &self.availability else {
            return Ok(());
        };
        let Some(vm) = availability.index(config.id) else {
            return Ok(());
        };
        availability.pool.admit(vm).map_err(|shortage| {
            let why = shortage.explain(availability.pool.config());
            format!(
                "VM {} would be more than the pool can bear: {why}",
                config.name
            )
        })
    }

    /// Moves the pool on.
    pub(crate) fn advance_availability(&mut self) {
        let Some(mut availability) = self.availability.take() else {
            return;
        };
        let it = &mut availability;
        while let Some(bytes) = self.management.datagram(it.heartbeats) {
            it.pool.on_heartbeat(self.platform.now_ns(), &bytes);
            self.do_actions(it);
        }
        for outcome in it.link.poll(&mut self.storage.stack, &self.platform) {
            let now = self.platform.now_ns();
            match outcome {
                Outcome::Read(token, blocks) => it.pool.on_slots(now, token, blocks.as_deref()),
                Outcome::Written(token, written) => it.pool.on_written(now, token, written),
                Outcome::Lease(token, answer) => it.pool.on_lease(now, token, answer),
            }
            self.do_actions(it);
        }
        self.advance_resuming(it);
        self.report_vms(it);
        let now = self.platform.now_ns();
        if it.pool.next_deadline_ns() <= now {
            it.pool.poll(now);
            self.do_actions(it);
        }
        // What was asked for leaves at once.
        it.link.poll(&mut self.storage.stack, &self.platform);
        self.availability = Some(availability);
    }

    /// When [`Self::advance_availability`] must be called at the latest.
    pub(crate) fn availability_deadline_ns(&self) -> Option<u64> {
        let availability = self.availability.as_ref()?;
        let at = availability.pool.next_deadline_ns();
        Some(availability.link.next_deadline_ns().unwrap_or(at).min(at))
    }

    /// Tells the pool what has become of its VMs here.
    fn report_vms(&mut self, it: &mut Availability) {
        for place in 0..it.setup.vms.len() {
            if it.brought[place] {
                // With the permit in hand it does not stand still for being protected.
                if !it.pool.may_run(self.platform.now_ns()) {
                    continue;
                }
                it.brought[place] = false;
            }
            let id = it.setup.vms[place].config.id;
            // The newest of that name: one that is started here supersedes one that has arrived by half.
            let of_id = |vm: &&Vm<P::Vm>| vm.config.id == id && !never_arrived(vm);
            let vm = self.vms.iter().rfind(of_id);
            let last = it.told[place];
            let resumes = it.resuming.iter().any(|one| one.vm.index() == place);
            let report = match vm {
                // It is this host's already, though it is built as one that arrives.
                _ if resumes => Some(VmReport::Starting),
                Some(vm) => state_of(vm, it.attempts[place]),
                // What it ended as was said before.
                None => last.filter(|of| matches!(of, VmReport::Off | VmReport::Failed(_))),
            };
            if report != last {
                it.told[place] = report;
                if report == Some(VmReport::Running) && core::mem::take(&mut it.attempts[place]) > 0
                {
                    // The switches still know it where its old host was, and it may be silent until it is asked.
                    let macs = it.setup.vms[place].config.nics.clone();
                    self.announce(&macs);
                }
                let vm = VmIndex(u16::try_from(place).unwrap_or(u16::MAX));
                it.pool.set_vm(self.platform.now_ns(), vm, report);
                self.do_actions(it);
            }
        }
    }

    fn do_actions(&mut self, it: &mut Availability) {
        while let Some(action) = it.pool.next_action() {
            match action {
                Action::Heartbeat(bytes) => {
                    self.management
                        .broadcast(it.heartbeats, HEARTBEAT_PORT, &bytes);
                }
                Action::ReadSlots {
                    token,
                    first,
                    count,
                } => {
                    let job = Job::Read {
                        token,
                        offset: statefile::slot_offset(first.0.into()).unwrap_or(0),
                        count: u32::from(count) * statefile::BLOCK as u32,
                    };
                    let path = format!("{}/{}", it.setup.repository, statefile::NAME);
                    it.link.submit(&path, job);
                }
                Action::WriteSlot { token, block } => {
                    let job = Job::Write {
                        token,
                        offset: statefile::slot_offset(it.me.0.into()).unwrap_or(0),
                        block,
                    };
                    let path = format!("{}/{}", it.setup.repository, statefile::NAME);
                    it.link.submit(&path, job);
                }
                Action::Lease { token, file, call } => it.ask_lease(token, file, call),
                Action::Start { vm, attempt } => self.start_protected(it, vm, attempt),
                Action::Stop { vm } => {
                    if let Some(id) = it.config(vm).map(|config| config.id) {
                        self.give_up(it, id, "this host is not in the pool's liveset");
                    }
                }
                Action::Fence(_) => {
                    let ids: Vec<_> = it.setup.vms.iter().map(|vm| vm.config.id).collect();
                    for id in ids {
                        self.give_up(it, id, "this host has fenced itself");
                    }
                }
                Action::Event(event) => self.tell(it, &event),
            }
        }
    }

    fn start_protected(&mut self, it: &mut Availability, vm: VmIndex, attempt: u16) {
        let Some(config) = it.config(vm).cloned() else {
            // Another host was told of it before this one.
            let report = Some(VmReport::Failed(attempt));
            return it.pool.set_vm(self.platform.now_ns(), vm, report);
        };
        it.attempts[vm.index()] = attempt;
        it.brought[vm.index()] = false;
        // The pool counts it as starting already.
        it.told[vm.index()] = Some(VmReport::Starting);
        // Its source is gone: what has arrived of it by half is of no use.
        self.make_way_for(config.id);
        if it.setup.vms[vm.index()].restart_point.is_some() {
            let begun = false;
            it.resuming.push_back(Resuming { vm, attempt, begun });
        } else {
            self.boot_protected(it, vm, attempt);
        }
    }

    /// Moves on what goes on from checkpoints.
    fn advance_resuming(&mut self, it: &mut Availability) {
        let Some(first) = it.resuming.front_mut() else {
            return;
        };
        let (vm, attempt) = (first.vm, first.attempt);
        let protected = &it.setup.vms[vm.index()];
        let (config, point) = (&protected.config, &protected.restart_point);
        if !first.begun {
            // What a client has asked for comes to its end first.
            if !self.is_restoring() {
                first.begun = true;
                self.resumed_for_pool = None;
                match point.clone() {
                    Some(point) => self.restore_for_pool(config.clone(), point),
                    None => {
                        let gone = String::from("its checkpoint was taken away");
                        self.resumed_for_pool = Some((config.id, Err(gone)));
                    }
                }
            }
            return;
        }
        let (id, name) = (config.id, config.name.clone());
        let Some((_, result)) = self.resumed_for_pool.take_if(|(of, _)| *of == id) else {
            return;
        };
        it.resuming.pop_front();
        let text = match &result {
            Ok(()) => format!(
                "VM {name} goes on from its last checkpoint; what it wrote to its disk since is kept beside it, and not in it"
            ),
            Err(why) => format!("VM {name} boots instead of going on from its checkpoint: {why}"),
        };
        self.platform.log(&text);
        let event = HostEvent::Pool {
            mark: PoolMark::Note,
            vm: Some(id),
            about: None,
            text,
        };
        self.control.report(self.platform.now_ns(), event);
        if result.is_err() {
            self.make_way_for(id);
            self.boot_protected(it, vm, attempt);
        }
    }

    fn boot_protected(&mut self, it: &mut Availability, vm: VmIndex, attempt: u16) {
        let Some(config) = it.config(vm).cloned() else {
            return;
        };
        if let Err(why) = self.start(config, None) {
            self.platform.log(&why);
            let report = Some(VmReport::Failed(attempt));
            it.told[vm.index()] = report;
            it.pool.set_vm(self.platform.now_ns(), vm, report);
        }
    }

    /// Stops a VM that others may run, without a word to the storage server.
    fn give_up(&mut self, it: &mut Availability, id: VmId, why: &str) {
        let resuming = core::mem::take(&mut it.resuming).into_iter();
        it.resuming = resuming
            .filter(|one| it.config(one.vm).is_some_and(|config| config.id != id))
            .collect();
        self.give_up_restoring(id);
        let vm = |vm: &Vm<P::Vm>| vm.config.id == id && !matches!(vm.stage, Stage::Closing(_));
        if let Some(index) = self.vms.iter().position(vm) {
            self.forget_disks(index);
            let reason = StopReason::LeaseLost(why.to_string());
            self.close(index, Some(reason), Ok(()));
        }
        if let Some(vm) = it.index(id) {
            it.told[vm.index()] = None;
            it.brought[vm.index()] = false;
        }
    }

    /// Reports an event of the pool.
    fn tell(&mut self, it: &Availability, event: &Event) {
        let (mark, vm, about) = status::marked(event);
        let config = it.pool.config();
        let text = event.explain(config).to_string();
        self.platform.log(&text);
        let event = HostEvent::Pool {
            mark,
            vm: vm.and_then(|vm| it.config(vm)).map(|config| config.id),
            about: about.map(|host| config.host_name(host).to_string()),
            text,
        };
        let now = self.platform.now_ns();
        self.control.report(now, event);
    }
}

impl Availability {
    fn ask_lease(&mut self, token: pool::Token, file: LeaseFile, call: LeaseCall) {
        let owner = match call {
            LeaseCall::Create { owner } | LeaseCall::Take { owner, .. } => owner,
            LeaseCall::Look => self.me,
        };
        let owner = self.pool.config().host_name(owner).to_string();
        let (dir, name, ttl_ms) = match file {
            LeaseFile::Pool => (
                self.setup.repository.clone(),
                LEASE_FILE.to_string(),
                POOL_TTL_MS,
            ),
            LeaseFile::Disk(vm, number) => {
                let disk = self
                    .config(vm)
                    .and_then(|config| written(config).nth(usize::from(number)));
                let path = disk.unwrap_or_default();
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                (dir.to_string(), name.to_string(), DISK_TTL_MS)
            }
        };
        let job = Job::Lease {
            token,
            name,
            call,
            owner,
            ttl_ms,
        };
        self.link.submit(&dir, job);
    }
}

fn never_arrived<H>(vm: &Vm<H>) -> bool {
    matches!(&vm.stage, Stage::Closing(closing) if closing.never_arrived)
}

/// What the pool is told of a VM.
fn state_of<H>(vm: &Vm<H>, attempt: u16) -> Option<VmReport> {
    match &vm.stage {
        Stage::Building(_) => Some(VmReport::Starting),
        // It is its source's until its leases are taken, and if that one is lost before, it never will be here.
        Stage::Preparing(_) | Stage::Arriving(_) => None,
        Stage::Running(_) | Stage::Paused(_) => Some(VmReport::Running),
        Stage::Closing(closing) => match closing.reason {
            Some(
                StopReason::PowerOff
                | StopReason::Destroyed
                | StopReason::Suspended
                | StopReason::Misbehaved(_),
            ) => Some(VmReport::Off),
            Some(StopReason::Migrated | StopReason::LeaseLost(_)) => None,
            None => Some(VmReport::Failed(attempt)),
        },
    }
}

/// What kind of thing an event is, for reports.
pub(crate) type Marked = (PoolMark, Option<VmIndex>, Option<HostId>);
