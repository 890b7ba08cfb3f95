//! What the checkers make of a host that fails: a user who comes back, and a host that goes on after its guest was restarted.

use lab_protocol::{Event, PoolMark, Record, SCHEMA};
use scenarios::report::{Limits, Run};
use scenarios::scenario;
use scenarios::verdict::{Check, Evidence, judge};

const SECOND: u64 = 1_000_000_000;

fn log(events: impl IntoIterator<Item = (u64, Event)>) -> Vec<Record> {
    let records = (0..).zip(events).map(|(seq, (t_ns, event))| {
        let session = matches!(
            event,
            Event::SessionOpen { .. }
                | Event::SessionLost { .. }
                | Event::Key { .. }
                | Event::DocumentChecked { .. }
        );
        Record {
            schema: SCHEMA,
            seq,
            t_ns,
            error_ns: 0,
            source: if session { "session" } else { "lab" }.into(),
            event,
        }
    });
    records.collect()
}

fn check(name: &str, reconnect: bool, records: &[Record]) -> Check {
    let text = format!(
        "name = \"test\"\nwhy = \"A test.\"\n[pool]\nprotect = 1\n[[guests]]\nname = \"session\"\n[[sessions]]\nguest = \"session\"\nreconnect = {reconnect}\n"
    );
    let scenario = scenario::parse("test", &text).unwrap().remove(0).scenario;
    let evidence = Evidence {
        scenario: &scenario,
        records,
        consoles: &[],
        file_systems: &[],
    };
    let measured = Run::of(records, &Limits::default()).report;
    let checks = judge(&evidence, &measured).checks;
    checks.into_iter().find(|check| check.name == name).unwrap()
}

fn vm() -> String {
    "session".into()
}

fn key(index: u32, at: u64, arrived: bool) -> (u64, Event) {
    let event = Event::Key {
        index,
        text: "x".into(),
        due_ns: at,
        sent_ns: at,
        echo_ns: arrived.then_some(at + 1000),
    };
    (at, event)
}

/// A session that is lost at 3 s, and the next one; `late` is a key of that.
fn two_sessions(late: (u64, Event)) -> Vec<Record> {
    let lost = Event::SessionLost {
        vm: vm(),
        reason: "no echo".into(),
        unsaved: 2,
    };
    log([
        (SECOND, Event::SessionOpen { vm: vm() }),
        key(0, SECOND + 1, true),
        key(1, 2 * SECOND, false),
        (3 * SECOND, lost),
        (9 * SECOND, Event::SessionOpen { vm: vm() }),
        late,
    ])
}

#[test]
fn a_user_who_comes_back_loses_what_the_host_took_with_it_and_nothing_else() {
    let good = two_sessions(key(2, 10 * SECOND, true));
    assert!(check("session", true, &good).passed);
    let keys = check("keys", true, &good);
    assert!(
        keys.passed && keys.detail.contains("1 lost with the session"),
        "{keys:?}"
    );
    let later = two_sessions(key(2, 10 * SECOND, false));
    assert!(!check("keys", true, &later).passed);
}

#[test]
fn a_session_that_was_to_last_may_not_be_opened_anew() {
    let records = two_sessions(key(2, 10 * SECOND, true));
    assert!(!check("session", false, &records).passed);
    assert!(!check("keys", false, &records).passed);
}

#[test]
fn a_user_who_does_not_come_back_is_noticed() {
    let mut records = two_sessions(key(2, 10 * SECOND, true));
    records.truncate(4);
    assert!(!check("session", true, &records).passed);
    assert!(!check("keys", true, &records).passed);
}

/// A guest is restarted on h2 while h1 stands still; then h1 goes on, and says this of its guests.
fn freeze_and_thaw(said: Option<(u64, Event)>) -> Vec<Record> {
    let power = |state: &str| Event::HostPower {
        host: "h1".into(),
        state: state.into(),
    };
    let first = |host: &str| Event::FirstInstruction {
        vm: vm(),
        host: host.into(),
    };
    let events = [
        (SECOND, first("h1")),
        (2 * SECOND, power("frozen")),
        (4 * SECOND, first("h2")),
        (6 * SECOND, power("thawed")),
    ];
    let stopped = Event::VmStopped {
        vm: vm(),
        host: "h1".into(),
        reason: "fenced".into(),
    };
    log(events
        .into_iter()
        .chain(said)
        .chain([(8 * SECOND, stopped)]))
}

fn mark(t_ns: u64, mark: PoolMark) -> Option<(u64, Event)> {
    let (host, text) = ("h1".into(), String::new());
    let event = Event::Pool {
        host,
        mark,
        vm: None,
        about: None,
        text,
    };
    Some((t_ns, event))
}

#[test]
fn a_host_that_goes_on_must_say_at_once_that_its_guests_stand_still() {
    let soon = 6 * SECOND + 1000;
    for right in [PoolMark::PermitLapsed, PoolMark::SelfFenced] {
        assert!(check("one-copy", true, &freeze_and_thaw(mark(soon, right))).passed);
    }
    for said in [
        None,
        mark(soon, PoolMark::PermitBack),
        mark(soon, PoolMark::Suspected),
        mark(7 * SECOND + 1000, PoolMark::PermitLapsed),
    ] {
        let copies = check("one-copy", true, &freeze_and_thaw(said.clone()));
        assert!(!copies.passed, "{said:?}");
        assert!(copies.detail.contains("from 6.000 s"), "{copies:?}");
    }
}

#[test]
fn a_host_that_could_not_be_heard_is_judged_by_its_first_status() {
    let status = Event::HostStatus {
        host: "h1".into(),
        memory_total: 0,
        memory_free: 0,
        storage_up: true,
    };
    let mut records = freeze_and_thaw(Some((6 * SECOND + 1000, status)));
    assert!(check("one-copy", true, &records).passed);
    let last = records.len() - 1;
    let listed = Event::VmStatus {
        vm: vm(),
        host: "h1".into(),
        cpu_ns: 0,
        exits: 0,
    };
    let record = Record {
        event: listed,
        ..records[last - 1].clone()
    };
    records.insert(last, record);
    assert!(!check("one-copy", true, &records).passed);
}
