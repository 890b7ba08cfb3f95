//! Opening a disk: walk to the file, take its lease, read the VHD's tables, and those of its parents.

use alloc::{
    borrow::ToOwned,
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};

use nfs_client::{Call, CallError, LeaseRefusal, Reply};
use nfs3::{
    FileHandle, Status,
    lease::{LeaseStatus, Mode},
};
use vhd::{DiskKind, Footer, Header, MAX_CHAIN, SECTOR, Tables};

use crate::{
    error::StorageError,
    gather::{Gather, Gathered, Part},
    layer::Layer,
    storage::StorageConfig,
    tag::OpenJob,
    walk::{Limits, Next, Walk, refused},
};

/// Read at once from the start of a file: footer, header, and the BAT of a disk up to 31 GiB.
const HEAD: u64 = 64 << 10;
/// Largest BAT: that of the largest disk with blocks of 1 MiB.
const MAX_BAT: u64 = 8 << 20;
const HEADER_LEN: usize = 1024;
/// A chain that is merged while it is opened is looked up again so often.
const MAX_RESTARTS: u8 = 4;

/// What the disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To read and write it.
    Own,
    /// To read it among others.
    Share,
    /// To take it over from its owner later.
    Prepare,
}

/// A lease that was granted while opening.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    pub epoch: u64,
    pub object: FileHandle,
    pub sent_ns: u64,
}

/// An opened disk.
#[derive(Debug)]
pub(crate) struct Opened {
    pub path: String,
    pub name: String,
    pub dir: FileHandle,
    pub purpose: Purpose,
    pub limits: Limits,
    /// The disk first, then its ancestors.
    pub layers: Vec<Layer>,
    pub lease: Option<Granted>,
    /// The file does not end with its footer: it was cut there, and the footer is to be written.
    pub footer_missing: bool,
}

/// A disk being opened.
#[derive(Debug)]
pub(crate) struct Opening {
    walk: Walk,
    purpose: Purpose,
    owner: String,
    ttl_ms: u32,
    stage: Stage,
    dir: Option<FileHandle>,
    limits: Option<Limits>,
    lease: Option<Granted>,
    footer_missing: bool,
    layers: Vec<Layer>,
    restarts: u8,
    now_ns: u64,
}

#[derive(Debug)]
enum Stage {
    Walk,
    Acquire,
    /// Looking up an ancestor.
    Parent,
    Size {
        file: FileHandle,
    },
    Head {
        file: FileHandle,
        size: u64,
        gather: Gather,
    },
    Tail {
        file: FileHandle,
        size: u64,
        head: Vec<u8>,
        gather: Gather,
    },
    Header {
        file: FileHandle,
        size: u64,
        head: Vec<u8>,
        footer: Footer,
        gather: Gather,
    },
    Bat {
        file: FileHandle,
        size: u64,
        footer: Footer,
        header: Header,
        gather: Gather,
    },
    /// Cutting off what lies behind the last block.
    Cut,
}

/// What follows an answer.
pub(crate) enum Step {
    /// Make these calls.
    Calls(Vec<(OpenJob, Call)>),
    /// Done.
    Opened(Box<Opened>),
}

fn one(call: Call) -> Step {
    Step::Calls([(OpenJob::Step, call)].into())
}

impl Opening {
    pub fn start(
        config: &StorageConfig,
        path: &str,
        purpose: Purpose,
    ) -> Result<(Self, Call), StorageError> {
        let (walk, call) = Walk::start(&config.export, path)?;
        let opening = Self {
            walk,
            purpose,
            owner: config.owner.clone(),
            ttl_ms: config.lease_ttl_ms,
            stage: Stage::Walk,
            dir: None,
            limits: None,
            lease: None,
            footer_missing: false,
            layers: Vec::new(),
            restarts: 0,
            now_ns: 0,
        };
        Ok((opening, call))
    }

    pub fn path(&self) -> &str {
        self.walk.path()
    }

    /// Handle of the lease that is to be released if opening fails.
    pub fn leased(&self) -> Option<FileHandle> {
        self.lease.map(|lease| lease.object)
    }

    /// Takes an answer, to the call that `job` was for.
    pub fn advance(
        &mut self,
        job: OpenJob,
        answer: Result<Reply, CallError>,
        now_ns: u64,
    ) -> Result<Step, StorageError> {
        self.now_ns = now_ns;
        match self.stage {
            Stage::Walk => {
                return match self.walk.advance(answer)? {
                    Next::Call(call) => Ok(one(call)),
                    Next::Found(found) => {
                        self.dir = Some(found.dir);
                        self.limits = Some(found.limits);
                        match self.purpose {
                            Purpose::Prepare => Ok(self.ask_size(found.file)),
                            Purpose::Own | Purpose::Share => Ok(self.acquire(0)),
                        }
                    }
                };
            }
            Stage::Acquire => return self.on_acquired(job, answer),
            // Merged with its child since that was looked up; the names from the leaf on lead to what there is now.
            Stage::Parent
                if matches!(answer, Err(CallError::Nfs(Status::NoEnt)))
                    && self.layers.len() > 1
                    && self.restarts < MAX_RESTARTS =>
            {
                self.restarts += 1;
                self.layers.truncate(1);
                return Ok(self.look_up_parent());
            }
            _ => {}
        }
        let reply = answer.map_err(|why| refused(self.path(), "a read of its tables", &why))?;
        match (reply, job) {
            (Reply::Handle(parent), _) => Ok(self.ask_size(parent)),
            (Reply::Size(size), _) => self.on_size(size),
            (Reply::Data { bytes, eof }, OpenJob::Read(part)) => {
                self.on_data(part, bytes.as_slice(), eof)
            }
            (Reply::Done, _) => Ok(self.finish()),
            _ => unreachable!("a reply is decoded as that of its call"),
        }
    }

    fn acquire(&mut self, expected_epoch: u64) -> Step {
        self.stage = Stage::Acquire;
        let call = Call::Acquire {
            dir: self.dir.expect("known since the walk"),
            name: self.walk.name().to_owned(),
            owner: self.owner.clone(),
            mode: if self.purpose == Purpose::Own {
                Mode::Exclusive
            } else {
                Mode::Shared
            },
            expected_epoch,
            ttl_ms: self.ttl_ms,
        };
        // A lease counts from when it was asked for.
        Step::Calls(
            [(
                OpenJob::Acquire {
                    sent_ns: self.now_ns,
                },
                call,
            )]
            .into(),
        )
    }

    fn on_acquired(
        &mut self,
        job: OpenJob,
        answer: Result<Reply, CallError>,
    ) -> Result<Step, StorageError> {
        match answer {
            Ok(Reply::Granted { epoch, object }) => {
                let OpenJob::Acquire { sent_ns } = job else {
                    unreachable!("the job of ACQUIRE")
                };
                self.lease = Some(Granted {
                    epoch,
                    object,
                    sent_ns,
                });
                Ok(self.ask_size(object))
            }
            Ok(_) => unreachable!("the reply to ACQUIRE"),
            // Our own lease of before a reboot: whatever ran under it is gone, and its handles become stale.
            Err(CallError::Lease(LeaseRefusal {
                status: LeaseStatus::Held,
                epoch,
                owner,
                ..
            })) if owner == self.owner && self.purpose == Purpose::Own => Ok(self.acquire(epoch)),
            Err(why) => Err(lease_error(self.path(), &why)),
        }
    }

    fn ask_size(&mut self, file: FileHandle) -> Step {
        self.stage = Stage::Size { file };
        one(Call::GetSize { file })
    }

    fn on_size(&mut self, size: u64) -> Result<Step, StorageError> {
        let Stage::Size { file } = self.stage else {
            unreachable!("the stage of GETATTR")
        };
        if size < SECTOR {
            return Err(self.bad("it is too short"));
        }
        let (gather, calls) = self.gather(file, 0, size.min(HEAD) as usize);
        self.stage = Stage::Head {
            file,
            size,
            gather: gather.padded(),
        };
        Ok(calls)
    }

    fn gather(&self, file: FileHandle, offset: u64, len: usize) -> (Gather, Step) {
        let chunk = self.limits.expect("known since the walk").read;
        let (gather, parts) = Gather::start(offset, len, chunk);
        let calls = parts.into_iter().map(|part| read(file, part)).collect();
        (gather, Step::Calls(calls))
    }

    fn on_data(&mut self, part: Part, bytes: &[u8], eof: bool) -> Result<Step, StorageError> {
        let (file, gather) = match &mut self.stage {
            Stage::Head { file, gather, .. }
            | Stage::Tail { file, gather, .. }
            | Stage::Header { file, gather, .. }
            | Stage::Bat { file, gather, .. } => (*file, gather),
            _ => unreachable!("READs are made in these stages"),
        };
        let all = match gather.take(part, bytes, eof) {
            Gathered::More(part) => return Ok(Step::Calls([read(file, part)].into())),
            Gathered::Wait => return Ok(Step::Calls(Vec::new())),
            Gathered::All(all) => all,
            Gathered::EndOfFile => return Err(self.bad("it is cut off")),
        };
        match core::mem::replace(&mut self.stage, Stage::Walk) {
            Stage::Head { file, size, .. } => {
                let (gather, calls) = self.gather(file, size - SECTOR, SECTOR as usize);
                // The owner of a disk that is prepared goes on, and its server may lose the end of the file.
                self.stage = Stage::Tail {
                    file,
                    size,
                    head: all,
                    gather: gather.padded(),
                };
                Ok(calls)
            }
            Stage::Tail {
                file, size, head, ..
            } => self.on_footers(file, size, head, &all),
            Stage::Header {
                file,
                size,
                head,
                footer,
                ..
            } => self.on_header(file, size, &head, footer, &all),
            Stage::Bat {
                file,
                size,
                footer,
                header,
                ..
            } => self.on_bat(file, size, footer, header, &all),
            _ => unreachable!("READs are made in these stages"),
        }
    }

    /// The footer at the end counts; a crash may have cost it, then its copy at the start does.
    fn on_footers(
        &mut self,
        file: FileHandle,
        size: u64,
        head: Vec<u8>,
        tail: &[u8],
    ) -> Result<Step, StorageError> {
        let at_end = Footer::parse(tail);
        let footer = match at_end.clone().or_else(|_| Footer::parse(&head)) {
            Ok(footer) => footer,
            Err(_) => {
                return Err(self.bad(&at_end.expect_err("else there is a footer").to_string()));
            }
        };
        let header_at = match (footer.kind, footer.header_offset) {
            (DiskKind::Fixed, _) => {
                if size < footer.size + SECTOR {
                    return Err(self.bad("it is shorter than its footer says"));
                }
                return self.on_layer(file, size, vhd::Disk::fixed(footer));
            }
            (_, Some(at)) => at,
            (_, None) => return Err(self.bad("its footer does not say where its header is")),
        };
        if at_end.is_err() && self.layers.is_empty() {
            self.footer_missing = true;
        }
        match piece(&head, header_at, HEADER_LEN) {
            Some(bytes) => {
                let bytes = bytes.to_vec();
                self.on_header(file, size, &head, footer, &bytes)
            }
            None => {
                let (gather, calls) = self.gather(file, header_at, HEADER_LEN);
                self.stage = Stage::Header {
                    file,
                    size,
                    head,
                    footer,
                    gather,
                };
                Ok(calls)
            }
        }
    }

    fn on_header(
        &mut self,
        file: FileHandle,
        size: u64,
        head: &[u8],
        footer: Footer,
        bytes: &[u8],
    ) -> Result<Step, StorageError> {
        let header = Header::parse(bytes).map_err(|why| self.bad(&why.to_string()))?;
        let bat = u64::from(header.bat_entries) * 4;
        if bat > MAX_BAT || bat == 0 {
            return Err(self.bad(&format!("a BAT of {bat} bytes is not supported")));
        }
        // The file may end behind the BAT, if it has no batmap. If it ends before, reading tells.
        let len = Tables::size(&header)
            .min(size.saturating_sub(header.bat_offset))
            .max(bat);
        match piece(head, header.bat_offset, len as usize) {
            Some(bat) => {
                let bat = bat.to_vec();
                self.on_bat(file, size, footer, header, &bat)
            }
            None => {
                let (gather, calls) = self.gather(file, header.bat_offset, len as usize);
                self.stage = Stage::Bat {
                    file,
                    size,
                    footer,
                    header,
                    gather,
                };
                Ok(calls)
            }
        }
    }

    fn on_bat(
        &mut self,
        file: FileHandle,
        size: u64,
        footer: Footer,
        header: Header,
        bytes: &[u8],
    ) -> Result<Step, StorageError> {
        let disk = Tables::parse(bytes, &header)
            .and_then(|tables| vhd::Disk::sparse(footer, header, tables))
            .map_err(|why| self.bad(&why.to_string()))?;
        self.on_layer(file, size, disk)
    }

    fn on_layer(
        &mut self,
        file: FileHandle,
        size: u64,
        disk: vhd::Disk,
    ) -> Result<Step, StorageError> {
        if let Some(child) = self.layers.last() {
            let expected = child.disk.header().map(|header| header.parent);
            let found = disk.footer().uuid;
            // One with the child's own identity holds what the child does, and is about to take its name.
            if expected != Some(found) && child.disk.footer().uuid != found {
                return Err(self.bad("its parent is not the disk that it was made from"));
            }
        }
        let parent = (disk.footer().kind == DiskKind::Differencing)
            .then(|| disk.header().map(|header| header.parent))
            .flatten();
        let leaf_end = disk.footer_at();
        let is_leaf = self.layers.is_empty();
        self.layers.push(Layer::new(file, disk));
        if is_leaf && size != leaf_end + SECTOR {
            self.footer_missing = true;
        }
        match parent {
            Some(_) if self.layers.len() >= MAX_CHAIN => {
                Err(self.bad("its chain of parents is too long"))
            }
            Some(_) => Ok(self.look_up_parent()),
            None => Ok(self.cut_tail()),
        }
    }

    /// The parent of the last layer, which has one.
    fn look_up_parent(&mut self) -> Step {
        let header = self.layers.last().and_then(|layer| layer.disk.header());
        let path = header.map_or("", |header| header.parent_name.as_str());
        let name = path.rsplit(['/', '\\']).next().unwrap_or_default();
        let name = name.to_owned();
        self.stage = Stage::Parent;
        let dir = self.dir.expect("known since the walk");
        one(Call::Lookup { dir, name })
    }

    /// What lies behind the last block may be data of a block that never came into being, and must not show through
    /// a new one.
    fn cut_tail(&mut self) -> Step {
        let leaf = &self.layers[0];
        let sparse = leaf.disk.header().is_some();
        if self.footer_missing && self.purpose == Purpose::Own && sparse {
            self.stage = Stage::Cut;
            return one(Call::SetSize {
                file: leaf.file,
                size: leaf.disk.footer_at(),
            });
        }
        self.footer_missing = false;
        self.finish()
    }

    fn finish(&mut self) -> Step {
        Step::Opened(Box::new(Opened {
            path: self.walk.path().to_owned(),
            name: self.walk.name().to_owned(),
            dir: self.dir.expect("known since the walk"),
            purpose: self.purpose,
            limits: self.limits.expect("known since the walk"),
            layers: core::mem::take(&mut self.layers),
            lease: self.lease,
            footer_missing: self.footer_missing,
        }))
    }

    fn bad(&self, reason: &str) -> StorageError {
        StorageError::BadDisk {
            path: self.path().to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Words the refusal of a lease.
pub(crate) fn lease_error(path: &str, why: &CallError) -> StorageError {
    match why {
        CallError::Lease(refusal) if refusal.status == LeaseStatus::Held => StorageError::Held {
            path: path.to_owned(),
            holder: refusal.owner.clone(),
            epoch: refusal.epoch,
            remaining_ms: refusal.remaining_ms,
        },
        why => refused(path, "the lease", why),
    }
}

fn read(file: FileHandle, part: Part) -> (OpenJob, Call) {
    let (offset, count) = part;
    (
        OpenJob::Read(part),
        Call::Read {
            file,
            offset,
            count,
        },
    )
}

fn piece(head: &[u8], offset: u64, len: usize) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    head.get(offset..offset.checked_add(len)?)
}
