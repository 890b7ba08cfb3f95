//! `elab tui` in a terminal of its own: the real program, its screen as a terminal shows it, and the terminal afterwards.

mod stand_in;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use elab::lab::Lab;
use lab_protocol::Command as LabCommand;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use stand_in::{PATIENCE, Sleeper, config, eventually, power_on, processes, runs};

/// A program in a terminal. What it prints is read when it is waited for, in this thread: nobody else holds our side open.
struct Terminal {
    child: Child,
    ours: Option<PtyMaster>,
    theirs: File,
    screen: vt100::Parser,
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
    fn start(folder: &Path, arguments: &[&str]) -> Self {
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
        tcsetwinsize(&theirs, size(30, 100)).unwrap();
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
            screen: vt100::Parser::new(30, 100, 0),
            raw: Vec::new(),
        }
    }

    fn ours(&mut self) -> &mut PtyMaster {
        self.ours.as_mut().expect("it has not hung up")
    }

    fn hang_up(&mut self) {
        self.ours = None;
    }

    /// Takes what the program has printed, if it prints anything in time.
    fn read(&mut self, patience: Duration) -> bool {
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

    fn type_keys(&mut self, keys: &str) {
        self.ours().write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&mut self, rows: u16, columns: u16) {
        self.screen.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.theirs, size(rows, columns)).unwrap();
        // The kernel tells the terminal's foreground processes, of which a pipe-like terminal without a session has none.
        kill(self.pid(), Signal::SIGWINCH).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Waits until the screen shows a text.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.screen.screen().contents().contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                self.read(left),
                "{text:?} is not on the screen:\n{}",
                self.screen.screen().contents()
            );
        }
    }

    /// Waits for the program's end and looks whether the terminal is as it was.
    fn end(&mut self) -> i32 {
        let mut status = None;
        eventually("the program ends", || {
            self.read(Duration::ZERO);
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
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
        status.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed leaves nothing running. What has ended needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_running_lab_is_seen_and_acted_on() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(".elab/run");
    std::fs::create_dir_all(&base).unwrap();
    let lab = Lab::start(config(&base, Box::new(Sleeper))).unwrap();
    lab.execute(&power_on("h1")).unwrap();
    lab.execute(&power_on("h2")).unwrap();
    let [first, second] = processes(&base)[..] else {
        panic!("two processes are expected")
    };

    let mut terminal = Terminal::start(folder.path(), &["--name", "test"]);
    terminal.expect("LIVE");
    terminal.expect("booting");
    terminal.type_keys("P");
    terminal.expect("Pull the plug of h1?");
    terminal.type_keys("y");
    terminal.expect("pulled");
    eventually("the host has no power", || !runs(first));
    assert!(runs(second));

    terminal.type_keys(":link set h2:mgmt --delay 20ms\r");
    terminal.expect("elab link set h2:mgmt --delay 20ms");
    terminal.type_keys("4");
    terminal.expect("delay 20 ms");
    terminal.resize(40, 140);
    terminal.type_keys("?");
    terminal.expect("earlier runs");
    terminal.resize(10, 40);
    terminal.expect("elab needs a terminal of 80 by 24");
    terminal.resize(30, 100);
    terminal.type_keys(" q");
    terminal.expect("Shall the lab stay up?");
    terminal.type_keys("s");
    assert_eq!(terminal.end(), 0);
    assert!(runs(second), "the lab stays up");

    let mut terminal = Terminal::start(folder.path(), &["--name", "test"]);
    terminal.expect("LIVE");
    kill(terminal.pid(), Signal::SIGTERM).unwrap();
    terminal.end();
    assert!(runs(second));
    lab.execute(&LabCommand::Down).unwrap();
    lab.wait_until_told_to_stop();
    lab.stop("the test is over").unwrap();
}

#[test]
fn two_signals_at_once_leave_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(".elab/run");
    std::fs::create_dir_all(&base).unwrap();
    let lab = Lab::start(config(&base, Box::new(Sleeper))).unwrap();
    lab.stop("the test is over").unwrap();
    // The program looks for the first ten times a second, so most of these come at a moment when it has not yet.
    for _ in 0..5 {
        let mut terminal = Terminal::start(folder.path(), &["--replay", "test"]);
        terminal.expect("REPLAY");
        // Of one kind they would be one signal.
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            kill(terminal.pid(), signal).unwrap();
        }
        terminal.end();
    }
}

/// Types keys and hangs up at once.
fn hang_up_after(keys: &str) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(".elab/run");
    std::fs::create_dir_all(&base).unwrap();
    let lab = Lab::start(config(&base, Box::new(Sleeper))).unwrap();
    lab.stop("the test is over").unwrap();
    let mut terminal = Terminal::start(folder.path(), &["--replay", "test"]);
    terminal.expect("REPLAY");
    terminal.type_keys(keys);
    terminal.hang_up();
    let mut status = None;
    eventually("the program ends with its terminal", || {
        status = terminal.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
}

#[test]
fn a_terminal_that_hangs_up_ends_it() {
    hang_up_after("");
}

#[test]
fn a_terminal_that_hangs_up_amid_keys_ends_it() {
    hang_up_after(&"1234567".repeat(100));
}

#[test]
fn a_finished_run_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(".elab/run");
    std::fs::create_dir_all(&base).unwrap();
    let lab = Lab::start(config(&base, Box::new(Sleeper))).unwrap();
    lab.execute(&power_on("h1")).unwrap();
    lab.stop("the test is over").unwrap();

    let mut terminal = Terminal::start(folder.path(), &["--replay", "test"]);
    terminal.expect("REPLAY");
    terminal.expect("h1");
    terminal.type_keys("7");
    terminal.expect("test");
    terminal.type_keys("q");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn what_cannot_be_shown_says_what_can() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (&["--name", "nosuch"][..], "`elab up` starts one"),
        (&["--replay", "nosuch"], "nosuch is no run"),
        (&["--config", "/nosuch"], "cannot read /nosuch"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_elab"))
            .arg("tui")
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(says), "{error}");
    }
}
