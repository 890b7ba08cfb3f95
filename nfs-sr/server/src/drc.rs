//! The duplicate request cache: a client that got no reply sends its call again, perhaps over a new connection. A
//! call that must not run twice (REMOVE would say "no such file") gets the first run's reply.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use nfs3::rpc::{Call, Credentials};

use crate::transport::mailbox::{Delivery, Mailbox};

/// Replies kept.
const MAX_REPLIES: usize = 2048;

/// A call, told apart by who calls and what for. The client's port is not part of it: it changes when the client
/// connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    caller: u64,
    xid: u32,
    call: u64,
}

impl Key {
    /// The key of a call from this address.
    pub fn new(address: IpAddr, call: &Call<'_>) -> Self {
        let hash = |item: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            item(&mut hasher);
            hasher.finish()
        };
        let caller = hash(&|hasher| {
            address.hash(hasher);
            if let Credentials::Unix(user) = &call.credentials {
                (user.machine, user.uid).hash(hasher);
            }
        });
        let call_hash =
            hash(&|hasher| (call.program, call.procedure, call.arguments.rest()).hash(hasher));
        Self {
            caller,
            xid: call.xid,
            call: call_hash,
        }
    }
}

/// Where a reply goes.
#[derive(Clone)]
pub struct ReplyTo {
    /// The event loop.
    pub mailbox: Arc<Mailbox>,
    /// Its connection.
    pub connection: u64,
    /// Bytes that the connection has set aside for the reply.
    pub reserved: usize,
}

impl ReplyTo {
    /// Sends it.
    pub fn send(&self, reply: Vec<u8>) {
        let Self {
            connection,
            reserved,
            ..
        } = *self;
        self.mailbox.post(Delivery {
            connection,
            reply,
            reserved,
        });
    }
}

enum State {
    Running(ReplyTo),
    Done(Arc<[u8]>),
}

/// What to do with a call.
pub enum Verdict {
    /// It is new: run it.
    Run,
    /// It was answered before: with this.
    Answered(Vec<u8>),
    /// It is running; its reply will go to where it was last asked for.
    Running,
}

/// The cache.
#[derive(Default)]
pub struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    calls: HashMap<Key, State>,
    order: VecDeque<Key>,
}

impl Cache {
    /// Begins a call.
    pub fn begin(&self, key: Key, to: &ReplyTo) -> Verdict {
        let mut inner = self.inner.lock().expect("nothing panics under the lock");
        match inner.calls.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(State::Running(to.clone()));
                Verdict::Run
            }
            Entry::Occupied(mut known) => match known.get_mut() {
                State::Done(reply) => Verdict::Answered(reply.to_vec()),
                State::Running(waiting) => {
                    let before = std::mem::replace(waiting, to.clone());
                    before.send(Vec::new());
                    Verdict::Running
                }
            },
        }
    }

    /// Keeps the reply of a call that was begun, and gives where it goes.
    pub fn finish(&self, key: Key, reply: &[u8]) -> Option<ReplyTo> {
        let mut inner = self.inner.lock().expect("nothing panics under the lock");
        let before = inner.calls.insert(key, State::Done(reply.into()));
        inner.order.push_back(key);
        while inner.order.len() > MAX_REPLIES {
            if let Some(oldest) = inner.order.pop_front() {
                inner.calls.remove(&oldest);
            }
        }
        match before {
            Some(State::Running(to)) => Some(to),
            _ => None,
        }
    }
}
