//! The host's connection to its storage server: bytes between a socket and [`Storage`].
//!
//! When to connect, how long to wait after a failure and what to send again is the business of
//! [`Storage`]; this module owns the socket.

use core::net::Ipv4Addr;

use smoltcp::iface::SocketHandle;
use vdi::{Storage, StorageConfig};

use crate::{
    HostConfig,
    net::stack::{Buffers, Stack},
    platform::{Nic, Platform},
};

/// Big enough for a kernel to be read at the speed of the network.
const BUFFERS: Buffers = Buffers {
    receive: 1 << 20,
    send: 512 << 10,
    timeout_ms: 5_000,
};

/// The storage network and what is done on it.
pub(crate) struct StorageLink {
    pub stack: Stack,
    socket: SocketHandle,
    server: (Ipv4Addr, u16),
    storage: Storage,
    /// What [`Storage`] was told last.
    connected: bool,
    /// A connection was begun.
    connecting: bool,
}

impl StorageLink {
    pub fn new<P: Platform>(platform: &mut P, config: &HostConfig) -> Self {
        let mut stack = Stack::new(platform, Nic::Storage, config.storage, config.mtu);
        let socket = stack.add_socket(BUFFERS);
        let mut seed = [0; 4];
        platform.random(&mut seed);
        let settings = StorageConfig::new(
            config.name.clone(),
            config.export.clone(),
            u32::from_ne_bytes(seed),
        );
        Self {
            stack,
            socket,
            server: config.nfs,
            storage: Storage::new(settings, platform.now_ns()),
            connected: false,
            connecting: false,
        }
    }

    /// The disks and files on the server.
    pub fn storage(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// The disks and files on the server, to look at only.
    pub fn peek(&self) -> &Storage {
        &self.storage
    }

    /// Moves what has arrived and what is to be sent.
    pub fn poll<P: Platform>(&mut self, platform: &mut P) {
        let now = platform.now_ns();
        if self.storage.next_deadline_ns().is_some_and(|at| at <= now) {
            self.storage.on_time(now);
        }
        self.keep_connection(now);
        if self.connected {
            let storage = &mut self.storage;
            self.stack.read(self.socket, |bytes| {
                storage.receive(bytes, now);
                bytes.len()
            });
            self.stack
                .write(self.socket, |room| storage.transmit(room, now));
        }
        self.stack.poll(platform);
    }

    fn keep_connection(&mut self, now: u64) {
        let socket = self.stack.peek(self.socket);
        let (open, usable) = (
            socket.is_open(),
            socket.may_send() && (socket.may_recv() || socket.can_recv()),
        );
        if self.connected && !usable || self.connecting && !open {
            self.stack.socket(self.socket).abort();
            self.connected = false;
            self.connecting = false;
            self.storage.on_disconnected(now);
        } else if self.connecting && usable {
            self.connecting = false;
            self.connected = true;
            self.storage.on_connected(now);
        }
        let standing = self.connected || self.connecting;
        match (self.storage.wants_connection(), standing) {
            (true, false) if !open => {
                self.stack
                    .connect(self.socket, self.server.0, self.server.1);
                self.connecting = true;
            }
            (false, true) => {
                self.stack.socket(self.socket).abort();
                self.connected = false;
                self.connecting = false;
                self.storage.on_disconnected(now);
            }
            _ => {}
        }
    }

    /// When [`Self::poll`] must be called at the latest.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        [
            self.storage.next_deadline_ns(),
            self.stack.next_deadline_ns(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
