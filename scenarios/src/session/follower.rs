//! A command in the guest that runs for as long as it is followed, its output taken line by line.

use std::thread::JoinHandle;
use std::time::Duration;

use russh::ChannelMsg;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ssh::{Access, Connection, Stream};
use super::{SessionError, runtime};

/// Longest line that is taken for one.
const LINE_MAX: usize = 64 * 1024;
const LOG_IN: Duration = Duration::from_secs(30);

/// A followed command.
#[derive(Debug)]
pub struct Follower {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Follower {
    /// Logs in over `stream` and starts the command; `on_line` is called on the follower's thread.
    ///
    /// # Errors
    ///
    /// The machine cannot start a thread, or the guest does not let us in.
    pub fn start(
        stream: Stream,
        access: Access,
        command: String,
        mut on_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<Self, SessionError> {
        let (stop, stopped) = oneshot::channel();
        let (started, result) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("follower".into())
            .spawn(move || {
                let runtime = match runtime() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // Whoever started this waits for the answer.
                        let _ = started.send(Err(error.into()));
                        return;
                    }
                };
                runtime.block_on(async {
                    let opened = timeout(LOG_IN, open(stream, &access, &command))
                        .await
                        .unwrap_or(Err(SessionError::TooSlow(LOG_IN)));
                    match opened {
                        Ok((_connection, channel)) => {
                            let _ = started.send(Ok(()));
                            tokio::select! {
                                () = lines(channel, &mut on_line) => {}
                                _ = stopped => {}
                            }
                        }
                        Err(error) => {
                            let _ = started.send(Err(error));
                        }
                    }
                });
            })?;
        result
            .recv()
            .unwrap_or_else(|_| Err(SessionError::Lost("its thread has ended".into())))?;
        Ok(Self { stop, thread })
    }

    /// Ends it; the guest ends the command when the connection is gone.
    pub fn stop(self) {
        // It may have ended by itself.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

type Opened = (Connection, russh::Channel<russh::client::Msg>);

async fn open(stream: Stream, access: &Access, command: &str) -> Result<Opened, SessionError> {
    let connection = Connection::open(stream, access).await?;
    let channel = connection.execute(command).await?;
    Ok((connection, channel))
}

async fn lines(mut channel: russh::Channel<russh::client::Msg>, on_line: &mut impl FnMut(&str)) {
    let mut pending = Vec::new();
    while let Some(message) = channel.wait().await {
        let ChannelMsg::Data { data } = message else {
            continue;
        };
        for byte in data.iter() {
            match byte {
                b'\n' => {
                    on_line(&String::from_utf8_lossy(&pending));
                    pending.clear();
                }
                byte if pending.len() < LINE_MAX => pending.push(*byte),
                _ => {}
            }
        }
    }
}
