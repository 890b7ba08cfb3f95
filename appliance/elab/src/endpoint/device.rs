//! A network card for smoltcp on a switch port: QEMU's framing on a stream socket.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use switch::framing::{Decoder, encode};

const ETHERNET_HEADER: usize = 14;
/// Frames wait here when the switch does not read; it always does, so this is never reached in practice.
const OUTPUT_LIMIT: usize = 8 << 20;

/// The card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) stream: UnixStream,
    mtu: usize,
    decoder: Decoder,
    output: Vec<u8>,
    written: usize,
    scratch: Vec<u8>,
}

impl Card {
    pub(super) fn new(stream: UnixStream, mtu: usize) -> Self {
        Self {
            stream,
            mtu,
            decoder: Decoder::default(),
            output: Vec::new(),
            written: 0,
            scratch: Vec::new(),
        }
    }

    /// Reads once what the switch has sent.
    ///
    /// # Errors
    /// When the switch is gone.
    pub(super) fn read(&mut self) -> io::Result<()> {
        match self.decoder.read_from(&mut self.stream) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if would_block(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes what the socket takes; gives whether something is left.
    ///
    /// # Errors
    /// When the switch is gone.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if would_block(&error) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(false)
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// A received frame.
pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to send.
pub(super) struct Room<'a> {
    scratch: &'a mut Vec<u8>,
    output: &'a mut Vec<u8>,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        encode(self.scratch, self.output);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        // The switch is in this process and sends correct framing; were it otherwise, the next read would fail.
        let frame = self.decoder.next_frame().ok()??;
        let room = Room {
            scratch: &mut self.scratch,
            output: &mut self.output,
        };
        Some((Received(frame), room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        (self.output.len() < OUTPUT_LIMIT).then_some(Room {
            scratch: &mut self.scratch,
            output: &mut self.output,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // smoltcp counts the header in.
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        capabilities
    }
}
