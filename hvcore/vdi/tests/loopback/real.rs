//! The real server, in this process, and a host that reaches it over TCP.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nfs_sr::{
    events::Events,
    export::{Export, Squash},
    file_io::HostDisk,
    server::{Config, Server, StartError},
    transport::{mailbox::Mailbox, tcp::TcpTransport},
};
use vdi::{Completion, Storage, StorageConfig};

pub struct RealServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl RealServer {
    /// Serves `directory` at `address`, or at any if its port is 0.
    pub fn start(directory: &Path, address: &str) -> Self {
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind(address) {
                Ok(listener) => break listener,
                // Connections of the server before are still closing.
                Err(_) if begun.elapsed() < Duration::from_secs(10) => thread::yield_now(),
                Err(why) => panic!("cannot listen on {address}: {why}"),
            }
        };
        let address = listener.local_addr().expect("a bound listener");
        let directory = directory.to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (made, is_made) = mpsc::channel();
        let thread = thread::spawn(move || {
            let server = open(&directory, address.port());
            let transport = TcpTransport::new(server, listener).expect("the transport starts");
            made.send(transport.mailbox()).expect("the test waits");
            transport.run(&stopped).expect("the transport runs");
        });
        let mailbox = is_made.recv().expect("the server starts");
        Self {
            address,
            stop,
            mailbox,
            thread: Some(thread),
        }
    }
}

fn open(directory: &Path, port: u16) -> Arc<Server> {
    let begun = Instant::now();
    loop {
        let config = Config {
            export: Export {
                name: "/export".into(),
                directory: directory.into(),
                clients: Vec::new(),
                read_only: false,
                squash: Squash::default(),
            },
            commit_sync: true,
            lease_enforcement: true,
            port,
            disk: Arc::new(HostDisk),
        };
        match Server::open(config, Arc::new(Events::discard())) {
            Ok(server) => return server,
            // The one before has calls to finish.
            Err(StartError::Busy(_)) if begun.elapsed() < Duration::from_secs(10) => {
                thread::yield_now();
            }
            Err(why) => panic!("{why}"),
        }
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.mailbox.wake();
        let _ = self.thread.take().expect("it is dropped once").join();
    }
}

/// A host with a socket.
pub struct TcpHost {
    pub storage: Storage,
    server: SocketAddr,
    stream: Option<TcpStream>,
    begun: Instant,
    unsent: Vec<u8>,
    buffer: Vec<u8>,
}

impl TcpHost {
    pub fn new(name: &str, server: SocketAddr) -> Self {
        Self::with_ttl(name, server, Duration::from_secs(10))
    }

    /// A host whose leases last so long.
    pub fn with_ttl(name: &str, server: SocketAddr, ttl: Duration) -> Self {
        let mut config = StorageConfig::new(name.into(), "/export".into(), fastrand::u32(..));
        config.lease_ttl_ms = ttl.as_millis() as u32;
        Self {
            storage: Storage::new(config, 0),
            server,
            stream: None,
            begun: Instant::now(),
            unsent: Vec::new(),
            buffer: vec![0; 256 << 10],
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Moves bytes, without waiting.
    pub fn turn(&mut self) {
        let now = self.now_ns();
        if self.storage.next_deadline_ns().is_some_and(|at| at <= now) {
            self.storage.on_time(now);
        }
        match (self.stream.is_some(), self.storage.wants_connection()) {
            (false, true) => match TcpStream::connect(self.server) {
                Ok(stream) => {
                    stream.set_nonblocking(true).expect("a new socket");
                    stream.set_nodelay(true).expect("a new socket");
                    self.stream = Some(stream);
                    self.storage.on_connected(now);
                }
                Err(_) => self.storage.on_disconnected(now),
            },
            (true, false) => self.close(now),
            (true, true) if self.exchange(now).is_err() => self.close(now),
            _ => {}
        }
    }

    fn close(&mut self, now: u64) {
        self.stream = None;
        self.unsent.clear();
        self.storage.on_disconnected(now);
    }

    fn exchange(&mut self, now: u64) -> std::io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if self.unsent.is_empty() {
            let count = self.storage.transmit(&mut self.buffer, now);
            self.unsent.extend_from_slice(&self.buffer[..count]);
        }
        if !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) => return Err(why),
            }
        }
        match stream.read(&mut self.buffer) {
            Ok(0) => Err(ErrorKind::ConnectionReset.into()),
            Ok(count) => {
                self.storage.receive(&self.buffer[..count], now);
                Ok(())
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => {
                thread::yield_now();
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// The next completion. Panics if none comes for long.
    pub fn wait(&mut self) -> Completion {
        let begun = Instant::now();
        loop {
            if let Some(completion) = self.storage.next_completion() {
                return completion;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "nothing comes back"
            );
            self.turn();
        }
    }
}
