//! Gives the fabrics sockets and a clock: one thread, one epoll, one timer.
//!
//! A turn of the loop reads every port that has something, forwards each frame as it is decoded, and then
//! writes once to every port that got frames: no frame waits for a second wake-up, and a burst
//! costs one write.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use lab_protocol::LinkFault;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::capture::Capture;
use crate::clock::LabClock;
use crate::fabric::{Fabric, FabricEvent, MacAddress, Outlet, PortCounters, PortId};
use crate::framing::Decoder;
use crate::link::{Direction, DropCause};
use crate::ports::{Progress, Socket};

/// How long a caller waits for the switch's thread; it never does anything long.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// A network of the lab.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Name.
    pub name: String,
    /// Longest payload of a frame.
    pub mtu: usize,
}

/// What a [`Switch`] is made of.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// The networks; each gets a learning switch of its own.
    pub networks: Vec<NetworkConfig>,
    /// Decides what faults leave to chance.
    pub seed: u64,
    /// Stamps what is noticed.
    pub clock: LabClock,
    /// Called first in the switch's thread, to give it priority for instance.
    pub prepare_thread: fn(),
}

/// Something the switch has noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchNotice {
    /// When, by the lab's clock.
    pub t_ns: u64,
    /// On which network.
    pub network: String,
    /// What.
    pub what: Noticed,
}

/// What a switch can notice. Ports go by the names they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// An address is on another port now.
    Moved {
        /// The address.
        mac: MacAddress,
        /// Where it was.
        from: String,
        /// Where it is.
        to: String,
    },
    /// The first frame of a moved address's owner.
    FirstFrame {
        /// The address.
        mac: MacAddress,
        /// Where.
        port: String,
    },
    /// Somebody connected to a port.
    Connected {
        /// Which.
        port: String,
    },
    /// A port's peer went away, or sent what is no framing.
    Disconnected {
        /// Which.
        port: String,
        /// Why.
        reason: String,
    },
}

/// What can go wrong when a switch is told something.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// No such network.
    #[error("there is no network \"{0}\"")]
    NoNetwork(String),
    /// No such port.
    #[error("there is no port \"{port}\" on network \"{network}\"")]
    NoPort {
        /// The network.
        network: String,
        /// The port asked for.
        port: String,
    },
    /// The name is taken.
    #[error("port \"{port}\" on network \"{network}\" exists already")]
    PortExists {
        /// The network.
        network: String,
        /// The port asked for.
        port: String,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The fault is nonsense.
    #[error("{0}")]
    BadFault(String),
    /// The switch's thread is gone or stuck.
    #[error("the switch does not answer")]
    Gone,
}

/// A directed link and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkState {
    /// The network.
    pub network: String,
    /// The port.
    pub port: String,
    /// Which way.
    pub direction: Direction,
    /// The fault.
    pub fault: LinkFault,
}

/// Counts of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// The network.
    pub network: String,
    /// The port.
    pub port: String,
    /// Whether somebody is connected.
    pub connected: bool,
    /// The counts.
    pub counters: PortCounters,
}

type Answer<T> = Sender<Result<T, SwitchError>>;

enum Request {
    Add {
        network: String,
        port: String,
        listener: Option<UnixListener>,
        stream: Option<UnixStream>,
        answer: Answer<()>,
    },
    SetFault {
        network: String,
        port: String,
        direction: Direction,
        fault: LinkFault,
        answer: Answer<()>,
    },
    Capture {
        network: String,
        port: String,
        path: Option<PathBuf>,
        answer: Answer<()>,
    },
    Links(Answer<Vec<LinkState>>),
    Ports(Answer<Vec<PortState>>),
    Stop,
}

/// A running switch; dropping it stops it.
#[derive(Debug)]
pub struct Switch {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts the switch's thread. What it notices goes to `notices`.
    ///
    /// # Errors
    /// When the system has no descriptors or threads left.
    pub fn start(config: SwitchConfig, notices: Sender<SwitchNotice>) -> Result<Self, SwitchError> {
        let failed = |source: io::Error| SwitchError::Io {
            what: "starting the switch".into(),
            source,
        };
        let wake = Arc::new(
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| failed(errno.into()))?,
        );
        let (requests, incoming) = mpsc::channel();
        let prepare = config.prepare_thread;
        let mut worker = Worker::new(config, notices, incoming, Arc::clone(&wake))
            .map_err(|errno| failed(errno.into()))?;
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || {
                prepare();
                worker.run();
            })
            .map_err(failed)?;
        Ok(Self {
            requests,
            wake,
            thread: Some(thread),
        })
    }

    /// Adds a port on which QEMU, or a server on the storage network, may connect by way of the socket `path`.
    ///
    /// # Errors
    /// When the network is unknown, the name taken, or the socket cannot be made.
    pub fn listen(&self, network: &str, port: &str, path: &Path) -> Result<(), SwitchError> {
        let failed = |source: io::Error| SwitchError::Io {
            what: format!("listening on {}", path.display()),
            source,
        };
        // A socket file of an earlier lab that was killed would be in the way.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.ask(|answer| Request::Add {
            network: network.into(),
            port: port.into(),
            listener: Some(listener),
            stream: None,
            answer,
        })
    }

    /// Adds a port for an endpoint of this process and gives the endpoint's end of it.
    ///
    /// # Errors
    /// When the network is unknown, the name taken, or the system refuses.
    pub fn endpoint(&self, network: &str, port: &str) -> Result<UnixStream, SwitchError> {
        let failed = |source: io::Error| SwitchError::Io {
            what: format!("making port \"{port}\""),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        for stream in [&ours, &theirs] {
            stream.set_nonblocking(true).map_err(failed)?;
        }
        self.ask(|answer| Request::Add {
            network: network.into(),
            port: port.into(),
            listener: None,
            stream: Some(ours),
            answer,
        })?;
        Ok(theirs)
    }

    /// Replaces the fault of a directed link; [`LinkFault::default`] heals it.
    ///
    /// # Errors
    /// When the link does not exist or the fault is nonsense.
    pub fn set_fault(
        &self,
        network: &str,
        port: &str,
        direction: Direction,
        fault: LinkFault,
    ) -> Result<(), SwitchError> {
        fault.check().map_err(SwitchError::BadFault)?;
        self.ask(|answer| Request::SetFault {
            network: network.into(),
            port: port.into(),
            direction,
            fault,
            answer,
        })
    }

    /// Writes what passes a port to a pcapng file, or stops doing so.
    ///
    /// # Errors
    /// When the port does not exist or the file cannot be written.
    pub fn capture(
        &self,
        network: &str,
        port: &str,
        path: Option<&Path>,
    ) -> Result<(), SwitchError> {
        self.ask(|answer| Request::Capture {
            network: network.into(),
            port: port.into(),
            path: path.map(Path::to_path_buf),
            answer,
        })
    }

    /// The links that have a fault.
    ///
    /// # Errors
    /// When the switch's thread is gone.
    pub fn links(&self) -> Result<Vec<LinkState>, SwitchError> {
        self.ask(Request::Links)
    }

    /// All ports with their counts.
    ///
    /// # Errors
    /// When the switch's thread is gone.
    pub fn ports(&self) -> Result<Vec<PortState>, SwitchError> {
        self.ask(Request::Ports)
    }

    fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, SwitchError> {
        let (answer, result) = mpsc::channel();
        self.requests
            .send(request(answer))
            .map_err(|_| SwitchError::Gone)?;
        self.wake.write(1).map_err(|_| SwitchError::Gone)?;
        result
            .recv_timeout(ANSWER_DEADLINE)
            .map_err(|_| SwitchError::Gone)?
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let stopping = self.requests.send(Request::Stop).is_ok() && self.wake.write(1).is_ok();
        if let Some(thread) = self.thread.take()
            && stopping
        {
            // A panic of the thread has already been printed by it.
            let _ = thread.join();
        }
    }
}

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

struct Port {
    name: String,
    socket: Socket,
    /// Got frames in this turn.
    touched: bool,
}

struct Network {
    name: String,
    fabric: Fabric,
    ports: Vec<Port>,
    /// One for each port; apart from it, so that a frame can go to the ports while its decoder holds it.
    decoders: Vec<Decoder>,
    by_name: HashMap<String, usize>,
}

struct Worker {
    clock: LabClock,
    epoll: Epoll,
    timer: TimerFd,
    timer_set_for: Option<u64>,
    networks: Vec<Network>,
    notices: Sender<SwitchNotice>,
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
}

/// Where a fabric's deliveries go for the length of one call.
struct Deliveries<'a> {
    network: &'a str,
    ports: &'a mut [Port],
    notices: &'a Sender<SwitchNotice>,
    now_ns: u64,
    overflowed: Vec<PortId>,
}

impl Outlet for Deliveries<'_> {
    fn deliver(&mut self, port: PortId, frame: &[u8]) {
        let target = &mut self.ports[port.0];
        if target.socket.stream.is_none() || !target.socket.queue(frame) {
            self.overflowed.push(port);
            return;
        }
        target.touched = true;
    }

    fn event(&mut self, event: FabricEvent) {
        let name = |port: PortId| self.ports[port.0].name.clone();
        let what = match event {
            FabricEvent::Learnt { .. } => return,
            FabricEvent::Moved { mac, from, to } => Noticed::Moved {
                mac,
                from: name(from),
                to: name(to),
            },
            FabricEvent::FirstFrame { mac, port } => Noticed::FirstFrame {
                mac,
                port: name(port),
            },
        };
        // Nobody listens any more when the lab ends.
        let _ = self.notices.send(SwitchNotice {
            t_ns: self.now_ns,
            network: self.network.into(),
            what,
        });
    }

    fn trace(
        &mut self,
        port: PortId,
        direction: Direction,
        frame: &[u8],
        fate: Result<(), DropCause>,
    ) {
        let socket = &mut self.ports[port.0].socket;
        let Some(capture) = &mut socket.capture else {
            return;
        };
        let comment = fate.err().map(|cause| cause.to_string());
        if capture
            .frame(self.now_ns, direction, frame, comment.as_deref())
            .is_err()
        {
            // A full disk ends the capture, not the network.
            socket.capture = None;
        }
    }
}

impl Worker {
    fn new(
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

    fn run(&mut self) {
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

impl Network {
    /// Reads once from a port and forwards the frames that are complete.
    fn receive(&mut self, port: usize, notices: &Sender<SwitchNotice>, now_ns: u64) -> Progress {
        let progress = self.ports[port].socket.read(&mut self.decoders[port]);
        if matches!(progress, Progress::Closed(_)) {
            return progress;
        }
        let mut deliveries = Deliveries {
            network: &self.name,
            ports: &mut self.ports,
            notices,
            now_ns,
            overflowed: Vec::new(),
        };
        let progress = loop {
            match self.decoders[port].next_frame() {
                Ok(Some(frame)) => {
                    self.fabric
                        .ingress(PortId(port), frame, now_ns, &mut deliveries);
                }
                Ok(None) => break Progress::Open,
                Err(error) => break Progress::Closed(error.to_string()),
            }
        };
        for port in deliveries.overflowed {
            self.fabric.count_drop(port);
        }
        progress
    }

    /// Moves on the delayed frames that are due.
    fn move_delayed(&mut self, notices: &Sender<SwitchNotice>, now_ns: u64) {
        let mut deliveries = Deliveries {
            network: &self.name,
            ports: &mut self.ports,
            notices,
            now_ns,
            overflowed: Vec::new(),
        };
        self.fabric.on_time(now_ns, &mut deliveries);
        for port in deliveries.overflowed {
            self.fabric.count_drop(port);
        }
    }
}
