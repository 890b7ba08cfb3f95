//! The switch's thread: one epoll over all sockets, one timer for all delayed frames.
//!
//! A turn of the loop reads every port that has something, forwards each frame as it is decoded, and then
//! writes once to every port that got frames: no frame waits for a second wake-up, and a burst
//! costs one write.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use lab_protocol::LinkFault;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::capture::Capture;
use crate::clock::LabClock;
use crate::fabric::{Fabric, PortId};
use crate::framing::Decoder;
use crate::link::Direction;
use crate::network::{Network, Port};
use crate::ports::{Progress, Socket};
use crate::switch::{
    LinkState, Noticed, PortState, Request, SwitchConfig, SwitchError, SwitchNotice,
};

/// What an epoll event is about.
#[derive(Clone, Copy)]
enum Token {
    Requests,
    Timer,
    Listener { network: usize, port: usize },
    Stream { network: usize, port: usize },
}

impl Token {
    fn pack(self) -> u64 {
        let of = |kind: u64, network: usize, port: usize| {
            kind | (network as u64) << 8 | (port as u64) << 32
        };
        match self {
            Self::Requests => 0,
            Self::Timer => 1,
            Self::Listener { network, port } => of(2, network, port),
            Self::Stream { network, port } => of(3, network, port),
        }
    }

    fn unpack(packed: u64) -> Self {
        let (network, port) = ((packed >> 8 & 0xff_ffff) as usize, (packed >> 32) as usize);
        match packed & 0xff {
            0 => Self::Requests,
            1 => Self::Timer,
            2 => Self::Listener { network, port },
            _ => Self::Stream { network, port },
        }
    }
}

/// The thread's state.
pub(crate) struct Worker {
    clock: LabClock,
    epoll: Epoll,
    timer: TimerFd,
    timer_set_for: Option<u64>,
    networks: Vec<Network>,
    notices: Sender<SwitchNotice>,
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
}

impl Worker {
    pub(crate) fn new(
        config: SwitchConfig,
        notices: Sender<SwitchNotice>,
        requests: Receiver<Request>,
        wake: Arc<EventFd>,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        let readable = |token: Token| EpollEvent::new(EpollFlags::EPOLLIN, token.pack());
        epoll.add(&timer, readable(Token::Timer))?;
        epoll.add(wake.as_fd(), readable(Token::Requests))?;
        let networks = config
            .networks
            .into_iter()
            .zip(0u64..)
            .map(|(network, index)| Network {
                fabric: Fabric::new(network.mtu, config.seed.wrapping_add(index << 32)),
                name: network.name,
                ports: Vec::new(),
                decoders: Vec::new(),
                by_name: HashMap::new(),
            });
        Ok(Self {
            clock: config.clock,
            epoll,
            timer,
            timer_set_for: None,
            networks: networks.collect(),
            notices,
            requests,
            wake,
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Token::Requests => {
                        // The value does not matter, reading it makes the descriptor silent again.
                        let _ = self.wake.read();
                        while let Ok(request) = self.requests.try_recv() {
                            if matches!(request, Request::Stop) {
                                return;
                            }
                            self.answer(request);
                        }
                    }
                    Token::Timer => {
                        // Disarmed by setting it anew below.
                        let _ = self.timer.wait();
                        self.timer_set_for = None;
                    }
                    Token::Listener { network, port } => self.accept(network, port),
                    Token::Stream { network, port } => self.serve(network, port, event.events()),
                }
            }
            self.move_delayed();
            self.flush();
            self.arm_timer();
        }
    }

    fn accept(&mut self, network: usize, port: usize) {
        let Some(listener) = &self.networks[network].ports[port].socket.listener else {
            return;
        };
        let accepted = listener
            .accept()
            .and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream));
        match accepted {
            Ok(stream) => {
                let token = Token::Stream { network, port };
                if let Err(errno) = self
                    .epoll
                    .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token.pack()))
                {
                    self.disconnect(network, port, &errno.to_string());
                    return;
                }
                self.networks[network].decoders[port].clear();
                self.networks[network].ports[port].socket.connect(stream);
                let port = self.networks[network].ports[port].name.clone();
                self.notice(network, Noticed::Connected { port });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.disconnect(network, port, &error.to_string()),
        }
    }

    fn serve(&mut self, network: usize, port: usize, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.networks[network].ports[port].touched = true;
        }
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        let now_ns = self.clock.now_ns();
        if let Progress::Closed(reason) =
            self.networks[network].receive(port, &self.notices, now_ns)
        {
            self.disconnect(network, port, &reason);
        }
    }

    fn move_delayed(&mut self) {
        for network in &mut self.networks {
            if network.fabric.next_deadline_ns().is_some() {
                let now_ns = self.clock.now_ns();
                network.move_delayed(&self.notices, now_ns);
            }
        }
    }

    fn flush(&mut self) {
        for network in 0..self.networks.len() {
            for port in 0..self.networks[network].ports.len() {
                let entry = &mut self.networks[network].ports[port];
                if !std::mem::take(&mut entry.touched) {
                    continue;
                }
                if let Progress::Closed(reason) = entry.socket.flush() {
                    self.disconnect(network, port, &reason);
                    continue;
                }
                self.watch_writable(network, port);
            }
        }
    }

    /// Asks to be woken when a full socket takes bytes again, and only then.
    fn watch_writable(&mut self, network: usize, port: usize) {
        let socket = &mut self.networks[network].ports[port].socket;
        let wanted = socket.has_output();
        let Some(stream) = &socket.stream else {
            return;
        };
        if wanted == socket.waiting_to_write {
            return;
        }
        let flags = if wanted {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
        } else {
            EpollFlags::EPOLLIN
        };
        let mut event = EpollEvent::new(flags, Token::Stream { network, port }.pack());
        match self.epoll.modify(stream, &mut event) {
            Ok(()) => socket.waiting_to_write = wanted,
            Err(errno) => self.disconnect(network, port, &errno.to_string()),
        }
    }

    fn arm_timer(&mut self) {
        let deadline = self
            .networks
            .iter()
            .filter_map(|network| network.fabric.next_deadline_ns())
            .min();
        if deadline == self.timer_set_for {
            return;
        }
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
        if result.is_ok() {
            self.timer_set_for = deadline;
        }
    }

    fn disconnect(&mut self, network: usize, port: usize, reason: &str) {
        let entry = &mut self.networks[network].ports[port];
        // Closing the descriptor takes it out of the epoll.
        entry.socket.disconnect();
        let port = entry.name.clone();
        let reason = reason.to_owned();
        self.notice(network, Noticed::Disconnected { port, reason });
    }

    fn notice(&self, network: usize, what: Noticed) {
        // Nobody listens any more when the lab ends.
        let _ = self.notices.send(SwitchNotice {
            t_ns: self.clock.now_ns(),
            network: self.networks[network].name.clone(),
            what,
        });
    }

    /// The caller may have given up waiting; so answers that cannot be sent are dropped.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Add {
                network,
                port,
                listener,
                stream,
                answer,
            } => drop(answer.send(self.add(&network, &port, listener, stream))),
            Request::SetFault {
                network,
                port,
                direction,
                fault,
                answer,
            } => drop(
                answer.send(self.find(&network, &port).map(|(network, port)| {
                    let fabric = &mut self.networks[network].fabric;
                    fabric.set_fault(PortId(port), direction, fault);
                })),
            ),
            Request::Capture {
                network,
                port,
                path,
                answer,
            } => drop(answer.send(self.capture(&network, &port, path.as_deref()))),
            Request::Links(answer) => drop(answer.send(Ok(self.links()))),
            Request::Ports(answer) => drop(answer.send(Ok(self.port_states()))),
            Request::Stop => {}
        }
    }

    fn find_network(&self, network: &str) -> Result<usize, SwitchError> {
        self.networks
            .iter()
            .position(|known| known.name == network)
            .ok_or_else(|| SwitchError::NoNetwork(network.into()))
    }

    fn find(&self, network: &str, port: &str) -> Result<(usize, usize), SwitchError> {
        let index = self.find_network(network)?;
        let port = self.networks[index]
            .by_name
            .get(port)
            .ok_or_else(|| SwitchError::NoPort {
                network: network.into(),
                port: port.into(),
            })?;
        Ok((index, *port))
    }

    fn add(
        &mut self,
        network: &str,
        port: &str,
        listener: Option<UnixListener>,
        stream: Option<UnixStream>,
    ) -> Result<(), SwitchError> {
        let index = self.find_network(network)?;
        let number = self.networks[index].ports.len();
        if self.networks[index].by_name.contains_key(port) {
            return Err(SwitchError::PortExists {
                network: network.into(),
                port: port.into(),
            });
        }
        let watch = |fd: &dyn AsFd, token: Token| {
            self.epoll
                .add(
                    fd.as_fd(),
                    EpollEvent::new(EpollFlags::EPOLLIN, token.pack()),
                )
                .map_err(|errno| SwitchError::Io {
                    what: format!("watching port \"{port}\""),
                    source: errno.into(),
                })
        };
        let (network, port_index) = (index, number);
        if let Some(listener) = &listener {
            watch(
                listener,
                Token::Listener {
                    network,
                    port: port_index,
                },
            )?;
        }
        if let Some(stream) = &stream {
            watch(
                stream,
                Token::Stream {
                    network,
                    port: port_index,
                },
            )?;
        }
        let target = &mut self.networks[index];
        let id = target.fabric.add_port();
        debug_assert_eq!(id.0, number);
        target.ports.push(Port {
            name: port.into(),
            socket: Socket::new(listener, stream),
            touched: false,
        });
        target.decoders.push(Decoder::default());
        target.by_name.insert(port.into(), number);
        Ok(())
    }

    fn capture(
        &mut self,
        network: &str,
        port: &str,
        path: Option<&Path>,
    ) -> Result<(), SwitchError> {
        let (network_index, port_index) = self.find(network, port)?;
        let socket = &mut self.networks[network_index].ports[port_index].socket;
        if let Some(mut finished) = socket.capture.take() {
            finished.flush().map_err(|source| SwitchError::Io {
                what: format!("ending the capture of {port}:{network}"),
                source,
            })?;
        }
        if let Some(path) = path {
            let capture = File::create(path).and_then(|file| {
                let name = format!("{port}:{network}");
                Capture::new(BufWriter::new(file), &name, self.clock.start_unix_ns())
            });
            socket.capture = Some(capture.map_err(|source| SwitchError::Io {
                what: format!("capturing to {}", path.display()),
                source,
            })?);
        }
        Ok(())
    }

    fn links(&self) -> Vec<LinkState> {
        let mut links = Vec::new();
        for network in &self.networks {
            for (index, port) in network.ports.iter().enumerate() {
                for direction in [Direction::Sending, Direction::Receiving] {
                    let fault = network.fabric.fault(PortId(index), direction);
                    if *fault != LinkFault::default() {
                        links.push(LinkState {
                            network: network.name.clone(),
                            port: port.name.clone(),
                            direction,
                            fault: fault.clone(),
                        });
                    }
                }
            }
        }
        links
    }

    fn port_states(&self) -> Vec<PortState> {
        let states = self.networks.iter().flat_map(|network| {
            network
                .ports
                .iter()
                .enumerate()
                .map(|(index, port)| PortState {
                    network: network.name.clone(),
                    port: port.name.clone(),
                    connected: port.socket.stream.is_some(),
                    counters: network.fabric.counters(PortId(index)),
                })
        });
        states.collect()
    }
}
