//! One proved connection to a host: commands and their answers, events on the lab's clock, the host's status, console
//! bytes.
//!
//! The status is asked for by the listener itself, at first and then at intervals, and handed on in its place among
//! the events: it counts what they have told, and what was told to an earlier connection that broke.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host_protocol::auth::{PoolKey, Purpose};
use host_protocol::codec::{self, Decoder};
use host_protocol::{Command, HostEvent, HostStatus, Notice, Reply, Request, VERSION, VmId};
use switch::LabClock;

use super::clock_map::ClockMap;
use crate::entropy;

/// The host answers the two messages of the proof at once.
const PROOF_DEADLINE: Duration = Duration::from_secs(5);
/// Exchanges right after the proof, for a first good mapping of the clock. Events wait for it.
const FIRST_PINGS: u64 = 16;
/// Time between later exchanges.
const PING_EVERY_NS: u64 = 500_000_000;
/// Time between two readings of the status.
const STATUS_EVERY_NS: u64 = 1_000_000_000;
/// A host that has said nothing for so long, though pinged, is gone or frozen.
pub const SILENCE_NS: u64 = 5_000_000_000;

/// What a host lets the lab hear.
#[derive(Clone, Debug)]
pub enum Heard {
    /// Something happened, at this time of the lab's clock.
    Event {
        /// When.
        t_ns: u64,
        /// How far that may be wrong.
        error_ns: u64,
        /// As the host numbers it; see [`Notice::Event`].
        number: u64,
        /// What.
        event: HostEvent,
    },
    /// How things are. Everything that happened before `asked_ns` has been heard, or never will be.
    Status {
        /// When it was asked for, by the lab's clock.
        asked_ns: u64,
        /// When the answer came.
        heard_ns: u64,
        /// The answer.
        status: HostStatus,
    },
    /// Console output; see [`Notice::Console`].
    Console {
        /// Of which VM.
        vm: VmId,
        /// Numbers the VM's stay on the host.
        stay: u32,
        /// Position of the first byte in that stay's output.
        position: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The host refused, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The connection ended first.
    #[error("the connection to {0} ended before it answered")]
    Disconnected(String),
    /// No answer in time.
    #[error("{host} did not answer within {seconds} s")]
    Deadline {
        /// The host.
        host: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

type Pending = HashMap<u32, Sender<Result<Reply, String>>>;

#[derive(Debug)]
struct Shared {
    host: String,
    clock: LabClock,
    writer: Mutex<UnixStream>,
    calls: Mutex<(u32, Pending)>,
}

impl Shared {
    /// A number for the next command, whose result goes to `answer`.
    fn number(&self, answer: Option<Sender<Result<Reply, String>>>) -> u32 {
        let mut calls = lock(&self.calls);
        calls.0 += 1;
        let number = calls.0;
        calls.1.extend(answer.map(|answer| (number, answer)));
        number
    }
}

/// A proved connection.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
}

/// The reading half; [`Listener::run`] is to be given a thread.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    stream: UnixStream,
    decoder: Decoder,
    map: ClockMap,
    /// When each outstanding ping was sent, by its token.
    pings: HashMap<u64, u64>,
    next_ping: u64,
    last_ping_ns: u64,
    last_heard_ns: u64,
    /// Number and time of the request for the status that is not answered yet.
    status_asked: Option<(u32, u64)>,
    next_status_ns: u64,
    /// The first exchanges are through.
    mapped: bool,
    /// Events that came before the clock was mapped.
    early: Vec<(u64, u64, HostEvent)>,
}

impl Connection {
    /// Proves both ends to each other. `events_heard` is the highest number of an event that an earlier connection brought.
    ///
    /// # Errors
    /// When the peer is no host of this pool.
    pub fn open(
        stream: UnixStream,
        key: &PoolKey,
        clock: LabClock,
        events_heard: u64,
    ) -> io::Result<(Self, Listener)> {
        let nonce = entropy::bytes()?;
        stream.set_read_timeout(Some(PROOF_DEADLINE))?;
        let mut stream = stream;
        let mut decoder = Decoder::new();
        send(
            &mut stream,
            &Request::Hello {
                version: VERSION,
                nonce,
            },
        )?;
        let Notice::Welcome {
            version,
            nonce: theirs,
            mac,
            host,
        } = receive(&mut stream, &mut decoder)?
        else {
            return Err(refused("the host did not greet"));
        };
        if version != VERSION {
            return Err(refused(&format!(
                "the host speaks version {version} of the control protocol, this program version {VERSION}; build the image anew"
            )));
        }
        if !key.accepts(Purpose::ControlHost, &nonce, &theirs, &mac) {
            return Err(refused("the host does not hold this pool's key"));
        }
        let mac = key.prove(Purpose::ControlClient, &nonce, &theirs);
        let heard = events_heard;
        send(&mut stream, &Request::Prove { mac, heard })?;
        let shared = Arc::new(Shared {
            host,
            clock,
            writer: Mutex::new(stream.try_clone()?),
            calls: Mutex::new((0, HashMap::new())),
        });
        let now_ns = clock.now_ns();
        let listener = Listener {
            shared: Arc::clone(&shared),
            stream,
            decoder,
            map: ClockMap::default(),
            pings: HashMap::new(),
            next_ping: 0,
            last_ping_ns: 0,
            last_heard_ns: now_ns,
            status_asked: None,
            next_status_ns: 0,
            mapped: false,
            early: Vec::new(),
        };
        Ok((Self { shared }, listener))
    }

    /// The host's name, as it says.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the host refuses, is gone, or does not answer in time.
    pub fn call(&self, command: Command, patience: Duration) -> Result<Reply, CallError> {
        let disconnected = || CallError::Disconnected(self.shared.host.clone());
        let (answer, result) = mpsc::channel();
        let number = self.shared.number(Some(answer));
        let sent = send(
            &mut lock(&self.shared.writer),
            &Request::Command { number, command },
        );
        let result = match sent {
            Ok(()) => result.recv_timeout(patience),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        lock(&self.shared.calls).1.remove(&number);
        match result {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(words)) => Err(CallError::Refused(words)),
            Err(RecvTimeoutError::Disconnected) => Err(disconnected()),
            Err(RecvTimeoutError::Timeout) => Err(CallError::Deadline {
                host: self.shared.host.clone(),
                seconds: patience.as_secs(),
            }),
        }
    }

    /// Sends a command whose answer nobody waits for.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn tell(&self, command: Command) -> io::Result<()> {
        let number = self.shared.number(None);
        send(
            &mut lock(&self.shared.writer),
            &Request::Command { number, command },
        )
    }

    /// Types at a VM's console.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn console_input(&self, vm: VmId, bytes: &[u8]) -> io::Result<()> {
        let bytes = bytes.to_vec();
        send(
            &mut lock(&self.shared.writer),
            &Request::ConsoleInput { vm, bytes },
        )
    }

    /// Ends the connection; its listener returns.
    pub fn close(&self) {
        // It may be closed already.
        let _ = lock(&self.shared.writer).shutdown(std::net::Shutdown::Both);
    }
}

impl Listener {
    /// Hears the host out: gives every event and console output to `heard`, keeps the clock mapped, and returns why the
    /// connection ended. Calls that wait for an answer then end too.
    pub fn run(mut self, mut heard: impl FnMut(Heard)) -> io::Error {
        let error = loop {
            if let Err(error) = self.step(&mut heard) {
                break error;
            }
        };
        lock(&self.shared.calls).1.clear();
        error
    }

    fn step(&mut self, heard: &mut impl FnMut(Heard)) -> io::Result<()> {
        while let Some(notice) = self.decoder.message().map_err(io::Error::other)? {
            self.take(notice, heard)?;
        }
        let now_ns = self.shared.clock.now_ns();
        if now_ns - self.last_heard_ns > SILENCE_NS {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the host says nothing any more",
            ));
        }
        if self.next_ping == 0 || now_ns - self.last_ping_ns >= PING_EVERY_NS {
            self.ping()?;
        }
        if self.mapped && self.status_asked.is_none() && now_ns >= self.next_status_ns {
            self.ask_status(now_ns)?;
        }
        let wait = (self.last_ping_ns + PING_EVERY_NS)
            .saturating_sub(now_ns)
            .max(1_000_000);
        self.stream
            .set_read_timeout(Some(Duration::from_nanos(wait)))?;
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the host closed the connection",
            )),
            Ok(count) => {
                self.decoder.push(&bytes[..count]);
                self.last_heard_ns = self.shared.clock.now_ns();
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn ping(&mut self) -> io::Result<()> {
        // Pings that a dead host left unanswered are of no use any more.
        if self.pings.len() > 64 {
            self.pings.clear();
        }
        self.next_ping += 1;
        let now_ns = self.shared.clock.now_ns();
        self.last_ping_ns = now_ns;
        self.pings.insert(self.next_ping, now_ns);
        send(
            &mut lock(&self.shared.writer),
            &Request::Ping {
                token: self.next_ping,
            },
        )
    }

    fn ask_status(&mut self, now_ns: u64) -> io::Result<()> {
        let number = self.shared.number(None);
        self.status_asked = Some((number, now_ns));
        self.next_status_ns = now_ns + STATUS_EVERY_NS;
        let command = Command::Status;
        send(
            &mut lock(&self.shared.writer),
            &Request::Command { number, command },
        )
    }

    fn take(&mut self, notice: Notice, heard: &mut impl FnMut(Heard)) -> io::Result<()> {
        let now_ns = self.shared.clock.now_ns();
        match notice {
            Notice::Pong { token, host_ns } => {
                if let Some(sent_ns) = self.pings.remove(&token) {
                    self.map.add(sent_ns, now_ns, host_ns);
                }
                if self.next_ping < FIRST_PINGS {
                    self.ping()?;
                } else if !self.mapped {
                    self.mapped = true;
                    for (number, host_ns, event) in std::mem::take(&mut self.early) {
                        self.event(number, host_ns, event, heard);
                    }
                }
            }
            Notice::Done {
                number,
                result: Ok(Reply::Status(status)),
            } if self.status_asked.is_some_and(|(asked, _)| asked == number) => {
                if let Some((_, asked_ns)) = self.status_asked.take() {
                    heard(Heard::Status {
                        asked_ns,
                        heard_ns: now_ns,
                        status,
                    });
                }
            }
            Notice::Done { number, result } => {
                if let Some(answer) = lock(&self.shared.calls).1.remove(&number) {
                    // Whoever asked may have given up.
                    let _ = answer.send(result);
                }
            }
            Notice::Event {
                number,
                host_ns,
                event,
            } if !self.mapped => {
                self.early.push((number, host_ns, event));
            }
            Notice::Event {
                number,
                host_ns,
                event,
            } => self.event(number, host_ns, event, heard),
            Notice::Console {
                vm,
                stay,
                position,
                bytes,
            } => heard(Heard::Console {
                vm,
                stay,
                position,
                bytes,
            }),
            Notice::Welcome { .. } => return Err(refused("the host greeted twice")),
        }
        Ok(())
    }

    fn event(&self, number: u64, host_ns: u64, event: HostEvent, heard: &mut impl FnMut(Heard)) {
        let mapped = self.map.map(host_ns, self.shared.clock.now_ns());
        heard(Heard::Event {
            t_ns: mapped.t_ns,
            error_ns: mapped.error_ns,
            number,
            event,
        });
    }
}

fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let mut bytes = Vec::new();
    codec::encode(request, &mut bytes).map_err(io::Error::other)?;
    stream.write_all(&bytes)
}

fn receive(stream: &mut UnixStream, decoder: &mut Decoder) -> io::Result<Notice> {
    let mut bytes = [0; 4096];
    loop {
        if let Some(notice) = decoder.message().map_err(io::Error::other)? {
            return Ok(notice);
        }
        match stream.read(&mut bytes)? {
            0 => return Err(refused("the host closed the connection during the proof")),
            count => decoder.push(&bytes[..count]),
        }
    }
}

fn refused(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, words)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
