//! The live session: someone types the movie library into a spreadsheet in the guest.
//!
//! A real SSH client drives a real terminal: keys go out on a human rhythm that never waits for an echo, the
//! terminal's screen tells when each has arrived, and the saved document is fetched and compared with the model, byte
//! by byte. One TCP connection carries all of it, so the session is the same as long as that connection lives.
//!
//! It does not know the lab: it gets a byte stream and reports [`Event`]s.

mod document;
mod echo;
mod follower;
mod library;
mod rhythm;
mod run;
mod script;
mod sheet;
mod shell;
mod ssh;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab_protocol::Event;
use thiserror::Error;

pub use follower::Follower;
pub use rhythm::HUMAN_US;
pub use script::MAX_ROWS;
pub use shell::{Said, Shell};
pub use ssh::{Access, Stream};

/// How a session is held.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Name of the guest, for the events.
    pub vm: String,
    /// Who logs in.
    pub access: Access,
    /// Folder in the guest for the documents.
    pub folder: String,
    /// Rows of a document, at most [`MAX_ROWS`].
    pub rows: u8,
    /// Of the rhythm.
    pub seed: u64,
    /// Between keys: [`HUMAN_US`] unless in a test.
    pub interval_us: RangeInclusive<u64>,
    /// Zero of all times reported.
    pub origin: Instant,
    /// How long an answer may take before the session counts as lost.
    pub patience: Duration,
    /// Where what the terminal shows is written, as [`crate::evidence::cast`] reads it.
    pub recording: Option<PathBuf>,
}

/// Opens a connection to the guest anew, however long that takes; `None` when the flag has been set meanwhile.
pub type Reconnect = Box<dyn FnMut(&AtomicBool) -> Option<Stream> + Send>;

/// What a session came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys sent.
    pub keys: u32,
    /// Keys that never arrived, by screen and documents.
    pub lost: u32,
    /// By the documents.
    pub duplicated: u32,
    /// By the documents.
    pub reordered: u32,
    /// Documents fetched and compared.
    pub documents: u32,
    /// All of them were equal to the model.
    pub content_equal: bool,
    /// How late the typist itself ever was.
    pub late_max_ns: u64,
}

/// Why there is no session.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A key file is unusable.
    #[error("cannot use the key {0}")]
    Key(String),
    /// The guest does not let us in.
    #[error("the guest refuses user {user}: the guest and the key were not built together")]
    Refused {
        /// Who wanted in.
        user: String,
    },
    /// A command in the guest failed.
    #[error("in the guest, {command:?} ended with {status:?}")]
    Command {
        /// The command.
        command: String,
        /// Its exit status, if it came that far.
        status: Option<u32>,
    },
    /// The spreadsheet did not come up.
    #[error("the spreadsheet did not come up within {patience:?}; the screen shows:\n{screen}")]
    NoSpreadsheet {
        /// How long was waited.
        patience: Duration,
        /// What the terminal shows.
        screen: String,
    },
    /// No connection, or no log-in, in time.
    #[error("the guest's SSH server did not let us in within {0:?}")]
    TooSlow(Duration),
    /// It was open and broke.
    #[error("the session was lost: {0}")]
    Lost(String),
    /// SSH.
    #[error("SSH: {0}")]
    Ssh(#[from] russh::Error),
    /// The machine's own.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Logs in over `stream`, runs one command in the guest, and gives what it prints.
///
/// # Errors
///
/// No log-in, or the command fails.
pub fn output(stream: Stream, access: &Access, command: &str) -> Result<Vec<u8>, SessionError> {
    runtime()?.block_on(async {
        ssh::Connection::open(stream, access)
            .await?
            .output(command)
            .await
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// A running session, on threads of its own.
#[derive(Debug)]
pub struct Typist {
    finishing: Arc<AtomicBool>,
    thread: JoinHandle<Result<Summary, SessionError>>,
}

impl Typist {
    /// Logs in over `stream`, starts the spreadsheet and types until told to finish. `on_event` is called on the
    /// session's thread: [`Event::SessionOpen`] when typing begins, [`Event::Key`] for every key,
    /// [`Event::DocumentChecked`] for every document, [`Event::SessionLost`] if it breaks.
    ///
    /// # Errors
    ///
    /// The machine cannot start a thread.
    pub fn start(
        stream: Stream,
        config: SessionConfig,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, SessionError> {
        Self::start_again(stream, config, None, on_event)
    }

    /// As [`Typist::start`], and with `reconnect` another session follows a lost one.
    ///
    /// # Errors
    ///
    /// The machine cannot start a thread.
    pub fn start_again(
        stream: Stream,
        config: SessionConfig,
        reconnect: Option<Reconnect>,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, SessionError> {
        let finishing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&finishing);
        let thread = std::thread::Builder::new()
            .name("typist".into())
            .spawn(move || hold(stream, config, reconnect, &flag, on_event))?;
        Ok(Self { finishing, thread })
    }

    /// Whether the session has ended, by itself or by [`Typist::finish`].
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Completes the row, saves and compares the document, and leaves.
    ///
    /// # Errors
    ///
    /// The session never began, or was lost.
    pub fn finish(self) -> Result<Summary, SessionError> {
        self.finishing.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Holds a session, and another one after each that is lost if `reconnect` can open a connection.
fn hold(
    mut stream: Stream,
    mut config: SessionConfig,
    mut reconnect: Option<Reconnect>,
    finishing: &Arc<AtomicBool>,
    mut on_event: impl FnMut(Event),
) -> Result<Summary, SessionError> {
    let runtime = runtime()?;
    let recording = config.recording.clone();
    let mut opened = 0_u32;
    let mut first_key = 0;
    loop {
        let mut next_key = first_key;
        let hear = |event: Event| {
            match &event {
                Event::Key { index, .. } => next_key = next_key.max(index + 1),
                Event::SessionOpen { .. } => opened += 1,
                _ => {}
            }
            on_event(event);
        };
        let ended = runtime.block_on(run::run(
            stream,
            config.clone(),
            first_key,
            Arc::clone(finishing),
            hear,
        ));
        // What could not be had the first time is no loss.
        let again = match (&ended, &mut reconnect) {
            (Err(_), Some(reconnect)) if opened > 0 => reconnect(finishing),
            _ => None,
        };
        let Some(another) = again else { return ended };
        stream = another;
        first_key = next_key;
        config.seed = config.seed.wrapping_add(1);
        config.recording = recording.as_ref().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{}-{name}", opened + 1))
        });
    }
}
