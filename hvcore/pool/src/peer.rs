//! What one host knows of another: when it last gave a sign, on which path, and what it said.
//!
//! Times of signs are those of the observer's steady clock and always late rather than early: a sign is dated when it was
//! noticed, unless it is known to have been given before something that was noticed earlier. So a silence that is found
//! to be long is at least as long as it seems.

use crate::{
    config::{HostId, Timing},
    wire::{Heard, Report, Standing},
};

/// Nanoseconds in a millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// Bytes at the start of a slot that tell it from an older one.
const HEAD: usize = 48;

/// Another host, as seen from here.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The last heartbeat that came from it.
    pub heard: Heard,
    /// When that was.
    heard_at: u64,
    /// The last heartbeat that is known to have reached anybody who is heard here.
    known: Heard,
    /// When the network last vouched for it.
    vouched_at: u64,
    /// The last of its reports that was read in the statefile.
    pub slot: Heard,
    /// How that block began, its checksum included.
    slot_head: [u8; HEAD],
    /// When it is certain to have been there at the latest.
    slot_at: u64,
    /// When the newest look at its slot that has ended was begun.
    looked_at: u64,
    /// Since when its slot has been damaged.
    damaged_since: Option<u64>,
    /// The last it said of itself, on either path.
    pub report: Option<Report>,
    /// The newest of our heartbeats that it has told to have heard, by our own clock; and the generation it was in then.
    pub acknowledged: Option<(u64, u64)>,
    /// By our own clock, a time before it began the last write to the statefile that was answered.
    pub storage_worked: u64,
    /// It is known to people as silent, since then.
    pub suspected: Option<u64>,
}

impl Peer {
    /// One of which nothing is known yet: its silence begins now.
    pub fn new(steady: u64) -> Self {
        Self {
            heard: Heard::default(),
            heard_at: steady,
            known: Heard::default(),
            vouched_at: steady,
            slot: Heard::default(),
            slot_head: [0; HEAD],
            slot_at: steady,
            looked_at: 0,
            damaged_since: None,
            report: None,
            acknowledged: None,
            storage_worked: 0,
            suspected: None,
        }
    }

    /// A heartbeat came from it. `vouches`: it knows of our present life, so it cannot be an old one sent again.
    pub fn on_heartbeat(&mut self, heard: Heard, vouches: bool, steady: u64) {
        self.heard = heard;
        self.heard_at = steady;
        if vouches {
            self.known = self.known.max(heard);
            self.vouched_at = steady;
        }
    }

    /// Another host has heard this one.
    pub fn on_hearsay(&mut self, heard: Heard, steady: u64) {
        if heard > self.known {
            self.known = heard;
            self.vouched_at = steady;
        }
    }

    /// Whether this is the block that was read last, by a look that began at `sent`: then nothing in it needs to be checked again.
    pub fn is_same_slot(&mut self, block: &[u8], sent: u64) -> bool {
        let same = self.slot != Heard::default() && block.starts_with(&self.slot_head);
        if same {
            self.looked_at = self.looked_at.max(sent);
        }
        same
    }

    /// Its slot was read, by a look that began at `sent`.
    pub fn on_slot(&mut self, block: &[u8], slot: Heard, sent: u64, steady: u64) {
        self.damaged_since = None;
        if let Some(head) = block.first_chunk() {
            self.slot_head = *head;
        }
        self.looked_at = self.looked_at.max(sent);
        if slot > self.slot {
            self.slot = slot;
            // Reports are numbered on both paths together: this one was written before that heartbeat was sent.
            let written = if slot <= self.heard {
                self.heard_at
            } else {
                steady
            };
            self.slot_at = self.slot_at.max(written);
        }
    }

    /// Its slot was read and there is nothing in it.
    pub fn on_empty_slot(&mut self, sent: u64) {
        self.looked_at = self.looked_at.max(sent);
    }

    /// Its slot is damaged. It may be half written at this moment, so that is a look only when it stays so.
    pub fn on_damaged_slot(&mut self, sent: u64, timing: &Timing) {
        let since = *self.damaged_since.get_or_insert(sent);
        if sent.saturating_sub(since) >= timing.dead_ms * MS {
            self.looked_at = self.looked_at.max(sent);
        }
    }

    /// Its slot cannot be read, so what it announced last may not be known here.
    pub fn is_damaged(&self) -> bool {
        self.damaged_since.is_some()
    }

    /// This host is a member from now on: nothing it missed before counts.
    pub fn forgive(&mut self, steady: u64) {
        self.vouched_at = steady;
    }

    /// When it last gave a sign.
    pub fn sign(&self, statefile: bool) -> u64 {
        if statefile {
            self.vouched_at.max(self.slot_at)
        } else {
            self.vouched_at
        }
    }

    /// The management network has not vouched for it for a while.
    pub fn is_quiet(&self, steady: u64, timing: &Timing) -> bool {
        steady - self.vouched_at >= timing.quiet_ms * MS
    }

    /// It has been silent for `limit` on both paths, and the statefile was looked at after that.
    pub fn is_dead(&self, limit: u64, statefile: bool, steady: u64) -> bool {
        let over = self.sign(statefile) + limit;
        steady >= over && self.looked_at >= over
    }

    /// When it will have been silent for `limit`, and a look into the statefile is needed that is not made yet.
    pub fn look_due(&self, limit: u64, statefile: bool) -> Option<u64> {
        let over = self.sign(statefile) + limit;
        (self.looked_at < over).then_some(over)
    }

    /// Keeps what it says of itself, if it is newer than what is known. True when it says something else than before.
    pub fn keep(&mut self, report: Report) -> bool {
        let said = |it: &Report| (it.incarnation, it.standing, it.generation, it.version);
        let (newer, news) = match &self.report {
            None => (true, true),
            Some(old) => (
                (old.incarnation, old.sequence) < (report.incarnation, report.sequence),
                said(old) != said(&report) || old.vms != report.vms,
            ),
        };
        if newer {
            self.report = Some(Report {
                table: None,
                ..report
            });
        }
        newer && news
    }

    /// Its report, if it stands in this generation as this incarnation.
    pub fn report_in(&self, generation: u64, incarnation: u32) -> Option<&Report> {
        self.report.as_ref().filter(|report| {
            report.generation == generation
                && report.incarnation == incarnation
                && report.standing == Standing::Member
        })
    }
}

/// What a host can be asked of all others.
pub(crate) trait Peers {
    /// All but this one.
    fn others(&self, me: HostId) -> impl Iterator<Item = (HostId, &Peer)>;
}

impl Peers for [Peer] {
    fn others(&self, me: HostId) -> impl Iterator<Item = (HostId, &Peer)> {
        (0_u16..)
            .map(HostId)
            .zip(self)
            .filter(move |(host, _)| *host != me)
    }
}
