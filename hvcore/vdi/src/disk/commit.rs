//! Flushes: making what was acknowledged stable.
//!
//! One commit at a time; flushes that come meanwhile are answered by it when nothing was written in between,
//! else together by the next one. A commit is a COMMIT and a look at the server's verifier: data that was acknowledged under
//! another verifier is lost; it is written again and committed again. If the VHD's tables have changed, two
//! of these are needed, with the tables' new entries in between (see `tables`).

use alloc::vec::Vec;

use nfs_client::{Call, CallError, Payload, Reply};

use super::{Context, Disk, SOFT_LIMIT, server_error, tables::Snapshot};
use crate::{
    DiskState,
    error::IoError,
    request::Completion,
    tag::{DiskJob, WritePurpose},
    uncommitted::Seq,
};

/// A commit under way, or none.
#[derive(Debug, Default)]
pub(super) struct Commit {
    stage: Stage,
    wanted: bool,
    /// What was acknowledged when it began; flushes up to here end with it.
    target: Seq,
    /// What was acknowledged when COMMIT was sent.
    sent_at: Seq,
    /// Writes of lost data that are not answered.
    rewriting: usize,
    /// Writing lost data failed.
    failed: Option<IoError>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// New blocks are being placed, up to this round.
    Placing { round: u64 },
    /// COMMIT of the data that these entries of the tables stand for.
    Data(Snapshot),
    /// The entries are being written.
    Entering,
    /// COMMIT of everything.
    All,
}

impl Commit {
    /// Begin one soon, whether or not somebody waits for it.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Nothing depends on how it ends: a COMMIT is under way, or nothing is.
    pub fn may_be_left(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::All) && self.rewriting == 0
    }

    pub fn is_rewriting(&self) -> bool {
        self.rewriting > 0
    }
}

impl Disk {
    pub(super) fn advance_commit(&mut self, cx: &mut Context<'_>) {
        match self.commit.stage {
            Stage::Idle => self.begin_commit(cx),
            Stage::Placing { round } => {
                if let Some(why) = self.tables.failure() {
                    let why = why.clone();
                    self.end_commit(Err(why), cx);
                } else if self.tables.has_ended(round) {
                    self.commit.stage = match self.snapshot_tables() {
                        Some(snapshot) => Stage::Data(snapshot),
                        None => Stage::All,
                    };
                    self.send_commit(cx);
                }
            }
            Stage::Data(_) | Stage::Entering | Stage::All => {}
        }
    }

    fn begin_commit(&mut self, cx: &mut Context<'_>) {
        let cannot_travel = self.draining
            && self.ops.is_empty()
            && (self.uncommitted.bytes() > DiskState::MAX_CARRIED || self.tables.has_dirty());
        let wanted = self.commit.wanted
            || cannot_travel
            || !self.flushes.is_empty()
            || self.uncommitted.bytes() >= SOFT_LIMIT;
        if !wanted {
            return;
        }
        self.commit.wanted = false;
        self.commit.target = self.seq;
        self.commit.failed = None;
        self.tables.retry();
        if self.uncommitted.is_empty() && self.tables.is_written() {
            return self.end_flushes(&Ok(()), cx);
        }
        self.advance_tables(cx);
        self.commit.stage = Stage::Placing {
            round: self.tables.round_of_now(),
        };
        self.advance_commit(cx);
    }

    fn send_commit(&mut self, cx: &mut Context<'_>) {
        self.commit.sent_at = self.seq;
        let call = Call::Commit {
            file: self.layers[0].file,
        };
        self.call(DiskJob::Commit, call, cx);
    }

    pub(super) fn on_committed(&mut self, answer: Result<Reply, CallError>, cx: &mut Context<'_>) {
        let verifier = match answer {
            Ok(Reply::Committed { verifier }) => verifier,
            Ok(_) => unreachable!("the reply to COMMIT"),
            Err(why) => return self.end_commit(Err(server_error("a commit", &why)), cx),
        };
        let lost = self.uncommitted.committed(verifier, self.commit.sent_at);
        if lost.is_empty() {
            self.after_commit(cx)
        } else {
            self.rewrite(lost, cx)
        }
    }

    fn after_commit(&mut self, cx: &mut Context<'_>) {
        match core::mem::take(&mut self.commit.stage) {
            Stage::Data(snapshot) => {
                self.commit.stage = Stage::Entering;
                self.enter(snapshot, cx);
            }
            _ => self.end_commit(Ok(()), cx),
        }
    }

    pub(super) fn after_entering(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        if result.is_err() {
            return self.end_commit(result, cx);
        }
        self.commit.stage = Stage::All;
        self.send_commit(cx);
    }

    /// Writes again what the server lost. What is being overwritten at the moment is left out: the newer write
    /// replaces it, or else the next COMMIT shows it lost again.
    fn rewrite(&mut self, lost: Vec<(u64, Payload)>, cx: &mut Context<'_>) {
        for (offset, data) in lost {
            if !self.is_writing(offset, data.len() as u64) {
                self.commit.rewriting += self.write(WritePurpose::Again, offset, data, cx);
            }
        }
        if self.commit.rewriting == 0 {
            self.send_commit(cx);
        }
    }

    pub(super) fn on_written_again(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        if let Err(why) = result {
            self.commit.failed.get_or_insert(why);
        }
        self.commit.rewriting -= 1;
        if self.commit.rewriting > 0 {
            return;
        }
        match self.commit.failed.take() {
            Some(why) => self.end_commit(Err(why), cx),
            None => self.send_commit(cx),
        }
    }

    fn end_commit(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        if let Stage::Data(snapshot) = core::mem::take(&mut self.commit.stage) {
            self.give_back(snapshot);
        }
        self.end_flushes(&result, cx);
        self.after_last_commit(result);
        // Flushes that came meanwhile.
        if !self.flushes.is_empty() {
            self.advance_commit(cx);
        }
    }

    fn end_flushes(&mut self, result: &Result<(), IoError>, cx: &mut Context<'_>) {
        while let Some(flush) = self.flushes.front()
            && flush.target <= self.commit.target
        {
            let result = result.clone().map(|()| Vec::new());
            cx.done.push_back(Completion::Io {
                disk: self.id,
                id: flush.id,
                result,
            });
            self.flushes.pop_front();
        }
    }

    /// Leaves a COMMIT that is under way; its answer is dropped.
    pub(super) fn leave_commit(&mut self) {
        debug_assert!(self.commit.may_be_left());
        self.commit.stage = Stage::Idle;
    }
}
