//! Whether there is a connection, whether there should be one, and whether the server answers.
//!
//! TCP alone would wait for minutes: after an outage its retransmissions come ever more rarely. So a server that is
//! silent is probed, a connection on which even the probe stays without answer is replaced, and so is an
//! attempt to connect that does not succeed at once. A server that is merely slow answers the probe.

const MS: u64 = 1_000_000;
/// Silence, while an answer is awaited, after which the server is probed.
const PROBE_NS: u64 = 500 * MS;
/// Silence after which the server counts as not answering.
const LATE_NS: u64 = 1_000 * MS;
/// Silence after which the connection is given up; doubles with each one in a row that brought no answer, since
/// each repeats its work.
const PATIENCE_NS: u64 = 1_250 * MS;
const PATIENCE_MAX_NS: u64 = 40_000 * MS;
/// An attempt to connect is given up after so long.
const CONNECT_NS: u64 = 600 * MS;
/// Pause before the next attempt; doubles from the first to the last.
const RETRY_NS: u64 = 50 * MS;
const RETRY_MAX_NS: u64 = 100 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be made from this time on.
    Down { from_ns: u64 },
    /// Usable.
    Up,
    /// To be closed.
    Useless,
}

/// State of the connection.
#[derive(Debug)]
pub(crate) struct Connection {
    state: State,
    /// Attempts and connections in a row that brought no answer.
    failures: u32,
    /// Since when an answer is awaited and none has come.
    silent_since_ns: Option<u64>,
    /// The server was probed in this silence.
    probed: bool,
    /// The server has answered on this connection, be it the probe.
    answered: bool,
    /// It has answered a call.
    useful: bool,
    now_ns: u64,
}

impl Connection {
    pub fn new(now_ns: u64) -> Self {
        Self {
            state: State::Down { from_ns: now_ns },
            failures: 0,
            silent_since_ns: None,
            probed: false,
            answered: false,
            useful: false,
            now_ns,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub fn wanted(&self) -> bool {
        match self.state {
            State::Down { from_ns } => (from_ns..from_ns + CONNECT_NS).contains(&self.now_ns),
            State::Up => true,
            State::Useless => false,
        }
    }

    pub fn server_answers(&self) -> bool {
        self.is_up() && self.answered && !self.is_silent_for(LATE_NS)
    }

    /// Whether the server is to be probed now; true once in a silence.
    pub fn must_probe(&mut self) -> bool {
        let due = self.is_up() && !self.probed && self.is_silent_for(PROBE_NS);
        self.probed |= due;
        due
    }

    fn is_silent_for(&self, time_ns: u64) -> bool {
        self.silent_since_ns
            .is_some_and(|since| self.now_ns >= since + time_ns)
    }

    pub fn on_connected(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.state = State::Up;
        self.answered = false;
        self.useful = false;
        self.silent_since_ns = None;
    }

    pub fn on_disconnected(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.silent_since_ns = None;
        self.retry();
    }

    fn retry(&mut self) {
        self.answered = false;
        if core::mem::take(&mut self.useful) {
            self.failures = 0;
        }
        let pause = (RETRY_NS << self.failures.min(10)).min(RETRY_MAX_NS);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down {
            from_ns: self.now_ns + pause,
        };
    }

    /// The stream is not RPC, or nobody answers.
    pub fn give_up(&mut self) {
        self.state = State::Useless;
    }

    /// A call was sent.
    pub fn on_call(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.silent_since_ns.is_none() {
            self.silent_since_ns = Some(now_ns);
            self.probed = false;
        }
    }

    /// Bytes came: even a part of an answer ends a silence.
    pub fn on_bytes(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.probed = false;
        if let Some(since) = &mut self.silent_since_ns {
            *since = now_ns;
        }
    }

    /// A call or the probe was answered; `more` are still awaited.
    pub fn on_answer(&mut self, probe: bool, more: bool) {
        self.answered = true;
        self.useful |= !probe;
        if !more {
            self.silent_since_ns = None;
        }
    }

    pub fn on_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        match self.state {
            State::Down { from_ns } if now_ns >= from_ns + CONNECT_NS => self.retry(),
            State::Up if self.is_silent_for(self.patience_ns()) => self.give_up(),
            _ => {}
        }
    }

    fn patience_ns(&self) -> u64 {
        let failures = if self.useful { 0 } else { self.failures };
        (PATIENCE_NS << failures.min(10)).min(PATIENCE_MAX_NS)
    }

    /// When something changes by itself.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        match self.state {
            State::Down { from_ns } if self.now_ns < from_ns => Some(from_ns),
            State::Down { from_ns } => Some(from_ns + CONNECT_NS),
            State::Up => {
                let since = self.silent_since_ns?;
                let steps = [PROBE_NS, LATE_NS, self.patience_ns()];
                let next = steps.into_iter().find(|step| !self.is_silent_for(*step))?;
                Some(since + next)
            }
            State::Useless => None,
        }
    }
}
