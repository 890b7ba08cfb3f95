//! TCP/IP of the host on one network card.
//!
//! It feeds smoltcp frame by frame, straight from the card's ring and straight into the card's ring, so
//! that a received byte is copied once, into its socket. It knows no protocol above TCP.
//!
//! Rejected: queues of owned frames between the card and smoltcp, which cost a copy and an allocation for
//! each frame.

use alloc::{vec, vec::Vec};
use core::net::Ipv4Addr;

use smoltcp::{
    iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::{tcp, udp},
    time::{Duration, Instant},
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr},
};

use crate::platform::{Nic, Platform};

/// Bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;

/// When the card's ring is full, smoltcp asks to be polled at once, for ever. The ring drains by itself
/// in about this time.
const RING_FULL_RETRY_NS: u64 = 100_000;

/// First local port for outgoing connections (RFC 6335, dynamic ports).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// Datagrams that wait in a socket, each way.
const DATAGRAMS: usize = 64;

/// A connection that has been silent for so long is probed.
const KEEP_ALIVE: Duration = Duration::from_millis(2_000);

/// How a TCP socket is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    /// Bytes of the receive buffer, which is also the window.
    pub receive: usize,
    /// Bytes of the send buffer.
    pub send: usize,
    /// The connection is given up when the peer has not answered for so long.
    pub timeout_ms: u64,
}

/// TCP/IP on one network card.
pub(crate) struct Stack {
    nic: Nic,
    mtu: usize,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    /// Where outgoing frames are built.
    scratch: Vec<u8>,
    /// Something may have to be sent.
    due: bool,
    /// When something has to be sent at the latest.
    deadline_ns: Option<u64>,
}

impl Stack {
    /// A card with an address.
    pub fn new<P: Platform>(
        platform: &mut P,
        nic: Nic,
        address: (Ipv4Addr, u8),
        mtu: usize,
    ) -> Self {
        let mut seed = [0; 8];
        platform.random(&mut seed);
        let seed = u64::from_ne_bytes(seed);
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(
            platform.mac(nic),
        )));
        config.random_seed = seed;
        let mut scratch = Vec::with_capacity(mtu + ETHERNET_HEADER);
        let now = instant(platform.now_ns());
        let mut card = Card {
            platform,
            nic,
            mtu,
            received: None,
            scratch: &mut scratch,
        };
        let mut interface = Interface::new(config, &mut card, now);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(address.0, address.1)))
                .expect("a fresh interface has room for an address");
        });
        Self {
            nic,
            mtu,
            interface,
            sockets: SocketSet::new(vec![]),
            // A host that comes back after a crash must not reuse the ports of its old connections,
            // which its peers may still take for open.
            next_port: FIRST_DYNAMIC_PORT + (seed % 8192) as u16,
            scratch,
            due: false,
            deadline_ns: None,
        }
    }

    /// A closed socket.
    pub fn add_socket(&mut self, buffers: Buffers) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffers.receive]),
            tcp::SocketBuffer::new(vec![0; buffers.send]),
        );
        // Delayed acknowledgements and Nagle's algorithm both wait for data that a
        // request-and-answer protocol does not send.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(Duration::from_millis(buffers.timeout_ms)));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        // A window larger than a slow line's queue is lost in part at every turn: without this, for as long as the
        // connection lasts (RFC 5681).
        socket.set_congestion_control(tcp::CongestionControl::Reno);
        self.sockets.add(socket)
    }

    /// A UDP socket for datagrams of up to `longest` bytes on a port.
    pub fn add_datagram_socket(&mut self, port: u16, longest: usize) -> SocketHandle {
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
                vec![0; longest * 4],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket
            .bind(port)
            .expect("a fresh socket is bound to a port that is not zero");
        self.sockets.add(socket)
    }

    /// Sends a datagram to all stations on the network; drops it when there is no room.
    pub fn broadcast(&mut self, handle: SocketHandle, port: u16, bytes: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        // As a wire would: the next one comes soon.
        let _ = socket.send_slice(bytes, (Ipv4Addr::BROADCAST, port));
        self.due = true;
    }

    /// The next datagram that has arrived.
    pub fn datagram(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        let (bytes, _) = socket.recv().ok()?;
        Some(bytes.to_vec())
    }

    /// Frees a socket; what it had not sent is lost.
    pub fn remove_socket(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// Gives a connection up when its peer has sent nothing for so long, not even what it is asked for a few times
    /// meanwhile.
    pub fn set_patience(&mut self, handle: SocketHandle, patience_ms: u64) {
        let socket = self.socket(handle);
        socket.set_timeout(Some(Duration::from_millis(patience_ms)));
        socket.set_keep_alive(Some(Duration::from_millis(patience_ms / 5)));
    }

    /// A socket, to read, write or close. What was written leaves with the next [`Self::poll`].
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.due = true;
        self.sockets.get_mut(handle)
    }

    /// Passes what has arrived at a socket to `take`, which says how much of it it took; ends when that is
    /// nothing, or when nothing is left.
    pub fn read(&mut self, handle: SocketHandle, mut take: impl FnMut(&[u8]) -> usize) {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                let taken = take(bytes);
                (taken, taken)
            });
            match taken {
                // The window has grown, which the peer must be told.
                Ok(1..) => self.due = true,
                _ => break,
            }
        }
    }

    /// Has `fill` put bytes into the free part of a socket's send buffer, and say how many; ends when that
    /// is nothing, or when the buffer is full.
    pub fn write(&mut self, handle: SocketHandle, mut fill: impl FnMut(&mut [u8]) -> usize) {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        while socket.can_send() {
            let filled = socket.send(|room| {
                let filled = fill(room);
                (filled, filled)
            });
            match filled {
                Ok(1..) => self.due = true,
                _ => break,
            }
        }
    }

    /// Whether the peer has ended the connection and all it sent has been read.
    pub fn is_finished(&self, handle: SocketHandle) -> bool {
        let socket = self.peek(handle);
        socket.may_send() && !socket.may_recv() && !socket.can_recv()
    }

    /// A socket, to look at only.
    pub fn peek(&self, handle: SocketHandle) -> &tcp::Socket<'static> {
        self.sockets.get(handle)
    }

    /// Has a closed socket listen.
    pub fn listen(&mut self, handle: SocketHandle, port: u16) {
        self.due = true;
        self.sockets
            .get_mut::<tcp::Socket>(handle)
            .listen(port)
            .expect("only closed sockets are told to listen, on a port that is not zero");
    }

    /// Has a closed socket connect.
    pub fn connect(&mut self, handle: SocketHandle, address: Ipv4Addr, port: u16) {
        self.due = true;
        let local = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_DYNAMIC_PORT);
        self.sockets
            .get_mut::<tcp::Socket>(handle)
            .connect(self.interface.context(), (address, port), local)
            .expect("only closed sockets are told to connect, to an address that is configured");
    }

    /// Takes in a frame from the card.
    pub fn receive<P: Platform>(&mut self, platform: &mut P, frame: &[u8]) {
        let now = instant(platform.now_ns());
        let mut card = Card {
            platform,
            nic: self.nic,
            mtu: self.mtu,
            received: Some(frame),
            scratch: &mut self.scratch,
        };
        let result = self
            .interface
            .poll_ingress_single(now, &mut card, &mut self.sockets);
        // An acknowledgement that makes room in a send buffer counts as a change as well.
        self.due |= result != PollIngressSingleResult::None;
    }

    /// Sends what is to be sent now. Cheap when there is nothing.
    pub fn poll<P: Platform>(&mut self, platform: &mut P) {
        let now_ns = platform.now_ns();
        if !self.due && self.deadline_ns.is_none_or(|deadline| now_ns < deadline) {
            return;
        }
        self.due = false;
        let now = instant(now_ns);
        let mut card = Card {
            platform,
            nic: self.nic,
            mtu: self.mtu,
            received: None,
            scratch: &mut self.scratch,
        };
        while self
            .interface
            .poll_egress(now, &mut card, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
        self.deadline_ns = self.interface.poll_at(now, &self.sockets).map(|at| {
            let at_ns = u64::try_from(at.total_micros()).unwrap_or(0) * 1000;
            if at_ns > now_ns {
                at_ns
            } else {
                now_ns + RING_FULL_RETRY_NS
            }
        });
    }

    /// When [`Self::poll`] must be called at the latest.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if self.due { Some(0) } else { self.deadline_ns }
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).expect("292 000 years have not passed"))
}

/// A network card for the time of one call into smoltcp.
struct Card<'a, P> {
    platform: &'a mut P,
    nic: Nic,
    mtu: usize,
    received: Option<&'a [u8]>,
    scratch: &'a mut Vec<u8>,
}

struct Received<'a>(&'a [u8]);

struct Transmit<'a, P> {
    platform: &'a mut P,
    nic: Nic,
    scratch: &'a mut Vec<u8>,
}

impl<P: Platform> Device for Card<'_, P> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a, P>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_, P>)> {
        let frame = self.received.take()?;
        Some((
            Received(frame),
            Transmit {
                platform: self.platform,
                nic: self.nic,
                scratch: self.scratch,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_, P>> {
        (self.platform.transmit_room(self.nic) > 0).then_some(Transmit {
            platform: self.platform,
            nic: self.nic,
            scratch: self.scratch,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<P: Platform> TxToken for Transmit<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        self.platform.transmit(self.nic, self.scratch);
        result
    }
}
