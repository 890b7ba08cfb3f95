//! Whether there is a connection, whether there should be one, and whether the server answers.
//!
//! TCP alone would wait for minutes: after a link was cut its retransmissions back off exponentially. So a
//! connection on which an awaited answer does not come is given up and replaced.

/// After so long without an awaited answer, the server counts as not answering.
const LATE_NS: u64 = 2_000_000_000;
/// A connection without an awaited answer is given up after so long at first, and after at most
/// `PATIENCE_MAX_NS` once several in a row were: a server may be slow for a while, and each
/// replacement repeats its work.
const PATIENCE_NS: u64 = 5_000_000_000;
const PATIENCE_MAX_NS: u64 = 40_000_000_000;
/// Pause before the next attempt to connect; doubles from the first to the last.
const RETRY_NS: u64 = 50_000_000;
const RETRY_MAX_NS: u64 = 1_600_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be made at this time.
    Down { retry_at_ns: u64 },
    /// Usable.
    Up,
    /// To be closed.
    Useless,
}

/// State of the connection.
#[derive(Debug)]
pub(crate) struct Connection {
    state: State,
    /// Connections in a row that brought no answer.
    failures: u32,
    /// Since when an answer is awaited and none has come.
    waiting_since_ns: Option<u64>,
    /// The server has answered on this connection.
    answered: bool,
    now_ns: u64,
}

impl Connection {
    pub fn new(now_ns: u64) -> Self {
        Self {
            state: State::Down {
                retry_at_ns: now_ns,
            },
            failures: 0,
            waiting_since_ns: None,
            answered: false,
            now_ns,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub fn wanted(&self) -> bool {
        match self.state {
            State::Down { retry_at_ns } => self.now_ns >= retry_at_ns,
            State::Up => true,
            State::Useless => false,
        }
    }

    pub fn server_answers(&self) -> bool {
        self.is_up()
            && self.answered
            && self
                .waiting_since_ns
                .is_none_or(|since| self.now_ns < since + LATE_NS)
    }

    pub fn on_connected(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.state = State::Up;
        self.answered = false;
        self.waiting_since_ns = None;
    }

    pub fn on_disconnected(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if !matches!(self.state, State::Down { .. }) && self.answered {
            self.failures = 0;
        }
        let pause = (RETRY_NS << self.failures.min(10)).min(RETRY_MAX_NS);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down {
            retry_at_ns: now_ns + pause,
        };
        self.waiting_since_ns = None;
    }

    /// The stream is not RPC, or nobody answers.
    pub fn give_up(&mut self) {
        self.state = State::Useless;
    }

    /// A call was sent.
    pub fn on_call(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.waiting_since_ns.get_or_insert(now_ns);
    }

    /// A call was answered; `more` are still awaited.
    pub fn on_answer(&mut self, more: bool, now_ns: u64) {
        self.now_ns = now_ns;
        self.answered = true;
        self.waiting_since_ns = more.then_some(now_ns);
    }

    pub fn on_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.is_up() && self.gives_up_at_ns().is_some_and(|at| now_ns >= at) {
            self.give_up();
        }
    }

    fn gives_up_at_ns(&self) -> Option<u64> {
        let failures = if self.answered { 0 } else { self.failures };
        let patience = (PATIENCE_NS << failures.min(10)).min(PATIENCE_MAX_NS);
        self.waiting_since_ns.map(|since| since + patience)
    }

    /// When `on_time` changes something by itself.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        match self.state {
            State::Down { retry_at_ns } => (self.now_ns < retry_at_ns).then_some(retry_at_ns),
            State::Up if self.server_answers() => {
                self.waiting_since_ns.map(|since| since + LATE_NS)
            }
            State::Up => self.gives_up_at_ns(),
            State::Useless => None,
        }
    }
}
