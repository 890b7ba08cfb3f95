//! The socket behind a port: QEMU or an endpoint connects to it, may go away, and may come back.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::capture::Capture;
use crate::framing::{Decoder, encode};

/// A port whose peer does not read keeps this much for it, then loses frames as a full ring does. More than
/// all TCP windows of a host together, so that a busy peer loses nothing.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What came of a read or a write.
#[derive(Debug)]
pub(crate) enum Progress {
    /// All is well.
    Open,
    /// The connection has ended, and why.
    Closed(String),
}

/// A port's sockets and buffers.
#[derive(Debug)]
pub(crate) struct Socket {
    /// `None` for an endpoint, which brings its stream along.
    pub(crate) listener: Option<UnixListener>,
    pub(crate) stream: Option<UnixStream>,
    output: Vec<u8>,
    written: usize,
    /// Whether the loop waits for the stream to become writable.
    pub(crate) waiting_to_write: bool,
    pub(crate) capture: Option<Capture<BufWriter<File>>>,
}

impl Socket {
    pub(crate) fn new(listener: Option<UnixListener>, stream: Option<UnixStream>) -> Self {
        Self {
            listener,
            stream,
            output: Vec::new(),
            written: 0,
            waiting_to_write: false,
            capture: None,
        }
    }

    /// Takes a new connection, forgetting the old one and what was under way on it.
    pub(crate) fn connect(&mut self, stream: UnixStream) {
        self.disconnect();
        self.stream = Some(stream);
    }

    pub(crate) fn disconnect(&mut self) {
        self.stream = None;
        self.output.clear();
        self.written = 0;
        self.waiting_to_write = false;
    }

    /// Queues a frame; `false` when the peer does not read and nothing more fits.
    pub(crate) fn queue(&mut self, frame: &[u8]) -> bool {
        if self.output.len() - self.written + frame.len() > OUTPUT_LIMIT {
            return false;
        }
        encode(frame, &mut self.output);
        true
    }

    pub(crate) fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Reads once into `decoder`.
    pub(crate) fn read(&mut self, decoder: &mut Decoder) -> Progress {
        let Some(stream) = &mut self.stream else {
            return Progress::Open;
        };
        match decoder.read_from(stream) {
            Ok(0) => Progress::Closed("closed by the peer".into()),
            Ok(_) => Progress::Open,
            Err(error) if retry(&error) => Progress::Open,
            Err(error) => Progress::Closed(error.to_string()),
        }
    }

    /// Writes as much as the stream takes.
    pub(crate) fn flush(&mut self) -> Progress {
        let Some(stream) = &mut self.stream else {
            self.output.clear();
            self.written = 0;
            return Progress::Open;
        };
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Moving the rest to the front each time would cost a copy a write.
                    if self.written > OUTPUT_LIMIT / 4 {
                        self.output.drain(..self.written);
                        self.written = 0;
                    }
                    return Progress::Open;
                }
                Err(error) => return Progress::Closed(error.to_string()),
            }
        }
        self.output.clear();
        self.written = 0;
        Progress::Open
    }
}

fn retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
