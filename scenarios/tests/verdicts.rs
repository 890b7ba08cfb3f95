//! Each checker with a run that is right, and with one that is wrong in the one thing that it looks for.

mod support;

use lab_protocol::{Event, Phase, ProbeKind, Record, Role};
use scenarios::report::{Limits, Run};
use scenarios::scenario::{self, Scenario};
use scenarios::verdict::file_system::FileSystem;
use scenarios::verdict::{Evidence, Judgement, Verdict, judge};
use support::Log;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

const SCENARIO: &str = r#"
name = "test"
why = "A test."
[[guests]]
name = "session"
[[sessions]]
guest = "session"
probes = { udp_hz = 100, disk_hz = 5, clock_hz = 10 }
[[steps]]
name = "move"
migrate = { guest = "session", verify = true }
[[sometimes]]
what = "a link was cut while a guest moved"
event = { event = "link-fault" }
during_migration = true
"#;

fn scenario() -> Scenario {
    scenario::parse("test", SCENARIO)
        .unwrap()
        .remove(0)
        .scenario
}

fn vm() -> String {
    "session".into()
}

/// A run in which everything is as it should be: a guest that moves from h1 to h2 at five seconds.
fn good() -> Vec<Record> {
    let mut log = Log(Vec::new());
    let first = |log: &mut Log, t, host: &str| {
        let event = Event::FirstInstruction {
            vm: vm(),
            host: host.into(),
        };
        log.push(t, host, event);
    };
    let lease = |log: &mut Log, t, epoch, owner: &str, change: &str| {
        let event = Event::Lease {
            path: "sr/disk.vhd".into(),
            epoch,
            owner: owner.into(),
            change: change.into(),
        };
        log.push(t, "storage", event);
    };
    let step = |log: &mut Log, t, state: &str| {
        let event = Event::Step {
            step: 1,
            name: "step 1 \"move\"".into(),
            state: state.into(),
            detail: String::new(),
        };
        log.push(t, "scenario", event);
    };
    lease(&mut log, MS, 1, "h1", "acquired");
    first(&mut log, 2 * MS, "h1");
    log.push(SECOND, "session", Event::SessionOpen { vm: vm() });
    step(&mut log, 5 * SECOND, "started");
    let t = 5 * SECOND;
    log.push(
        t,
        "lab",
        Event::MigrationRequested {
            vm: vm(),
            migration: 1,
            from: "h1".into(),
            to: "h2".into(),
        },
    );
    let cut = Event::LinkFault {
        link: "h1:mgmt>".into(),
        fault: "cut".into(),
    };
    log.push(t + 10 * MS, "lab", cut);
    let phase = |log: &mut Log, t, role, phase| {
        let host = if role == Role::Source { "h1" } else { "h2" };
        let event = Event::MigrationPhase {
            vm: vm(),
            migration: 1,
            host: host.into(),
            role,
            phase,
            detail: String::new(),
        };
        log.push(t, host, event);
    };
    phase(&mut log, t + 20 * MS, Role::Source, Phase::PreCopy);
    phase(&mut log, t + 500 * MS, Role::Source, Phase::Drain);
    phase(&mut log, t + 501 * MS, Role::Source, Phase::LastPages);
    phase(&mut log, t + 502 * MS, Role::Source, Phase::DeviceState);
    for role in [Role::Source, Role::Destination] {
        let hash = Event::MemoryHash {
            vm: vm(),
            migration: 1,
            role,
            hash: "aa".into(),
        };
        log.push(t + 503 * MS, "h1", hash);
    }
    phase(
        &mut log,
        t + 503 * MS,
        Role::Destination,
        Phase::LeaseHandOver,
    );
    lease(&mut log, t + 504 * MS, 2, "h2", "transferred");
    phase(&mut log, t + 505 * MS, Role::Destination, Phase::Resume);
    first(&mut log, t + 506 * MS, "h2");
    let stopped = Event::VmStopped {
        vm: vm(),
        host: "h1".into(),
        reason: "migrated".into(),
    };
    log.push(t + 510 * MS, "h1", stopped);
    let ended = Event::MigrationEnded {
        vm: vm(),
        migration: 1,
        error: String::new(),
    };
    log.push(t + 520 * MS, "lab", ended);
    step(&mut log, t + 521 * MS, "done");
    for index in 0..50_u32 {
        let due_ns = SECOND + u64::from(index) * 100 * MS;
        let key = Event::Key {
            index,
            text: "x".into(),
            due_ns,
            sent_ns: due_ns,
            echo_ns: Some(due_ns + 5 * MS),
        };
        log.push(due_ns, "session", key);
    }
    let samples = Event::ProbeSamples {
        probe: ProbeKind::Udp,
        first: 0,
        due_ns: SECOND,
        interval_ns: 10 * MS,
        late_max_ns: 0,
        duplicated: 0,
        reordered: 0,
        answers_ns: vec![Some(2 * MS); 700],
    };
    log.push(8 * SECOND, "session", samples);
    for number in 0..60 {
        let t = SECOND + number * 100 * MS;
        let clock = Event::GuestClock {
            vm: vm(),
            number,
            realtime_ns: 1_700_000_000 * SECOND + t,
            monotonic_ns: t - 500 * MS,
        };
        log.push(t, "session", clock);
    }
    let disk = Event::DiskChecked {
        vm: vm(),
        equal: true,
        records: 35,
        detail: String::new(),
    };
    log.push(9 * SECOND, "scenario", disk);
    let document = Event::DocumentChecked {
        equal: true,
        bytes: 100,
        detail: "movies-1.sc".into(),
    };
    log.push(9 * SECOND, "session", document);
    log.0
}

/// Judges a run whose console and file system are right.
fn judged(records: &[Record]) -> Judgement {
    judged_with(records, "Debian GNU/Linux\nelab: session ready\n", true)
}

fn judged_with(records: &[Record], console: &str, clean: bool) -> Judgement {
    let scenario = scenario();
    let file_system = FileSystem {
        clean,
        said: "Inode 12 has an invalid extent".into(),
    };
    judge(
        &Evidence {
            scenario: &scenario,
            records,
            consoles: &[(vm(), console.into())],
            file_systems: &[(vm(), file_system)],
        },
        &Run::of(records, &Limits::default()).report,
    )
}

/// The one check that fails in a run that is wrong in one thing.
fn only_failure(judgement: &Judgement) -> (&str, &str) {
    assert_eq!(judgement.verdict, Verdict::Failed, "{judgement:#?}");
    let failed: Vec<_> = judgement
        .checks
        .iter()
        .filter(|check| !check.passed)
        .collect();
    let [one] = failed[..] else {
        panic!("{judgement:#?}")
    };
    (&one.name, &one.detail)
}

fn broken(change: impl FnMut(&mut Event)) -> Judgement {
    let mut change = change;
    let mut records = good();
    for record in &mut records {
        change(&mut record.event);
    }
    judged(&records)
}

#[test]
fn a_run_that_is_right_passes_every_check() {
    let judgement = judged(&good());
    assert_eq!(judgement.verdict, Verdict::Passed, "{judgement:#?}");
    let names: Vec<_> = judgement
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "outcomes",
            "document",
            "keys",
            "session",
            "probes",
            "one-copy",
            "one-writer",
            "memory",
            "disk",
            "console",
            "file-system",
            "clocks"
        ]
    );
}

#[test]
fn a_document_that_differs_fails() {
    let judgement = broken(|event| {
        if let Event::DocumentChecked { equal, .. } = event {
            *equal = false;
        }
    });
    assert_eq!(only_failure(&judgement).0, "document");
}

#[test]
fn a_document_that_nobody_compared_fails() {
    let mut records = good();
    records.retain(|record| !matches!(record.event, Event::DocumentChecked { .. }));
    let judgement = judged(&records);
    assert_eq!(
        only_failure(&judgement),
        ("document", "in session: no document was compared")
    );
}

#[test]
fn a_lost_a_doubled_and_a_crossed_key_fail() {
    let lost = broken(|event| {
        if let Event::Key {
            index: 7, echo_ns, ..
        } = event
        {
            *echo_ns = None;
        }
    });
    assert_eq!(
        only_failure(&lost),
        ("keys", "in session: 1 of 50 keys lost")
    );
    let doubled = broken(|event| {
        if let Event::Key { index, .. } = event
            && *index == 7
        {
            *index = 6;
        }
    });
    assert_eq!(only_failure(&doubled).0, "keys");
    let crossed = broken(|event| {
        if let Event::Key {
            index: 7, echo_ns, ..
        } = event
        {
            *echo_ns = Some(8 * SECOND);
        }
    });
    assert!(
        only_failure(&crossed).1.contains("typed earlier"),
        "{crossed:#?}"
    );
}

#[test]
fn a_lost_session_fails() {
    let mut records = good();
    let last = records.last().unwrap().clone();
    records.push(Record {
        event: Event::SessionLost {
            unsaved: 0,
            vm: vm(),
            reason: "the connection has ended".into(),
        },
        ..last
    });
    let judgement = judged(&records);
    assert_eq!(
        only_failure(&judgement),
        ("session", "with session: the connection has ended")
    );
}

#[test]
fn a_lost_answer_fails() {
    let judgement = broken(|event| {
        if let Event::ProbeSamples { answers_ns, .. } = event {
            answers_ns[3] = None;
        }
    });
    assert_eq!(only_failure(&judgement).0, "probes");
}

#[test]
fn two_copies_at_once_fail() {
    // The destination begins while the source still runs.
    let mut records = good();
    for record in &mut records {
        if let Event::FirstInstruction { host, .. } = &record.event
            && host == "h2"
        {
            record.t_ns -= 50 * MS;
        }
    }
    let judgement = judged(&records);
    let (name, detail) = only_failure(&judgement);
    assert_eq!(name, "one-copy");
    assert!(
        detail.contains("h1 and on h2 from 5.456 s to 5.500 s"),
        "{detail}"
    );
    // What the clocks cannot tell apart is no proof.
    for record in &mut records {
        if let Event::FirstInstruction { host, .. } = &record.event
            && host == "h2"
        {
            record.error_ns = 60 * MS;
        }
    }
    assert_eq!(judged(&records).verdict, Verdict::Passed);
}

#[test]
fn two_writers_of_one_epoch_and_an_epoch_that_goes_back_fail() {
    let twice = broken(|event| {
        if let Event::Lease { epoch, .. } = event {
            *epoch = 1;
        }
    });
    assert!(only_failure(&twice).1.contains("two owners"), "{twice:#?}");
    let back = broken(|event| {
        if let Event::Lease { epoch, owner, .. } = event
            && owner == "h1"
        {
            *epoch = 9;
        }
    });
    assert!(only_failure(&back).1.contains("went back"), "{back:#?}");
}

#[test]
fn a_hand_over_that_only_the_restarted_server_tells_is_judged_like_one_that_was_reported() {
    let retold = |epoch: u64, owner: &str| {
        let owner = owner.to_owned();
        broken(move |event| {
            if let Event::Lease {
                epoch: told,
                owner: holder,
                change,
                ..
            } = event
                && change == "transferred"
            {
                *change = "held".into();
                (*told, *holder) = (epoch, owner.clone());
            }
        })
    };
    assert_eq!(retold(2, "h2").verdict, Verdict::Passed);
    // A server that found an older state than it had reported, or gave the same epoch to another.
    assert!(only_failure(&retold(0, "h2")).1.contains("went back"));
    assert!(only_failure(&retold(1, "h2")).1.contains("two owners"));
}

#[test]
fn memory_that_differs_or_was_not_compared_fails() {
    let differs = broken(|event| {
        if let Event::MemoryHash {
            role: Role::Destination,
            hash,
            ..
        } = event
        {
            *hash = "bb".into();
        }
    });
    assert_eq!(
        only_failure(&differs),
        ("memory", "migration 1: memory differs")
    );
    let mut records = good();
    records.retain(|record| !matches!(record.event, Event::MemoryHash { .. }));
    assert_eq!(only_failure(&judged(&records)).0, "memory");
}

#[test]
fn a_disk_that_lost_a_record_fails() {
    let judgement = broken(|event| {
        if let Event::DiskChecked { equal, detail, .. } = event {
            *equal = false;
            *detail = "record 3 is missing".into();
        }
    });
    assert_eq!(
        only_failure(&judgement),
        ("disk", "in session: record 3 is missing")
    );
}

#[test]
fn a_kernel_that_complains_fails() {
    let console = "elab: session ready\n[   12.3] EXT4-fs error (device vda): ext4_find_entry\n";
    let judgement = judged_with(&good(), console, true);
    let (name, detail) = only_failure(&judgement);
    assert_eq!(name, "console");
    assert!(detail.starts_with("session, line 2: "), "{detail}");
}

#[test]
fn a_file_system_that_is_damaged_fails() {
    let judgement = judged_with(&good(), "", false);
    assert_eq!(
        only_failure(&judgement),
        ("file-system", "session: Inode 12 has an invalid extent")
    );
}

#[test]
fn clocks_that_run_back_or_fall_behind_fail() {
    let back = broken(|event| {
        if let Event::GuestClock {
            number: 30,
            realtime_ns,
            ..
        } = event
        {
            *realtime_ns -= SECOND;
        }
    });
    assert!(
        only_failure(&back).1.contains("CLOCK_REALTIME ran back"),
        "{back:#?}"
    );
    // A migration that forgets its own 400 ms.
    let behind = broken(|event| {
        if let Event::GuestClock {
            number,
            monotonic_ns,
            ..
        } = event
            && *number > 30
        {
            *monotonic_ns -= 90 * MS + u64::from(*number > 40) * 310 * MS;
        }
    });
    let judgement = behind;
    assert_eq!(only_failure(&judgement).0, "clocks");
}

#[test]
fn a_step_that_failed_fails_the_run() {
    let judgement = broken(|event| {
        if let Event::Step { state, detail, .. } = event
            && state == "done"
        {
            *state = "failed".into();
            *detail = "h1 says no".into();
        }
    });
    assert!(only_failure(&judgement).1.contains("h1 says no"));
}

#[test]
fn a_fault_that_met_nothing_makes_the_run_inconclusive() {
    let mut records = good();
    for record in &mut records {
        if matches!(record.event, Event::LinkFault { .. }) {
            record.t_ns = 8 * SECOND;
        }
    }
    let judgement = judged(&records);
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    assert_eq!(
        judgement.reasons,
        ["it never happened that a link was cut while a guest moved"]
    );
    assert_eq!(judgement.verdict.exit_code(), 4);
}

#[test]
fn an_event_that_did_not_come_makes_the_run_inconclusive() {
    let judgement = broken(|event| {
        if let Event::Step { state, .. } = event
            && state == "done"
        {
            *state = "missed".into();
        }
    });
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:#?}");
}
