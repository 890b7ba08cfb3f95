//! Labs that are ended by signals: nothing may be left behind.
//!
//! This program is both the test and, started anew with `ELAB_TEST_LAB`, the lab that gets the signals. It has no test
//! harness, whose main thread would take the signals first.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use elab::interrupt::Interrupts;
use elab::lab::{HostSpec, Lab, LabConfig, Launcher, MachineFacts};
use lab_protocol::{Command as LabCommand, Event, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Nothing here takes long; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    match std::env::var_os("ELAB_TEST_LAB") {
        Some(base) => be_a_lab(&PathBuf::from(base)),
        // The protocol of test runners (nextest's book, "Custom test harnesses"): one test, never ignored.
        None if std::env::args().any(|argument| argument == "--list") => {
            if !std::env::args().any(|argument| argument == "--ignored") {
                println!("signals: test");
            }
        }
        None => {
            signals_end_a_lab_in_order();
            a_killed_lab_leaves_nothing_behind();
            println!("test result: ok");
        }
    }
}

fn signals_end_a_lab_in_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let base = tempfile::tempdir().unwrap();
        let mut lab = start(base.path());
        let hosts = processes(base.path());
        kill(pid_of(&lab), signal).unwrap();
        assert!(lab.wait().unwrap().success(), "{signal}");
        assert!(!hosts.iter().any(|host| runs(*host)), "{signal}");
        let text = std::fs::read_to_string(base.path().join("test/events.jsonl")).unwrap();
        let last: Record = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            last.event,
            Event::LabStopped {
                reason: "told to".into()
            }
        );
    }
}

fn a_killed_lab_leaves_nothing_behind() {
    let base = tempfile::tempdir().unwrap();
    let mut lab = start(base.path());
    let hosts = processes(base.path());
    assert_eq!(hosts.len(), 2);
    kill(pid_of(&lab), Signal::SIGKILL).unwrap();
    lab.wait().unwrap();
    eventually("the kernel has ended the hosts", || {
        !hosts.iter().any(|host| runs(*host))
    });
    // Its folder is free; its sockets and its list are no obstacle.
    let next = Lab::start(config(base.path())).unwrap();
    next.execute(&power_on("h1")).unwrap();
    next.stop("test").unwrap();
}

struct Sleeper;

impl Launcher for Sleeper {
    fn command(&self, _: &HostSpec, _: &Path) -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }
}

fn config(base: &Path) -> LabConfig {
    LabConfig {
        name: "test".into(),
        base: base.into(),
        hosts: 2,
        host_memory_mib: 256,
        launcher: Box::new(Sleeper),
        storage: None,
        vms: Vec::new(),
        seed: 1,
        capture: false,
        facts: MachineFacts::default(),
    }
}

fn power_on(host: &str) -> LabCommand {
    LabCommand::HostPowerOn { host: host.into() }
}

fn be_a_lab(base: &Path) {
    let interrupts = Interrupts::take().unwrap();
    let lab = Lab::start(config(base)).unwrap();
    let stopper = lab.stopper();
    interrupts.on_interrupt(move || stopper.stop());
    lab.execute(&power_on("h1")).unwrap();
    lab.execute(&power_on("h2")).unwrap();
    lab.wait_until_told_to_stop();
    lab.stop("told to").unwrap();
}

/// A lab in another process, its two hosts on.
fn start(base: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .env("ELAB_TEST_LAB", base)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the lab has two hosts", || {
        std::fs::read_to_string(base.join("test/processes.json"))
            .is_ok_and(|list| list.matches("\"pid\"").count() == 2)
    });
    child
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Children of a lab, from its own list.
fn processes(base: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(base.join("test/processes.json")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pid = |entry: &serde_json::Value| {
        Pid::from_raw(i32::try_from(entry["pid"].as_i64().unwrap()).unwrap())
    };
    list.as_array().unwrap().iter().map(pid).collect()
}

/// Whether a process runs. One that has ended but that nobody has waited for does not.
fn runs(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
