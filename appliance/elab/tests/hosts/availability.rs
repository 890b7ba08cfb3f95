//! A pool of real hosts: what becomes of the guest when its host loses power, and what people are told of it.
//!
//! What pools do under every fault is simulated beside the crate `pool`; here is the proof that the whole does the same, with one
//! boot. Nothing here asserts a time: the scenario `host-pull` has limits.

use elab::assembly::GUEST;
use lab_protocol::{Command, Event, PoolMark, Record};
use serde_json::Value;

use crate::log::assert_never_two_copies;
use crate::real_lab::{PATIENCE, RealLab};

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

    let (before, console) = (lab.log().records().len(), lab.console_length());
    lab.pull("h1");
    let restarted = |event: &Event| matches!(event, Event::Pool { mark: PoolMark::Restarted, vm: Some(vm), .. } if vm == GUEST);
    let record = lab.log().wait(before, PATIENCE, restarted, || false);
    assert!(record.is_some(), "nobody restarted the guest");
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

    // The leases of disks: the pool has one of its own.
    let mut records = lab.log().records();
    records.retain(
        |record| !matches!(&record.event, Event::Lease { path, .. } if !path.ends_with(".vhd")),
    );
    assert_never_two_copies(&records);
    lab.stop();
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
