//! The permit to run guests: it ends before any other host can have found this one dead.
//!
//! A host is declared dead only by one that has had no sign of it for [`Timing::dead_ms`] on *both* paths. So guests
//! may run for the shorter [`Timing::run_ms`] counted from the sending of
//!
//! - the last write to the statefile that was answered: whoever looks later sees it; or
//! - the oldest of the heartbeats that every other member has told to have heard, while no member knows of a newer
//!   generation, and not longer than the leases of the disks last.
//!
//! Once the permit has lapsed, a sign is not enough to have it back: somebody may have found this host dead just before. That it has lapsed is
//! noticed before the sign is taken in ([`Pool::notice_lapse`]): a host that stood still for a moment has the answer to an old
//! write before it. Then the write to the statefile comes first and the look at the generation after it; and who declares a host
//! dead moves the generation first and looks into the statefile after it. One of the two sees the other.
//!
//! A watchdog that resets the host was left out: guests that get no time are stopped more surely, and at once.
//!
//! [`Timing::dead_ms`]: crate::Timing::dead_ms
//! [`Timing::run_ms`]: crate::Timing::run_ms

use crate::{
    action::{LeaseAnswer, LeaseCall, LeaseFile, Token},
    event::{Event, FenceCause},
    peer::{MS, Peers as _},
    pool::Pool,
    wire::Standing,
};

/// The permit. Times are of the raw clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit {
    /// When the last write to the statefile that was answered was sent.
    written: Option<u64>,
    /// Since when it has lapsed.
    lapsed: Option<u64>,
    /// The same by the steady clock, as soon as it was looked at: a clock that is set ahead is no long standstill.
    standstill: Option<u64>,
    /// A look at the generation, and when the write before it was sent.
    check: Option<(Token, u64)>,
    /// The first and the last moment at which the storage worked for others since it last did here.
    others_storage: Option<(u64, u64)>,
}

/// Between two moments at which the storage works, when it works all the time.
const STREAK_NS: u64 = 1000 * MS;

impl Permit {
    /// Lapsed from the start.
    pub fn new(now: u64) -> Self {
        Self {
            written: None,
            lapsed: Some(now),
            standstill: None,
            check: None,
            others_storage: None,
        }
    }

    /// From now on guests stand still.
    pub fn lapse(&mut self, now: u64) {
        self.lapsed = Some(now);
        self.standstill = None;
        self.check = None;
    }

    /// The clock was set back: no time that was noted before means anything.
    pub fn clock_set(&mut self, now: u64) {
        *self = Self::new(now);
    }

    pub fn is_check(&self, token: Token) -> bool {
        self.check.is_some_and(|(check, _)| check == token)
    }

    pub fn is_lapsed(&self) -> bool {
        self.lapsed.is_some()
    }

    pub fn storage_age_ms(&self, now: u64) -> u32 {
        let age = self.written.map(|written| now.saturating_sub(written) / MS);
        age.and_then(|age| u32::try_from(age).ok())
            .unwrap_or(u32::MAX)
    }
}

impl Pool {
    /// Until when guests may run, by the raw clock; 0 if they may not.
    pub(crate) fn run_until(&self) -> u64 {
        let timing = &self.config.timing;
        let (Standing::Member, None, Some(written)) =
            (self.standing, self.permit.lapsed, self.permit.written)
        else {
            return 0;
        };
        let by_peers = self
            .vouched
            .map_or(0, |sent| sent + timing.run_ms * MS)
            .min(written + timing.outage_ms * MS);
        by_peers.max(written + timing.run_ms * MS)
    }

    /// When the oldest of those heartbeats was sent that the other members last told to have heard; `None` unless
    /// all of them have, and all know of no newer generation.
    fn all_vouch(&self) -> Option<u64> {
        if !self.config.safeguards.peers_vouch
            || self.newest_generation > self.table.generation
            || self.proposal.announcing().is_some()
        {
            return None;
        }
        let mut oldest = self.clocks.raw();
        let alone = self.table.live().all(|host| host == self.me);
        let asks = self.config.safeguards.alone_asks && self.permit.is_lapsed();
        if alone && self.peers.len() > 1 && asks {
            // Nobody can say whether those that are not in the liveset have not formed another one meanwhile.
            return None;
        }
        for (host, peer) in self.peers.others(self.me) {
            if self.table.incarnation(host) == 0 {
                continue;
            }
            match peer.acknowledged {
                Some((sent, generation)) if generation == self.table.generation => {
                    oldest = oldest.min(sent);
                }
                _ => return None,
            }
        }
        Some(oldest)
    }

    /// Whether the storage has answered lately.
    pub(crate) fn storage_works(&self) -> bool {
        let written = self.permit.written.unwrap_or(0);
        self.permit.written.is_some()
            && self.clocks.raw() < written + self.config.timing.run_ms * MS
    }

    /// A write to the statefile that was sent then was answered.
    pub(crate) fn after_write(&mut self, sent: u64) {
        let newest = self.permit.written.map_or(sent, |before| before.max(sent));
        self.permit.written = Some(newest);
        match (self.standing, self.permit.lapsed) {
            (Standing::Fenced, Some(since)) if sent >= since => self.rejoin(),
            (Standing::Member, Some(since)) if sent >= since => {
                if !self.config.safeguards.check_after_lapse {
                    self.end_lapse();
                } else if self.permit.check.is_none() {
                    let token = self.ask(LeaseFile::Pool, LeaseCall::Look);
                    self.permit.check = Some((token, sent));
                }
            }
            _ => {}
        }
    }

    /// The look at the generation has ended.
    pub(crate) fn on_generation_seen(&mut self, answer: &LeaseAnswer) {
        let Some((_, sent)) = self.permit.check.take() else {
            return;
        };
        let (LeaseAnswer::State { epoch, .. } | LeaseAnswer::Granted { epoch }) = answer else {
            return;
        };
        self.note_generation(*epoch);
        let fresh = self.clocks.raw() < sent + self.config.timing.run_ms * MS;
        if *epoch == self.table.generation && self.standing == Standing::Member && fresh {
            self.end_lapse();
        }
    }

    fn end_lapse(&mut self) {
        if let Some(since) = self.permit.lapsed.take() {
            self.permit.check = None;
            let lapsed_ms = self.clocks.raw().saturating_sub(since) / MS;
            self.tell(Event::PermitBack { lapsed_ms });
        }
    }

    /// Lets the permit lapse when its time was over before this look at the clock, whatever sign is taken in next: others may have
    /// found this host dead meanwhile, and its write may have come after they looked.
    pub(crate) fn notice_lapse(&mut self) {
        if self.standing == Standing::Member
            && !self.permit.is_lapsed()
            && self.clocks.raw() >= self.run_until()
            && self.config.safeguards.late_signs_refused
        {
            self.permit.lapse(self.clocks.raw());
            self.tell(Event::PermitLapsed);
        }
    }

    /// Lets the permit lapse when its time is over, and fences this host when it is beyond hope.
    pub(crate) fn watch_permit(&mut self) {
        if self.standing != Standing::Member {
            return;
        }
        let now = self.clocks.raw();
        let timing = self.config.timing;
        let leases_last = self
            .permit
            .written
            .is_some_and(|written| now < written + timing.outage_ms * MS);
        self.vouched = self.all_vouch();
        let vouched = self.vouched;
        match self.permit.lapsed {
            None if now >= self.run_until() => {
                self.permit.lapse(now);
                self.tell(Event::PermitLapsed);
            }
            Some(since) if leases_last && vouched.is_some_and(|sent| sent >= since) => {
                self.end_lapse();
            }
            Some(_) => {
                // While all see each other, none of them can be replaced: their guests wait for the storage.
                let seen = vouched.is_some_and(|sent| now < sent + timing.dead_ms * MS);
                let steady = self.clocks.steady();
                let since = *self.permit.standstill.get_or_insert(steady);
                if steady >= since + timing.fence_ms * MS && !seen && !self.storage_works() {
                    return self.fence(FenceCause::Alone);
                }
            }
            None => {}
        }
        self.watch_storage();
    }

    /// Fences this host when the storage has worked for others, without a break, for as long as a host may be without it.
    fn watch_storage(&mut self) {
        // After the clock was set, from then on.
        let Some(written) = self.permit.written.or(self.permit.lapsed) else {
            return;
        };
        let best = self
            .peers
            .others(self.me)
            .filter(|(host, _)| self.table.incarnation(*host) != 0)
            .max_by_key(|(_, peer)| peer.storage_worked)
            .map(|(host, peer)| (host, peer.storage_worked));
        let Some((works_for, worked)) = best.filter(|(_, worked)| *worked > written) else {
            self.permit.others_storage = None;
            return;
        };
        let (first, last) = self.permit.others_storage.unwrap_or((worked, worked));
        // After an outage for all, it works for some a little sooner than for others.
        let streak = if worked > last + STREAK_NS {
            worked
        } else {
            // The host for which it worked last may be gone.
            first.min(worked)
        };
        self.permit.others_storage = Some((streak, worked));
        if worked - streak >= self.config.timing.storage_ms * MS {
            self.fence(FenceCause::StorageLost { works_for });
        }
    }
}
