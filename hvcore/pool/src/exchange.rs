//! What this host sends to the others and reads of them, and when: heartbeats, its slot of the statefile, looks at the others' slots.
//!
//! The statefile is read for those whom the management network does not vouch for, and at the moment at which a silence would be long
//! enough to count. Reading all of it all the time was left out: with many hosts it is what a storage server can least afford.

use crate::{
    action::{Action, Token},
    config::HostId,
    event::Event,
    peer::{MS, Peer, Peers as _},
    pool::Pool,
    table::Table,
    wire::{Heartbeat, Report, Standing},
};
use alloc::vec::Vec;

/// Between two looks at the whole statefile when all is well.
pub(crate) const SCAN_NS: u64 = 1000 * MS;
/// Heartbeats whose time of sending is remembered.
const SENT: usize = 128;

/// A read of the statefile under way.
pub(crate) struct Look {
    pub token: Token,
    /// By the steady clock.
    pub sent: u64,
    pub first: usize,
    pub count: usize,
}

/// A write to the statefile under way.
pub(crate) struct Write {
    pub token: Token,
    /// By the raw clock; `None` if that was set since.
    pub sent: Option<u64>,
    /// The table in it.
    pub stamp: (u64, u32),
    /// The incarnation in it.
    pub incarnation: u32,
}

impl Pool {
    /// Sends and asks what is due.
    pub(crate) fn do_io(&mut self) {
        let steady = self.clocks.steady();
        let timing = self.config.timing;
        let overdue = |write: &Write| {
            let sent = write.sent.unwrap_or(self.clocks.raw());
            self.clocks.raw().saturating_sub(sent) >= timing.run_ms * MS
        };
        if self.storage_up && self.write.as_ref().is_some_and(overdue) {
            self.storage_up = false;
            self.tell(Event::Storage { up: false });
        }
        if self.look.is_none() && steady >= self.look_at {
            self.read_slots();
        }
        if !self.booted {
            self.heartbeat_due = steady + timing.heartbeat_ms * MS;
            return;
        }
        // A heartbeat after each write: when it is heard, it dates the write.
        if self.write.is_none() && steady >= self.write_due {
            self.write_slot();
            self.heartbeat_due = steady;
        }
        if steady >= self.heartbeat_due {
            self.heartbeat_due = steady + timing.heartbeat_ms * MS;
            self.send_heartbeat();
        }
    }

    fn report(&mut self, table: Option<Table>) -> Report {
        self.sequence += 1;
        let announcing = self.proposal.announcing();
        let (generation, version) = announcing.unwrap_or(&self.table).stamp();
        Report {
            from: self.me,
            incarnation: self.incarnation,
            sequence: self.sequence,
            standing: self.standing,
            generation,
            version,
            vms: self.vms.iter().map(|(vm, report)| (*vm, *report)).collect(),
            table,
        }
    }

    fn write_slot(&mut self) {
        let table = self.proposal.announcing().unwrap_or(&self.table).clone();
        let stamp = table.stamp();
        let report = self.report(Some(table));
        let Some(block) = report.encode_slot(&self.config.pool, &self.slots) else {
            return;
        };
        let token = self.token();
        self.write_due = self.clocks.steady() + self.config.timing.statefile_ms * MS;
        self.write = Some(Write {
            token,
            sent: Some(self.clocks.raw()),
            stamp,
            incarnation: self.incarnation,
        });
        self.actions.push_back(Action::WriteSlot {
            token,
            block: block.to_vec(),
        });
    }

    fn send_heartbeat(&mut self) {
        // A life that nobody can find in the statefile must not be heard: the next one would take its number again, and be
        // held for an echo of it.
        let unwritten = self.incarnation > self.incarnation_on_disk;
        if self.peers.len() == 1 || (unwritten && self.config.safeguards.lives_apart) {
            return;
        }
        let stamp = self.table.stamp();
        let lags = |peer: &Peer| {
            let report = peer.report.as_ref();
            report.is_some_and(|report| (report.generation, report.version) < stamp)
        };
        let me = self.me;
        let steady = self.clocks.steady();
        let timing = self.config.timing;
        let anybody_lags = self
            .peers
            .others(me)
            .any(|(_, peer)| lags(peer) && !peer.is_quiet(steady, &timing));
        let table = (anybody_lags && self.table.generation != 0).then(|| self.table.clone());
        let report = self.report(table);
        let sequence = report.sequence;
        let heartbeat = Heartbeat {
            report,
            storage_age_ms: self.permit.storage_age_ms(self.clocks.raw()),
            heard: self.peers.iter().map(|peer| peer.heard).collect(),
        };
        let bytes = heartbeat.encode(&self.config.pool, &self.heartbeats);
        if self.sent.len() == SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, self.clocks.raw()));
        self.actions.push_back(Action::Heartbeat(bytes));
    }

    /// When the statefile is read next: regularly for what the management network does not vouch for, and at the
    /// moment at which a silence would be long enough to count.
    pub(crate) fn next_look(&self) -> u64 {
        let steady = self.clocks.steady();
        if !self.booted || self.standing != Standing::Member || self.proposal.wants_look() {
            return self.look_due;
        }
        let timing = self.config.timing;
        let limit = self.silence_limit();
        let statefile = self.config.safeguards.statefile_signs;
        let mut at = self.scan_due;
        for (host, peer) in self.peers.others(self.me) {
            if self.table.incarnation(host) == 0 {
                continue;
            }
            if peer.is_quiet(steady, &timing) {
                at = at.min(self.look_due);
            }
            if let Some(due) = peer.look_due(limit, statefile) {
                at = at.min(due);
            }
        }
        at
    }

    fn read_slots(&mut self) {
        let steady = self.clocks.steady();
        let timing = self.config.timing;
        self.look_due = steady + timing.statefile_ms * MS;
        let all = (0, self.peers.len());
        let whole = !self.booted
            || self.standing != Standing::Member
            || steady >= self.scan_due
            || self.proposal.wants_look();
        let (first, count) = if whole {
            self.scan_due = steady + SCAN_NS;
            all
        } else {
            let wanted: Vec<_> = self
                .peers
                .others(self.me)
                .filter(|(host, peer)| {
                    self.table.incarnation(*host) != 0 && peer.is_quiet(steady, &timing)
                })
                .map(|(host, _)| host.index())
                .collect();
            match (wanted.first(), wanted.last()) {
                (Some(first), Some(last)) => (*first, last - first + 1),
                _ => all,
            }
        };
        let token = self.token();
        self.proposal.looking(token);
        self.look = Some(Look {
            token,
            sent: steady,
            first,
            count,
        });
        self.actions.push_back(Action::ReadSlots {
            token,
            first: HostId(u16::try_from(first).unwrap_or(0)),
            count: u16::try_from(count).unwrap_or(0),
        });
    }
}
