//! Agreeing on a new liveset.
//!
//! The generation of the pool is the epoch of a lease, so moving it is a compare-and-swap at the storage server: of hosts that
//! try at once, one succeeds. It looks into the statefile once more (see [`crate::permit`]), decides, and writes its table
//! into its slot; from then on the table counts, and spreads with the heartbeats. A host that dies between the two leaves a
//! generation without a table, which the next one skips after a while.
//!
//! Voting among hosts was left out: where the storage is there, it gives the answer in one round trip; where it is not, no VM
//! could be restarted anyway.

use alloc::vec::Vec;

use crate::{
    action::{LeaseAnswer, LeaseCall, LeaseFile, Token},
    config::HostId,
    event::{Departure, Event},
    peer::{MS, Peers as _},
    pool::Pool,
    table::{Place, Table},
    wire::Standing,
};

/// How far this host is with a new liveset.
#[derive(Debug, Default)]
pub(crate) struct Proposal {
    step: Step,
    /// Not again before, by the steady clock.
    not_before: u64,
    /// A generation whose table was not seen, and when it was found.
    orphan: Option<(u64, u64)>,
    /// Departures as they were found before the generation was moved.
    found: Vec<(HostId, Departure)>,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    Taking(Token),
    /// The generation is ours; the look into the statefile has begun or not.
    Looking {
        generation: u64,
        token: Option<Token>,
    },
    Announcing {
        table: Table,
        departed: Vec<(HostId, Departure)>,
    },
}

impl Proposal {
    pub fn is_take(&self, token: Token) -> bool {
        matches!(self.step, Step::Taking(taking) if taking == token)
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// The table that is being written.
    pub fn announcing(&self) -> Option<&Table> {
        match &self.step {
            Step::Announcing { table, .. } => Some(table),
            _ => None,
        }
    }

    /// A look into the statefile shall begin.
    pub fn wants_look(&self) -> bool {
        matches!(self.step, Step::Looking { token: None, .. })
    }

    /// It has begun.
    pub fn looking(&mut self, begun: Token) {
        if let Step::Looking {
            token: token @ None,
            ..
        } = &mut self.step
        {
            *token = Some(begun);
        }
    }

    /// It has failed, and is to be tried again.
    pub fn look_failed(&mut self, failed: Token) {
        if let Step::Looking { token, .. } = &mut self.step
            && *token == Some(failed)
        {
            *token = None;
        }
    }

    /// A table of that generation counts now.
    pub fn overtaken(&mut self, generation: u64) {
        let ours = match &self.step {
            Step::Looking { generation, .. } => *generation,
            Step::Announcing { table, .. } => table.generation,
            Step::Idle | Step::Taking(_) => u64::MAX,
        };
        if ours <= generation {
            self.step = Step::Idle;
        }
        if self.orphan.is_some_and(|(orphan, _)| orphan <= generation) {
            self.orphan = None;
        }
    }
}

impl Pool {
    /// How long a host must be silent for this one to call it dead. One that is not in the liveset is in nobody's reckoning
    /// when the others vouch for each other, so it waits until their leases are over.
    pub(crate) fn silence_limit(&self) -> u64 {
        let timing = &self.config.timing;
        match self.standing {
            Standing::Member if !self.may_be_excluded() => timing.dead_ms * MS,
            _ => timing.outage_ms * MS / 10 * 11,
        }
    }

    /// The generation has moved on, and its table may be in a slot that is damaged.
    fn may_be_excluded(&self) -> bool {
        self.config.safeguards.excluded_wait
            && self.newest_generation > self.table.generation
            && self
                .peers
                .others(self.me)
                .any(|(_, peer)| peer.is_damaged())
    }

    /// Why a member is none any more.
    fn departed(&self, host: HostId) -> Option<Departure> {
        let peer = &self.peers[host.index()];
        let incarnation = self.table.incarnation(host);
        let report = peer.report.as_ref();
        if report.is_some_and(|report| report.incarnation > incarnation) {
            return Some(Departure::Rebooted);
        }
        if report.is_some_and(|report| {
            report.incarnation == incarnation && report.standing == Standing::Fenced
        }) {
            return Some(Departure::FencedItself);
        }
        let dead = peer.is_dead(
            self.silence_limit(),
            self.config.safeguards.statefile_signs,
            self.clocks.steady(),
        );
        dead.then_some(Departure::Silent)
    }

    fn departures(&self) -> Vec<(HostId, Departure)> {
        self.table
            .live()
            .filter(|host| *host != self.me)
            .filter_map(|host| Some((host, self.departed(host)?)))
            .collect()
    }

    /// Asks to be let in, reaches the storage, and was heard of just now.
    fn is_joining(&self, host: HostId) -> bool {
        let peer = &self.peers[host.index()];
        let steady = self.clocks.steady();
        let fresh = self.config.timing.dead_ms * MS / 2;
        peer.report.as_ref().is_some_and(|report| {
            report.standing == Standing::Joining
                && report.incarnation > self.table.incarnation(host)
                && peer.slot.incarnation == report.incarnation
        }) && steady - peer.sign(true) < fresh
    }

    /// Who is to propose: the coordinator, or the lowest member that lives, or, when there is none, the lowest host that
    /// asks to be let in.
    fn proposer(&self, departed: &[(HostId, Departure)]) -> Option<HostId> {
        let lives = |host: HostId| {
            if host == self.me {
                self.standing == Standing::Member
            } else {
                departed.iter().all(|(gone, _)| *gone != host)
            }
        };
        let coordinator = self.table.author;
        let members = || self.table.live();
        if members().any(|host| host == coordinator)
            && (lives(coordinator) || !self.config.safeguards.succession)
        {
            return Some(coordinator);
        }
        if let Some(lowest) = members().find(|host| lives(*host)) {
            return Some(lowest);
        }
        let me = (self.standing == Standing::Joining).then_some(self.me);
        let joining = self
            .peers
            .others(self.me)
            .map(|(host, _)| host)
            .filter(|host| self.is_joining(*host));
        joining.chain(me).min()
    }

    /// This member knows of a generation without a table, and whose turn it would be does not: it has no reason to look
    /// at the lease. Until somebody moves on, this host's guests stand still.
    fn is_stuck(&self) -> bool {
        let (steady, limit) = (self.clocks.steady(), self.silence_limit());
        let orphan = self.proposal.orphan;
        self.config.safeguards.orphans_skipped
            && self.standing == Standing::Member
            && orphan.is_some_and(|(_, found)| steady >= found + 2 * limit)
    }

    /// Proposes a new liveset if it is this host's turn and there is a reason.
    pub(crate) fn propose(&mut self) {
        let steady = self.clocks.steady();
        // Its own guests may stand still: if the others have gone on without this host, the lease refuses it.
        if !matches!(self.proposal.step, Step::Idle)
            || steady < self.proposal.not_before
            || self.standing == Standing::Fenced
            || !self.storage_works()
        {
            return;
        }
        let departed = self.departures();
        if self.proposer(&departed) != Some(self.me) && !self.is_stuck() {
            return;
        }
        let joins = self.standing == Standing::Joining
            || self
                .peers
                .others(self.me)
                .any(|(host, _)| self.is_joining(host));
        let orphan = self.proposal.orphan;
        if departed.is_empty() && !joins && orphan.is_none() {
            return;
        }
        let expected_epoch = match orphan {
            Some((_, found)) if steady < found + self.silence_limit() => return,
            Some((orphan, _)) => orphan,
            None => self.table.generation,
        };
        let statefile = self.config.safeguards.statefile_signs;
        for (host, why) in &departed {
            if *why == Departure::Silent {
                let silent_ms = (steady - self.peers[host.index()].sign(statefile)) / MS;
                self.tell(Event::DeclaredDead {
                    host: *host,
                    silent_ms,
                });
            }
        }
        self.proposal.found = departed;
        let owner = self.me;
        let call = match expected_epoch {
            0 => LeaseCall::Create { owner },
            _ => LeaseCall::Take {
                expected_epoch,
                owner,
            },
        };
        let token = self.ask(LeaseFile::Pool, call);
        self.proposal.step = Step::Taking(token);
    }

    /// The generation has moved, or not.
    pub(crate) fn on_pool_lease(&mut self, answer: LeaseAnswer) {
        let steady = self.clocks.steady();
        self.proposal.step = Step::Idle;
        self.proposal.not_before = steady + self.config.timing.statefile_ms * MS;
        match answer {
            LeaseAnswer::Granted { epoch } => {
                self.proposal.step = Step::Looking {
                    generation: epoch,
                    token: None,
                };
                if self.config.safeguards.look_again {
                    // One that is under way began too early.
                    self.look = None;
                    self.look_due = steady;
                } else {
                    self.announce(epoch);
                }
            }
            LeaseAnswer::State { epoch, .. } => self.note_generation(epoch),
            LeaseAnswer::Missing => {
                self.proposal.not_before = steady + 10_000 * MS;
                self.tell(Event::NoPoolFile);
            }
            LeaseAnswer::Failed => {}
        }
    }

    /// The pool's lease was seen at this epoch. If its table does not turn up, somebody must move on from there.
    pub(crate) fn note_generation(&mut self, epoch: u64) {
        self.heard_of_generation(epoch);
        let known = self.proposal.orphan.map_or(0, |(orphan, _)| orphan);
        if epoch > self.table.generation && epoch != known {
            self.proposal.orphan = Some((epoch, self.clocks.steady()));
        }
    }

    /// A look into the statefile has ended.
    pub(crate) fn after_look(&mut self, ended: Token) {
        match self.proposal.step {
            Step::Looking {
                generation,
                token: Some(token),
            } if token == ended => self.announce(generation),
            _ => {}
        }
    }

    /// Decides who is in the liveset, and writes it down.
    fn announce(&mut self, generation: u64) {
        let departed = if self.config.safeguards.look_again {
            self.departures()
        } else {
            core::mem::take(&mut self.proposal.found)
        };
        let overtaken = generation <= self.table.generation;
        if self.standing == Standing::Fenced || overtaken {
            // The generation stays without a table, until somebody moves on from it.
            self.proposal.step = Step::Idle;
            return;
        }
        // Even if all are found to live after all, or a lower host has come: the generation has moved, and needs a table.
        let mut table = self.table.clone();
        table.generation = generation;
        table.version = 0;
        table.author = self.me;
        for (host, _) in &departed {
            table.members[host.index()] = 0;
        }
        let joining: Vec<_> = self
            .peers
            .others(self.me)
            .filter(|(host, _)| self.is_joining(*host))
            .map(|(host, peer)| (host, peer.slot.incarnation))
            .collect();
        for (host, incarnation) in joining {
            table.members[host.index()] = incarnation;
        }
        table.members[self.me.index()] = self.incarnation;
        // The pool has met before, and nobody has a table of it: what it said of VMs is lost.
        if self.table.generation == 0 && generation > 1 && self.config.safeguards.leases_remember {
            for (place, policy) in table.vms.iter_mut().zip(&self.config.vms) {
                if !policy.is_vacant() {
                    *place = Place::Unknown;
                }
            }
        }
        for place in &mut table.vms {
            let attempts = match *place {
                Place::Starting { attempt, .. } => attempt,
                _ => 0,
            };
            // Also of a host that is in it again: that is another life of it.
            if place
                .host()
                .is_some_and(|host| self.table.incarnation(host) != table.members[host.index()])
            {
                *place = Place::Lost { attempts };
            }
        }
        self.proposal.step = Step::Announcing { table, departed };
        self.vouched = None;
        self.hurry();
    }

    /// A slot with a table of this stamp was written.
    pub(crate) fn announced(&mut self, stamp: (u64, u32)) {
        if self
            .proposal
            .announcing()
            .is_none_or(|table| table.stamp() != stamp)
        {
            return;
        }
        let Step::Announcing { table, departed } = core::mem::take(&mut self.proposal.step) else {
            return;
        };
        self.tell(Event::Liveset {
            generation: table.generation,
            coordinator: table.author,
            members: table.live().collect(),
            departed,
        });
        self.adopt(table);
    }
}
