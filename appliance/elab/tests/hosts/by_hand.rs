//! A lab as its user meets it: from a shell, with the machine's own programs.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use elab::run_folder::RUNS;

use crate::real_lab::{PATIENCE, WORKSPACE, take_turn};

const NAME: &str = "test-by-hand";
const ELAB: &str = env!("CARGO_BIN_EXE_elab");

#[test]
fn a_guest_is_joined_by_ssh_and_by_its_console_and_moved() {
    let _turn = take_turn();
    let mut lab = Up::start();
    let said = text(&lab.said.stderr);
    let join = said
        .lines()
        .find_map(|line| line.strip_prefix("elab: join the guest: "))
        .unwrap_or_else(|| panic!("no way to join the guest: {said}"));
    // As it is printed, and from anywhere.
    let joined = Command::new("sh")
        .args(["-c", &format!("timeout 60 {join} uname -n")])
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        text(&joined.stdout),
        "session\n",
        "{}",
        text(&joined.stderr)
    );
    // The key that it was to show is the guest's own.
    assert_eq!(text(&joined.stderr), "");

    let mut console = Console::attach();
    console.enter("echo here-$((20+1))");
    console.wait_for("here-21");
    let moved = elab(&["vm", "migrate", "session", "h2"]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    assert!(text(&moved.stdout).starts_with("session runs on h2: migration 1, "));
    console.enter("echo there-$((20+2))");
    console.wait_for("there-22");
    console.detach();
    // Whoever comes later sees what was printed, on either host, and all of it once.
    let mut console = Console::attach();
    console.wait_for("there-22");
    console.detach();
    let all = std::fs::read(format!(".elab/run/{NAME}/session.console.log")).unwrap();
    let all = String::from_utf8_lossy(&all);
    for once in ["elab: session ready", "here-21", "there-22"] {
        assert_eq!(all.matches(once).count(), 1, "{once}: {all}");
    }

    let hosts = text(&elab(&["host", "list"]).stdout);
    assert_eq!(hosts.matches("answers").count(), 2, "{hosts}");
    let vms = text(&elab(&["vm", "list"]).stdout);
    assert!(vms.contains("running    h2"), "{vms}");
    for (wrong, words) in [
        (
            &["vm", "migrate", "session", "h9"][..],
            "the hosts are h1, h2",
        ),
        (&["vm", "migrate", "session", "h2"], "is on h2 already"),
        (&["vm", "stop", "nobody"], "the VMs are: session"),
        (&["link", "heal", "h1:wan"], "mgmt, storage and session"),
        (&["host", "power-on", "h1"], "h1 has power already"),
    ] {
        let output = elab(wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        let error = text(&output.stderr);
        assert!(error.contains(words), "{wrong:?}: {error}");
    }
    it_is_kept_and_goes_back(join);
    lab.end();
}

/// The guest that runs is kept as it is, with and without its memory, is suspended, goes on elsewhere, and goes back.
fn it_is_kept_and_goes_back(join: &str) {
    let guest = |command: &str| {
        let output = Command::new("sh")
            .args(["-c", &format!("timeout 60 {join} '{command}'")])
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    };
    let done = |arguments: &[&str]| {
        let output = elab(arguments);
        let error = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        text(&output.stdout)
    };
    let note = "cat /root/note /proc/sys/kernel/random/boot_id";
    guest("echo first >/root/note; sync");
    let said = done(&["vm", "snapshot", "session", "--label", "one"]);
    assert!(said.contains("one; it stood still for"), "{said}");
    guest("echo second >/root/note; sync");
    let second = guest(note);
    done(&["vm", "checkpoint", "session", "--label", "two"]);
    guest("echo third >/root/note; sync");
    let third = guest(note);

    done(&["vm", "suspend", "session"]);
    let refused = text(&elab(&["vm", "start", "session"]).stderr);
    assert!(refused.contains("is suspended"), "{refused}");
    done(&["vm", "resume", "session", "--on", "h1"]);
    assert_eq!(guest(note), third);

    let refused = text(&elab(&["vm", "revert", "session", "two"]).stderr);
    assert!(refused.contains("stop it first"), "{refused}");
    done(&["vm", "stop", "session", "--force"]);
    done(&["vm", "revert", "session", "two", "--on", "h2"]);
    // The same boot goes on, with the disk of that moment.
    assert_eq!(guest(note), second);
    let known = done(&["vm", "snapshots", "session"]);
    assert!(known.contains("disks and memory"), "{known}");
}

/// A lab that `elab up` has started.
struct Up {
    said: Output,
    ended: bool,
}

impl Up {
    fn start() -> Self {
        let said = Command::new(ELAB)
            .current_dir(WORKSPACE)
            .args(["up", "--detach", "--fast-boot", "--name", NAME])
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", text(&said.stderr));
        let ended = false;
        Self { said, ended }
    }

    fn end(&mut self) {
        self.ended = true;
        let down = elab(&["down"]);
        assert!(down.status.success(), "{}", text(&down.stderr));
        std::fs::remove_dir_all(Path::new(WORKSPACE).join(RUNS).join(NAME)).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if !self.ended {
            elab(&["down"]);
        }
    }
}

fn elab(arguments: &[&str]) -> Output {
    Command::new(ELAB)
        .current_dir(WORKSPACE)
        .args(arguments)
        .args(["--name", NAME])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `elab console` on a terminal, which `script` provides.
struct Console {
    child: Child,
    keys: ChildStdin,
    output: Receiver<Vec<u8>>,
    shown: Vec<u8>,
}

impl Console {
    fn attach() -> Self {
        let mut child = Command::new("script")
            .current_dir(WORKSPACE)
            .args(["--quiet", "--return", "--command"])
            .arg(format!("{ELAB} console --name {NAME}"))
            .arg("/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, output) = mpsc::channel();
        let mut from = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut this = Self {
            keys: child.stdin.take().unwrap(),
            child,
            output,
            shown: Vec::new(),
        };
        this.wait_for("Ctrl-] detaches");
        this
    }

    fn enter(&mut self, line: &str) {
        self.keys.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !text(&self.shown).contains(wanted) {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.shown.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the console ended: {}", text(&self.shown))
                }
            }
            assert!(
                Instant::now() < deadline,
                "{wanted:?} is not in: {}",
                text(&self.shown)
            );
        }
    }

    fn detach(mut self) {
        self.keys.write_all(b"\x1d").unwrap();
        self.wait_for("detached from session");
        assert!(self.child.wait().unwrap().success());
    }
}
