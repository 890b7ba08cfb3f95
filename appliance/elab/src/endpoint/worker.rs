//! An endpoint's thread: one epoll over its switch port, its sockets and one timer.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr};
use switch::LabClock;

use super::bridge::Bridge;
use super::device::Card;
use super::probe::ProbeConfig;
use super::runner::{Opening, Progress, Runner};
use super::{EndpointConfig, ProbeId};
use crate::journal::Journal;

/// First local port for outgoing connections (RFC 6335, dynamic ports).
const FIRST_DYNAMIC_PORT: u16 = 49_152;
/// Window and send buffer of a carried connection.
const BUFFER: usize = 256 * 1024;
/// A connection that has not opened by then is given up.
const CONNECT_DEADLINE_NS: u64 = 5_000_000_000;

const WAKE: u64 = 0;
const TIMER: u64 = 1;
const CARD: u64 = 2;
/// Tokens from here on are listeners and bridges.
const FIRST_DYNAMIC_TOKEN: u64 = 16;

/// What an endpoint can be asked.
pub(super) enum Request {
    Connect {
        to: SocketAddrV4,
        near: OwnedFd,
        answer: Option<Sender<io::Result<()>>>,
    },
    Forward {
        listener: TcpListener,
        to: SocketAddrV4,
    },
    StartProbe {
        config: ProbeConfig,
        answer: Sender<io::Result<ProbeId>>,
    },
    StopProbe {
        probe: ProbeId,
        answer: Sender<()>,
    },
    Stop,
}

struct Forward {
    listener: TcpListener,
    to: SocketAddrV4,
}

/// The thread's state.
pub(super) struct Worker {
    clock: LabClock,
    journal: Journal,
    epoll: Epoll,
    timer: TimerFd,
    wake: Arc<EventFd>,
    requests: Receiver<Request>,
    card: Card,
    card_waits_to_write: bool,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    next_token: u64,
    bridges: HashMap<u64, Bridge>,
    forwards: HashMap<u64, Forward>,
    opening: Vec<(ProbeId, Opening)>,
    probes: HashMap<ProbeId, Runner>,
}

impl Worker {
    pub(super) fn new(
        config: EndpointConfig,
        requests: Receiver<Request>,
        wake: Arc<EventFd>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        let mut card = Card::new(config.stream, config.mtu);
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(wake.as_fd(), readable(WAKE))?;
        epoll.add(&timer, readable(TIMER))?;
        epoll.add(&card.stream, readable(CARD))?;
        let address = HardwareAddress::Ethernet(EthernetAddress(config.mac));
        let mut stack = Config::new(address);
        stack.random_seed = fastrand::u64(..);
        let mut interface = Interface::new(stack, &mut card, instant(config.clock.now_ns()));
        let cidr = IpCidr::Ipv4(Ipv4Cidr::new(config.address, config.prefix));
        interface.update_ip_addrs(|addresses| {
            // The list is empty and holds more than one.
            let _ = addresses.push(cidr);
        });
        Ok(Self {
            clock: config.clock,
            journal: config.journal,
            epoll,
            timer,
            wake,
            requests,
            card,
            card_waits_to_write: false,
            interface,
            sockets: SocketSet::new(Vec::new()),
            next_port: FIRST_DYNAMIC_PORT + fastrand::u16(0..8192),
            next_token: FIRST_DYNAMIC_TOKEN,
            bridges: HashMap::new(),
            forwards: HashMap::new(),
            opening: Vec::new(),
            probes: HashMap::new(),
        })
    }

    /// Runs until told to stop, or until the switch is gone.
    pub(super) fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        // The value does not matter, reading it makes the descriptor silent again.
                        let _ = self.wake.read();
                        while let Ok(request) = self.requests.try_recv() {
                            if matches!(request, Request::Stop) {
                                return;
                            }
                            self.take(request);
                        }
                    }
                    // Set anew at the end of the turn.
                    TIMER => drop(self.timer.wait()),
                    CARD => {
                        if self.card.read().is_err() {
                            return;
                        }
                    }
                    token => self.near_event(token, event.events()),
                }
            }
            if self.turn().is_err() {
                return;
            }
        }
    }

    /// Everything that may be due now, in the order that keeps probes punctual.
    fn turn(&mut self) -> io::Result<()> {
        let now_ns = self.clock.now_ns();
        for runner in self.probes.values_mut() {
            runner.send_due(&mut self.sockets, now_ns);
        }
        let now = instant(now_ns);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let now_ns = self.clock.now_ns();
        self.open_probes(now_ns);
        for runner in self.probes.values_mut() {
            runner.receive(&mut self.sockets, now_ns);
        }
        let sockets = &mut self.sockets;
        self.bridges.retain(|_, bridge| {
            let alive = bridge.pump(sockets.get_mut::<tcp::Socket>(bridge.handle), now_ns);
            if !alive {
                sockets.remove(bridge.handle);
            }
            alive
        });
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.report_probes(now_ns);
        self.flush()?;
        self.arm_timer(now);
        Ok(())
    }

    fn open_probes(&mut self, now_ns: u64) {
        for (id, opening) in std::mem::take(&mut self.opening) {
            match opening.advance(id, &mut self.sockets, now_ns) {
                Progress::Waits(opening) => self.opening.push((id, opening)),
                Progress::Open(runner) => drop(self.probes.insert(id, runner)),
                Progress::Failed => {}
            }
        }
    }

    fn report_probes(&mut self, now_ns: u64) {
        let (journal, sockets) = (&self.journal, &mut self.sockets);
        self.probes.retain(|_, runner| {
            let ended = runner.ended(now_ns);
            while let Some(event) = runner.take_stretch(now_ns, ended) {
                journal.record(now_ns, "session", event);
            }
            if ended {
                runner.close(sockets);
            }
            !ended
        });
    }

    fn flush(&mut self) -> io::Result<()> {
        let waits = self.card.flush()?;
        if waits != self.card_waits_to_write {
            let flags = if waits {
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
            } else {
                EpollFlags::EPOLLIN
            };
            self.epoll
                .modify(&self.card.stream, &mut EpollEvent::new(flags, CARD))?;
            self.card_waits_to_write = waits;
        }
        Ok(())
    }

    fn arm_timer(&mut self, now: Instant) {
        let stack = self
            .interface
            .poll_at(now, &self.sockets)
            .map(|at| u64::try_from(at.total_micros()).unwrap_or(0) * 1000);
        let opening = self.opening.iter().map(|(_, one)| one.deadline_ns());
        let probes = self.probes.values().filter_map(Runner::deadline_ns);
        let bridges = self.bridges.values().filter_map(Bridge::deadline_ns);
        let deadline = stack
            .into_iter()
            .chain(opening)
            .chain(probes)
            .chain(bridges)
            .min();
        let result = match deadline {
            None => self.timer.unset(),
            Some(deadline) => {
                // Zero would disarm it.
                let wait = deadline.saturating_sub(self.clock.now_ns()).max(1);
                let wait = TimeSpec::from_duration(Duration::from_nanos(wait));
                self.timer
                    .set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())
            }
        };
        // The kernel refuses only malformed times, and a Duration below a second's nanoseconds is none.
        debug_assert!(result.is_ok());
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Connect { to, near, answer } => self.connect(to, near, answer),
            Request::Forward { listener, to } => {
                let token = self.token();
                if self
                    .epoll
                    .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token))
                    .is_ok()
                {
                    self.forwards.insert(token, Forward { listener, to });
                }
            }
            Request::StartProbe { config, answer } => {
                let id = ProbeId(self.token());
                let port = self.port();
                let give_up_ns = self.clock.now_ns() + CONNECT_DEADLINE_NS;
                let context = self.interface.context();
                let sockets = &mut self.sockets;
                let opening = Opening::new(config, answer, give_up_ns, port, context, sockets);
                self.opening.push((id, opening));
            }
            Request::StopProbe { probe, answer } => match self.probes.get_mut(&probe) {
                Some(runner) => runner.stop(answer),
                None => drop(answer.send(())),
            },
            Request::Stop => {}
        }
    }

    fn connect(&mut self, to: SocketAddrV4, near: OwnedFd, answer: Option<Sender<io::Result<()>>>) {
        let mut socket = tcp_socket(BUFFER);
        let port = self.port();
        let remote = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
        let token = self.token();
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let prepared = socket
            .connect(self.interface.context(), remote, port)
            .map_err(|error| io::Error::other(error.to_string()))
            .and_then(|()| set_nonblocking(&near))
            .and_then(|()| Ok(self.epoll.add(&near, EpollEvent::new(flags, token))?));
        match prepared {
            Ok(()) => {
                let handle = self.sockets.add(socket);
                let give_up_ns = self.clock.now_ns() + CONNECT_DEADLINE_NS;
                let bridge = Bridge::new(handle, near, answer, give_up_ns);
                self.bridges.insert(token, bridge);
            }
            Err(error) => {
                if let Some(answer) = answer {
                    // Whoever asked may have given up.
                    let _ = answer.send(Err(error));
                }
            }
        }
    }

    fn near_event(&mut self, token: u64, flags: EpollFlags) {
        if let Some(bridge) = self.bridges.get_mut(&token) {
            let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            bridge.readable |= flags.intersects(EpollFlags::EPOLLIN | ended);
            bridge.writable |= flags.intersects(EpollFlags::EPOLLOUT | ended);
            return;
        }
        let Some(forward) = self.forwards.get(&token) else {
            return;
        };
        let to = forward.to;
        if let Ok((stream, _)) = forward.listener.accept() {
            // Keys are single bytes, and each matters.
            let _ = stream.set_nodelay(true);
            self.connect(to, stream.into(), None);
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_DYNAMIC_PORT);
        self.next_port
    }
}

/// A TCP socket that answers at once and lives through a long silence of its peer.
pub(super) fn tcp_socket(buffer: usize) -> tcp::Socket<'static> {
    let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
    let mut socket = tcp::Socket::new(ring(), ring());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(60)));
    socket
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}
