//! `elab tui` in a terminal of its own: the real program, its screen as a terminal shows it, and the terminal afterwards.

mod stand_in;
mod terminal;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use elab::lab::Lab;
use formats::vm::{Disk, Vm};
use lab_protocol::Command as LabCommand;
use nfs_sr::sr::{store::Directory, vdi};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use vhd::DiskKind;

use stand_in::{Sleeper, config, eventually, power_on, processes, runs};
use terminal::Terminal;

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

/// A repository with a machine of one small disk.
fn repository(base: &Path) -> PathBuf {
    let repository = nfs_sr::sr::create(base, vdi::new_uuid()).unwrap();
    let (disk, size) = (vdi::new_uuid(), 4 << 20);
    vdi::create(&Directory::new(&repository), disk, size, DiskKind::Dynamic).unwrap();
    let vm = Vm {
        uuid: vdi::new_uuid().to_string(),
        name: "session".into(),
        memory: 64 << 20,
        vcpus: 1,
        disks: vec![Disk {
            uuid: disk.to_string(),
            name: "root".into(),
            size,
        }],
        ..Vm::default()
    };
    transfer::record(&repository, &vm).unwrap();
    repository
}

#[test]
fn machines_go_out_and_in_beside_the_screen() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join(".elab/run");
    std::fs::create_dir_all(&base).unwrap();
    let lab = Lab::start(config(&base, Box::new(Sleeper))).unwrap();
    lab.stop("the test is over").unwrap();
    let sr = repository(folder.path());
    let sr = sr.file_name().unwrap().to_str().unwrap();

    let mut terminal = Terminal::start(folder.path(), &["--replay", "test"]);
    terminal.expect("REPLAY");
    terminal.type_keys(&format!(":export session s.xva --sr {sr}\r"));
    terminal.expect("verified");
    terminal.type_keys(&format!(":import s.xva --sr {sr} --vm-name other\r"));
    terminal.expect("created VM \"other\"");
    let machines = transfer::machines(&folder.path().join(sr)).unwrap();
    let names: Vec<_> = machines.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["other", "session"]);

    // Nobody writes into this, so whoever reads it waits.
    nix::unistd::mkfifo(&folder.path().join("slow.xva"), Mode::S_IRWXU).unwrap();
    let files = || {
        let entries = [
            folder.path().to_owned(),
            base.clone(),
            folder.path().join(sr),
        ];
        let names = entries
            .iter()
            .flat_map(|path| std::fs::read_dir(path).unwrap());
        names
            .flatten()
            .map(|entry| entry.path())
            .collect::<BTreeSet<_>>()
    };
    let before = files();
    terminal.type_keys(&format!(":import slow.xva --sr {sr}\r"));
    terminal.expect("X cancels");
    terminal.type_keys("X");
    terminal.expect("Cancel elab import slow.xva");
    terminal.type_keys("y");
    terminal.expect(": cancelled");
    assert_eq!(files(), before);
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
