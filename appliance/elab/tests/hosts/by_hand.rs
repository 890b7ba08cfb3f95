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
    its_chain_stays_short(join);
    it_is_multiplied();
    lab.end();
}

/// The guest that runs is kept as it is, with and without its memory, is suspended, goes on elsewhere, and goes back.
fn it_is_kept_and_goes_back(join: &str) {
    let guest = |command: &str| in_guest(join, command);
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

/// Snapshots of the guest that runs come and go: what only they needed is merged under it, and it reads what it did.
fn its_chain_stays_short(join: &str) {
    let guest = |command: &str| in_guest(join, command);
    let labels = ["a", "b", "c", "d"];
    for label in labels {
        // Some of it anew each time, some of it once.
        guest(&format!(
            "dd if=/dev/urandom of=/root/{label} bs=64k count=9 2>/dev/null; \
             dd if=/dev/urandom of=/root/all bs=4k seek=$((0x{label} * 5)) count=7 conv=notrunc 2>/dev/null; sync"
        ));
        done(&["vm", "snapshot", "session", "--label", label]);
    }
    let sums = "echo 3 >/proc/sys/vm/drop_caches; cd /root && sha256sum a b c d all note";
    let before = guest(sums);
    let longest = longest_chain();
    for label in labels {
        done(&["vm", "delete-snapshot", "session", label]);
        assert_eq!(guest(sums), before, "without {label}");
    }
    assert_eq!(longest_chain(), longest - labels.len() + 1);
    let said = done(&["sr", "coalesce"]);
    assert_eq!(said, "there was nothing to merge\n");
    let names = std::fs::read_dir(repository()).unwrap();
    let mut names = names.map(|name| name.unwrap().file_name());
    assert!(names.all(|name| !name.to_string_lossy().ends_with(".merged")));
}

/// A template of a snapshot, and a VM made from it that starts with its host.
fn it_is_multiplied() {
    done(&[
        "template",
        "create",
        "base",
        "--from",
        "session",
        "--snapshot",
        "one",
        "--memory",
        "128",
    ]);
    let known = done(&["template", "list"]);
    assert!(
        known.starts_with(
            "base                 128 MiB, 1 vCPUs, weight 256, on session, disks of "
        ),
        "{known}"
    );
    let refused = text(&elab(&["vm", "start", "base"]).stderr);
    assert!(refused.contains("\"base\" is a template"), "{refused}");
    done(&[
        "vm",
        "clone",
        "base",
        "copy",
        "--weight",
        "512",
        "--start-on-boot",
    ]);
    let refused = text(&elab(&["vm", "clone", "base", "copy"]).stderr);
    assert!(refused.contains("already"), "{refused}");
    let archive = tempfile::tempdir().unwrap();
    let file = archive.path().join("base.xva");
    let file = file.to_str().unwrap();
    done(&["export", "base", file]);
    let said = done(&["import", file, "--check"]);
    assert!(said.starts_with("would create template \"base\""), "{said}");
    done(&["vm", "clone", "base", "whole", "--full"]);
    done(&["template", "delete", "base"]);
    assert!(done(&["template", "list"]).starts_with("there are no templates"));

    done(&["host", "power-off", "h1"]);
    done(&["host", "power-on", "h1"]);
    let console = Path::new(WORKSPACE)
        .join(RUNS)
        .join(NAME)
        .join("copy.console.log");
    let begun = Instant::now();
    let up =
        || std::fs::read_to_string(&console).is_ok_and(|said| said.contains(images::guest::READY));
    while !up() {
        assert!(begun.elapsed() < PATIENCE, "{}", done(&["vm", "list"]));
        std::thread::sleep(Duration::from_millis(200));
    }
    let vms = done(&["vm", "list"]);
    let line = vms
        .lines()
        .find(|line| line.starts_with("copy"))
        .unwrap_or_default();
    assert!(
        line.contains("running") && line.contains("h1") && line.contains("128"),
        "{vms}"
    );
}

fn repository() -> std::path::PathBuf {
    elab::lab::records::repository(&Path::new(WORKSPACE).join(RUNS).join(NAME).join("export"))
}

/// Files of the longest chain.
fn longest_chain() -> usize {
    let store = nfs_sr::sr::store::Directory::new(&repository());
    let survey = nfs_sr::sr::check::Survey::take(&store).unwrap();
    let length = |name: &String| nfs_sr::sr::vdi::info(&store, name).unwrap().parents.len();
    survey.disks.keys().map(length).max().unwrap() + 1
}

/// What a command in the guest prints.
fn in_guest(join: &str, command: &str) -> String {
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
}

/// What `elab` says when all is well.
fn done(arguments: &[&str]) -> String {
    let output = elab(arguments);
    let error = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    text(&output.stdout)
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
