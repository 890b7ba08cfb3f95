//! One host's part in the pool: what comes in, what goes out, and when to look again.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use host_protocol::auth::{Purpose, Seal};

use crate::{
    action::{Action, LeaseAnswer, LeaseCall, LeaseFile, Token},
    clock::{Clocks, Jump},
    config::{ConfigError, HostId, PoolConfig, VmIndex, VmPolicy},
    event::{Event, Fault, FenceCause},
    exchange::{Look, Write},
    peer::{MS, Peer},
    permit::Permit,
    proposal::Proposal,
    recovery::Recovery,
    table::{Place, Table},
    wire::{Heard, Heartbeat, Report, Standing, VmReport},
};

/// One host's part in the pool.
///
/// After each input, all [`Pool::next_action`]s are done before the next one: a host that is told to stop its guests must not
/// report them as running after that.
pub struct Pool {
    pub(crate) config: PoolConfig,
    pub(crate) me: HostId,
    pub(crate) heartbeats: Seal,
    pub(crate) slots: Seal,
    pub(crate) clocks: Clocks,
    /// The statefile has been read once, so this host knows which of its lives this is.
    pub(crate) booted: bool,
    pub(crate) standing: Standing,
    pub(crate) incarnation: u32,
    /// The newest that is in our slot.
    pub(crate) incarnation_on_disk: u32,
    pub(crate) sequence: u64,
    pub(crate) table: Table,
    /// The highest generation anybody was heard to be in.
    pub(crate) newest_generation: u64,
    pub(crate) peers: Vec<Peer>,
    /// Our last heartbeats and when they were sent, by the raw clock.
    pub(crate) sent: VecDeque<(u64, u64)>,
    pub(crate) permit: Permit,
    /// What [`Pool::all_vouch`] said last. It can only have become later since, or it is taken back at once.
    pub(crate) vouched: Option<u64>,
    pub(crate) proposal: Proposal,
    pub(crate) recovery: Recovery,
    /// The VMs here.
    pub(crate) vms: BTreeMap<VmIndex, VmReport>,
    /// The last attempt at each VM that this host was told to make.
    pub(crate) attempted: BTreeMap<VmIndex, u16>,
    pub(crate) look: Option<Look>,
    pub(crate) write: Option<Write>,
    /// By the steady clock.
    pub(crate) heartbeat_due: u64,
    pub(crate) write_due: u64,
    pub(crate) look_due: u64,
    pub(crate) scan_due: u64,
    /// When the statefile is to be read, as far as was known when all was looked at last.
    pub(crate) look_at: u64,
    /// When all is looked at again though nothing has changed.
    attend_due: u64,
    /// Something has changed on which a decision can depend.
    news: bool,
    pub(crate) storage_up: bool,
    next_token: u64,
    ignored: Vec<(Option<HostId>, Fault, u32, u64)>,
    pub(crate) actions: VecDeque<Action>,
}

/// Heartbeats without news are only noted for so long: what is decided depends on all hosts, and looking at all of them with each
/// heartbeat of each would be most of what a large pool costs.
const ATTEND_NS: u64 = 10 * MS;
/// Between two events of one kind about what was ignored.
const IGNORED_NS: u64 = 10_000 * MS;
/// Kinds of those that are kept apart.
const IGNORED_KINDS: usize = 64;

impl Pool {
    /// A host that has just booted.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn new(config: PoolConfig, me: HostId, now_ns: u64) -> Result<Self, ConfigError> {
        config.check(me)?;
        let step = if config.safeguards.own_stalls_excused {
            config.timing.step_ms * MS
        } else {
            u64::MAX >> 8
        };
        let clocks = Clocks::new(now_ns, step);
        let steady = clocks.steady();
        Ok(Self {
            heartbeats: config.key.seal(Purpose::Heartbeat),
            slots: config.key.seal(Purpose::Statefile),
            table: Table::empty(config.hosts.len(), config.vms.len()),
            peers: (0..config.hosts.len()).map(|_| Peer::new(steady)).collect(),
            me,
            clocks,
            booted: false,
            standing: Standing::Joining,
            incarnation: 1,
            incarnation_on_disk: 0,
            sequence: 0,
            newest_generation: 0,
            sent: VecDeque::new(),
            permit: Permit::new(now_ns),
            vouched: None,
            proposal: Proposal::default(),
            recovery: Recovery::default(),
            vms: BTreeMap::new(),
            attempted: BTreeMap::new(),
            look: None,
            write: None,
            heartbeat_due: steady,
            write_due: steady,
            look_due: steady,
            scan_due: steady,
            look_at: steady,
            attend_due: steady,
            news: true,
            storage_up: true,
            next_token: 0,
            ignored: Vec::new(),
            actions: VecDeque::new(),
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Has VMs restarted in another way from now on, or protects VMs in places that were vacant. Safety does not rely on any of
    /// it, so hosts that have not been told yet do no harm: the coordinator's word counts.
    ///
    /// # Errors
    /// When it contradicts itself; nothing has changed then.
    pub fn set_policies(
        &mut self,
        vms: Vec<VmPolicy>,
        failures_to_tolerate: u8,
    ) -> Result<(), ConfigError> {
        let changed = PoolConfig {
            vms,
            failures_to_tolerate,
            ..self.config.clone()
        };
        changed.check(self.me)?;
        let keeps = |(old, new): (&VmPolicy, &VmPolicy)| {
            old.is_vacant() || (old.name == new.name && old.disks == new.disks)
        };
        let mut pairs = self.config.vms.iter().zip(&changed.vms);
        if changed.vms.len() != self.config.vms.len() || !pairs.all(keeps) {
            return Err(ConfigError::Places);
        }
        self.config = changed;
        self.recovery.plan_anew();
        Ok(())
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Until when protected guests may run, by the host's clock. A host asks before each slice of a guest, with the clock read
    /// then, so that a host that stood still runs none.
    #[must_use]
    pub fn may_run(&self, now_ns: u64) -> bool {
        !self.config.safeguards.permit || (now_ns >= self.clocks.raw() && now_ns < self.run_until())
    }

    /// Whether a protected VM may be started here, or arrive from another host.
    #[must_use]
    pub fn may_host(&self) -> bool {
        self.standing == Standing::Member && !self.permit.is_lapsed()
    }

    /// Says what became of a VM here; `None`: it is not here (any more) without being off, as after a migration.
    pub fn set_vm(&mut self, now_ns: u64, vm: VmIndex, report: Option<VmReport>) {
        if vm.index() >= self.config.vms.len() {
            return;
        }
        let comes = matches!(report, Some(VmReport::Starting | VmReport::Running));
        if comes && self.standing != Standing::Member {
            // Nobody reckons with it, so it may be started elsewhere.
            self.vms.remove(&vm);
            self.actions.push_back(Action::Stop { vm });
            return;
        }
        let before = match report {
            Some(report) => self.vms.insert(vm, report),
            None => self.vms.remove(&vm),
        };
        if report == Some(VmReport::Running) {
            self.attempted.remove(&vm);
        }
        if before != report {
            self.hurry();
        }
        self.news = true;
        self.poll(now_ns);
    }

    /// Takes in what came on the management network.
    pub fn on_heartbeat(&mut self, now_ns: u64, bytes: &[u8]) {
        self.look_at_clock(now_ns);
        let guards = self.config.safeguards;
        let decoded = Heartbeat::decode(
            bytes,
            &self.config.pool,
            &self.heartbeats,
            guards.authenticate,
        );
        let heartbeat = match decoded {
            Ok(heartbeat) => heartbeat,
            Err(fault) => return self.ignore(None, fault),
        };
        let from = heartbeat.report.from;
        if !self.is_possible(&heartbeat.report)
            || heartbeat.heard.len() != self.peers.len()
            || from == self.me
        {
            return self.ignore(None, Fault::Malformed);
        }
        let heard = Heard {
            incarnation: heartbeat.report.incarnation,
            sequence: heartbeat.report.sequence,
        };
        let peer = &self.peers[from.index()];
        if guards.replay_protection
            && (heard <= peer.heard || heard.incarnation < peer.slot.incarnation)
        {
            return self.ignore(Some(from), Fault::Replayed);
        }
        self.on_genuine(heartbeat, heard);
        self.poll(now_ns);
    }

    fn on_genuine(&mut self, heartbeat: Heartbeat, heard: Heard) {
        let steady = self.clocks.steady();
        let from = heartbeat.report.from;
        let of_me = heartbeat.heard[self.me.index()];
        let knows_me = of_me.incarnation == self.incarnation && of_me.sequence <= self.sequence;
        self.recall(of_me);
        let vouches = knows_me || !self.config.safeguards.replay_protection;
        let sent = self
            .sent
            .iter()
            .rev()
            .find(|(sequence, _)| knows_me && *sequence == of_me.sequence)
            .map(|(_, sent)| *sent);
        let generation = heartbeat.report.generation;
        let settled = self.standing == Standing::Member
            && !self.permit.is_lapsed()
            && self.proposal.is_idle()
            && generation == self.table.generation;
        let peer = &mut self.peers[from.index()];
        self.news |= !settled || peer.suspected.is_some();
        peer.on_heartbeat(heard, vouches, steady);
        if let Some(sent) = sent {
            peer.acknowledged = Some((sent, generation));
            let age = u64::from(heartbeat.storage_age_ms) * MS;
            peer.storage_worked = peer.storage_worked.max(sent.saturating_sub(age));
        } else if let Some((_, known)) = &mut peer.acknowledged {
            *known = generation;
        }
        if vouches {
            let me = self.me;
            for (host, heard) in heartbeat.heard.iter().enumerate() {
                if host != me.index() && host != from.index() {
                    self.peers[host].on_hearsay(*heard, steady);
                }
            }
        }
        self.take_report(heartbeat.report);
    }

    /// Somebody knows this of us. It may be of an earlier life of which our slot does not tell, or told too late: what we say next
    /// is newer.
    fn recall(&mut self, of_me: Heard) {
        if of_me.incarnation > self.incarnation && self.standing == Standing::Joining {
            self.incarnation = of_me.incarnation + 1;
            self.hurry();
        } else if of_me.incarnation == self.incarnation
            && of_me.sequence > self.sequence
            && self.config.safeguards.lives_apart
        {
            self.sequence = of_me.sequence;
            self.hurry();
        }
    }

    /// Takes in slots that were read, from the first one asked for; `None` if the read failed.
    pub fn on_slots(&mut self, now_ns: u64, token: Token, blocks: Option<&[u8]>) {
        self.look_at_clock(now_ns);
        let Some(look) = self.look.take_if(|look| look.token == token) else {
            return;
        };
        let Some(blocks) = blocks else {
            self.proposal.look_failed(token);
            self.news = true;
            return self.poll(now_ns);
        };
        let steady = self.clocks.steady();
        let timing = self.config.timing;
        for (index, block) in
            (look.first..look.first + look.count).zip(blocks.chunks_exact(statefile::BLOCK))
        {
            let host = HostId(u16::try_from(index).unwrap_or(u16::MAX));
            if self.peers[index].is_same_slot(block, look.sent) {
                continue;
            }
            let decoded = Report::decode_slot(
                host,
                block,
                &self.config.pool,
                &self.slots,
                self.config.safeguards.authenticate,
            );
            match decoded {
                Ok(None) => self.peers[index].on_empty_slot(look.sent),
                Ok(Some(report)) if self.is_possible(&report) => {
                    let slot = Heard {
                        incarnation: report.incarnation,
                        sequence: report.sequence,
                    };
                    self.peers[index].on_slot(block, slot, look.sent, steady);
                    if host == self.me && self.booted {
                        self.recall(slot);
                    }
                    self.take_report(report);
                }
                Ok(Some(_)) => {
                    self.peers[index].on_damaged_slot(look.sent, &timing);
                    self.ignore(Some(host), Fault::Malformed);
                }
                Err(fault) => {
                    self.peers[index].on_damaged_slot(look.sent, &timing);
                    self.ignore(Some(host), fault);
                }
            }
        }
        if !self.booted && look.first == 0 && look.count == self.peers.len() {
            self.booted = true;
            let mine = self.peers[self.me.index()].slot.incarnation;
            self.incarnation = mine.max(self.table.incarnation(self.me)) + 1;
        }
        self.after_look(look.token);
        self.news = true;
        self.poll(now_ns);
    }

    /// A write of the slot has ended.
    pub fn on_written(&mut self, now_ns: u64, token: Token, written: bool) {
        self.look_at_clock(now_ns);
        let Some(write) = self.write.take_if(|write| write.token == token) else {
            return;
        };
        if written {
            if !self.storage_up {
                self.storage_up = true;
                self.tell(Event::Storage { up: true });
            }
            if let Some(sent) = write.sent {
                self.after_write(sent);
            }
            if write.incarnation > self.incarnation_on_disk {
                self.incarnation_on_disk = write.incarnation;
                self.heartbeat_due = self.clocks.steady();
            }
            self.announced(write.stamp);
        }
        self.news = true;
        self.poll(now_ns);
    }

    /// The storage server has answered about a lease.
    pub fn on_lease(&mut self, now_ns: u64, token: Token, answer: LeaseAnswer) {
        self.look_at_clock(now_ns);
        if self.permit.is_check(token) {
            self.on_generation_seen(&answer);
        } else if self.proposal.is_take(token) {
            self.on_pool_lease(answer);
        } else {
            self.on_disk_lease(token, answer);
        }
        self.news = true;
        self.poll(now_ns);
    }

    /// Does all that is due.
    pub fn poll(&mut self, now_ns: u64) {
        self.look_at_clock(now_ns);
        let due = self.due().min(self.attend_due);
        if self.news || self.clocks.steady() >= due {
            self.attend();
        }
        self.do_io();
    }

    /// When something is to be sent or asked next, by the steady clock.
    fn due(&self) -> u64 {
        let mut at = self.heartbeat_due;
        if self.write.is_none() {
            at = at.min(self.write_due);
        }
        if self.look.is_none() {
            at = at.min(self.look_at);
        }
        at
    }

    /// Looks at all hosts and VMs.
    fn attend(&mut self) {
        self.news = false;
        self.attend_due = self.clocks.steady() + ATTEND_NS;
        if self.booted {
            self.watch();
            self.watch_permit();
            self.propose();
            self.recover();
        }
        self.look_at = self.next_look();
    }

    /// When [`Self::poll`] must be called at the latest.
    #[must_use]
    pub fn next_deadline_ns(&self) -> u64 {
        let steady = self.clocks.steady();
        let at = self.clocks.raw() + self.due().saturating_sub(steady);
        match self.run_until() {
            0 => at,
            until => at.min(until),
        }
    }

    /// What it says must be possible in this pool.
    fn is_possible(&self, report: &Report) -> bool {
        let (hosts, vms) = (self.config.hosts.len(), self.config.vms.len());
        report.from.index() < hosts
            && report.incarnation != 0
            && report.vms.iter().all(|(vm, _)| vm.index() < vms)
            && report
                .table
                .as_ref()
                .is_none_or(|table| table.fits(hosts, vms))
    }

    fn take_report(&mut self, mut report: Report) {
        let table = report.table.take();
        if report.from != self.me {
            // A table that is only being announced counts as a generation too: its author no longer vouches in the old one.
            self.heard_of_generation(report.generation);
            self.news |= self.peers[report.from.index()].keep(report);
        }
        if let Some(table) = table {
            self.adopt(table);
        }
    }

    /// Takes over a newer table.
    pub(crate) fn adopt(&mut self, table: Table) {
        if table.stamp() <= self.table.stamp() {
            return;
        }
        self.news = true;
        let new_generation = table.generation != self.table.generation;
        self.heard_of_generation(table.generation);
        self.table = table;
        if new_generation {
            self.proposal.overtaken(self.table.generation);
            self.recovery = Recovery::default();
            let listed = self.table.incarnation(self.me) == self.incarnation && self.booted;
            match (self.standing, listed) {
                (Standing::Member, false) => {
                    let generation = self.table.generation;
                    self.fence(FenceCause::Excluded { generation });
                    self.rejoin();
                }
                (Standing::Joining, true) => self.become_member(),
                _ => {}
            }
        }
        self.follow_table();
        self.hurry();
    }

    /// Somebody is in this generation, or is about to be.
    pub(crate) fn heard_of_generation(&mut self, generation: u64) {
        if generation > self.newest_generation {
            self.newest_generation = generation;
            self.vouched = None;
        }
    }

    fn become_member(&mut self) {
        self.standing = Standing::Member;
        let steady = self.clocks.steady();
        for peer in &mut self.peers {
            peer.forgive(steady);
        }
        self.permit.lapse(self.clocks.raw());
        let generation = self.table.generation;
        self.tell(Event::Joined { generation });
    }

    /// Asks to be let in, as if after a boot.
    pub(crate) fn rejoin(&mut self) {
        self.standing = Standing::Joining;
        self.incarnation += 1;
        self.hurry();
    }

    /// Stops all guests. Their leases are left to expire or to be taken.
    pub(crate) fn fence(&mut self, cause: FenceCause) {
        self.standing = Standing::Fenced;
        self.vms.clear();
        self.attempted.clear();
        self.permit.lapse(self.clocks.raw());
        self.actions.push_back(Action::Fence(cause));
        self.tell(Event::SelfFenced(cause));
        self.hurry();
    }

    /// Does what the table tells this host to do.
    pub(crate) fn follow_table(&mut self) {
        let me = self.me;
        let table = &self.table;
        self.vms.retain(|vm, report| {
            let place = table.vms.get(vm.index()).copied().unwrap_or(Place::Off);
            match report {
                VmReport::Off => place.host() == Some(me),
                VmReport::Failed(of) => {
                    matches!(place, Place::Starting { host, attempt } if host == me && attempt == *of)
                }
                VmReport::Starting | VmReport::Running => true,
            }
        });
        if self.standing != Standing::Member {
            return;
        }
        let mut starts = Vec::new();
        for (vm, place) in self.table.places() {
            if let Place::Starting { host, attempt } = place
                && host == me
                && !self.vms.contains_key(&vm)
                && self.attempted.get(&vm) != Some(&attempt)
            {
                starts.push((vm, attempt));
            }
        }
        for (vm, attempt) in starts {
            self.attempted.insert(vm, attempt);
            self.vms.insert(vm, VmReport::Starting);
            self.actions.push_back(Action::Start { vm, attempt });
        }
    }

    pub(crate) fn look_at_clock(&mut self, now_ns: u64) {
        let jump = self.clocks.look(now_ns);
        self.notice_lapse();
        match jump {
            None => {}
            Some(Jump::Ahead(by)) => self.tell(Event::ClockJumped { ms: signed_ms(by) }),
            Some(Jump::Back(by)) => {
                self.sent.clear();
                if let Some(write) = &mut self.write {
                    write.sent = None;
                }
                for peer in &mut self.peers {
                    peer.acknowledged = None;
                    peer.storage_worked = 0;
                }
                self.vouched = None;
                self.permit.clock_set(self.clocks.raw());
                self.tell(Event::ClockJumped { ms: -signed_ms(by) });
            }
        }
    }

    /// Notices hosts that fall silent, and those that do not any more.
    fn watch(&mut self) {
        let steady = self.clocks.steady();
        let limit = self.config.timing.dead_ms * MS / 2;
        let statefile = self.config.safeguards.statefile_signs;
        for index in 0..self.peers.len() {
            let host = HostId(u16::try_from(index).unwrap_or(u16::MAX));
            let member = self.table.incarnation(host) != 0 && host != self.me;
            let peer = &mut self.peers[index];
            let silent = steady - peer.sign(statefile);
            let suspected = member && silent >= limit;
            match (suspected, peer.suspected) {
                (true, None) => {
                    peer.suspected = Some(steady - silent);
                    self.tell(Event::Suspected { host });
                }
                (false, Some(since)) => {
                    peer.suspected = None;
                    if member {
                        let silent_ms = (steady - since) / MS;
                        self.tell(Event::Heard { host, silent_ms });
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) fn ask(&mut self, file: LeaseFile, call: LeaseCall) -> Token {
        let token = self.token();
        self.actions.push_back(Action::Lease { token, file, call });
        token
    }

    pub(crate) fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Something has changed that the others wait for.
    pub(crate) fn hurry(&mut self) {
        self.news = true;
        let steady = self.clocks.steady();
        self.heartbeat_due = steady;
        self.write_due = steady;
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.actions.push_back(Action::Event(event));
    }

    /// Counts what is ignored; people are told at once, then now and then.
    fn ignore(&mut self, host: Option<HostId>, fault: Fault) {
        let steady = self.clocks.steady();
        let known = self
            .ignored
            .iter_mut()
            .find(|(of, kind, ..)| *of == host && *kind == fault);
        let count = match known {
            Some((_, _, count, told)) => {
                *count += 1;
                if steady - *told < IGNORED_NS {
                    return;
                }
                *told = steady;
                core::mem::take(count)
            }
            None => {
                if self.ignored.len() == IGNORED_KINDS {
                    self.ignored.remove(0);
                }
                self.ignored.push((host, fault, 0, steady));
                1
            }
        };
        self.tell(Event::Ignored { host, fault, count });
    }
}

fn signed_ms(ns: u64) -> i64 {
    i64::try_from(ns / MS).unwrap_or(i64::MAX)
}
