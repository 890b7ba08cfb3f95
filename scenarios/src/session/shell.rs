//! A shell in the guest that a person types into, over SSH as the measured session is.
//!
//! What it prints is stamped when it arrives, so whoever draws it ten times a second still knows how long the guest took.

use std::io;
use std::thread::Builder;
use std::time::{Duration, Instant};

use russh::ChannelMsg;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::ssh::Connection;
use super::{Access, SessionError, Stream};

/// A guest that is up lets someone in sooner.
const PATIENCE: Duration = Duration::from_secs(20);
/// The login shell of whoever logs in.
const COMMAND: &str = "exec \"$SHELL\" -l";

/// What a shell says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has printed.
    Output {
        /// What.
        bytes: Vec<u8>,
        /// When that was here.
        at: Instant,
    },
    /// It is over, and why. Nothing comes after it.
    Ended(String),
}

/// A shell; it ends when this is dropped.
#[derive(Debug)]
pub struct Shell {
    keys: UnboundedSender<Vec<u8>>,
}

impl Shell {
    /// Logs in and starts a shell on a terminal of so many rows and columns, in a thread of its own; `said` is told what comes of it.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start(
        stream: Stream,
        access: Access,
        size: (u16, u16),
        mut said: impl FnMut(Said) + Send + 'static,
    ) -> io::Result<Self> {
        let (keys, typed) = unbounded_channel();
        Builder::new().name("shell".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let ended = match runtime {
                Ok(runtime) => runtime.block_on(hold(stream, &access, size, typed, &mut said)),
                Err(error) => Err(error.into()),
            };
            said(Said::Ended(match ended {
                Ok(()) => "the shell has ended".into(),
                Err(error) => error.to_string(),
            }));
        })?;
        Ok(Self { keys })
    }

    /// Types, as a terminal sends it.
    pub fn type_keys(&self, bytes: Vec<u8>) {
        // A shell that is over has said so.
        let _ = self.keys.send(bytes);
    }
}

async fn hold(
    stream: Stream,
    access: &Access,
    (rows, columns): (u16, u16),
    mut typed: UnboundedReceiver<Vec<u8>>,
    said: &mut impl FnMut(Said),
) -> Result<(), SessionError> {
    let connection = timeout(PATIENCE, Connection::open(stream, access))
        .await
        .map_err(|_| SessionError::TooSlow(PATIENCE))??;
    let mut terminal = connection.terminal(rows, columns, COMMAND).await?;
    loop {
        tokio::select! {
            message = terminal.wait() => match message {
                Some(ChannelMsg::Data { data }) => said(Said::Output {
                    bytes: data.to_vec(),
                    at: Instant::now(),
                }),
                Some(ChannelMsg::Close) | None => return Ok(()),
                Some(_) => {}
            },
            keys = typed.recv() => match keys {
                Some(bytes) => terminal.data_bytes(bytes).await?,
                None => return Ok(()),
            },
        }
    }
}
