//! The loop of a session: keys out, screens in, documents compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab_protocol::Event;
use russh::{Channel, ChannelMsg, client};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::document::compare;
use super::echo::{Arrival, Sent, Tracker};
use super::rhythm::Rhythm;
use super::script::{Document, Key, Script};
use super::ssh::{Connection, Stream};
use super::{SessionConfig, SessionError, Summary};
use crate::evidence::cast::Recorder;

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// Logging in and starting the program take longer than an echo, above all in a guest that has just booted.
const OPENING: Duration = Duration::from_secs(30);

/// Time for the typist to settle before the first key.
const SETTLE_NS: u64 = 200_000_000;

/// A key whose time has come.
struct Due {
    key: Key,
    due_ns: u64,
}

/// A document, the number of the key that saved it, and its contents, or why there are none.
type Fetched = (Document, u32, Result<Vec<u8>, SessionError>);

/// Holds a session from log-in to the last document; its keys are numbered from `first_key`.
pub async fn run(
    stream: Stream,
    config: SessionConfig,
    first_key: u32,
    finishing: Arc<AtomicBool>,
    on_event: impl FnMut(Event),
) -> Result<Summary, SessionError> {
    let patience = config.patience.max(OPENING);
    let log_in = Connection::open(stream, &config.access);
    let connection = timeout(patience, log_in)
        .await
        .map_err(|_| SessionError::TooSlow(patience))??;
    // Documents of an earlier session would make sc ask whether to overwrite them.
    let command = format!("cd {} && rm -f movies-*.sc && exec sc", config.folder);
    let mut terminal = connection.terminal(ROWS, COLUMNS, &command).await?;
    let mut parser = vt100::Parser::new(ROWS, COLUMNS, 0);
    let mut recorder = match &config.recording {
        Some(path) => Some(Recorder::create(path, COLUMNS, ROWS)?),
        None => None,
    };
    let origin = config.origin;
    wait_for_spreadsheet(&mut terminal, &mut parser, patience, |data| {
        if let Some(recorder) = &mut recorder {
            recorder.output(nanoseconds(origin.elapsed()), data);
        }
    })
    .await?;

    let (fetched_sender, fetched) = unbounded_channel();
    let mut session = Session {
        connection,
        terminal,
        parser,
        recorder,
        tracker: Tracker::default(),
        presumed: Vec::new(),
        fetched_sender,
        fetching: 0,
        saved: 0,
        first_key,
        summary: Summary {
            content_equal: true,
            ..Summary::default()
        },
        config,
        on_event,
    };
    (session.on_event)(Event::SessionOpen {
        vm: session.config.vm.clone(),
    });
    let keys = start_pacing(&session.config, first_key, finishing)?;
    let result = session.type_all(keys, fetched).await;
    session.give_up_on_pending();
    match result {
        Ok(()) => Ok(session.summary),
        Err(error) => {
            (session.on_event)(Event::SessionLost {
                vm: session.config.vm.clone(),
                reason: error.to_string(),
                unsaved: session.summary.keys - session.saved,
            });
            Err(error)
        }
    }
}

/// Reads the terminal until it shows an empty sheet.
async fn wait_for_spreadsheet(
    terminal: &mut Channel<client::Msg>,
    parser: &mut vt100::Parser,
    patience: Duration,
    mut record: impl FnMut(&[u8]),
) -> Result<(), SessionError> {
    let shown = timeout(patience, async {
        while let Some(message) = terminal.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    parser.process(&data);
                    record(&data);
                }
                ChannelMsg::Eof | ChannelMsg::Close => return false,
                _ => continue,
            }
            let last_row = parser.screen().rows(0, COLUMNS).nth(usize::from(ROWS) - 1);
            if last_row.is_some_and(|row| row.trim_start().starts_with("20")) {
                return true;
            }
        }
        false
    })
    .await;
    match shown {
        Ok(true) => Ok(()),
        _ => Err(SessionError::NoSpreadsheet {
            patience,
            screen: parser.screen().contents(),
        }),
    }
}

/// Hands out keys when they are due. A thread of its own, because the runtime's timers round to milliseconds.
fn start_pacing(
    config: &SessionConfig,
    first_key: u32,
    finishing: Arc<AtomicBool>,
) -> Result<UnboundedReceiver<Due>, SessionError> {
    let (sender, receiver) = unbounded_channel();
    let origin = config.origin;
    // Whoever has waited for the guest to come back goes on at once.
    let settle_ns = if first_key == 0 { SETTLE_NS } else { 0 };
    let start_ns = nanoseconds(origin.elapsed()) + settle_ns;
    let mut rhythm = Rhythm::new(config.seed, config.interval_us.clone(), start_ns);
    let mut script = Script::new(config.rows);
    std::thread::Builder::new()
        .name("typist-rhythm".into())
        .spawn(move || {
            loop {
                let due_ns = rhythm.next_due_ns();
                let due = origin + Duration::from_nanos(due_ns);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if finishing.load(Ordering::Relaxed) {
                    script.finish();
                }
                let Some(key) = script.next_key() else { return };
                // The session is gone.
                if sender.send(Due { key, due_ns }).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

struct Session<F> {
    connection: Connection,
    terminal: Channel<client::Msg>,
    parser: vt100::Parser,
    recorder: Option<Recorder>,
    tracker: Tracker,
    /// Keys that the next document will prove.
    presumed: Vec<Arrival>,
    fetched_sender: UnboundedSender<Fetched>,
    fetching: u32,
    /// Keys up to the one that saved the last document that was found to be right.
    saved: u32,
    /// Number of the first key: there may have been sessions before.
    first_key: u32,
    summary: Summary,
    config: SessionConfig,
    on_event: F,
}

impl<F: FnMut(Event)> Session<F> {
    fn now_ns(&self) -> u64 {
        nanoseconds(self.config.origin.elapsed())
    }

    async fn type_all(
        &mut self,
        mut keys: UnboundedReceiver<Due>,
        mut fetched: UnboundedReceiver<Fetched>,
    ) -> Result<(), SessionError> {
        let mut typing = true;
        while typing || self.tracker.pending() > 0 || self.fetching > 0 {
            let deadline = self.tracker.oldest_sent_ns().map(|sent_ns| {
                let due = self.config.origin + Duration::from_nanos(sent_ns) + self.config.patience;
                tokio::time::Instant::from_std(due)
            });
            tokio::select! {
                message = self.terminal.wait() => self.on_terminal(message)?,
                due = keys.recv(), if typing => match due {
                    Some(due) => self.send(due).await?,
                    None => typing = false,
                },
                Some((document, saved, contents)) = fetched.recv(), if self.fetching > 0 => {
                    self.on_document(&document, saved, contents?);
                }
                () = until(deadline) => {
                    return Err(SessionError::Lost(format!("no echo for {:?}", self.config.patience)));
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, Due { key, due_ns }: Due) -> Result<(), SessionError> {
        let sent_ns = self.now_ns();
        self.summary.late_max_ns = self.summary.late_max_ns.max(sent_ns.saturating_sub(due_ns));
        let byte = key.byte;
        self.tracker.sent(Sent {
            index: self.first_key + self.summary.keys,
            key,
            due_ns,
            sent_ns,
        });
        self.summary.keys += 1;
        Ok(self.terminal.data_bytes(vec![byte]).await?)
    }

    fn on_terminal(&mut self, message: Option<ChannelMsg>) -> Result<(), SessionError> {
        match message {
            Some(ChannelMsg::Data { data }) => {
                self.parser.process(&data);
                let now_ns = self.now_ns();
                if let Some(recorder) = &mut self.recorder {
                    recorder.output(now_ns, &data);
                }
                for arrival in self.tracker.screen_changed(self.parser.screen(), now_ns) {
                    self.on_arrival(arrival);
                }
                Ok(())
            }
            Some(ChannelMsg::Eof | ChannelMsg::Close | ChannelMsg::ExitStatus { .. }) => {
                Err(SessionError::Lost("the spreadsheet has ended".into()))
            }
            None => Err(SessionError::Lost("the connection has ended".into())),
            Some(_) => Ok(()),
        }
    }

    fn on_arrival(&mut self, arrival: Arrival) {
        if let Some(document) = arrival.sent.key.document.clone() {
            self.fetch(document, arrival.sent.index);
        }
        if arrival.proven {
            self.report(arrival.sent, Some(arrival.echo_ns));
        } else {
            self.presumed.push(arrival);
        }
    }

    /// Fetches a document over a second channel, while the typing goes on.
    fn fetch(&mut self, document: Document, saved: u32) {
        self.fetching += 1;
        let (connection, sender) = (self.connection.clone(), self.fetched_sender.clone());
        let (command, patience) = (
            format!("cat {}/{}", self.config.folder, document.file),
            self.config.patience,
        );
        tokio::spawn(async move {
            let contents = match timeout(patience, connection.output(&command)).await {
                Ok(contents) => contents,
                Err(_) => Err(SessionError::Lost(format!(
                    "no document within {patience:?}"
                ))),
            };
            // The session may be over.
            let _ = sender.send((document, saved, contents));
        });
    }

    fn on_document(&mut self, document: &Document, saved: u32, contents: Vec<u8>) {
        self.fetching -= 1;
        let found = compare(&document.contents, &contents);
        self.summary.documents += 1;
        self.summary.content_equal &= found.equal;
        if found.equal {
            self.saved = saved + 1 - self.first_key;
        }
        self.summary.duplicated += found.duplicated;
        self.summary.reordered += found.reordered;
        for Arrival { sent, echo_ns, .. } in std::mem::take(&mut self.presumed) {
            // Which of them the document lacks is not told apart: all count as lost.
            self.report(sent, found.equal.then_some(echo_ns));
        }
        let detail = if found.equal {
            document.file.clone()
        } else {
            format!(
                "{}: {} lost, {} duplicated, {} reordered, {} other; {}",
                document.file,
                found.lost,
                found.duplicated,
                found.reordered,
                found.other,
                found.detail
            )
        };
        (self.on_event)(Event::DocumentChecked {
            equal: found.equal,
            bytes: contents.len() as u64,
            detail,
        });
    }

    fn report(&mut self, sent: Sent, echo_ns: Option<u64>) {
        self.summary.lost += u32::from(echo_ns.is_none());
        (self.on_event)(Event::Key {
            index: sent.index,
            text: sent.key.name,
            due_ns: sent.due_ns,
            sent_ns: sent.sent_ns,
            echo_ns,
        });
    }

    fn give_up_on_pending(&mut self) {
        let presumed = std::mem::take(&mut self.presumed)
            .into_iter()
            .map(|arrival| arrival.sent);
        for sent in presumed.chain(self.tracker.abandon()) {
            self.report(sent, None);
        }
    }
}

/// Waits for a deadline, or for ever if there is none.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
