//! The control service: connections of the lab, proved by the pool's key.
//!
//! It parses, authenticates and queues; what a command does is decided in [`crate::commands`]. A connection
//! that sends what is not a message, does not prove itself in time, or does not read what it is sent, is cut.

use alloc::{collections::VecDeque, format, vec::Vec};

use host_protocol::{
    HostEvent, Notice, PORT, Request, VERSION, VmId,
    auth::{Nonce, PoolKey, Purpose},
    codec::{self, Decoder},
};
use smoltcp::iface::SocketHandle;

use crate::{
    net::stack::{Buffers, Stack},
    platform::Platform,
};

/// Connections at a time.
const CONNECTIONS: usize = 6;

const BUFFERS: Buffers = Buffers {
    receive: 64 << 10,
    send: 256 << 10,
    timeout_ms: 20_000,
};

/// A connection that leaves more unread is cut.
const MAX_UNSENT: usize = 4 << 20;

/// So many events are kept for clients that come back.
const KEPT_EVENTS: usize = 256;

/// Time a client has to prove itself.
const PROOF_TIMEOUT_NS: u64 = 5_000_000_000;

/// Names a connection; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(u64);

/// How far a connection has come.
enum Stage {
    Listening,
    /// Connected; the first message must be a hello.
    Greeting {
        deadline_ns: u64,
    },
    /// Both nonces are known.
    Proving {
        client: Nonce,
        host: Nonce,
        deadline_ns: u64,
    },
    Proved,
    /// Of another version. It has been told ours, and has this long to read it.
    Refused {
        deadline_ns: u64,
    },
}

struct Connection {
    socket: SocketHandle,
    id: ConnectionId,
    stage: Stage,
    decoder: Decoder,
    unsent: Vec<u8>,
    /// VMs whose console output goes here.
    consoles: Vec<VmId>,
}

/// All connections of the control service.
pub(crate) struct Control {
    connections: Vec<Connection>,
    next_id: u64,
    key: PoolKey,
    host: alloc::string::String,
    /// Told to everyone who connects anew: who has heard it has been connected since the host booted.
    booted: (u64, HostEvent),
    kept: KeptEvents,
}

/// The last events of which a client must not miss one because its connection broke: what became of VMs and of the pool. What
/// belongs to a migration or to a guest's first moments is told to whoever is there.
#[derive(Default)]
struct KeptEvents {
    /// The number of the last one. The first belongs to the boot.
    last: u64,
    events: VecDeque<(u64, u64, HostEvent)>,
}

impl KeptEvents {
    const BOOTED: u64 = 1;

    /// Keeps it if it is to be kept; gives its number.
    fn add(&mut self, host_ns: u64, event: &HostEvent) -> u64 {
        let keep = matches!(
            event,
            HostEvent::Pool { .. } | HostEvent::Stopped { .. } | HostEvent::Storage { .. }
        );
        if !keep {
            return 0;
        }
        self.last = self.last.max(Self::BOOTED) + 1;
        if self.events.len() == KEPT_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((self.last, host_ns, event.clone()));
        self.last
    }

    /// Those after the last that a client has heard. One that has heard what was never told speaks of an earlier life of this
    /// host.
    fn after(&self, heard: u64) -> impl Iterator<Item = &(u64, u64, HostEvent)> {
        let heard = if heard > self.last.max(Self::BOOTED) {
            0
        } else {
            heard
        };
        self.events
            .iter()
            .filter(move |(number, ..)| *number > heard)
    }
}

impl Control {
    pub fn new(
        stack: &mut Stack,
        key: PoolKey,
        host: alloc::string::String,
        booted: (u64, HostEvent),
    ) -> Self {
        let connections = (0..CONNECTIONS)
            .map(|slot| {
                let socket = stack.add_socket(BUFFERS);
                stack.listen(socket, PORT);
                Connection {
                    socket,
                    id: ConnectionId(slot as u64),
                    stage: Stage::Listening,
                    decoder: Decoder::new(),
                    unsent: Vec::new(),
                    consoles: Vec::new(),
                }
            })
            .collect();
        Self {
            connections,
            next_id: CONNECTIONS as u64,
            key,
            host,
            booted,
            kept: KeptEvents::default(),
        }
    }

    /// Takes in what has arrived; gives the requests of proved clients.
    pub fn poll<P: Platform>(
        &mut self,
        stack: &mut Stack,
        platform: &mut P,
        requests: &mut Vec<(ConnectionId, Request)>,
    ) {
        let now = platform.now_ns();
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            let socket = stack.peek(connection.socket);
            let active = socket.is_active();
            match connection.stage {
                Stage::Listening if active => {
                    connection.stage = Stage::Greeting {
                        deadline_ns: now + PROOF_TIMEOUT_NS,
                    };
                }
                Stage::Listening if !socket.is_open() => {
                    stack.listen(connection.socket, PORT);
                    continue;
                }
                Stage::Listening => continue,
                Stage::Greeting { deadline_ns }
                | Stage::Proving { deadline_ns, .. }
                | Stage::Refused { deadline_ns }
                    if deadline_ns <= now =>
                {
                    self.cut(stack, index);
                    continue;
                }
                // A client that closes its half has said all it had to say.
                _ if !active || stack.is_finished(connection.socket) => {
                    self.cut(stack, index);
                    continue;
                }
                _ => {}
            }
            let decoder = &mut connection.decoder;
            stack.read(connection.socket, |bytes| {
                decoder.push(bytes);
                bytes.len()
            });
            if !self.take_messages(index, platform, requests) {
                self.cut(stack, index);
                continue;
            }
            let connection = &mut self.connections[index];
            let mut sent = 0;
            stack.write(connection.socket, |room| {
                let rest = &connection.unsent[sent..];
                let length = rest.len().min(room.len());
                room[..length].copy_from_slice(&rest[..length]);
                sent += length;
                length
            });
            connection.unsent.drain(..sent);
            if connection.unsent.len() > MAX_UNSENT {
                self.cut(stack, index);
            } else if matches!(connection.stage, Stage::Refused { .. })
                && connection.unsent.is_empty()
            {
                stack.socket(connection.socket).close();
            }
        }
    }

    /// Handles the messages that are whole. False: the connection must be cut.
    fn take_messages<P: Platform>(
        &mut self,
        index: usize,
        platform: &mut P,
        requests: &mut Vec<(ConnectionId, Request)>,
    ) -> bool {
        loop {
            let connection = &mut self.connections[index];
            let request = match connection.decoder.message::<Request>() {
                Ok(Some(request)) => request,
                Ok(None) => return true,
                Err(_) => return false,
            };
            match (&connection.stage, request) {
                (Stage::Greeting { deadline_ns }, Request::Hello { version, nonce }) => {
                    let mut host = Nonce::default();
                    platform.random(&mut host);
                    let welcome = Notice::Welcome {
                        version: VERSION,
                        nonce: host,
                        mac: self.key.prove(Purpose::ControlHost, &nonce, &host),
                        host: self.host.clone(),
                    };
                    let deadline_ns = *deadline_ns;
                    connection.send(&welcome);
                    if version != VERSION {
                        connection.stage = Stage::Refused { deadline_ns };
                        platform.log(&format!(
                            "a client was refused: it speaks version {version} of the control protocol, this host version {VERSION}; build both from the same sources"
                        ));
                        return true;
                    }
                    connection.stage = Stage::Proving {
                        client: nonce,
                        host,
                        deadline_ns,
                    };
                }
                (Stage::Proving { client, host, .. }, Request::Prove { mac, heard }) => {
                    if !self.key.accepts(Purpose::ControlClient, client, host, &mac) {
                        return false;
                    }
                    connection.stage = Stage::Proved;
                    if heard < KeptEvents::BOOTED || heard > self.kept.last.max(KeptEvents::BOOTED)
                    {
                        let (host_ns, event) = self.booted.clone();
                        let number = KeptEvents::BOOTED;
                        connection.send(&Notice::Event {
                            number,
                            host_ns,
                            event,
                        });
                    }
                    for (number, host_ns, event) in self.kept.after(heard).cloned() {
                        connection.send(&Notice::Event {
                            number,
                            host_ns,
                            event,
                        });
                    }
                }
                (Stage::Proved, Request::Ping { token }) => {
                    let host_ns = platform.now_ns();
                    connection.send(&Notice::Pong { token, host_ns });
                }
                (
                    Stage::Proved,
                    request @ (Request::Command { .. } | Request::ConsoleInput { .. }),
                ) => {
                    requests.push((connection.id, request));
                }
                _ => return false,
            }
        }
    }

    fn cut(&mut self, stack: &mut Stack, index: usize) {
        let connection = &mut self.connections[index];
        stack.socket(connection.socket).abort();
        connection.id = ConnectionId(self.next_id);
        self.next_id += 1;
        connection.stage = Stage::Listening;
        connection.decoder = Decoder::new();
        connection.unsent = Vec::new();
        connection.consoles.clear();
    }

    /// Sends to one connection, if it still stands.
    pub fn send(&mut self, to: ConnectionId, notice: &Notice) {
        if let Some(connection) = self.proved().find(|connection| connection.id == to) {
            connection.send(notice);
        }
    }

    /// Sends an event to everyone.
    pub fn report(&mut self, host_ns: u64, event: HostEvent) {
        let number = self.kept.add(host_ns, &event);
        let notice = Notice::Event {
            number,
            host_ns,
            event,
        };
        for connection in self.proved() {
            connection.send(&notice);
        }
    }

    /// Sends console output to whoever has attached.
    pub fn console(&mut self, vm: VmId, output: &Notice) {
        let attached = self
            .proved()
            .filter(|connection| connection.consoles.contains(&vm));
        for connection in attached {
            connection.send(output);
        }
    }

    /// Sends a VM's console output to a connection from now on, beginning with `replay`.
    pub fn attach(&mut self, to: ConnectionId, vm: VmId, replay: &Notice) {
        if let Some(connection) = self.proved().find(|connection| connection.id == to) {
            if !connection.consoles.contains(&vm) {
                connection.consoles.push(vm);
            }
            connection.send(replay);
        }
    }

    /// No longer sends it.
    pub fn detach(&mut self, from: ConnectionId, vm: VmId) {
        if let Some(connection) = self.proved().find(|connection| connection.id == from) {
            connection.consoles.retain(|attached| *attached != vm);
        }
    }

    fn proved(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.connections
            .iter_mut()
            .filter(|connection| matches!(connection.stage, Stage::Proved))
    }

    /// When a client's time to prove itself ends.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.connections
            .iter()
            .filter_map(|connection| match connection.stage {
                Stage::Greeting { deadline_ns }
                | Stage::Proving { deadline_ns, .. }
                | Stage::Refused { deadline_ns } => Some(deadline_ns),
                Stage::Listening | Stage::Proved => None,
            })
            .min()
    }
}

impl Connection {
    fn send(&mut self, notice: &Notice) {
        codec::encode(notice, &mut self.unsent)
            .expect("every notice is far shorter than the longest message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(kept: &KeptEvents, heard: u64) -> Vec<u64> {
        kept.after(heard).map(|(number, ..)| *number).collect()
    }

    #[test]
    fn who_comes_back_hears_what_was_told_meanwhile_and_nothing_twice() {
        let mut kept = KeptEvents::default();
        assert_eq!(numbers(&kept, 0), [0; 0]);
        let up = |up| HostEvent::Storage { up };
        for (moment, number) in [(10, 2), (20, 3), (30, 4)] {
            assert_eq!(kept.add(moment, &up(true)), number);
        }
        let passing = HostEvent::FirstInstruction { vm: [1; 16] };
        assert_eq!(kept.add(40, &passing), 0, "told to whoever is there");
        assert_eq!(numbers(&kept, 0), [2, 3, 4]);
        assert_eq!(numbers(&kept, 1), [2, 3, 4]);
        assert_eq!(numbers(&kept, 3), [4]);
        assert_eq!(numbers(&kept, 4), [0; 0]);
        assert_eq!(numbers(&kept, 99), [2, 3, 4], "an earlier life of the host");
        assert_eq!(kept.after(3).next(), Some(&(4, 30, up(true))));
    }

    #[test]
    fn of_many_events_the_last_are_kept() {
        let mut kept = KeptEvents::default();
        for _ in 0..KEPT_EVENTS + 10 {
            kept.add(0, &HostEvent::Storage { up: false });
        }
        let known = numbers(&kept, 0);
        assert_eq!((known.len(), known[0]), (KEPT_EVENTS, 12));
        assert_eq!(known.last(), Some(&kept.last));
    }
}
