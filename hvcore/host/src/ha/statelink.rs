//! The pool's own connection to the storage server: slots of the statefile, and leases.
//!
//! It is apart from the connection of the disks, because a heartbeat must not wait behind a guest's bulk data, nor be taken for lost with
//! it. Slots are written without COMMIT: readers see them at once, and a server that loses them in a crash gets them
//! anew within a moment.

use alloc::{
    borrow::ToOwned,
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::net::Ipv4Addr;

use nfs_client::{Call, CallError, Client, ClientConfig, Reply};
use nfs3::{
    FileHandle, Status,
    lease::{LeaseStatus, Mode},
};
use pool::{LeaseAnswer, LeaseCall, Token};
use smoltcp::iface::SocketHandle;

use crate::{
    HostConfig,
    net::stack::{Buffers, Stack},
    platform::Platform,
};

const BUFFERS: Buffers = Buffers {
    receive: 256 << 10,
    send: 64 << 10,
    timeout_ms: 3_000,
};

/// Something to do with a file of the repository.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Read slots of the statefile.
    Read {
        token: Token,
        offset: u64,
        count: u32,
    },
    /// Write a slot.
    Write {
        token: Token,
        offset: u64,
        block: Vec<u8>,
    },
    /// Ask about the lease of a file in a directory, for an owner.
    Lease {
        token: Token,
        name: String,
        call: LeaseCall,
        owner: String,
        ttl_ms: u32,
    },
}

/// What became of it.
pub(super) enum Outcome {
    Read(Token, Option<Vec<u8>>),
    Written(Token, bool),
    Lease(Token, LeaseAnswer),
}

/// What a call is for.
#[derive(Debug)]
enum Tag {
    /// The handle of this path is looked for; so many of its parts are found.
    Find {
        path: String,
        parts: usize,
    },
    Job {
        path: String,
        job: Job,
    },
}

/// The connection.
pub(super) struct StateLink {
    socket: SocketHandle,
    server: (Ipv4Addr, u16),
    export: String,
    client: Client<Tag>,
    connected: bool,
    connecting: bool,
    /// Handles by path below the export; the empty path is the export itself.
    handles: BTreeMap<String, FileHandle>,
    /// What waits for a handle.
    waiting: Vec<(String, Job)>,
}

impl StateLink {
    pub fn new<P: Platform>(stack: &mut Stack, platform: &P, config: &HostConfig) -> Self {
        let mut seed = [0; 4];
        platform.random(&mut seed);
        // Another machine to the server, or it might take a call for a repetition of one on the disks' connection.
        let machine = config.name.clone() + "-pool";
        let settings = ClientConfig::new(machine, u32::from_ne_bytes(seed));
        Self {
            socket: stack.add_socket(BUFFERS),
            server: config.nfs,
            export: config.export.clone(),
            client: Client::new(settings, platform.now_ns()),
            connected: false,
            connecting: false,
            handles: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// Does something with the file or directory at this path; it is retried until the server answers.
    pub fn submit(&mut self, path: &str, job: Job) {
        match self.handles.get(path).copied() {
            Some(handle) => self.call(path, handle, job),
            None => {
                let searching = self.waiting.iter().any(|(of, _)| of == path);
                self.waiting.push((path.to_owned(), job));
                if !searching {
                    let path = path.to_owned();
                    let call = Call::Mount {
                        path: self.export.clone(),
                    };
                    self.client.call(Tag::Find { path, parts: 0 }, call, None);
                }
            }
        }
    }

    fn call(&mut self, path: &str, handle: FileHandle, job: Job) {
        let call = match &job {
            Job::Read { offset, count, .. } => Call::Read {
                file: handle,
                offset: *offset,
                count: *count,
            },
            Job::Write { offset, block, .. } => Call::Write {
                file: handle,
                offset: *offset,
                data: block.clone().into(),
            },
            Job::Lease {
                name,
                call,
                owner,
                ttl_ms,
                ..
            } => {
                let (dir, name, owner, ttl_ms) = (handle, name.clone(), owner.clone(), *ttl_ms);
                let take = |expected_epoch| Call::Take {
                    dir,
                    name: name.clone(),
                    owner: owner.clone(),
                    expected_epoch,
                    ttl_ms,
                };
                match call {
                    LeaseCall::Create { .. } => Call::Acquire {
                        dir,
                        name,
                        owner,
                        mode: Mode::Exclusive,
                        expected_epoch: 0,
                        ttl_ms,
                    },
                    LeaseCall::Take { expected_epoch, .. } => take(*expected_epoch),
                    // No lease has this epoch, so it is refused, with its state.
                    LeaseCall::Look => take(0),
                }
            }
        };
        let path = path.to_owned();
        self.client.call(Tag::Job { path, job }, call, None);
    }

    /// Moves what has arrived and what is to be sent; gives what has ended.
    pub fn poll<P: Platform>(&mut self, stack: &mut Stack, platform: &P) -> Vec<Outcome> {
        let now = platform.now_ns();
        if self.client.next_deadline_ns().is_some_and(|at| at <= now) {
            self.client.on_time(now);
        }
        self.keep_connection(stack, now);
        let mut outcomes = Vec::new();
        if self.connected {
            let client = &mut self.client;
            stack.read(self.socket, |bytes| {
                client.receive(bytes, now);
                bytes.len()
            });
            while let Some((tag, answer)) = self.client.next_answer() {
                self.on_answer(tag, answer, &mut outcomes);
            }
            let client = &mut self.client;
            stack.write(self.socket, |room| client.transmit(room, now));
        }
        outcomes
    }

    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.client.next_deadline_ns()
    }

    fn keep_connection(&mut self, stack: &mut Stack, now: u64) {
        let socket = stack.peek(self.socket);
        let open = socket.is_open();
        let usable = socket.may_send() && (socket.may_recv() || socket.can_recv());
        let standing = self.connected || self.connecting;
        let broken = self.connected && !usable || self.connecting && !open;
        if broken || standing && !self.client.wants_connection() {
            stack.socket(self.socket).abort();
            self.connected = false;
            self.connecting = false;
            self.client.on_disconnected(now);
        } else if self.connecting && usable {
            self.connecting = false;
            self.connected = true;
            self.client.on_connected(now);
        } else if !standing && !open && self.client.wants_connection() {
            stack.connect(self.socket, self.server.0, self.server.1);
            self.connecting = true;
        }
    }

    fn on_answer(
        &mut self,
        tag: Tag,
        answer: Result<Reply, CallError>,
        outcomes: &mut Vec<Outcome>,
    ) {
        match tag {
            Tag::Find { path, parts } => self.on_found(path, parts, answer, outcomes),
            Tag::Job { path, job } => {
                let lost = Status::Stale;
                if matches!(&answer, Err(CallError::Nfs(status)) if *status == lost) {
                    // The file was replaced: look for it again, next time.
                    self.handles.remove(&path);
                }
                outcomes.push(outcome(&job, answer));
            }
        }
    }

    /// The next part of a path was found, or not.
    fn on_found(
        &mut self,
        path: String,
        parts: usize,
        answer: Result<Reply, CallError>,
        outcomes: &mut Vec<Outcome>,
    ) {
        match answer {
            Ok(Reply::Handle(dir)) => match path.split('/').nth(parts) {
                Some(name) => {
                    let name = name.to_string();
                    let parts = parts + 1;
                    self.client
                        .call(Tag::Find { path, parts }, Call::Lookup { dir, name }, None);
                }
                None => {
                    self.handles.insert(path.clone(), dir);
                    for job in self.take_waiting(&path) {
                        self.call(&path, dir, job);
                    }
                }
            },
            Ok(_) => {}
            Err(why) => {
                for job in self.take_waiting(&path) {
                    outcomes.push(outcome(&job, Err(why.clone())));
                }
            }
        }
    }

    fn take_waiting(&mut self, path: &str) -> Vec<Job> {
        let (these, others) = core::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(of, _)| of == path);
        self.waiting = others;
        these.into_iter().map(|(_, job)| job).collect()
    }
}

/// What an answer means for what was asked.
fn outcome(job: &Job, answer: Result<Reply, CallError>) -> Outcome {
    match job {
        Job::Read { token, count, .. } => Outcome::Read(
            *token,
            match answer {
                Ok(Reply::Data { bytes, .. }) if bytes.len() == *count as usize => {
                    Some(bytes.as_slice().to_vec())
                }
                _ => None,
            },
        ),
        Job::Write { token, block, .. } => Outcome::Written(
            *token,
            matches!(answer, Ok(Reply::Written { count, .. }) if count as usize == block.len()),
        ),
        Job::Lease { token, .. } => Outcome::Lease(
            *token,
            match answer {
                Ok(Reply::Granted { epoch, .. }) => LeaseAnswer::Granted { epoch },
                Err(CallError::Lease(refusal)) => match refusal.status {
                    LeaseStatus::NoEnt => LeaseAnswer::Missing,
                    LeaseStatus::Held | LeaseStatus::Stale => LeaseAnswer::State {
                        epoch: refusal.epoch,
                        owner: refusal.owner,
                    },
                    LeaseStatus::Inval | LeaseStatus::Io => LeaseAnswer::Failed,
                },
                Err(CallError::Nfs(Status::NoEnt)) => LeaseAnswer::Missing,
                _ => LeaseAnswer::Failed,
            },
        ),
    }
}
