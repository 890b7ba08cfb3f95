//! Joins a TCP connection of the endpoint's stack with a socket of this machine, byte by byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;

use nix::sys::socket::{Shutdown, shutdown};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

/// A joined pair.
#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) handle: SocketHandle,
    /// A socket; as a file it can be read and written whatever its family.
    near: File,
    /// Whoever waits for the connection to open.
    opening: Option<Sender<io::Result<()>>>,
    opened: bool,
    give_up_ns: u64,
    /// The near socket may have bytes; edge-triggered, so true until a read would block.
    pub(super) readable: bool,
    /// The near socket may take bytes; likewise.
    pub(super) writable: bool,
    near_ended: bool,
    far_ended: bool,
}

impl Bridge {
    /// `opening` hears whether the connection opened; it is given up at `give_up_ns`.
    pub(super) fn new(
        handle: SocketHandle,
        near: OwnedFd,
        opening: Option<Sender<io::Result<()>>>,
        give_up_ns: u64,
    ) -> Self {
        Self {
            handle,
            near: File::from(near),
            opening,
            opened: false,
            give_up_ns,
            readable: true,
            writable: true,
            near_ended: false,
            far_ended: false,
        }
    }

    /// When an unopened connection is given up.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        (!self.opened).then_some(self.give_up_ns)
    }

    /// Moves what can be moved; `false` when the pair is over and can be removed.
    pub(super) fn pump(&mut self, socket: &mut Socket<'_>, now_ns: u64) -> bool {
        if !self.opened {
            if socket.may_send() {
                self.opened = true;
                self.answer(Ok(()));
            } else if socket.state() == State::Closed {
                self.answer(Err(io::ErrorKind::ConnectionRefused.into()));
                return false;
            } else if now_ns >= self.give_up_ns {
                self.answer(Err(io::ErrorKind::TimedOut.into()));
                socket.abort();
                return false;
            } else {
                return true;
            }
        }
        if self.deliver(socket).is_err() || self.fetch(socket).is_err() {
            socket.abort();
            return false;
        }
        if socket.state() == State::Closed && !socket.can_recv() {
            return false;
        }
        // A connection that both sides have ended lingers in TIME-WAIT without the near socket.
        !(self.near_ended && self.far_ended)
    }

    fn answer(&mut self, result: io::Result<()>) {
        if let Some(opening) = self.opening.take() {
            // Whoever asked may have given up.
            let _ = opening.send(result);
        }
    }

    fn deliver(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        while self.writable && socket.can_recv() {
            let near = &mut self.near;
            let outcome = socket.recv(|bytes| match near.write(bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        if !socket.may_recv() && !socket.can_recv() && !self.far_ended {
            self.far_ended = true;
            // The near side may have closed already.
            let _ = shutdown(self.near.as_raw_fd(), Shutdown::Write);
        }
        Ok(())
    }

    fn fetch(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        while self.readable && !self.near_ended && socket.can_send() {
            let near = &mut self.near;
            let outcome = socket.send(|room| match near.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(0)) => {
                    self.near_ended = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}
