//! NFS over TCP of the operating system.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};

use super::{
    mailbox::Mailbox,
    session::Session,
    wait::{Expectation, SOON},
};
use crate::{events::Event, server::Server};

const LISTENER: u64 = 0;
const MAILBOX: u64 = 1;
const FIRST_CONNECTION: u64 = 2;
/// Read at a time.
const CHUNK: usize = 256 * 1024;
/// Read at a time while calls are long: enough to earn the room of a record.
const FRONT: usize = 8192;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// A connection that has a call half sent, has never sent one, or takes no reply, is closed after so long.
const IDLE: Duration = Duration::from_secs(60);

/// Serves the listener's clients until `stop` is set and the mailbox woken.
pub struct TcpTransport {
    server: Arc<Server>,
    listener: TcpListener,
    mailbox: Arc<Mailbox>,
    epoll: OwnedFd,
    connections: HashMap<u64, Connection>,
    next: u64,
    chunk: Vec<u8>,
    swept: Instant,
    next_call: Expectation,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    session: Session,
    interest: EventFlags,
}

impl TcpTransport {
    /// To be called, like [`Self::run`], by the thread that is to serve.
    pub fn new(server: Arc<Server>, listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mailbox = Mailbox::new()?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        epoll::add(
            &epoll,
            mailbox.as_fd(),
            EventData::new_u64(MAILBOX),
            EventFlags::IN,
        )?;
        Ok(Self {
            server,
            listener,
            mailbox,
            epoll,
            connections: HashMap::new(),
            next: FIRST_CONNECTION,
            chunk: vec![0; CHUNK],
            swept: Instant::now(),
            next_call: Expectation::new(),
        })
    }

    /// Wakes the loop, so that it sees `stop`.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Serves until `stop`. Calls that are under way are then answered, for at most a few seconds.
    pub fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut ready = Vec::with_capacity(64);
        let mut stopping: Option<Instant> = None;
        loop {
            if stop.load(Ordering::SeqCst) && stopping.is_none() {
                stopping = Some(Instant::now());
                epoll::delete(&self.epoll, &self.listener)?;
            }
            if let Some(since) = stopping
                && (!self.is_busy() || since.elapsed() > Duration::from_secs(5))
            {
                return Ok(());
            }
            ready.clear();
            let timeout = Timespec {
                tv_sec: if stopping.is_some() { 0 } else { 10 },
                tv_nsec: 50_000_000,
            };
            self.wait(&mut ready, &timeout)?;
            for event in &ready {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    MAILBOX => self.mailbox.clear(),
                    id => self.ready(id, event.flags, stopping.is_some()),
                }
                // At once, not after all that are ready: a reply that is sent takes no memory.
                self.deliver();
            }
            if self.swept.elapsed() > IDLE / 4 {
                self.sweep();
            }
        }
    }

    /// Waits until something is ready: awake for a moment if a client is about to call again and nothing else is to be done.
    fn wait(&mut self, ready: &mut Vec<epoll::Event>, timeout: &Timespec) -> io::Result<()> {
        let since = Instant::now();
        let awake = self.next_call.is_soon() && !self.is_busy();
        while awake && ready.is_empty() && since.elapsed() < SOON {
            self.poll(ready, &Timespec::default())?;
        }
        if ready.is_empty() {
            self.poll(ready, timeout)?;
        }
        self.next_call.came(since.elapsed());
        Ok(())
    }

    /// Calls are under way, or replies on theirs.
    fn is_busy(&self) -> bool {
        self.connections
            .values()
            .any(|c| c.session.is_busy() || c.session.has_output())
    }

    fn poll(&self, ready: &mut Vec<epoll::Event>, timeout: &Timespec) -> io::Result<()> {
        let space = rustix::buffer::spare_capacity(ready);
        match epoll::wait(&self.epoll, space, Some(timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        // One error here (a client that is gone already, no descriptors) is no reason to stop serving others.
        while let Ok((stream, peer)) = self.listener.accept() {
            if !self.server.export.admits(peer.ip()) || !self.make_room() {
                continue;
            }
            let set_up = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true));
            let id = self.next;
            let interest = EventFlags::IN;
            if set_up.is_err()
                || epoll::add(&self.epoll, &stream, EventData::new_u64(id), interest).is_err()
            {
                continue;
            }
            self.next += 1;
            self.server
                .metrics
                .connections
                .fetch_add(1, Ordering::Relaxed);
            self.report(peer, "open", None);
            let session = Session::new(id, peer.ip(), self.mailbox.clone());
            let connection = Connection {
                stream,
                peer,
                session,
                interest,
            };
            self.connections.insert(id, connection);
        }
    }

    /// Makes room for another connection, if need be at the cost of one that has never sent a call.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let unproven = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.session.is_unproven());
        match unproven.map(|(id, _)| *id).min() {
            Some(oldest) => {
                self.settle(oldest, Err(Closed(Some("others needed the place".into()))));
                true
            }
            None => false,
        }
    }

    fn ready(&mut self, id: u64, flags: EventFlags, stopping: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let mut result = Ok(());
        if flags.contains(EventFlags::OUT) {
            result = connection
                .send()
                .and_then(|()| connection.resume(&self.server));
        }
        if result.is_ok()
            && !stopping
            && flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
        {
            result = connection.receive(&mut self.chunk, &self.server);
        }
        self.settle(id, result);
    }

    /// Hands replies to their connections, sends them, and goes on with calls that had to wait for that.
    fn deliver(&mut self) {
        loop {
            let replies = self.mailbox.take();
            if replies.is_empty() {
                return;
            }
            let mut touched = Vec::new();
            for delivery in replies {
                let id = delivery.connection;
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.session.deliver(delivery);
                    touched.push(id);
                }
            }
            touched.sort_unstable();
            touched.dedup();
            for id in touched {
                if let Some(connection) = self.connections.get_mut(&id) {
                    let result = connection
                        .send()
                        .and_then(|()| connection.resume(&self.server));
                    self.settle(id, result);
                }
            }
        }
    }

    /// Closes a connection that failed, or waits for what it now needs.
    fn settle(&mut self, id: u64, result: Result<(), Closed>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let reason = match result {
            Ok(()) => {
                let mut interest = EventFlags::empty();
                if connection.session.wants_input() {
                    interest |= EventFlags::IN;
                }
                if connection.session.has_output() {
                    interest |= EventFlags::OUT;
                }
                if interest == connection.interest {
                    return;
                }
                connection.interest = interest;
                match epoll::modify(
                    &self.epoll,
                    &connection.stream,
                    EventData::new_u64(id),
                    interest,
                ) {
                    Ok(()) => return,
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(Closed(reason)) => reason,
        };
        let peer = connection.peer;
        // Closing takes it out of the epoll set.
        self.connections.remove(&id);
        self.server
            .metrics
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        self.report(peer, "closed", reason);
    }

    /// Closes connections that hold memory and give nothing.
    fn sweep(&mut self) {
        self.swept = Instant::now();
        let idle: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.session.is_stuck(IDLE))
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.settle(
                id,
                Err(Closed(Some(
                    "it sent nothing, or took nothing, for too long".into(),
                ))),
            );
        }
    }

    fn report(&self, peer: SocketAddr, state: &'static str, reason: Option<String>) {
        self.server.events.report(&Event::Connection {
            client: peer.to_string(),
            state,
            reason,
        });
    }
}

/// A connection is over; why, unless the client ended it.
struct Closed(Option<String>);

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Self {
        // The usual way of some clients to end.
        let ended = error.kind() == io::ErrorKind::ConnectionReset;
        Self((!ended).then(|| error.to_string()))
    }
}

impl Connection {
    fn receive(&mut self, chunk: &mut [u8], server: &Arc<Server>) -> Result<(), Closed> {
        // Of long calls the front only: the rest is received where it belongs.
        let taken = if self.session.expects_long() {
            FRONT
        } else {
            CHUNK
        };
        let space = self.session.space();
        let direct = space.len();
        let mut parts = [IoSliceMut::new(space), IoSliceMut::new(&mut chunk[..taken])];
        let received = match self.stream.read_vectored(&mut parts) {
            Ok(0) => return Err(Closed(None)),
            Ok(n) => n,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let direct = received.min(direct);
        if direct > 0 {
            let taken = self.session.received(server, direct);
            taken.map_err(|why| Closed(Some(why)))?;
        }
        self.session
            .receive(server, &chunk[..received - direct])
            .map_err(|why| Closed(Some(why)))
    }

    fn resume(&mut self, server: &Arc<Server>) -> Result<(), Closed> {
        self.session.resume(server).map_err(|why| Closed(Some(why)))
    }

    fn send(&mut self) -> Result<(), Closed> {
        while self.session.has_output() {
            let mut parts = [IoSlice::new(&[]); 32];
            let mut count = 0;
            for (part, piece) in parts.iter_mut().zip(self.session.output()) {
                *part = IoSlice::new(piece);
                count += 1;
            }
            match self.stream.write_vectored(&parts[..count]) {
                Ok(n) => self.session.sent(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
