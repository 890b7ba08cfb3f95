//! Endpoints of the lab on its networks: a TCP/IP stack of their own on a port of the switch.
//!
//! To the rest of the lab a TCP connection into the lab's networks is a Unix socket: whoever wants one
//! asks [`Endpoint::connect`], or lets [`Endpoint::forward`] carry what arrives on a loopback port. Probes run inside
//! the endpoint's thread, because a probe that waits for another thread measures that thread.
//!
//! A TAP device and the kernel's own stack would need root.

mod bridge;
mod device;
pub mod probe;
mod runner;
mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use switch::LabClock;

use crate::journal::Journal;
use crate::priority;
use probe::ProbeConfig;
use worker::{Request, Worker};

/// Longer than the stack itself tries to connect.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What an endpoint is.
#[derive(Debug)]
pub struct EndpointConfig {
    /// Name, for threads and messages.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Longest IP packet.
    pub mtu: usize,
    /// Its end of a switch port ([`switch::Switch::endpoint`]).
    pub stream: UnixStream,
    /// The lab's clock.
    pub clock: LabClock,
    /// Where probes report.
    pub journal: Journal,
}

/// A running endpoint; dropping it closes its connections.
#[derive(Debug)]
pub struct Endpoint {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Numbers a probe, to stop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeId(u64);

impl Endpoint {
    /// Starts the endpoint's thread.
    ///
    /// # Errors
    /// When the system has no descriptors or threads left.
    pub fn start(config: EndpointConfig) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (requests, incoming) = mpsc::channel();
        let name = config.name.clone();
        let mut worker = Worker::new(config, incoming, Arc::clone(&wake))?;
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            priority::raise();
            worker.run();
        })?;
        Ok(Self {
            requests,
            wake,
            thread: Some(thread),
        })
    }

    /// Opens a TCP connection; the stream is its near end.
    ///
    /// # Errors
    /// When the peer refuses, or does not answer in time.
    pub fn connect(&self, to: SocketAddrV4) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (answer, result) = mpsc::channel();
        self.send(Request::Connect {
            to,
            near: theirs.into(),
            answer: Some(answer),
        })?;
        result.recv_timeout(ANSWER_DEADLINE).map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("{to} does not answer"))
        })??;
        Ok(ours)
    }

    /// Carries each connection that `listener` accepts to `to`.
    ///
    /// # Errors
    /// When the listener cannot be watched.
    pub fn forward(&self, listener: TcpListener, to: SocketAddrV4) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.send(Request::Forward { listener, to })
    }

    /// Starts a probe; its schedule begins when its connection, if it has one, is open. Its samples go to the journal.
    ///
    /// # Errors
    /// When the peer refuses the connection or does not answer in time, or the endpoint has ended.
    pub fn start_probe(&self, config: ProbeConfig) -> io::Result<ProbeId> {
        let (answer, result) = mpsc::channel();
        self.send(Request::StartProbe { config, answer })?;
        result.recv_timeout(ANSWER_DEADLINE).map_err(|_| gone())?
    }

    /// Stops a probe: what it has measured is in the journal when this returns.
    ///
    /// # Errors
    /// When the endpoint has ended.
    pub fn stop_probe(&self, probe: ProbeId) -> io::Result<()> {
        let (answer, result) = mpsc::channel();
        self.send(Request::StopProbe { probe, answer })?;
        result.recv_timeout(ANSWER_DEADLINE).map_err(|_| gone())
    }

    fn send(&self, request: Request) -> io::Result<()> {
        self.requests.send(request).map_err(|_| gone())?;
        self.wake.write(1)?;
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let stopping = self.send(Request::Stop).is_ok();
        if let Some(thread) = self.thread.take()
            && stopping
        {
            // A panic of the thread has already been printed by it.
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the endpoint's thread has ended")
}
