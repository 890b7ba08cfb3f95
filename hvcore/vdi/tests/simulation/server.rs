//! A model of an NFS server with leases: files in memory, with what is on stable storage kept apart from what is
//! merely cached.
//!
//! A crash keeps any subset of the cached sectors. Requests are executed in random order.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use nfs3::{
    Attributes, Data, Device, Failure, FileHandle, FileType, Stability, Status, Time, Wcc,
    lease::{self, Grant, Holding, LeaseResult, LeaseStatus, Mode, Owner, Refused},
    mount::{self, MountResult, Mounted},
    nfs,
    rpc::{self, Procedure},
};

const SECTOR: usize = 512;
const MAX_FILE: u64 = 16 << 20;
const ROOT: &[u8] = b"root";
const DIR: &[u8] = b"dir";

/// Ways in which a server may be wrong; each must make a test fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// COMMIT is answered but nothing is made stable.
    pub commit_does_nothing: bool,
    /// The write verifier outlives a restart.
    pub constant_verifier: bool,
    /// The epoch of a handle is not looked at.
    pub leases_not_enforced: bool,
}

#[derive(Debug, Default)]
pub struct File {
    /// What readers see.
    live: Vec<u8>,
    /// What a crash cannot take.
    stable: Vec<u8>,
    /// Sectors in which they may differ.
    cached: BTreeSet<usize>,
    epoch: u64,
    owner: String,
    expires_ns: u64,
}

impl File {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(data);
        self.cached.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn sync(&mut self) {
        self.stable.clone_from(&self.live);
        self.cached.clear();
    }

    fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.u8(..4);
        let len = if rng.bool() {
            self.live.len()
        } else {
            self.stable.len()
        };
        let mut after = self.stable.clone();
        for sector in std::mem::take(&mut self.cached) {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.live.len());
            if from < to && rng.u8(..4) < kept {
                if after.len() < to {
                    after.resize(to, 0);
                }
                after[from..to].copy_from_slice(&self.live[from..to]);
            }
        }
        let len = len.max(after.len());
        after.resize(len, 0);
        self.live = after;
        self.sync();
    }
}

pub struct Server {
    pub files: BTreeMap<String, File>,
    /// Names of files that are not called as they are kept.
    pub names: BTreeMap<String, String>,
    pub lies: Lies,
    pub now_ns: u64,
    instance: u64,
    /// Answers to calls that were executed, by caller and number.
    replayed: BTreeMap<(String, u32), Vec<u8>>,
    /// Writes that were executed for each owner since the last look.
    pub writes_by: BTreeMap<String, u64>,
    /// Calls executed, by procedure.
    pub calls: BTreeMap<&'static str, u64>,
    /// One WRITE or COMMIT in so many fails, as on a full or broken disk; 0 is never.
    pub fail_every: u32,
    /// Bytes of one READ or WRITE.
    pub io_size: u32,
}

fn handle(text: &[u8]) -> FileHandle {
    FileHandle::new(text).expect("short enough")
}

fn file_handle(name: &str, epoch: u64) -> FileHandle {
    handle(format!("{epoch}/{name}").as_bytes())
}

impl Server {
    pub fn new() -> Self {
        Self {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            lies: Lies::default(),
            now_ns: 0,
            instance: 1,
            replayed: BTreeMap::new(),
            writes_by: BTreeMap::new(),
            calls: BTreeMap::new(),
            fail_every: 0,
            io_size: 8192,
        }
    }

    pub fn put(&mut self, name: &str, content: Vec<u8>) {
        let file = File {
            stable: content.clone(),
            live: content,
            ..File::default()
        };
        self.files.insert(name.into(), file);
    }

    /// A file as readers see it.
    pub fn content(&self, name: &str) -> &[u8] {
        &self.files[&self.file_of(name)].live
    }

    /// Stops without warning and starts again.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.instance += 1;
        self.replayed.clear();
        self.files.values_mut().for_each(|file| file.crash(rng));
    }

    fn verifier(&self) -> [u8; 8] {
        if self.lies.constant_verifier {
            [7; 8]
        } else {
            self.instance.to_be_bytes()
        }
    }

    /// Executes a call; returns the record of its reply.
    pub fn execute(&mut self, record: &[u8], rng: &mut Rng) -> Vec<u8> {
        let call = rpc::Call::parse(record).expect("a call");
        let rpc::Credentials::Unix(user) = &call.credentials else {
            panic!("AUTH_SYS")
        };
        let machine = String::from_utf8_lossy(user.machine.0).into_owned();
        let key = (machine.clone(), call.xid);
        if let Some(reply) = self.replayed.get(&key) {
            return reply.clone();
        }
        let fails = self.fail_every > 0 && rng.u32(..self.fail_every) == 0;
        let reply = self.run(&machine, &call, fails);
        // Reads and writes are not in a duplicate request cache: it would have to be as large as they are.
        if call.program == lease::PROGRAM && call.procedure != lease::Renew::NUMBER {
            self.replayed.insert(key, reply.clone());
        }
        reply
    }

    fn run(&mut self, machine: &str, call: &rpc::Call<'_>, fails: bool) -> Vec<u8> {
        fn args<'a, P: Procedure>(call: &rpc::Call<'a>) -> P::Args<'a> {
            let mut input = call.arguments.clone();
            let args = input.get().expect("well-formed arguments");
            input.finish().expect("nothing after the arguments");
            args
        }
        let xid = call.xid;
        let wcc = Wcc::default();
        let name = match call.program {
            nfs::PROGRAM => nfs::procedure_name(call.procedure),
            lease::PROGRAM => lease::procedure_name(call.procedure),
            _ => "Mount",
        };
        *self.calls.entry(name).or_default() += 1;
        match (call.program, call.procedure) {
            (nfs::PROGRAM, nfs::Null::NUMBER) => rpc::reply::<nfs::Null>(xid, &()),
            (mount::PROGRAM, mount::Mount::NUMBER) => {
                let path = args::<mount::Mount>(call);
                let result = match path.0 {
                    b"/export" => Ok(Mounted {
                        root: handle(ROOT),
                        flavors: vec![1],
                    }),
                    _ => Err(mount::MountStatus::NoEnt),
                };
                rpc::reply::<mount::Mount>(xid, &MountResult(result))
            }
            (nfs::PROGRAM, nfs::FsInfo::NUMBER) => {
                let io = self.io_size;
                let info = nfs::FsInfoOk {
                    attributes: None,
                    read_max: io,
                    read_preferred: io,
                    read_multiple: 1,
                    write_max: io,
                    write_preferred: io,
                    write_multiple: 1,
                    readdir_preferred: io,
                    max_file_size: u64::MAX,
                    time_delta: Time::default(),
                    properties: 0,
                };
                rpc::reply::<nfs::FsInfo>(xid, &Ok(info))
            }
            (nfs::PROGRAM, nfs::Lookup::NUMBER) => {
                let at = args::<nfs::Lookup>(call);
                let name = String::from_utf8_lossy(at.name.0).into_owned();
                let found = match at.dir.as_bytes() {
                    ROOT if name == "sr" => Some(handle(DIR)),
                    DIR if self.files.contains_key(&self.file_of(&name)) => {
                        Some(file_handle(&self.file_of(&name), 0))
                    }
                    _ => None,
                };
                let result = found
                    .map(|object| nfs::LookupOk {
                        object,
                        attributes: None,
                        dir_attributes: None,
                    })
                    .ok_or(Failure {
                        status: Status::NoEnt,
                        body: None,
                    });
                rpc::reply::<nfs::Lookup>(xid, &result)
            }
            (nfs::PROGRAM, nfs::GetAttr::NUMBER) => {
                let file = args::<nfs::GetAttr>(call);
                let result = self.reach(&file, false).map(|(_, file)| attributes(file));
                rpc::reply::<nfs::GetAttr>(
                    xid,
                    &result.map_err(|status| Failure { status, body: () }),
                )
            }
            (nfs::PROGRAM, nfs::SetAttr::NUMBER) => {
                let set = args::<nfs::SetAttr>(call);
                let result = self.reach(&set.object, true).and_then(|(_, file)| {
                    let size = set.attributes.size.expect("nothing else is set");
                    if size > MAX_FILE {
                        return Err(Status::FBig);
                    }
                    file.live.resize(size as usize, 0);
                    file.sync();
                    Ok(wcc)
                });
                rpc::reply::<nfs::SetAttr>(
                    xid,
                    &result.map_err(|status| Failure { status, body: wcc }),
                )
            }
            (nfs::PROGRAM, nfs::Read::NUMBER) => {
                let read = args::<nfs::Read>(call);
                let result = self.reach(&read.file, false);
                let result = result.map(|(_, file)| {
                    let from = (read.offset as usize).min(file.live.len());
                    let to = (from + read.count as usize).min(file.live.len());
                    nfs::ReadOk {
                        attributes: None,
                        count: (to - from) as u32,
                        eof: to == file.live.len(),
                        data: Data(&file.live[from..to]),
                    }
                });
                rpc::reply::<nfs::Read>(
                    xid,
                    &result.map_err(|status| Failure { status, body: None }),
                )
            }
            (nfs::PROGRAM, nfs::Write::NUMBER) => {
                let write = args::<nfs::Write>(call);
                assert_eq!(write.data.0.len(), write.count as usize);
                assert!(write.count <= self.io_size);
                let verifier = self.verifier();
                let result = self.reach(&write.file, true).and_then(|(_, file)| {
                    if write.offset > MAX_FILE {
                        return Err(Status::FBig);
                    }
                    if fails {
                        return Err(Status::NoSpc);
                    }
                    file.write(write.offset as usize, write.data.0);
                    Ok(nfs::WriteOk {
                        wcc,
                        count: write.count,
                        committed: Stability::Unstable,
                        verifier,
                    })
                });
                if result.is_ok() {
                    *self.writes_by.entry(machine.into()).or_default() += 1;
                }
                rpc::reply::<nfs::Write>(
                    xid,
                    &result.map_err(|status| Failure { status, body: wcc }),
                )
            }
            (nfs::PROGRAM, nfs::Commit::NUMBER) => {
                let commit = args::<nfs::Commit>(call);
                if fails {
                    // What could not be written is gone: a later COMMIT must not pretend that it is there.
                    self.instance += 1;
                    let failure = Failure {
                        status: Status::Io,
                        body: wcc,
                    };
                    return rpc::reply::<nfs::Commit>(xid, &Err(failure));
                }
                let (verifier, lies) = (self.verifier(), self.lies);
                let result = self.reach(&commit.file, true).map(|(_, file)| {
                    if !lies.commit_does_nothing {
                        file.sync();
                    }
                    nfs::CommitOk { wcc, verifier }
                });
                rpc::reply::<nfs::Commit>(
                    xid,
                    &result.map_err(|status| Failure { status, body: wcc }),
                )
            }
            (lease::PROGRAM, lease::Acquire::NUMBER) => {
                let acquire = args::<lease::Acquire>(call);
                let (now, name) = (self.now_ns, String::from_utf8_lossy(acquire.file.name.0));
                let result = self.grant(&name, acquire.owner, acquire.ttl_ms, |file, owner| {
                    let free = file.owner.is_empty() || file.expires_ns <= now;
                    let own =
                        file.owner.as_bytes() == owner && file.epoch == acquire.expected_epoch;
                    if free || own {
                        Ok(())
                    } else {
                        Err(LeaseStatus::Held)
                    }
                });
                rpc::reply::<lease::Acquire>(xid, &LeaseResult(result))
            }
            (lease::PROGRAM, lease::Take::NUMBER) => {
                let take = args::<lease::Take>(call);
                let name = String::from_utf8_lossy(take.file.name.0);
                let result = self.grant(&name, take.owner, take.ttl_ms, |file, owner| {
                    let again =
                        file.owner.as_bytes() == owner && file.epoch == take.expected_epoch + 1;
                    if again {
                        file.epoch -= 1;
                    }
                    if file.epoch == take.expected_epoch {
                        Ok(())
                    } else {
                        Err(LeaseStatus::Stale)
                    }
                });
                rpc::reply::<lease::Take>(xid, &LeaseResult(result))
            }
            (lease::PROGRAM, lease::Replace::NUMBER) => {
                let args = args::<lease::Replace>(call);
                let result = self.replace(&args);
                rpc::reply::<lease::Replace>(xid, &LeaseResult(result))
            }
            (lease::PROGRAM, lease::Renew::NUMBER) => {
                let renew = args::<lease::Renew>(call);
                let now = self.now_ns;
                let result = self.held(&renew.object, |file| {
                    file.expires_ns = now + u64::from(renew.ttl_ms) * 1_000_000;
                });
                rpc::reply::<lease::Renew>(xid, &LeaseResult(result))
            }
            (lease::PROGRAM, lease::Release::NUMBER) => {
                let object = args::<lease::Release>(call);
                // The epoch stays, so that whoever knows it can tell that nobody has had the file since.
                let result = self.held(&object, |file| file.owner.clear());
                rpc::reply::<lease::Release>(xid, &LeaseResult(result))
            }
            other => panic!("unexpected procedure {other:?}"),
        }
    }

    /// What REPLACE does: the successor gets the name, and its lease goes on from that of the file.
    fn replace<'a>(
        &mut self,
        args: &lease::ReplaceArgs<'a>,
    ) -> Result<Grant<'a>, Refused<'static>> {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let name = text(args.file.name.0);
        let (file, successor) = (self.file_of(&name), text(args.successor.0));
        let held = self.reach(&args.object, false).map(|(epoch, _)| epoch);
        let epoch = held.unwrap_or(0);
        let object = text(args.object.as_bytes());
        if object.split_once('/').map(|(_, file)| file) == Some(&file) && epoch != 0 {
            if self.file_of(&text(args.kept.0)) != file {
                // What it holds would be lost.
                return self.grant(&name, args.owner, args.ttl_ms, |_, _| {
                    Err(LeaseStatus::Inval)
                });
            }
            let child = self.file_of(&successor);
            self.names.insert(successor, String::new());
            self.names.insert(name.clone(), child.clone());
            if let Some(child) = self.files.get_mut(&child) {
                child.epoch = epoch;
            }
            return self.grant(&name, args.owner, args.ttl_ms, |_, _| Ok(()));
        }
        let gone = self.file_of(&successor).is_empty();
        self.grant(&name, args.owner, args.ttl_ms, |file, owner| {
            if gone && file.owner.as_bytes() == owner {
                // The answer was lost.
                file.epoch -= 1;
                Ok(())
            } else {
                Err(LeaseStatus::Stale)
            }
        })
    }

    /// Which file has this name; empty if none has it any more.
    fn file_of(&self, name: &str) -> String {
        let other = self.names.get(name);
        other.map_or(name, String::as_str).to_owned()
    }

    /// The file of a handle, if the handle's epoch allows it.
    fn reach(&mut self, handle: &FileHandle, change: bool) -> Result<(u64, &mut File), Status> {
        let text = String::from_utf8_lossy(handle.as_bytes()).into_owned();
        let (epoch, name) = text.split_once('/').ok_or(Status::BadHandle)?;
        let epoch: u64 = epoch.parse().map_err(|_| Status::BadHandle)?;
        let file = self.files.get_mut(name).ok_or(Status::Stale)?;
        if !self.lies.leases_not_enforced {
            if epoch != 0 && (epoch != file.epoch || file.owner.is_empty()) {
                return Err(Status::Stale);
            }
            if epoch == 0 && change && !file.owner.is_empty() {
                return Err(Status::Acces);
            }
        }
        Ok((epoch, file))
    }

    fn grant<'a>(
        &mut self,
        name: &str,
        owner: Owner<'a>,
        ttl_ms: u32,
        may: impl FnOnce(&mut File, &[u8]) -> Result<(), LeaseStatus>,
    ) -> Result<Grant<'a>, Refused<'static>> {
        let now_ns = self.now_ns;
        let name = &self.file_of(name);
        let Some(file) = self.files.get_mut(name) else {
            return Err(Refused {
                status: LeaseStatus::NoEnt,
                holding: holding(0, b""),
            });
        };
        match may(file, owner.0) {
            Ok(()) => {
                file.epoch += 1;
                file.owner = String::from_utf8_lossy(owner.0).into_owned();
                file.expires_ns = now_ns + u64::from(ttl_ms) * 1_000_000;
                let holding = holding(file.epoch, owner.0);
                Ok(Grant {
                    holding,
                    object: file_handle(name, file.epoch),
                })
            }
            Err(status) => {
                let owner: &'static [u8] = match file.owner.as_str() {
                    "h1" => b"h1",
                    "h2" => b"h2",
                    _ => b"another",
                };
                Err(Refused {
                    status,
                    holding: holding(file.epoch, owner),
                })
            }
        }
    }

    fn held(
        &mut self,
        object: &FileHandle,
        act: impl FnOnce(&mut File),
    ) -> Result<Holding<'static>, Refused<'static>> {
        match self.reach(object, false) {
            Ok((epoch, file)) if epoch != 0 => {
                act(file);
                Ok(holding(epoch, b""))
            }
            _ => Err(Refused {
                status: LeaseStatus::Stale,
                holding: holding(0, b""),
            }),
        }
    }
}

fn holding(epoch: u64, owner: &[u8]) -> Holding<'_> {
    Holding {
        epoch,
        mode: Mode::Exclusive,
        owner: Owner(owner),
        remaining_ms: 0,
    }
}

fn attributes(file: &File) -> Attributes {
    Attributes {
        kind: FileType::Regular,
        mode: 0o600,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: file.live.len() as u64,
        used: 0,
        device: Device::default(),
        fsid: 1,
        fileid: 1,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
    }
}
