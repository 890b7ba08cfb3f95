//! An open disk: its operations, its tables, its commits, its lease.

mod ancestors;
mod branch;
mod commit;
mod handover;
mod io;
mod lease;
mod tables;

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::{String, ToString},
    vec::Vec,
};

use nfs_client::{Call, CallError, Client, Payload, Reply};
use nfs3::{FileHandle, Status};
use vhd::{DiskKind, SECTOR};

use self::{
    commit::Commit,
    io::Active,
    lease::{Fence, Lease},
    tables::Tables,
};
use crate::{
    error::IoError,
    layer::Layer,
    opening::{Opened, Purpose},
    request::{Completion, DiskId, DiskInfo, Op},
    storage::StorageConfig,
    tag::{DiskJob, Tag, WritePurpose},
    uncommitted::{Seq, Uncommitted},
    walk::Limits,
};

/// With so much data not committed, a commit is begun, and no more operations are invited.
const SOFT_LIMIT: usize = 8 << 20;
/// With so much data not committed, writes wait.
const HARD_LIMIT: usize = 16 << 20;
/// So many operations are invited; a virtio queue of usual length.
const MAX_OPS: usize = 256;

/// What a disk needs of its surroundings while it handles an event.
pub(crate) struct Context<'a> {
    pub client: &'a mut Client<Tag>,
    pub done: &'a mut VecDeque<Completion>,
    pub now_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Another host owns it.
    Prepared { restored: bool },
    /// Accepts I/O.
    Open,
    /// Finishes what was begun.
    Closing,
    /// Gives its lease back.
    Releasing,
    /// Its lease is not ours any more.
    Lost,
}

#[derive(Debug)]
struct Flush {
    id: u64,
    /// It covers what had been acknowledged by then.
    target: Seq,
}

/// An open disk.
#[derive(Debug)]
pub(crate) struct Disk {
    id: DiskId,
    path: String,
    name: String,
    dir: FileHandle,
    owner: String,
    ttl_ms: u32,
    limits: Limits,
    read_only: bool,
    phase: Phase,
    lease: Option<Lease>,
    fence: Fence,
    /// The disk first, then its ancestors.
    layers: Vec<Layer>,
    /// Reads and writes under way, by a number of our own: the caller's may repeat.
    ops: BTreeMap<u64, Active>,
    next_op: u64,
    /// Operations that wait for a bitmap, for room, or for an overlapping write.
    held: VecDeque<u64>,
    flushes: VecDeque<Flush>,
    /// Ranges of the leaf's file that are being written; disjoint, since the server may
    /// execute what is in flight together in any order.
    writing: BTreeMap<u64, u64>,
    writing_bytes: usize,
    /// Counts acknowledgements of writes.
    seq: Seq,
    uncommitted: Uncommitted,
    tables: Tables,
    commit: Commit,
    draining: bool,
    /// Everything is to be stable, tables included.
    settling: bool,
    /// The last writes before closing failed.
    close_error: Option<IoError>,
    /// Blocks allocated since the VM started, see [`crate::DiskState::allocated`].
    allocated: Vec<(u32, u32)>,
}

impl Disk {
    pub fn new(id: DiskId, opened: Opened, config: &StorageConfig) -> Self {
        let lease = opened
            .lease
            .map(|granted| Lease::new(granted.epoch, granted.sent_ns, config.lease_ttl_ms));
        Self {
            id,
            path: opened.path,
            name: opened.name,
            dir: opened.dir,
            owner: config.owner.clone(),
            ttl_ms: config.lease_ttl_ms,
            limits: opened.limits,
            read_only: opened.purpose == Purpose::Share,
            phase: match opened.purpose {
                Purpose::Own | Purpose::Share => Phase::Open,
                Purpose::Prepare => Phase::Prepared { restored: false },
            },
            lease,
            fence: Fence::None,
            layers: opened.layers,
            ops: BTreeMap::new(),
            next_op: 0,
            held: VecDeque::new(),
            flushes: VecDeque::new(),
            writing: BTreeMap::new(),
            writing_bytes: 0,
            seq: 0,
            uncommitted: Uncommitted::default(),
            tables: Tables::new(opened.footer_missing),
            commit: Commit::default(),
            draining: false,
            settling: false,
            close_error: None,
            allocated: Vec::new(),
        }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn info(&self) -> DiskInfo {
        DiskInfo {
            bytes: self.layers[0].disk.size(),
            read_only: self.read_only,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.ops.len() + self.flushes.len()
    }

    pub fn has_room(&self) -> bool {
        self.in_flight() < MAX_OPS && self.uncommitted.bytes() + self.writing_bytes < SOFT_LIMIT
    }

    fn is_differencing(&self) -> bool {
        self.layers[0].disk.footer().kind == DiskKind::Differencing
    }

    pub fn submit(&mut self, id: u64, op: Op, cx: &mut Context<'_>) {
        if let Err(why) = self.check(&op) {
            cx.done.push_back(Completion::Io {
                disk: self.id,
                id,
                result: Err(why),
            });
            return;
        }
        self.draining = false;
        self.settling = false;
        match op {
            Op::Flush => self.flushes.push_back(Flush {
                id,
                target: self.seq,
            }),
            Op::Read { offset, len } => self.add(Active::read(id, offset, len), cx),
            Op::Write { offset, data } => self.add(Active::write(id, offset, data.into()), cx),
        }
        self.advance(cx);
    }

    fn check(&self, op: &Op) -> Result<(), IoError> {
        match self.phase {
            Phase::Open => {}
            Phase::Lost => return Err(IoError::LeaseLost),
            Phase::Prepared { .. } | Phase::Closing | Phase::Releasing => {
                return Err(IoError::NotOpen);
            }
        }
        let (offset, len) = match op {
            Op::Flush => return Ok(()),
            Op::Read { offset, len } => (*offset, u64::from(*len)),
            Op::Write { .. } if self.read_only => return Err(IoError::ReadOnly),
            Op::Write { offset, data } => (*offset, data.len() as u64),
        };
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.info().bytes);
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if !inside || !whole || len > u64::from(Op::MAX_LEN) {
            return Err(IoError::OutOfRange { offset, len });
        }
        Ok(())
    }

    /// Does whatever has become possible.
    pub fn advance(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Lost {
            return;
        }
        self.retry_held(cx);
        self.advance_tables(cx);
        self.advance_commit(cx);
        self.advance_settling(cx);
        self.advance_close(cx);
    }

    /// Takes the answer to one of this disk's calls.
    pub fn on_answer(
        &mut self,
        job: DiskJob,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        if self.phase == Phase::Lost {
            return;
        }
        if let Err(why) = &answer
            && concerns_lease(&job, why)
        {
            return self.lose(&why.to_string(), cx);
        }
        match job {
            DiskJob::Read {
                op,
                layer,
                at,
                offset,
                len,
            } => {
                self.on_read(op, (layer, at, offset, len), answer, cx);
            }
            DiskJob::LoadBitmap { layer, block } => self.on_bitmap(layer, block, answer, cx),
            DiskJob::Write {
                purpose,
                offset,
                data,
            } => {
                self.on_written(purpose, offset, &data, answer, cx);
            }
            DiskJob::Commit => self.on_committed(answer, cx),
            DiskJob::Renew { sent_ns } => self.on_renewed(sent_ns, answer, cx),
            DiskJob::Take {
                expected_epoch,
                sent_ns,
            } => {
                self.on_taken(expected_epoch, sent_ns, answer, cx);
            }
            DiskJob::Fence {
                expected_epoch,
                sent_ns,
            } => {
                self.on_fenced(expected_epoch, sent_ns, answer, cx);
            }
            DiskJob::Release => self.on_released(answer, cx),
            DiskJob::Replace { .. } => {
                unreachable!("it concerns two disks, so it is not given to one")
            }
        }
        self.advance(cx);
    }

    /// Writes to the leaf's file. The range must not overlap one that is being written.
    fn write(
        &mut self,
        purpose: WritePurpose,
        offset: u64,
        data: Payload,
        cx: &mut Context<'_>,
    ) -> usize {
        let mut calls = 0;
        let mut at = 0;
        while at < data.len() {
            let len = (data.len() - at).min(self.limits.write as usize);
            let part = data.slice(at..at + len);
            self.write_one(purpose, offset + at as u64, part, cx);
            at += len;
            calls += 1;
        }
        calls
    }

    fn write_one(
        &mut self,
        purpose: WritePurpose,
        offset: u64,
        data: Payload,
        cx: &mut Context<'_>,
    ) {
        debug_assert!(!self.is_writing(offset, data.len() as u64));
        self.writing.insert(offset, data.len() as u64);
        self.writing_bytes += data.len();
        let call = Call::Write {
            file: self.layers[0].file,
            offset,
            data: data.clone(),
        };
        self.call(
            DiskJob::Write {
                purpose,
                offset,
                data,
            },
            call,
            cx,
        );
    }

    /// Whether a write in flight touches this range.
    fn is_writing(&self, offset: u64, len: u64) -> bool {
        let before = self.writing.range(..offset + len).next_back();
        before.is_some_and(|(at, length)| at + length > offset)
    }

    fn on_written(
        &mut self,
        purpose: WritePurpose,
        offset: u64,
        data: &Payload,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        self.writing.remove(&offset);
        self.writing_bytes -= data.len();
        let result = match answer {
            Ok(Reply::Written {
                count,
                stable,
                verifier,
            }) => {
                self.seq += 1;
                let count = count as usize;
                if stable {
                    self.uncommitted.remove(offset, count as u64);
                } else {
                    self.uncommitted
                        .insert(offset, data.slice(0..count), verifier, self.seq);
                }
                if count < data.len() {
                    let rest = data.slice(count..data.len());
                    return self.write_one(purpose, offset + count as u64, rest, cx);
                }
                Ok(())
            }
            Ok(_) => unreachable!("the reply to WRITE"),
            Err(why) => Err(server_error("a write", &why)),
        };
        match purpose {
            WritePurpose::Guest { op } => self.end_part(op, result, cx),
            WritePurpose::Placing => self.on_placed(result),
            WritePurpose::Entering => self.on_entered(result, cx),
            WritePurpose::Again => self.on_written_again(result, cx),
        }
    }

    fn call(&self, job: DiskJob, call: Call, cx: &mut Context<'_>) {
        cx.client.call(Tag::Disk(self.id, job), call, None);
    }

    /// The lease is not ours any more: everything fails, for good.
    fn lose(&mut self, why: &str, cx: &mut Context<'_>) {
        let was_closing = matches!(self.phase, Phase::Closing | Phase::Releasing);
        self.phase = Phase::Lost;
        self.lease = None;
        self.fence = Fence::None;
        let id = self.id;
        cx.client
            .forget(|tag| matches!(tag, Tag::Disk(disk, _) if *disk == id));
        let ops = core::mem::take(&mut self.ops).into_values().map(|op| op.id);
        let flushes = core::mem::take(&mut self.flushes)
            .into_iter()
            .map(|flush| flush.id);
        for id in ops.chain(flushes) {
            let result = Err(IoError::LeaseLost);
            cx.done.push_back(Completion::Io {
                disk: self.id,
                id,
                result,
            });
        }
        self.held.clear();
        if was_closing {
            cx.done.push_back(Completion::Closed {
                disk: id,
                result: Err(self.lost_error(why)),
            });
        } else {
            let why = why.to_string();
            cx.done.push_back(Completion::LeaseLost { disk: id, why });
        }
    }
}

/// Whether an answer says that the disk is no longer ours.
fn concerns_lease(job: &DiskJob, why: &CallError) -> bool {
    let on_leaf = match job {
        DiskJob::Read { layer, .. } | DiskJob::LoadBitmap { layer, .. } => *layer == 0,
        DiskJob::Write { .. } | DiskJob::Commit => true,
        DiskJob::Renew { .. } => return matches!(why, CallError::Lease(_)),
        DiskJob::Take { .. }
        | DiskJob::Fence { .. }
        | DiskJob::Replace { .. }
        | DiskJob::Release => false,
    };
    on_leaf
        && matches!(
            why,
            CallError::Nfs(Status::Stale | Status::BadHandle | Status::Acces)
        )
}

fn server_error(operation: &'static str, why: &CallError) -> IoError {
    IoError::Server {
        operation,
        reason: why.to_string(),
    }
}
