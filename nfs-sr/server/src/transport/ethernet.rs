//! NFS over the lab's Ethernet switch: a unix stream socket with QEMU's framing (a big-endian `u32` length, then the
//! frame), and `smoltcp` as TCP/IP.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read, Write},
    net::IpAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    str::FromStr,
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
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Checksum, Device, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant as NetInstant,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

use super::{mailbox::Mailbox, session::Session};
use crate::{events::Event, server::Server};

/// Bytes of an Ethernet header, which smoltcp counts into the MTU.
const ETHERNET_HEADER: usize = 14;
/// Sockets that listen; connections beyond that wait for a retransmission of their SYN.
const LISTENING: usize = 4;
const MAX_CONNECTIONS: usize = 64;
const RECEIVE_BUFFER: usize = 512 * 1024;
const SEND_BUFFER: usize = 1 << 20;
/// Bytes of frames that the switch may be behind; more are dropped, as a NIC drops them.
const MAX_OUTGOING: usize = 4 << 20;
const SWITCH: u64 = 0;
const MAILBOX: u64 = 1;
/// The switch is part of the lab that started this server. If it stays away for so long, the lab is gone.
const SWITCH_PATIENCE: Duration = Duration::from_secs(30);

/// An Ethernet address as `02:e1:ab:01:ff:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not an Ethernet address such as 02:e1:ab:01:ff:01");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).map_err(|_| bad()))
            .collect::<Result<_, _>>()?;
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }
}

/// Where and as whom to serve.
#[derive(Clone, Debug)]
pub struct EthernetConfig {
    /// Socket on which the switch listens.
    pub switch: PathBuf,
    /// Our Ethernet address.
    pub mac: MacAddress,
    /// Our address and network.
    pub address: IpCidr,
    /// Longest IP packet.
    pub mtu: usize,
    /// TCP port.
    pub port: u16,
}

/// Serves clients on the switch until `stop` is set and the mailbox woken.
pub struct EthernetTransport {
    server: Arc<Server>,
    config: EthernetConfig,
    mailbox: Arc<Mailbox>,
    epoll: OwnedFd,
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    listening: Vec<SocketHandle>,
    connections: HashMap<u64, Connection>,
    next: u64,
    begun: Instant,
    wants_out: bool,
}

struct Connection {
    socket: SocketHandle,
    peer: String,
    session: Session,
}

impl EthernetTransport {
    /// Connects to the switch. To be called, like [`Self::run`], by the thread that is to serve.
    pub fn new(server: Arc<Server>, config: EthernetConfig) -> io::Result<Self> {
        let begun = Instant::now();
        let mut link = Link::connect(&config)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mailbox = Mailbox::new()?;
        epoll::add(
            &epoll,
            &link.stream,
            EventData::new_u64(SWITCH),
            EventFlags::IN,
        )?;
        epoll::add(
            &epoll,
            mailbox.as_fd(),
            EventData::new_u64(MAILBOX),
            EventFlags::IN,
        )?;
        let mut hardware = Config::new(HardwareAddress::Ethernet(EthernetAddress(config.mac.0)));
        hardware.random_seed = begun.elapsed().as_nanos() as u64 ^ crate::events::now_ns();
        let mut interface = Interface::new(hardware, &mut link, NetInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(config.address)
                .expect("an interface holds at least one address");
        });
        let mut transport = Self {
            server,
            config,
            mailbox,
            epoll,
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            listening: Vec::new(),
            connections: HashMap::new(),
            next: 0,
            begun,
            wants_out: false,
        };
        transport.listen();
        Ok(transport)
    }

    /// Wakes the loop, so that it sees `stop`.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Serves until `stop`, or until the switch is gone for good.
    pub fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut ready = Vec::with_capacity(8);
        while !stop.load(Ordering::SeqCst) {
            if self.link.closed {
                self.reconnect(stop)?;
            }
            self.turn();
            let wait = self
                .interface
                .poll_delay(self.now(), &self.sockets)
                .map_or(Duration::from_secs(60), |delay| {
                    Duration::from_micros(delay.total_micros())
                });
            self.watch()?;
            ready.clear();
            let timeout = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: wait.subsec_nanos().into(),
            };
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut ready),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &ready {
                match event.data.u64() {
                    MAILBOX => self.mailbox.clear(),
                    _ => self.link.exchange(),
                }
            }
        }
        Ok(())
    }

    /// Works until nothing more can be done without a frame, a reply or time.
    fn turn(&mut self) {
        loop {
            let now = self.now();
            self.interface.poll(now, &mut self.link, &mut self.sockets);
            self.accept();
            let mut moved = self.deliver();
            let ids: Vec<u64> = self.connections.keys().copied().collect();
            for id in ids {
                moved |= self.serve(id);
            }
            self.link.flush();
            if !moved && self.link.incoming.is_empty() {
                return;
            }
        }
    }

    fn now(&self) -> NetInstant {
        NetInstant::from_micros(self.begun.elapsed().as_micros() as i64)
    }

    fn listen(&mut self) {
        while self.listening.len() < LISTENING
            && self.connections.len() + self.listening.len() < MAX_CONNECTIONS
        {
            let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
            let mut socket = tcp::Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
            // Delays that suit a terminal session and not a disk.
            socket.set_ack_delay(None);
            socket.set_nagle_enabled(false);
            socket.set_timeout(Some(smoltcp::time::Duration::from_secs(60)));
            socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(10)));
            socket
                .listen(self.config.port)
                .expect("a new socket can listen");
            self.listening.push(self.sockets.add(socket));
        }
    }

    fn accept(&mut self) {
        let sockets = &mut self.sockets;
        let mut accepted = Vec::new();
        self.listening.retain(|handle| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            match (
                socket.is_listening(),
                socket.may_send(),
                socket.remote_endpoint(),
            ) {
                (false, true, Some(peer)) => {
                    accepted.push((*handle, peer));
                    false
                }
                // A handshake that failed leaves a closed socket behind.
                _ if !socket.is_open() => {
                    sockets.remove(*handle);
                    false
                }
                _ => true,
            }
        });
        for (socket, peer) in accepted {
            let smoltcp::wire::IpAddress::Ipv4(address) = peer.addr;
            let id = self.next;
            self.next += 1;
            let session = Session::new(id, IpAddr::V4(address), self.mailbox.clone());
            let connection = Connection {
                socket,
                peer: peer.to_string(),
                session,
            };
            self.server
                .metrics
                .connections
                .fetch_add(1, Ordering::Relaxed);
            self.report(&connection.peer, "open", None);
            self.connections.insert(id, connection);
        }
        self.listen();
    }

    fn deliver(&mut self) -> bool {
        let replies = self.mailbox.take();
        let any = !replies.is_empty();
        for delivery in replies {
            if let Some(connection) = self.connections.get_mut(&delivery.connection) {
                connection.session.deliver(delivery);
            }
        }
        any
    }

    /// Moves bytes between a connection and its socket. True if any moved.
    fn serve(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
        let mut moved = connection.send(socket);
        let result = connection.receive(socket, &self.server, &mut moved);
        let reason = match result {
            Err(reason) => {
                socket.abort();
                Some(reason)
            }
            Ok(()) if socket.is_open() && (socket.may_recv() || connection.session.is_busy()) => {
                return moved;
            }
            // The client has closed its side and everything is answered.
            Ok(()) if socket.may_send() && !connection.session.has_output() => {
                socket.close();
                return moved;
            }
            Ok(()) if socket.is_open() => return moved,
            Ok(()) => None,
        };
        let connection = self.connections.remove(&id).expect("it was there");
        // One more poll sends the reset; the socket is dropped with its buffers after that.
        let now = self.now();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.sockets.remove(connection.socket);
        self.server
            .metrics
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        self.report(&connection.peer, "closed", reason);
        true
    }

    fn watch(&mut self) -> io::Result<()> {
        let wants_out = !self.link.outgoing.is_empty();
        if wants_out != self.wants_out && !self.link.closed {
            let interest = if wants_out {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            epoll::modify(
                &self.epoll,
                &self.link.stream,
                EventData::new_u64(SWITCH),
                interest,
            )?;
            self.wants_out = wants_out;
        }
        Ok(())
    }

    fn reconnect(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let since = Instant::now();
        let message = "the switch closed the connection; connecting again".into();
        self.server.events.report(&Event::Warning { message });
        loop {
            match Link::connect(&self.config) {
                Ok(link) => {
                    epoll::add(
                        &self.epoll,
                        &link.stream,
                        EventData::new_u64(SWITCH),
                        EventFlags::IN,
                    )?;
                    self.link = link;
                    self.wants_out = false;
                    return Ok(());
                }
                Err(error) if since.elapsed() > SWITCH_PATIENCE => return Err(error),
                Err(_) if stop.load(Ordering::SeqCst) => return Ok(()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn report(&self, peer: &str, state: &'static str, reason: Option<String>) {
        self.server.events.report(&Event::Connection {
            client: peer.to_owned(),
            state,
            reason,
        });
    }
}

impl Connection {
    fn send(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while socket.can_send() {
            let sent = match self.session.output().next() {
                Some(piece) => socket.send_slice(piece).unwrap_or(0),
                None => 0,
            };
            if sent == 0 {
                break;
            }
            self.session.sent(sent);
            moved = true;
        }
        moved
    }

    fn receive(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        server: &Arc<Server>,
        moved: &mut bool,
    ) -> Result<(), String> {
        self.session.resume(server)?;
        while self.session.wants_input() && socket.can_recv() {
            *moved = true;
            let session = &mut self.session;
            let received = socket.recv(|input| {
                // A piece at a time: what does not fit among the calls under way would have to be kept.
                let piece = &input[..input.len().min(64 * 1024)];
                (piece.len(), session.receive(server, piece))
            });
            received.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

/// The cable to the switch, as smoltcp sees it.
struct Link {
    stream: UnixStream,
    closed: bool,
    mtu: usize,
    /// Received and not yet cut into frames.
    partial: Vec<u8>,
    incoming: VecDeque<Vec<u8>>,
    /// Framed and not yet sent.
    outgoing: VecDeque<u8>,
}

impl Link {
    fn connect(config: &EthernetConfig) -> io::Result<Self> {
        let stream = UnixStream::connect(&config.switch).map_err(|error| {
            let path = config.switch.display();
            io::Error::new(
                error.kind(),
                format!("cannot connect to the switch at {path}: {error}"),
            )
        })?;
        stream.set_nonblocking(true)?;
        // So a burst of a megabyte does not wait for the switch frame by frame.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, 1 << 20);
        Ok(Self {
            stream,
            closed: false,
            mtu: config.mtu,
            partial: Vec::new(),
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
        })
    }

    fn exchange(&mut self) {
        self.flush();
        let mut chunk = [0; 64 * 1024];
        // A bounded number of times, so that sending gets its turn.
        for _ in 0..16 {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    self.partial.extend_from_slice(&chunk[..n]);
                    if n == chunk.len() {
                        continue;
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => self.closed = true,
            }
            break;
        }
        self.cut_frames();
    }

    fn cut_frames(&mut self) {
        let mut rest = &self.partial[..];
        while let Some((length, body)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > 256 * 1024 {
                // No frame is that long: the stream is out of step, and only a new one gets into step again.
                self.closed = true;
                break;
            }
            let Some((frame, after)) = body.split_at_checked(length) else {
                break;
            };
            if length <= self.mtu + ETHERNET_HEADER {
                self.incoming.push_back(frame.to_vec());
            }
            rest = after;
        }
        let used = self.partial.len() - rest.len();
        self.partial.drain(..used);
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.closed {
            let (front, back) = self.outgoing.as_slices();
            let parts = [io::IoSlice::new(front), io::IoSlice::new(back)];
            match self.stream.write_vectored(&parts) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: NetInstant) -> Option<(Received, Sending<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _: NetInstant) -> Option<Sending<'_>> {
        (self.outgoing.len() < MAX_OUTGOING).then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities
    }
}

/// A frame that has arrived.
struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

/// Room for a frame.
struct Sending<'a>(&'a mut Link);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.outgoing.extend((length as u32).to_be_bytes());
        self.0.outgoing.extend(frame);
        result
    }
}
