//! The disk's lease: renewing it, taking it over, giving it back.
//!
//! Also the fence after a lost connection. A write that was under way on it may still reach the server, long after
//! it was repeated on the next connection, and then undo a later write to the same place. So before
//! anything is repeated we take the lease from ourselves: the new handle carries a new epoch, and what comes late
//! under the old one is refused. (The server's duplicate request cache cannot help: it does not cover writes.)

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
};

use nfs_client::{Call, CallError, LeaseRefusal, Reply};
use nfs3::lease::{LeaseStatus, Mode};

use super::{Context, Disk, Phase};
use crate::{
    error::{IoError, StorageError},
    opening::lease_error,
    request::Completion,
    tag::{DiskJob, Tag},
};

const NS_PER_MS: u64 = 1_000_000;

/// A pause before the server is asked again for what it could not do.
const RETRY_NS: u64 = 200 * NS_PER_MS;

/// Whether the lease is being taken from ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fence {
    #[default]
    None,
    Asked,
    /// It failed; to be tried again then.
    Again {
        at_ns: u64,
    },
}

/// A lease that we hold.
#[derive(Debug)]
pub(super) struct Lease {
    pub epoch: u64,
    /// It lasts until then at least. It counts from when it was asked for: the server cannot have
    /// counted from earlier.
    expires_ns: u64,
    /// None while a renewal is under way.
    renew_at_ns: Option<u64>,
}

impl Lease {
    pub fn new(epoch: u64, sent_ns: u64, ttl_ms: u32) -> Self {
        let ttl_ns = u64::from(ttl_ms) * NS_PER_MS;
        Self {
            epoch,
            expires_ns: sent_ns + ttl_ns,
            renew_at_ns: Some(sent_ns + ttl_ns / 3),
        }
    }

    pub fn renew_soon(&mut self, now_ns: u64) {
        self.renew_at_ns = Some(now_ns);
    }
}

impl Disk {
    pub fn lease_epoch(&self) -> Option<u64> {
        self.lease.as_ref().map(|lease| lease.epoch)
    }

    pub fn lease_expires_ns(&self) -> Option<u64> {
        self.lease.as_ref().map(|lease| lease.expires_ns)
    }

    pub fn next_deadline_ns(&self) -> Option<u64> {
        match self.fence {
            Fence::Again { at_ns } => Some(at_ns),
            Fence::None | Fence::Asked => self.lease.as_ref()?.renew_at_ns,
        }
    }

    /// There is a new connection.
    pub fn on_connected(&mut self, cx: &mut Context<'_>) {
        if self.fence == Fence::None && !self.writing.is_empty() {
            self.ask_for_fence(cx);
        }
    }

    /// While this is so, nothing but calls of the LEASE program may be sent.
    pub fn is_fencing(&self) -> bool {
        self.fence != Fence::None
    }

    fn ask_for_fence(&mut self, cx: &mut Context<'_>) {
        let Some(expected_epoch) = self.lease_epoch() else {
            return;
        };
        self.fence = Fence::Asked;
        self.stop_renewing(cx);
        let job = DiskJob::Fence {
            expected_epoch,
            sent_ns: cx.now_ns,
        };
        self.call(job, self.take_call(expected_epoch), cx);
    }

    /// A renewal under the old handle would be refused once the lease is taken.
    pub(super) fn stop_renewing(&mut self, cx: &mut Context<'_>) {
        let id = self.id;
        cx.client
            .forget(|tag| matches!(tag, Tag::Disk(disk, DiskJob::Renew { .. }) if *disk == id));
        if let Some(lease) = &mut self.lease {
            lease.renew_at_ns = None;
        }
    }

    fn take_call(&self, expected_epoch: u64) -> Call {
        Call::Take {
            dir: self.dir,
            name: self.name.clone(),
            owner: self.owner.clone(),
            expected_epoch,
            ttl_ms: self.ttl_ms,
        }
    }

    pub(super) fn on_fenced(
        &mut self,
        expected: u64,
        sent_ns: u64,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        self.fence = Fence::None;
        match answer {
            Ok(Reply::Granted { epoch, object }) => {
                cx.client.replace_handle(self.layers[0].file, object);
                self.layers[0].file = object;
                self.lease = Some(Lease::new(epoch, sent_ns, self.ttl_ms));
            }
            Ok(_) => unreachable!("the reply to TAKE"),
            Err(CallError::Lease(LeaseRefusal {
                status: LeaseStatus::Stale,
                epoch,
                owner,
                ..
            })) => {
                let path = self.path.clone();
                let why = StorageError::Stale {
                    path,
                    holder: owner,
                    epoch,
                    expected,
                };
                self.lose(&why.to_string(), cx);
            }
            Err(_) => {
                self.fence = Fence::Again {
                    at_ns: cx.now_ns + RETRY_NS,
                }
            }
        }
    }

    pub fn on_time(&mut self, cx: &mut Context<'_>) {
        if let Fence::Again { at_ns } = self.fence {
            if at_ns <= cx.now_ns {
                self.ask_for_fence(cx);
            }
            return;
        }
        let Some(lease) = &mut self.lease else {
            return;
        };
        if lease.renew_at_ns.is_some_and(|at| at <= cx.now_ns) {
            lease.renew_at_ns = None;
            let call = Call::Renew {
                object: self.layers[0].file,
                ttl_ms: self.ttl_ms,
            };
            self.call(DiskJob::Renew { sent_ns: cx.now_ns }, call, cx);
        }
    }

    pub(super) fn on_renewed(
        &mut self,
        sent_ns: u64,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        let Some(lease) = &mut self.lease else { return };
        *lease = match answer {
            Ok(_) => Lease::new(lease.epoch, sent_ns, self.ttl_ms),
            // Not a refusal of the lease: ask again in a while.
            Err(_) => Lease {
                renew_at_ns: Some(cx.now_ns + u64::from(self.ttl_ms) * NS_PER_MS / 3),
                ..*lease
            },
        };
    }

    pub fn take_lease(&mut self, expected_epoch: u64, cx: &mut Context<'_>) {
        let ready = match self.phase {
            Phase::Prepared { restored } => restored,
            Phase::Open => self.is_drained() && !self.read_only,
            Phase::Closing | Phase::Releasing | Phase::Lost => false,
        };
        if !ready {
            let path = self.path.clone();
            let reason = "its lease cannot be taken now: restore or drain it first";
            let result = Err(StorageError::Unusable { path, reason });
            cx.done.push_back(Completion::Taken {
                disk: self.id,
                result,
            });
            return;
        }
        // What the old handle is still used for would be refused after the take-over.
        let id = self.id;
        cx.client
            .forget(|tag| matches!(tag, Tag::Disk(disk, DiskJob::Commit) if *disk == id));
        self.leave_commit();
        self.stop_renewing(cx);
        let job = DiskJob::Take {
            expected_epoch,
            sent_ns: cx.now_ns,
        };
        let call = match expected_epoch {
            // There is nothing to take over; whether it is the first lease, the answer tells.
            0 => Call::Acquire {
                dir: self.dir,
                name: self.name.clone(),
                owner: self.owner.clone(),
                mode: Mode::Exclusive,
                expected_epoch,
                ttl_ms: self.ttl_ms,
            },
            _ => self.take_call(expected_epoch),
        };
        self.call(job, call, cx);
    }

    pub(super) fn on_taken(
        &mut self,
        expected: u64,
        sent_ns: u64,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        let path = self.path.clone();
        let result = match answer {
            Ok(Reply::Granted { epoch, object }) if expected == 0 && epoch != 1 => {
                cx.client.call(Tag::Nobody, Call::Release { object }, None);
                Err(StorageError::Stale {
                    path,
                    holder: String::new(),
                    epoch: epoch - 1,
                    expected,
                })
            }
            Ok(Reply::Granted { epoch, object }) => {
                self.layers[0].file = object;
                self.lease = Some(Lease::new(epoch, sent_ns, self.ttl_ms));
                self.phase = Phase::Open;
                Ok(epoch)
            }
            Ok(_) => unreachable!("the reply to TAKE"),
            Err(CallError::Lease(LeaseRefusal {
                status: LeaseStatus::Stale,
                epoch,
                owner,
                ..
            })) => {
                if self.phase == Phase::Open {
                    let why = StorageError::Stale {
                        path,
                        holder: owner,
                        epoch,
                        expected,
                    };
                    cx.done.push_back(Completion::Taken {
                        disk: self.id,
                        result: Err(why.clone()),
                    });
                    return self.lose(&why.to_string(), cx);
                }
                Err(StorageError::Stale {
                    path,
                    holder: owner,
                    epoch,
                    expected,
                })
            }
            Err(why) => Err(lease_error(&path, &why)),
        };
        if result.is_err()
            && let Some(lease) = &mut self.lease
        {
            lease.renew_at_ns = Some(cx.now_ns);
        }
        cx.done.push_back(Completion::Taken {
            disk: self.id,
            result,
        });
    }

    pub fn close(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Closing;
                self.commit.want();
                self.advance(cx);
            }
            Phase::Prepared { .. } | Phase::Lost => {
                let result = match self.phase {
                    Phase::Lost => Err(self.lost_error("it was lost before")),
                    _ => Ok(()),
                };
                cx.done.push_back(Completion::Closed {
                    disk: self.id,
                    result,
                });
            }
            Phase::Closing | Phase::Releasing => {}
        }
    }

    /// A commit has ended; if it was the one before closing, the lease goes back whatever came of it.
    pub(super) fn after_last_commit(&mut self, result: Result<(), IoError>) {
        if self.phase == Phase::Closing
            && let Err(why) = result
        {
            self.close_error.get_or_insert(why);
        }
    }

    pub(super) fn advance_close(&mut self, cx: &mut Context<'_>) {
        let finished =
            self.close_error.is_some() || self.uncommitted.is_empty() && self.tables.is_written();
        if self.phase != Phase::Closing || self.in_flight() > 0 || !self.commit.is_idle() {
            return;
        }
        if !finished {
            self.commit.want();
            return self.advance_commit(cx);
        }
        self.phase = Phase::Releasing;
        self.stop_renewing(cx);
        // A shared lease is that of all readers together; the last one's time runs out.
        if self.lease.is_some() && !self.read_only {
            let call = Call::Release {
                object: self.layers[0].file,
            };
            self.call(DiskJob::Release, call, cx);
        } else {
            self.finish_close(Ok(()), cx);
        }
    }

    pub(super) fn on_released(&mut self, answer: Result<Reply, CallError>, cx: &mut Context<'_>) {
        let result = answer
            .map(|_| ())
            .map_err(|why| lease_error(&self.path, &why));
        self.finish_close(result, cx);
    }

    fn finish_close(&mut self, result: Result<(), StorageError>, cx: &mut Context<'_>) {
        let result = match self.close_error.take() {
            Some(why) => Err(StorageError::Refused {
                path: self.path.clone(),
                operation: "the last writes",
                reason: why.to_string(),
            }),
            None => result,
        };
        cx.done.push_back(Completion::Closed {
            disk: self.id,
            result,
        });
    }

    pub(super) fn lost_error(&self, why: &str) -> StorageError {
        StorageError::Refused {
            path: self.path.clone(),
            operation: "the lease",
            reason: why.to_owned(),
        }
    }
}
