//! A program in a terminal of its own: what it prints is shown as a terminal shows it, and read while it is waited for.

#![allow(dead_code, reason = "each user needs a part of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Nothing here takes long; what waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Rows and columns at first.
pub const SIZE: (u16, u16) = (30, 100);

/// A program in a terminal. What it prints is read when it is waited for, in this thread: nobody else holds our side open.
pub struct Terminal {
    pub child: Child,
    ours: Option<PtyMaster>,
    theirs: File,
    pub screen: vt100::Parser,
    raw: Vec<u8>,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_sized(folder, arguments, SIZE)
    }

    /// Of so many rows and columns.
    pub fn start_sized(folder: &Path, arguments: &[&str], (rows, columns): (u16, u16)) -> Self {
        // A program that held our side as well would never see it close.
        let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(ptsname_r(&ours).unwrap())
            .unwrap();
        tcsetwinsize(&theirs, size(rows, columns)).unwrap();
        let stdio = || Stdio::from(theirs.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_elab"))
            .arg("tui")
            .args(arguments)
            .current_dir(folder)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        Self {
            child,
            ours: Some(ours),
            theirs,
            screen: vt100::Parser::new(rows, columns, 0),
            raw: Vec::new(),
        }
    }

    fn ours(&mut self) -> &mut PtyMaster {
        self.ours.as_mut().expect("it has not hung up")
    }

    pub fn hang_up(&mut self) {
        self.ours = None;
    }

    /// Takes what the program has printed, if it prints anything in time.
    pub fn read(&mut self, patience: Duration) -> bool {
        let ours = self.ours();
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).unwrap();
        if poll(&mut fds, patience).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        let count = ours.read(&mut bytes).unwrap();
        self.screen.process(&bytes[..count]);
        self.raw.extend(&bytes[..count]);
        true
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.ours().write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.screen.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.theirs, size(rows, columns)).unwrap();
        // The kernel tells the terminal's foreground processes, of which a pipe-like terminal without a session has none.
        kill(self.pid(), Signal::SIGWINCH).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// What the screen shows.
    pub fn contents(&self) -> String {
        self.screen.screen().contents()
    }

    /// Waits until the screen shows a text.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.contents().contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                self.read(left),
                "{text:?} is not on the screen:\n{}",
                self.contents()
            );
        }
    }

    /// Waits for the program's end and looks whether the terminal is as it was.
    pub fn end(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            self.read(Duration::from_millis(5));
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
        };
        while self.read(Duration::ZERO) {}
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        assert!(
            modes.contains(LocalModes::ICANON | LocalModes::ECHO),
            "the terminal is cooked again"
        );
        let position = |wanted: &[u8]| {
            self.raw
                .windows(wanted.len())
                .rposition(|window| window == wanted)
        };
        let (entered, left) = (position(b"\x1b[?1049h"), position(b"\x1b[?1049l"));
        assert!(
            entered.is_some() && entered < left,
            "the other screen was entered and left"
        );
        assert!(
            position(b"\x1b[?25h") > entered,
            "the cursor is there again"
        );
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed leaves nothing running. What has ended needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
