//! Three learning switches, one for each network, and TCP endpoints on them.

use std::collections::{BTreeMap, VecDeque};

use host::platform::Nic;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::{Duration, Instant},
    wire::{EthernetAddress, IpCidr, Ipv4Address},
};

/// Ports of each switch: the two hosts and the lab.
pub const PORTS: usize = 3;
pub const LAB: usize = 2;
const DELAY_NS: u64 = 40_000;
/// A slow line drops what would wait longer for it.
const LINE_QUEUE_NS: u64 = 200_000_000;

/// Frames on their way, and which way there is.
#[derive(Default)]
pub struct Wire {
    queue: VecDeque<(u64, usize, Nic, Vec<u8>)>,
    macs: BTreeMap<(Nic, [u8; 6]), usize>,
    /// The hosts cannot reach each other on the management network.
    pub migration_cut: bool,
    /// Bits a second that the hosts' line on the management network carries, each way.
    pub migration_rate: Option<u64>,
    line_free_at: [u64; PORTS],
    pub dead: [bool; PORTS],
}

impl Wire {
    pub fn send(&mut self, from: usize, nic: Nic, frame: Vec<u8>, now: u64) {
        if self.dead[from] {
            return;
        }
        let destination: [u8; 6] = frame[0..6].try_into().unwrap();
        let source: [u8; 6] = frame[6..12].try_into().unwrap();
        self.macs.insert((nic, source), from);
        let to = match self.macs.get(&(nic, destination)) {
            Some(port) => vec![*port],
            None => (0..PORTS).collect(),
        };
        for port in to {
            let cut = nic == Nic::Management && self.migration_cut && port != LAB && from != LAB;
            if port == from || cut {
                continue;
            }
            let mut at = now;
            if let Some(rate) = self.migration_rate
                && nic == Nic::Management
                && port != LAB
                && from != LAB
            {
                let line_free_at = &mut self.line_free_at[from];
                at = at.max(*line_free_at);
                if at - now > LINE_QUEUE_NS {
                    continue;
                }
                at += frame.len() as u64 * 8 * 1_000_000_000 / rate;
                *line_free_at = at;
            }
            at += DELAY_NS;
            let place = self.queue.partition_point(|(other, ..)| *other <= at);
            self.queue.insert(place, (at, port, nic, frame.clone()));
        }
    }

    pub fn next_at(&self) -> Option<u64> {
        self.queue.front().map(|(at, ..)| *at)
    }

    pub fn take(&mut self, now: u64) -> Option<(usize, Nic, Vec<u8>)> {
        if self.next_at()? > now {
            return None;
        }
        let (_, port, nic, frame) = self.queue.pop_front()?;
        Some((port, nic, frame))
    }
}

/// Frames between a wire and smoltcp.
#[derive(Default)]
pub struct Card {
    pub received: VecDeque<Vec<u8>>,
    pub sent: Vec<Vec<u8>>,
}

pub struct Received(Vec<u8>);
pub struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sent(&mut self.sent)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 9014;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

/// The lab's TCP on one network.
pub struct Endpoint {
    pub card: Card,
    interface: Interface,
    pub sockets: SocketSet<'static>,
    next_port: u16,
}

pub fn instant(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

impl Endpoint {
    pub fn new(nic: Nic, address: [u8; 4]) -> Self {
        let mut card = Card::default();
        let mac = EthernetAddress([2, 0xe1, 0xab, nic as u8, 0xff, 1]);
        let mut interface = Interface::new(Config::new(mac.into()), &mut card, instant(0));
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(Ipv4Address::from(address).into(), 24))
                .unwrap();
        });
        Self {
            card,
            interface,
            sockets: SocketSet::new(vec![]),
            next_port: 40_000,
        }
    }

    pub fn add(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(Duration::from_secs(20)));
        self.sockets.add(socket)
    }

    pub fn connect(&mut self, socket: SocketHandle, to: [u8; 4], port: u16) {
        self.next_port += 1;
        self.sockets
            .get_mut::<tcp::Socket>(socket)
            .connect(
                self.interface.context(),
                (Ipv4Address::from(to), port),
                self.next_port,
            )
            .unwrap();
    }

    pub fn socket(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    pub fn poll(&mut self, now: u64) {
        self.interface
            .poll(instant(now), &mut self.card, &mut self.sockets);
    }

    pub fn next_at(&mut self, now: u64) -> Option<u64> {
        self.interface
            .poll_at(instant(now), &self.sockets)
            .map(|at| at.total_micros() as u64 * 1000)
    }
}
