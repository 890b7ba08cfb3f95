//! The typist against the real spreadsheet, behind an SSH server that can misbehave: what it reports must be what
//! was done to it.

mod ssh;

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lab_protocol::Event;
use russh::server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use scenarios::session::{SessionConfig, SessionError, Summary, Typist};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

/// What the server does to the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The key of this number, from 0, never arrives.
    Lose(usize),
    Duplicate(usize),
    /// It arrives after the next one.
    Reorder(usize),
    /// Before the key of this number nothing passes for a time.
    Stall(usize, Duration),
    /// At this key the connection ends.
    HangUp(usize),
}

struct Server {
    fault: Fault,
    keys: usize,
    held: Option<u8>,
    input: Option<ChildStdin>,
    folder: std::path::PathBuf,
}

impl Server {
    async fn key(&mut self, byte: u8) -> std::io::Result<()> {
        let index = self.keys;
        self.keys += 1;
        let mut bytes = vec![byte];
        match self.fault {
            Fault::Lose(lost) if lost == index => bytes.clear(),
            Fault::Duplicate(twice) if twice == index => bytes.push(byte),
            Fault::Reorder(late) if late == index => {
                self.held = Some(byte);
                bytes.clear();
            }
            Fault::Stall(before, pause) if before == index => tokio::time::sleep(pause).await,
            Fault::HangUp(at) if at == index => {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            _ => bytes.extend(self.held.take()),
        }
        let input = self.input.as_mut().expect("a terminal was started");
        input.write_all(&bytes).await?;
        input.flush().await
    }
}

/// Passes a program's output to a channel, then ends the channel.
async fn pump(mut output: impl AsyncReadExt + Unpin, handle: Handle, channel: ChannelId) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        if handle.data(channel, buffer[..read].to_vec()).await.is_err() {
            return;
        }
    }
    let _ = handle.exit_status_request(channel, 0).await;
    let _ = handle.eof(channel).await;
    let _ = handle.close(channel).await;
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = String::from_utf8(command.to_vec()).expect("text");
        let on_terminal = command.contains("exec sc");
        let mut program = if on_terminal {
            // It gives the program a terminal; the size is set in it.
            let mut script = Command::new("script");
            script.args([
                "-qfec",
                &format!("stty rows 24 cols 80; {command}"),
                "/dev/null",
            ]);
            script
        } else {
            let mut shell = Command::new("sh");
            shell.args(["-c", &command]);
            shell
        };
        let mut child = program
            .env("TERM", "xterm")
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().expect("piped");
        let input = child.stdin.take();
        if on_terminal {
            self.input = input;
        }
        let handle = session.handle();
        tokio::spawn(async move {
            pump(output, handle, channel).await;
            drop(child);
        });
        session.channel_success(channel)
    }

    async fn data(
        &mut self,
        _: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        for byte in data {
            self.key(*byte).await?;
        }
        Ok(())
    }
}

/// Types one document of two rows against a server with a fault.
fn type_against(fault: Fault) -> (Result<Summary, SessionError>, Vec<Event>) {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server {
        fault,
        keys: 0,
        held: None,
        input: None,
        folder: folder.path().to_owned(),
    };
    let (stream, access, serving) = ssh::serve(folder.path(), server);

    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let config = SessionConfig {
        vm: "g1".into(),
        access,
        folder: folder.path().display().to_string(),
        rows: 2,
        seed: 1,
        interval_us: 8_000..=12_000,
        origin: Instant::now(),
        patience: Duration::from_secs(20),
        recording: None,
    };
    let typist = Typist::start(stream, config, move |event| {
        log.lock().expect("not poisoned").push(event);
    })
    .expect("a thread");
    // Until the first document is there, or the session is not.
    let started = Instant::now();
    let done = |events: &[Event]| {
        events
            .iter()
            .any(|event| matches!(event, Event::DocumentChecked { .. }))
    };
    while !done(&events.lock().expect("not poisoned")) && !typist.has_ended() {
        assert!(started.elapsed() < Duration::from_secs(60), "no document");
        std::thread::sleep(Duration::from_millis(5));
    }
    let result = typist.finish();
    serving.join().expect("the server ends with the connection");
    let events = events.lock().expect("not poisoned").clone();
    (result, events)
}

fn documents(events: &[Event]) -> Vec<(bool, String)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::DocumentChecked { equal, detail, .. } => Some((*equal, detail.clone())),
            _ => None,
        })
        .collect()
}

fn longest_echo(events: &[Event]) -> Duration {
    let longest = events.iter().filter_map(|event| match event {
        Event::Key {
            due_ns,
            echo_ns: Some(echo_ns),
            ..
        } => Some(echo_ns - due_ns),
        _ => None,
    });
    Duration::from_nanos(longest.max().expect("keys"))
}

#[test]
fn every_key_arrives_and_the_documents_are_equal() {
    let (summary, events) = type_against(Fault::None);
    let summary = summary.expect("a session");
    assert!(
        summary.content_equal && summary.documents >= 1,
        "{:?}",
        documents(&events)
    );
    assert_eq!(
        (summary.lost, summary.duplicated, summary.reordered),
        (0, 0, 0)
    );
    let keys = events
        .iter()
        .filter(|event| matches!(event, Event::Key { .. }))
        .count();
    assert_eq!(keys, summary.keys as usize);
    assert!(matches!(events[0], Event::SessionOpen { .. }));
}

#[test]
fn a_stall_shows_in_full() {
    let stall = Duration::from_millis(700);
    let (summary, events) = type_against(Fault::Stall(30, stall));
    let summary = summary.expect("a session");
    assert!(summary.content_equal, "{:?}", documents(&events));
    assert_eq!(summary.lost, 0);
    assert!(
        longest_echo(&events) >= stall,
        "{:?}",
        longest_echo(&events)
    );
    // Open loop: the keys that were due during the stall waited too.
    let slow = events.iter().filter(|event| {
        matches!(event, Event::Key { due_ns, echo_ns: Some(echo_ns), .. } if echo_ns - due_ns > 100_000_000)
    });
    assert!(slow.count() > 40);
}

#[test]
fn a_lost_key_is_told() {
    let (summary, events) = type_against(Fault::Lose(5));
    let summary = summary.expect("a session");
    assert!(!summary.content_equal);
    assert!(summary.lost >= 1);
    assert!(
        documents(&events)[0]
            .1
            .contains("1 lost, 0 duplicated, 0 reordered"),
        "{:?}",
        documents(&events)
    );
}

#[test]
fn a_duplicated_key_is_told() {
    let (summary, events) = type_against(Fault::Duplicate(5));
    let summary = summary.expect("a session");
    assert_eq!(
        (summary.content_equal, summary.duplicated),
        (false, 1),
        "{:?}",
        documents(&events)
    );
}

#[test]
fn reordered_keys_are_told() {
    let (summary, events) = type_against(Fault::Reorder(5));
    let summary = summary.expect("a session");
    assert_eq!(
        (summary.content_equal, summary.reordered),
        (false, 1),
        "{:?}",
        documents(&events)
    );
}

#[test]
fn a_broken_connection_is_a_lost_session() {
    let (summary, events) = type_against(Fault::HangUp(40));
    assert!(
        matches!(summary, Err(SessionError::Lost(_) | SessionError::Ssh(_))),
        "{summary:?}"
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::SessionLost { .. }))
    );
    // The keys without an echo are reported all the same.
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Key { echo_ns: None, .. }))
    );
}
