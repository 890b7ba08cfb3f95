//! A running switch, as the rest of the lab sees it: ports are added, links get faults, ports are captured.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use lab_protocol::LinkFault;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::LabClock;
use crate::fabric::{MacAddress, PortCounters};
use crate::link::Direction;
use crate::worker::Worker;

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

/// Where an answer goes.
pub(crate) type Answer<T> = Sender<Result<T, SwitchError>>;

/// What the switch's thread can be asked.
pub(crate) enum Request {
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
