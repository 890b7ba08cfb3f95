//! The sockets of a probe: sends what the schedule says, recognises the answers.

use std::io;
use std::sync::mpsc::Sender;

use lab_protocol::{Event, ProbeKind};
use smoltcp::iface::{Context, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpEndpoint};

use super::ProbeId;
use super::probe::{PATIENCE_NS, ProbeConfig, Series};
use super::worker::tcp_socket;

/// Length of a request: a magic number and the request's own.
const MESSAGE: usize = 16;
const MAGIC: u64 = u64::from_be_bytes(*b"elabecho");
/// More than a guest that stands still for the whole of a probe's patience can make wait.
const WAITING: usize = 8192;

enum Transport {
    Udp(IpEndpoint),
    Tcp {
        /// Bytes of a message that has not arrived whole.
        partial: Vec<u8>,
    },
    Ping(IpAddress, u16),
}

/// A probe whose transport is being opened. Its schedule begins afterwards: what is due before there is a connection would measure
/// the connection's set-up, and count as lost what nobody could have answered.
pub(super) struct Opening {
    config: ProbeConfig,
    handle: SocketHandle,
    transport: Transport,
    /// Who waits for it.
    answer: Sender<io::Result<ProbeId>>,
    give_up_ns: u64,
}

/// How far an opening has come.
pub(super) enum Progress {
    Waits(Opening),
    Open(Runner),
    Failed,
}

impl Opening {
    pub(super) fn new(
        config: ProbeConfig,
        answer: Sender<io::Result<ProbeId>>,
        give_up_ns: u64,
        port: u16,
        context: &mut Context,
        sockets: &mut SocketSet<'static>,
    ) -> Self {
        let to = IpEndpoint::new(IpAddress::Ipv4(*config.to.ip()), config.to.port());
        let (handle, transport) = match config.kind {
            ProbeKind::Tcp => {
                let mut socket = tcp_socket(WAITING * MESSAGE);
                socket
                    .connect(context, to, port)
                    .expect("a fresh socket with two complete addresses can connect");
                (
                    sockets.add(socket),
                    Transport::Tcp {
                        partial: Vec::new(),
                    },
                )
            }
            ProbeKind::Ping => {
                let buffer = || {
                    icmp::PacketBuffer::new(
                        vec![icmp::PacketMetadata::EMPTY; 256],
                        vec![0; 256 * 64],
                    )
                };
                let mut socket = icmp::Socket::new(buffer(), buffer());
                socket
                    .bind(icmp::Endpoint::Ident(port))
                    .expect("a fresh socket can be bound to any identifier");
                (sockets.add(socket), Transport::Ping(to.addr, port))
            }
            // The other kinds are measured elsewhere; a datagram is the plainest request.
            _ => {
                let buffer = || {
                    udp::PacketBuffer::new(
                        vec![udp::PacketMetadata::EMPTY; WAITING],
                        vec![0; WAITING * MESSAGE],
                    )
                };
                let mut socket = udp::Socket::new(buffer(), buffer());
                socket
                    .bind(port)
                    .expect("a fresh socket can be bound to a port that is not 0");
                (sockets.add(socket), Transport::Udp(to))
            }
        };
        Self {
            config,
            handle,
            transport,
            answer,
            give_up_ns,
        }
    }

    /// When the opening is given up.
    pub(super) fn deadline_ns(&self) -> u64 {
        self.give_up_ns
    }

    /// Looks whether it is open, and tells who waits; `id` is the probe's number then.
    pub(super) fn advance(
        self,
        id: ProbeId,
        sockets: &mut SocketSet<'static>,
        now_ns: u64,
    ) -> Progress {
        let failure = match self.transport {
            Transport::Udp(_) | Transport::Ping(..) => None,
            Transport::Tcp { .. } => {
                let socket = sockets.get_mut::<tcp::Socket>(self.handle);
                if socket.may_send() {
                    None
                } else if socket.state() == tcp::State::Closed {
                    Some((io::ErrorKind::ConnectionRefused, "refuses connections"))
                } else if now_ns >= self.give_up_ns {
                    Some((io::ErrorKind::TimedOut, "does not answer"))
                } else {
                    return Progress::Waits(self);
                }
            }
        };
        // Whoever asked may have given up; samples go to the journal all the same.
        let _ = self.answer.send(match failure {
            None => Ok(id),
            Some((kind, what)) => Err(io::Error::new(kind, format!("{} {what}", self.config.to))),
        });
        if failure.is_some() {
            sockets.remove(self.handle);
            return Progress::Failed;
        }
        let ProbeConfig {
            kind, interval_ns, ..
        } = self.config;
        Progress::Open(Runner {
            series: Series::new(kind, interval_ns, now_ns + interval_ns),
            handle: self.handle,
            transport: self.transport,
            stopping: None,
        })
    }
}

/// A running probe.
pub(super) struct Runner {
    series: Series,
    handle: SocketHandle,
    transport: Transport,
    /// Set when the probe shall end: who waits for it.
    stopping: Option<Sender<()>>,
}

impl Runner {
    /// Sends every request that is due. One for which there is no room is lost, as on a wire.
    pub(super) fn send_due(&mut self, sockets: &mut SocketSet<'static>, now_ns: u64) {
        if self.stopping.is_some() {
            return;
        }
        while let Some(number) = self.series.take_due(now_ns) {
            let message = message(number);
            match &self.transport {
                Transport::Udp(to) => {
                    let socket = sockets.get_mut::<udp::Socket>(self.handle);
                    // A full buffer: the request counts as lost.
                    let _ = socket.send_slice(&message, *to);
                }
                Transport::Tcp { .. } => {
                    let socket = sockets.get_mut::<tcp::Socket>(self.handle);
                    // Half a message would spoil all that follow.
                    if socket.send_capacity() - socket.send_queue() >= MESSAGE {
                        // No longer open: the request counts as lost.
                        let _ = socket.send_slice(&message);
                    }
                }
                Transport::Ping(to, ident) => {
                    let socket = sockets.get_mut::<icmp::Socket>(self.handle);
                    let request = Icmpv4Repr::EchoRequest {
                        ident: *ident,
                        seq_no: (number & 0xffff) as u16,
                        data: &message,
                    };
                    if let Ok(room) = socket.send(request.buffer_len(), *to) {
                        let mut packet = Icmpv4Packet::new_unchecked(room);
                        request.emit(&mut packet, &ChecksumCapabilities::default());
                    }
                }
            }
        }
    }

    /// Takes the answers that have arrived.
    pub(super) fn receive(&mut self, sockets: &mut SocketSet<'static>, now_ns: u64) {
        let series = &mut self.series;
        match &mut self.transport {
            Transport::Udp(_) => {
                let socket = sockets.get_mut::<udp::Socket>(self.handle);
                while let Ok((data, _)) = socket.recv() {
                    if let Some(number) = number(data) {
                        series.answered(number, now_ns);
                    }
                }
            }
            Transport::Ping(..) => {
                let socket = sockets.get_mut::<icmp::Socket>(self.handle);
                while let Ok((data, _)) = socket.recv() {
                    let reply = Icmpv4Packet::new_checked(data).and_then(|packet| {
                        Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())
                    });
                    if let Ok(Icmpv4Repr::EchoReply { data, .. }) = reply
                        && let Some(number) = number(data)
                    {
                        series.answered(number, now_ns);
                    }
                }
            }
            Transport::Tcp { partial } => {
                let socket = sockets.get_mut::<tcp::Socket>(self.handle);
                while socket.can_recv() {
                    let taken = socket.recv(|bytes| {
                        partial.extend_from_slice(bytes);
                        (bytes.len(), ())
                    });
                    if taken.is_err() {
                        break;
                    }
                }
                let whole = partial.len() / MESSAGE * MESSAGE;
                for message in partial[..whole].chunks_exact(MESSAGE) {
                    if let Some(number) = number(message) {
                        series.answered(number, now_ns);
                    }
                }
                partial.drain(..whole);
            }
        }
    }

    /// Begins the end: no more requests; answers are still waited for.
    pub(super) fn stop(&mut self, waiting: Sender<()>) {
        self.stopping = Some(waiting);
    }

    /// Whether the probe was stopped and nothing is outstanding.
    pub(super) fn ended(&self, now_ns: u64) -> bool {
        self.stopping.is_some() && self.series.settled(now_ns)
    }

    /// A stretch to report, if one is complete.
    pub(super) fn take_stretch(&mut self, now_ns: u64, all: bool) -> Option<Event> {
        self.series.take_stretch(now_ns, all)
    }

    /// When the probe wants to be called.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match self.stopping {
            None => Some(self.series.next_due_ns()),
            Some(_) => Some(self.series.next_due_ns().saturating_add(PATIENCE_NS)),
        }
    }

    /// Gives the sockets back and tells who waits.
    pub(super) fn close(&mut self, sockets: &mut SocketSet<'static>) {
        if let Transport::Tcp { .. } = self.transport {
            sockets.get_mut::<tcp::Socket>(self.handle).abort();
        }
        sockets.remove(self.handle);
        if let Some(waiting) = self.stopping.take() {
            // He may have given up.
            let _ = waiting.send(());
        }
    }
}

fn message(number: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[..8].copy_from_slice(&MAGIC.to_be_bytes());
    message[8..].copy_from_slice(&number.to_be_bytes());
    message
}

fn number(message: &[u8]) -> Option<u64> {
    let (magic, rest) = message.split_first_chunk::<8>()?;
    let number = rest.first_chunk::<8>()?;
    (u64::from_be_bytes(*magic) == MAGIC).then(|| u64::from_be_bytes(*number))
}
