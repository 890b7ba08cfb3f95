//! Labs that are ended by signals: nothing may be left behind.
//!
//! This program is both the test and, started anew with `ELAB_TEST_LAB`, the lab that gets the signals. It has no test
//! harness, whose main thread would take the signals first.

mod stand_in;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use elab::interrupt::Interrupts;
use elab::lab::Lab;
use lab_protocol::{Event, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use stand_in::{Sleeper, eventually, power_on, processes, runs};

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
    let next = Lab::start(stand_in::config(base.path(), Box::new(Sleeper))).unwrap();
    next.execute(&power_on("h1")).unwrap();
    next.stop("test").unwrap();
}

fn be_a_lab(base: &Path) {
    let interrupts = Interrupts::take().unwrap();
    let lab = Lab::start(stand_in::config(base, Box::new(Sleeper))).unwrap();
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
