//! A pool of real hosts: what becomes of the guest when its host loses power, and what people are told of it.
//!
//! What pools do under every fault is simulated beside the crate `pool`; here is the proof that the whole does the same, with one
//! boot. Nothing here asserts a time: the scenario `host-pull` has limits.

use elab::assembly::{GUEST, disk_file};
use lab_protocol::{Command, Event, PoolMark, Record};
use serde_json::{Value, json};

use crate::log::assert_never_two_copies;
use crate::real_lab::{PATIENCE, RealLab};

/// A guest that is made while the pool protects the first, and stands behind it in every list.
const LATER: &str = "the-later";
/// Its turn comes so long after the first runs.
const DELAY_MS: u64 = 500;

#[test]
fn the_guest_of_a_pulled_host_is_restarted_with_all_that_it_had_synced() {
    let lab = RealLab::with_hosts("test-pull", 3);
    assert_eq!(protection(&lab), "none");
    lab.run("elab-disk write /root/kept 0 20 && sync");
    let view = lab
        .lab()
        .execute(&Command::HaEnable { failures: 1 })
        .unwrap();
    assert_eq!(view["tolerated_failures"], 1);
    // Who coordinates first depends on whose word came first.
    let coordinator = view["coordinator"].as_str();
    assert!(
        coordinator.is_some_and(|host| ["h1", "h2", "h3"].contains(&host)),
        "{view}"
    );
    assert_eq!(protection(&lab), "restart");
    // It has gone on: to be protected costs it nothing.
    assert_eq!(lab.guest_host().as_deref(), Some("h1"));
    // One that comes later is protected as it comes, and its turn is after the first.
    tell(
        &lab,
        json!({"command": "vm-snapshot", "vm": GUEST, "snapshot": "origin"}),
    );
    tell(
        &lab,
        json!({"command": "vm-clone", "vm": GUEST, "snapshot": "origin", "new": LATER}),
    );
    let order = json!({"command": "vm-set", "vm": LATER, "order": 2, "start_delay_ms": DELAY_MS});
    assert_eq!(tell(&lab, order)["order"], 2);
    tell(&lab, json!({"command": "vm-set", "vm": GUEST, "order": 1}));
    tell(
        &lab,
        json!({"command": "vm-start", "vm": LATER, "host": "h1"}),
    );

    let (before, console) = (lab.log().records().len(), lab.console_length());
    lab.pull("h1");
    let restarted = |event: &Event| matches!(event, Event::Pool { mark: PoolMark::Restarted, vm: Some(vm), .. } if vm == GUEST);
    let record = lab.log().wait(before, PATIENCE, restarted, || false);
    let first = record.expect("nobody restarted the guest");
    let begun = |event: &Event| matches!(event, Event::Pool { mark: PoolMark::Restart, vm: Some(vm), .. } if vm == LATER);
    let second = lab.log().wait(before, PATIENCE, begun, || false);
    let second = second.expect("nobody restarted the other guest");
    let waited_ns = second.t_ns + second.error_ns + first.error_ns - first.t_ns;
    assert!(
        waited_ns >= DELAY_MS * 1_000_000,
        "it came {waited_ns} ns after the one before it"
    );
    lab.wait_for_console(console);
    let survivor = lab.guest_host().expect("the lab sees it run");
    assert_ne!(survivor, "h1");
    assert_eq!(lab.run("elab-disk check /root/kept 20"), "ok\n");
    let marks = marks(&lab.log().records()[before..]);
    for wanted in [
        PoolMark::Suspected,
        PoolMark::DeclaredDead,
        PoolMark::Liveset,
        PoolMark::Fenced,
        PoolMark::Restart,
        PoolMark::Restarted,
    ] {
        assert!(marks.contains(&wanted), "{wanted:?} is not told: {marks:?}");
    }
    assert!(!marks.contains(&PoolMark::SelfFenced), "{marks:?}");

    // The pool as its hosts tell it: without the one that failed, and with the guest where it is.
    let views = lab.lab().execute(&Command::HaStatus).unwrap();
    let told: Vec<&Value> = views
        .as_array()
        .unwrap()
        .iter()
        .filter(|view| view["error"].is_null())
        .collect();
    assert_eq!(told.len(), 2, "{views}");
    assert_eq!(told[0]["coordinator"], told[1]["coordinator"]);
    for view in told {
        assert_ne!(view["coordinator"], "h1");
        assert_eq!(view["hosts"][0]["member"], false);
        let place = format!("running on {survivor}");
        assert_eq!(view["vms"][0]["place"], place.as_str());
    }

    // With its power back it is one of them again, without a word from anybody.
    let before = lab.log().records().len();
    lab.power_on("h1");
    let liveset = |event: &Event| {
        matches!(
            event,
            Event::Pool {
                mark: PoolMark::Liveset,
                ..
            }
        )
    };
    let joined = lab.log().wait(before, PATIENCE, liveset, || false);
    assert!(joined.is_some(), "the host did not come back");
    lab.migrate("h1", false).unwrap();
    assert_eq!(lab.run("elab-disk check /root/kept 20"), "ok\n");

    // Of this guest and its disk: the pool has a lease of its own, and so has the other guest.
    let disk = disk_file(lab.lab().folder(), 1);
    let disk = disk.file_name().unwrap().to_str().unwrap();
    let mut records = lab.log().records();
    records.retain(|record| match &record.event {
        Event::Lease { path, .. } => path.ends_with(disk),
        Event::FirstInstruction { vm, .. }
        | Event::VmState { vm, .. }
        | Event::VmStopped { vm, .. } => vm == GUEST,
        _ => true,
    });
    assert_never_two_copies(&records);
    lab.stop();
}

/// A command in the words of the lab's socket.
fn tell(lab: &RealLab, command: Value) -> Value {
    let command: Command = serde_json::from_value(command).unwrap();
    lab.lab().execute(&command).unwrap()
}

/// The level that the lab's status shows.
fn protection(lab: &RealLab) -> String {
    let status = lab.lab().execute(&Command::Status).unwrap();
    let level = status["vms"][0]["protection"].as_str();
    level.expect("a level is always shown").to_owned()
}

fn marks(records: &[Record]) -> Vec<PoolMark> {
    let events = records.iter().map(|record| &record.event);
    let marks = events.filter_map(|event| match event {
        Event::Pool { mark, .. } => Some(*mark),
        _ => None,
    });
    marks.collect()
}
