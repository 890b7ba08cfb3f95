//! The lab's services in the simulation: the storage server behind TCP, control clients, a probe of the guest.

use std::collections::BTreeMap;

use host_protocol::{
    Command, HostEvent, Notice, PORT, Reply, Request,
    auth::{PoolKey, Purpose},
    codec::{self, Decoder},
};
use nfs3::record::Assembler;
use smoltcp::iface::SocketHandle;

use crate::{program::ETHER_TYPE, server::Server, wire::Endpoint};

const NFS_PORT: u16 = 2049;
const CONNECTIONS: usize = 6;

/// The storage server's connections.
pub struct Storage {
    pub endpoint: Endpoint,
    pub server: Server,
    connections: Vec<(SocketHandle, Assembler, Vec<u8>)>,
    pub down: bool,
}

impl Storage {
    pub fn new(mut endpoint: Endpoint, server: Server) -> Self {
        let connections = (0..CONNECTIONS)
            .map(|_| (endpoint.add(), Assembler::new(nfs3::MAX_RECORD), Vec::new()))
            .collect();
        Self {
            endpoint,
            server,
            connections,
            down: false,
        }
    }

    /// Stops without warning: connections are reset, what was not on stable storage may be gone.
    pub fn crash(&mut self, rng: &mut fastrand::Rng) {
        self.down = true;
        self.server.crash(rng);
        for (socket, assembler, out) in &mut self.connections {
            self.endpoint.socket(*socket).abort();
            *assembler = Assembler::new(nfs3::MAX_RECORD);
            out.clear();
        }
    }

    pub fn poll(&mut self, now: u64, rng: &mut fastrand::Rng) {
        self.endpoint.poll(now);
        self.server.now_ns = now;
        for (handle, assembler, out) in &mut self.connections {
            let socket = self.endpoint.socket(*handle);
            if !socket.is_open() && !self.down {
                *assembler = Assembler::new(nfs3::MAX_RECORD);
                out.clear();
                socket.listen(NFS_PORT).unwrap();
            }
            if socket.may_send() && !socket.may_recv() && !socket.can_recv() {
                socket.abort();
                continue;
            }
            let mut records = Vec::new();
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        let mut input = &bytes[..];
                        while let Some(record) = assembler.next(&mut input).unwrap() {
                            records.push(record);
                        }
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            for record in records {
                out.extend(self.server.execute(&record, rng));
            }
            if socket.can_send() && !out.is_empty() {
                let sent = socket.send_slice(out).unwrap();
                out.drain(..sent);
            }
        }
        self.endpoint.poll(now);
    }
}

/// A control connection to a host.
pub struct Client {
    socket: SocketHandle,
    host: [u8; 4],
    connected: bool,
    version: u32,
    /// The host's version, if it is another.
    pub refused_by: Option<u32>,
    pub proved: bool,
    decoder: Decoder,
    unsent: Vec<u8>,
    waiting: Vec<Request>,
    pub events: Vec<HostEvent>,
    /// The highest number of an event.
    heard: u64,
    /// It has hung up and does not come back for now.
    pub away: bool,
    pub answers: BTreeMap<u32, Result<Reply, String>>,
    next: u32,
}

const NONCE: [u8; 16] = [5; 16];

impl Client {
    pub fn new(endpoint: &mut Endpoint, host: [u8; 4], version: u32) -> Self {
        let socket = endpoint.add();
        endpoint.connect(socket, host, PORT);
        Self {
            socket,
            host,
            connected: false,
            version,
            refused_by: None,
            proved: false,
            decoder: Decoder::new(),
            unsent: Vec::new(),
            waiting: Vec::new(),
            events: Vec::new(),
            heard: 0,
            away: false,
            answers: BTreeMap::new(),
            next: 1,
        }
    }

    pub fn command(&mut self, command: Command) -> u32 {
        let number = self.next;
        self.next += 1;
        self.waiting.push(Request::Command { number, command });
        number
    }

    pub fn poll(&mut self, endpoint: &mut Endpoint, key: &PoolKey) {
        let socket = endpoint.socket(self.socket);
        if self.away {
            self.proved = false;
            socket.abort();
            return;
        }
        if !socket.is_open() && self.refused_by.is_none() {
            let socket = endpoint.add();
            endpoint.connect(socket, self.host, PORT);
            self.socket = socket;
            self.connected = false;
            self.proved = false;
            self.decoder = Decoder::new();
            self.unsent.clear();
            return;
        }
        if socket.may_send() && !self.connected {
            self.connected = true;
            let hello = Request::Hello {
                version: self.version,
                nonce: NONCE,
            };
            codec::encode(&hello, &mut self.unsent).unwrap();
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    self.decoder.push(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        while let Some(notice) = self.decoder.message::<Notice>().unwrap() {
            match notice {
                Notice::Welcome { version, .. } if version != self.version => {
                    self.refused_by = Some(version);
                }
                Notice::Welcome { nonce, mac, .. } => {
                    assert!(key.accepts(Purpose::ControlHost, &NONCE, &nonce, &mac));
                    let mac = key.prove(Purpose::ControlClient, &NONCE, &nonce);
                    let heard = self.heard;
                    codec::encode(&Request::Prove { mac, heard }, &mut self.unsent).unwrap();
                    self.proved = true;
                }
                Notice::Event { number, event, .. } => {
                    assert!(number == 0 || number > self.heard, "{event:?} came twice");
                    self.heard = self.heard.max(number);
                    self.events.push(event);
                }
                Notice::Done { number, result } => {
                    self.answers.insert(number, result);
                }
                Notice::Pong { .. } | Notice::Console { .. } => {}
            }
        }
        if self.proved {
            for request in self.waiting.drain(..) {
                codec::encode(&request, &mut self.unsent).unwrap();
            }
        }
        if socket.can_send() && !self.unsent.is_empty() {
            let sent = socket.send_slice(&self.unsent).unwrap();
            self.unsent.drain(..sent);
        }
    }
}

/// Frames to the guest at fixed times, and their echoes.
pub struct Probe {
    pub guest: [u8; 6],
    pub next_at: u64,
    pub sent: u64,
    /// Numbers of the echoes, with the time each took, in order of arrival.
    pub echoes: Vec<(u64, u64)>,
}

pub const PROBE_INTERVAL_NS: u64 = 500_000;
const PROBE_MAC: [u8; 6] = [2, 0xe1, 0xab, 2, 0xff, 1];

impl Probe {
    pub fn frame(&mut self, now: u64) -> Vec<u8> {
        let mut frame = self.guest.to_vec();
        frame.extend(PROBE_MAC);
        frame.extend(ETHER_TYPE);
        frame.extend(self.sent.to_le_bytes());
        frame.extend(now.to_le_bytes());
        self.sent += 1;
        self.next_at = now + PROBE_INTERVAL_NS;
        frame
    }

    pub fn on_frame(&mut self, frame: &[u8], now: u64) {
        if frame[0..6] == PROBE_MAC && frame[12..14] == ETHER_TYPE {
            let number = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
            self.echoes.push((number(14), now - number(22)));
        }
    }

    /// The longest time between two echoes' sending moments that were answered, and whether all came in order.
    pub fn longest_ns(&self) -> u64 {
        self.echoes.iter().map(|(_, took)| *took).max().unwrap_or(0)
    }
}
