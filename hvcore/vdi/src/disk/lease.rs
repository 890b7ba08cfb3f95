//! The disk's lease: renewing it, taking it over, giving it back.

use alloc::{borrow::ToOwned, string::ToString};

use nfs_client::{Call, CallError, LeaseRefusal, Reply};
use nfs3::lease::LeaseStatus;

use super::{Context, Disk, Phase};
use crate::{
    error::{IoError, StorageError},
    opening::lease_error,
    request::Completion,
    tag::{DiskJob, Tag},
};

const NS_PER_MS: u64 = 1_000_000;

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
}

impl Disk {
    pub fn lease_epoch(&self) -> Option<u64> {
        self.lease.as_ref().map(|lease| lease.epoch)
    }

    pub fn lease_expires_ns(&self) -> Option<u64> {
        self.lease.as_ref().map(|lease| lease.expires_ns)
    }

    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.lease.as_ref()?.renew_at_ns
    }

    pub fn on_time(&mut self, cx: &mut Context<'_>) {
        let Some(lease) = &mut self.lease else { return };
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
        cx.client.forget(|tag| {
            matches!(tag, Tag::Disk(disk, DiskJob::Commit | DiskJob::Renew { .. }) if *disk == id)
        });
        self.leave_commit();
        if let Some(lease) = &mut self.lease {
            lease.renew_at_ns = None;
        }
        let call = Call::Take {
            dir: self.dir,
            name: self.name.clone(),
            owner: self.owner.clone(),
            expected_epoch,
            ttl_ms: self.ttl_ms,
        };
        self.call(
            DiskJob::Take {
                expected_epoch,
                sent_ns: cx.now_ns,
            },
            call,
            cx,
        );
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
        match &mut self.lease {
            Some(lease) => {
                lease.renew_at_ns = None;
                let call = Call::Release {
                    object: self.layers[0].file,
                };
                self.call(DiskJob::Release, call, cx);
            }
            None => self.finish_close(Ok(()), cx),
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
