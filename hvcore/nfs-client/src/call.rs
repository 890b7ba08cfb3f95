//! The calls a host makes, and their replies.
//!
//! A call is kept in this form, and not as bytes, until it is answered: it may have to be sent again, and
//! the data of a WRITE shall not be held twice.

use alloc::{string::String, vec::Vec};

use nfs3::{
    Data, DirEntry, Encode, FileHandle, Name, Path, SetAttributes, Stability, Status,
    WriteVerifier,
    lease::{self, AcquireArgs, Mode, Owner, RenewArgs, ReplaceArgs, TakeArgs},
    mount, nfs,
    rpc::{self, Credentials, Procedure},
    xdr::padding,
};

use crate::{
    error::{CallError, LeaseRefusal},
    payload::Payload,
};

/// One call.
#[derive(Clone, Debug)]
pub enum Call {
    /// Ask whether the server is there.
    Null,
    /// Root handle of an export.
    Mount {
        /// Path of the export.
        path: String,
    },
    /// What the server can do.
    FsInfo {
        /// Root of the export.
        root: FileHandle,
    },
    /// Find a name.
    Lookup {
        /// Directory.
        dir: FileHandle,
        /// Name in it.
        name: String,
    },
    /// Size of a file.
    GetSize {
        /// The file.
        file: FileHandle,
    },
    /// Cut a file off, or lengthen it with zeros.
    SetSize {
        /// The file.
        file: FileHandle,
        /// Its new length.
        size: u64,
    },
    /// Read.
    Read {
        /// The file.
        file: FileHandle,
        /// First byte.
        offset: u64,
        /// How many.
        count: u32,
    },
    /// Write, to be committed later.
    Write {
        /// The file.
        file: FileHandle,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Payload,
    },
    /// Make all earlier writes of the file stable.
    Commit {
        /// The file.
        file: FileHandle,
    },
    /// Get a free lease.
    Acquire {
        /// Directory of the file.
        dir: FileHandle,
        /// Name of the file.
        name: String,
        /// For whom.
        owner: String,
        /// What it shall allow.
        mode: Mode,
        /// 0, or the epoch of our own lease to get anew.
        expected_epoch: u64,
        /// Time to live.
        ttl_ms: u32,
    },
    /// Take a lease over.
    Take {
        /// Directory of the file.
        dir: FileHandle,
        /// Name of the file.
        name: String,
        /// For whom.
        owner: String,
        /// The epoch it must have.
        expected_epoch: u64,
        /// Time to live.
        ttl_ms: u32,
    },
    /// Put another file in the place of one whose lease we have.
    Replace {
        /// Handle of the lease.
        object: FileHandle,
        /// Directory of both files.
        dir: FileHandle,
        /// Name of the file.
        name: String,
        /// Name of the other one until then.
        successor: String,
        /// Another name of the file, which it keeps.
        kept: String,
        /// For whom.
        owner: String,
        /// Time to live.
        ttl_ms: u32,
    },
    /// Prolong a lease.
    Renew {
        /// Handle of the lease.
        object: FileHandle,
        /// Time to live.
        ttl_ms: u32,
    },
    /// Give a lease back.
    Release {
        /// Handle of the lease.
        object: FileHandle,
    },
}

/// Answer to a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of NULL, SETATTR and RELEASE.
    Done,
    /// Of MOUNT and LOOKUP: the handle.
    Handle(FileHandle),
    /// Of FSINFO: most bytes of a READ and of a WRITE.
    Limits {
        /// READ.
        read: u32,
        /// WRITE.
        write: u32,
    },
    /// Of GETATTR: bytes of the file.
    Size(u64),
    /// Of READ.
    Data {
        /// The bytes, in the record they came in; at most as many as were asked for.
        bytes: Payload,
        /// The end of the file was reached.
        eof: bool,
    },
    /// Of WRITE.
    Written {
        /// Bytes written; at least one, at most as many as were given.
        count: u32,
        /// They are on stable storage already.
        stable: bool,
        /// Of the server's instance.
        verifier: WriteVerifier,
    },
    /// Of COMMIT.
    Committed {
        /// Of the server's instance.
        verifier: WriteVerifier,
    },
    /// Of ACQUIRE, TAKE and REPLACE.
    Granted {
        /// Epoch of the lease.
        epoch: u64,
        /// The file, by a handle that carries the epoch.
        object: FileHandle,
    },
    /// Of RENEW.
    Renewed,
}

/// A call on its way: its bytes but for the data of a WRITE, which is sent out of the buffer it is in.
#[derive(Debug)]
pub(crate) struct Message {
    pub head: Vec<u8>,
    pub data: Option<Payload>,
    pub padding: usize,
}

impl Call {
    /// Leases must not wait behind bulk data.
    pub(crate) fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::Null
                | Self::Acquire { .. }
                | Self::Take { .. }
                | Self::Replace { .. }
                | Self::Renew { .. }
                | Self::Release { .. }
        )
    }

    /// Bytes of data that it moves, for the window.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Read { count, .. } => *count as usize,
            Self::Write { data, .. } => data.len(),
            _ => 0,
        }
    }

    pub(crate) fn replace_handle(&mut self, old: FileHandle, new: FileHandle) {
        let (Self::GetSize { file }
        | Self::SetSize { file, .. }
        | Self::Read { file, .. }
        | Self::Write { file, .. }
        | Self::Commit { file }
        | Self::Renew { object: file, .. }
        | Self::Replace { object: file, .. }
        | Self::Release { object: file }) = self
        else {
            return;
        };
        if *file == old {
            *file = new;
        }
    }

    pub(crate) fn encode(&self, xid: u32, as_whom: &Credentials<'_>) -> Message {
        fn small<P: Procedure>(xid: u32, as_whom: &Credentials<'_>, args: &P::Args<'_>) -> Message {
            Message {
                head: rpc::call::<P>(xid, as_whom, args),
                data: None,
                padding: 0,
            }
        }
        match self {
            Self::Null => small::<nfs::Null>(xid, as_whom, &()),
            Self::Mount { path } => small::<mount::Mount>(xid, as_whom, &Path(path.as_bytes())),
            Self::FsInfo { root } => small::<nfs::FsInfo>(xid, as_whom, root),
            Self::Lookup { dir, name } => small::<nfs::Lookup>(xid, as_whom, &entry(dir, name)),
            Self::GetSize { file } => small::<nfs::GetAttr>(xid, as_whom, file),
            Self::SetSize { file, size } => small::<nfs::SetAttr>(
                xid,
                as_whom,
                &nfs::SetAttrArgs {
                    object: *file,
                    attributes: SetAttributes {
                        size: Some(*size),
                        ..Default::default()
                    },
                    guard: None,
                },
            ),
            Self::Read {
                file,
                offset,
                count,
            } => small::<nfs::Read>(
                xid,
                as_whom,
                &nfs::ReadArgs {
                    file: *file,
                    offset: *offset,
                    count: *count,
                },
            ),
            Self::Write { file, offset, data } => encode_write(xid, as_whom, file, *offset, data),
            Self::Commit { file } => small::<nfs::Commit>(
                xid,
                as_whom,
                &nfs::CommitArgs {
                    file: *file,
                    offset: 0,
                    count: 0,
                },
            ),
            Self::Acquire {
                dir,
                name,
                owner,
                mode,
                expected_epoch,
                ttl_ms,
            } => small::<lease::Acquire>(
                xid,
                as_whom,
                &AcquireArgs {
                    file: entry(dir, name),
                    owner: Owner(owner.as_bytes()),
                    mode: *mode,
                    expected_epoch: *expected_epoch,
                    ttl_ms: *ttl_ms,
                },
            ),
            Self::Take {
                dir,
                name,
                owner,
                expected_epoch,
                ttl_ms,
            } => small::<lease::Take>(
                xid,
                as_whom,
                &TakeArgs {
                    file: entry(dir, name),
                    owner: Owner(owner.as_bytes()),
                    expected_epoch: *expected_epoch,
                    ttl_ms: *ttl_ms,
                },
            ),
            Self::Replace {
                object,
                dir,
                name,
                successor,
                kept,
                owner,
                ttl_ms,
            } => small::<lease::Replace>(
                xid,
                as_whom,
                &ReplaceArgs {
                    object: *object,
                    file: entry(dir, name),
                    successor: Name(successor.as_bytes()),
                    kept: Name(kept.as_bytes()),
                    owner: Owner(owner.as_bytes()),
                    ttl_ms: *ttl_ms,
                },
            ),
            Self::Renew { object, ttl_ms } => small::<lease::Renew>(
                xid,
                as_whom,
                &RenewArgs {
                    object: *object,
                    ttl_ms: *ttl_ms,
                },
            ),
            Self::Release { object } => small::<lease::Release>(xid, as_whom, object),
        }
    }

    /// Reads the reply to this call.
    pub(crate) fn decode(&self, record: Vec<u8>) -> Result<Reply, CallError> {
        let reply = rpc::Reply::parse(&record)?;
        match self {
            Self::Null => Ok(reply.results::<nfs::Null>().map(|()| Reply::Done)?),
            Self::Mount { .. } => match reply.results::<mount::Mount>()?.0 {
                Ok(mounted) => Ok(Reply::Handle(mounted.root)),
                Err(status) => Err(CallError::Mount(status)),
            },
            Self::FsInfo { .. } => {
                let info = reply.results::<nfs::FsInfo>()?.map_err(status)?;
                Ok(Reply::Limits {
                    read: info.read_max,
                    write: info.write_max,
                })
            }
            Self::Lookup { .. } => {
                let found = reply.results::<nfs::Lookup>()?.map_err(status)?;
                Ok(Reply::Handle(found.object))
            }
            Self::GetSize { .. } => {
                let attributes = reply.results::<nfs::GetAttr>()?.map_err(status)?;
                Ok(Reply::Size(attributes.size))
            }
            Self::SetSize { .. } => {
                reply.results::<nfs::SetAttr>()?.map_err(status)?;
                Ok(Reply::Done)
            }
            Self::Read { count, .. } => {
                let read = reply.results::<nfs::Read>()?.map_err(status)?;
                let (len, eof) = (read.data.0.len(), read.eof);
                let no_progress = len == 0 && !eof && *count > 0;
                if read.count as usize != len || len > *count as usize || no_progress {
                    return Err(out_of_range("count of READ", read.count));
                }
                // The data is the last of the results, followed only by its padding.
                let end = record.len() - padding(len);
                let bytes = Payload::from(record).slice(end - len..end);
                Ok(Reply::Data { bytes, eof })
            }
            Self::Write { data, .. } => {
                let written = reply.results::<nfs::Write>()?.map_err(status)?;
                if written.count as usize > data.len() || written.count == 0 && !data.is_empty() {
                    return Err(out_of_range("count of WRITE", written.count));
                }
                Ok(Reply::Written {
                    count: written.count,
                    stable: written.committed != Stability::Unstable,
                    verifier: written.verifier,
                })
            }
            Self::Commit { .. } => {
                let committed = reply.results::<nfs::Commit>()?.map_err(status)?;
                Ok(Reply::Committed {
                    verifier: committed.verifier,
                })
            }
            Self::Acquire { .. } => granted(reply.results::<lease::Acquire>()?),
            Self::Take { .. } => granted(reply.results::<lease::Take>()?),
            Self::Replace { .. } => granted(reply.results::<lease::Replace>()?),
            Self::Renew { .. } => match reply.results::<lease::Renew>()?.0 {
                Ok(_) => Ok(Reply::Renewed),
                Err(refused) => Err(refusal(refused)),
            },
            Self::Release { .. } => match reply.results::<lease::Release>()?.0 {
                Ok(_) => Ok(Reply::Done),
                Err(refused) => Err(refusal(refused)),
            },
        }
    }
}

fn entry<'a>(dir: &FileHandle, name: &'a str) -> DirEntry<'a> {
    DirEntry {
        dir: *dir,
        name: Name(name.as_bytes()),
    }
}

/// The head is a WRITE of no data whose lengths are then made right; opaque data is the last argument, so
/// what is missing simply follows.
fn encode_write(
    xid: u32,
    as_whom: &Credentials<'_>,
    file: &FileHandle,
    offset: u64,
    data: &Payload,
) -> Message {
    let count = u32::try_from(data.len()).expect("a WRITE is no longer than the server's limit");
    let mut head = rpc::call::<nfs::Write>(
        xid,
        as_whom,
        &nfs::WriteArgs {
            file: *file,
            offset,
            count,
            stable: Stability::Unstable,
            data: Data(&[]),
        },
    );
    head.truncate(head.len() - 4);
    count.encode(&mut head);
    let padding = padding(data.len());
    let (mark, _) = head
        .split_first_chunk_mut::<4>()
        .expect("a record begins with its mark");
    // The mark counts what follows it; bit 31 (last fragment) is kept.
    *mark = (u32::from_be_bytes(*mark) + count + padding as u32).to_be_bytes();
    Message {
        head,
        data: Some(data.clone()),
        padding,
    }
}

fn status<F>(failure: nfs3::Failure<F>) -> CallError {
    CallError::Nfs(failure.status)
}

fn out_of_range(what: &'static str, value: u32) -> CallError {
    nfs3::Malformed::BadValue { what, value }.into()
}

fn granted(result: lease::LeaseResult<'_, lease::Grant<'_>>) -> Result<Reply, CallError> {
    match result.0 {
        Ok(grant) => Ok(Reply::Granted {
            epoch: grant.holding.epoch,
            object: grant.object,
        }),
        Err(refused) => Err(refusal(refused)),
    }
}

fn refusal(refused: lease::Refused<'_>) -> CallError {
    CallError::Lease(LeaseRefusal {
        status: refused.status,
        epoch: refused.holding.epoch,
        owner: String::from_utf8_lossy(refused.holding.owner.0).into_owned(),
        remaining_ms: refused.holding.remaining_ms,
    })
}

/// Whether the server asks to try again later.
pub(crate) fn is_try_later(error: &CallError) -> bool {
    matches!(error, CallError::Nfs(Status::Jukebox))
}
