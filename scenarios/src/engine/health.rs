//! Health checks: a TCP connection that must be accepted in time, or an echo that must come back. A guest is healthy until so many
//! checks in a row have failed, and again after the first that succeeds.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab_protocol::Event;

use super::{Lab, SOURCE};
use crate::scenario::file::HealthCheck;
use crate::session::Stream;

const SSH_PORT: u16 = 22;
/// RFC 862.
const ECHO_PORT: u16 = 7;
const WORD: &[u8; 4] = b"elab";

/// A running health check; it ends when dropped.
pub(super) struct Watch {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(
        lab: Arc<dyn Lab>,
        guest: String,
        check: HealthCheck,
    ) -> Result<Self, String> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("health of {guest}"))
            .spawn(move || {
                let mut state = State::default();
                loop {
                    let begun = Instant::now();
                    let result = probe(&lab, &guest, &check);
                    if let Some((healthy, detail)) = state.after(result, check.failures) {
                        let vm = guest.clone();
                        lab.record(
                            SOURCE,
                            Event::Health {
                                vm,
                                healthy,
                                detail,
                            },
                        );
                    }
                    let rest = check.every.0.saturating_sub(begun.elapsed());
                    match stopped.recv_timeout(rest) {
                        Err(RecvTimeoutError::Timeout) => {}
                        _ => return,
                    }
                }
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed by it.
            let _ = thread.join();
        }
    }
}

/// One check. The lab's own patience may be longer, so the connection is opened on a thread that nobody waits for longer.
fn probe(lab: &Arc<dyn Lab>, guest: &str, check: &HealthCheck) -> Result<(), String> {
    let (timeout, echoes) = (check.timeout.0, check.echo);
    let (answer, result) = mpsc::channel();
    let (lab, guest) = (Arc::clone(lab), guest.to_owned());
    std::thread::Builder::new()
        .name("health check".into())
        .spawn(move || {
            let answered = if echoes {
                lab.connect(&guest, ECHO_PORT)
                    .and_then(|stream| echo(&stream, timeout))
            } else {
                lab.connect(&guest, SSH_PORT).map(drop)
            };
            // Whoever asked may have given up.
            let _ = answer.send(answered);
        })
        .map_err(|error| error.to_string())?;
    match result.recv_timeout(timeout) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {timeout:?}")),
    }
}

/// Says a word and waits until it comes back.
fn echo(stream: &Stream, timeout: Duration) -> io::Result<()> {
    let mut heard = [0; WORD.len()];
    match stream {
        Stream::Unix(stream) => {
            stream.set_read_timeout(Some(timeout))?;
            (&*stream).write_all(WORD)?;
            (&*stream).read_exact(&mut heard)?;
        }
        Stream::Tcp(stream) => {
            stream.set_read_timeout(Some(timeout))?;
            (&*stream).write_all(WORD)?;
            (&*stream).read_exact(&mut heard)?;
        }
    }
    if heard == *WORD {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what came back is not what was said",
        ))
    }
}

/// Counts failures.
#[derive(Default)]
struct State {
    failures: u32,
    unhealthy: bool,
}

impl State {
    /// The new state and why, when it has changed.
    fn after(&mut self, result: Result<(), String>, limit: u32) -> Option<(bool, String)> {
        match result {
            Ok(()) => {
                self.failures = 0;
                std::mem::take(&mut self.unhealthy).then(|| (true, "it answers again".into()))
            }
            Err(error) => {
                self.failures += 1;
                let now = self.failures >= limit && !self.unhealthy;
                self.unhealthy |= now;
                now.then(|| (false, format!("{} checks failed: {error}", self.failures)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_connection_in_which_nobody_answers_is_no_sign_of_health() {
        let soon = Duration::from_millis(10);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Stream::Unix(ours);
        assert!(echo(&ours, soon).is_err(), "a kernel alone");
        theirs.write_all(WORD).unwrap();
        assert!(echo(&ours, soon).is_ok());
        theirs.write_all(b"else").unwrap();
        assert!(echo(&ours, soon).is_err());
    }

    #[test]
    fn a_guest_is_unhealthy_after_so_many_failures_and_healthy_after_one_success() {
        let mut state = State::default();
        let bad = || Err("no answer".to_owned());
        assert_eq!(state.after(Ok(()), 2), None);
        assert_eq!(state.after(bad(), 2), None);
        assert_eq!(state.after(Ok(()), 2), None);
        assert_eq!(state.after(bad(), 2), None);
        assert!(!state.after(bad(), 2).unwrap().0);
        assert_eq!(state.after(bad(), 2), None);
        assert!(state.after(Ok(()), 2).unwrap().0);
    }
}
