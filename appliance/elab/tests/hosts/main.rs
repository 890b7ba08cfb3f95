//! Real labs: live migrations, a host that is pulled, a guest that goes to another pool. Hosts of our own image run in QEMU,
//! with the session guest and the storage server.
//!
//! What every message boundary does under a fault is simulated, exhaustively and repeatably, beside the crates `migration`
//! and `host`; here is the proof that the same holds for the whole, with as few boots as that takes. Nothing here asserts a time:
//! benches measure. A lab takes the whole machine, so one test at a time has one.

mod availability;
mod by_hand;
mod endings;
mod faults;
mod log;
mod pools;
mod real_lab;

use std::collections::HashSet;
use std::process::{Command as Program, ExitStatus};
use std::time::{Duration, Instant};

use elab::assembly::GUEST;
use elab::endpoint::probe::ProbeConfig;
use elab::network::SESSION;
use host_protocol::NegativeControls;
use lab_protocol::{Event, ProbeKind, Role};
use scenarios::report::Report;

use crate::real_lab::RealLab;

/// The whole demo, on a machine that has other things to do.
const DEMO_PATIENCE: Duration = Duration::from_secs(270);
/// RFC 862.
const ECHO_PORT: u16 = 7;

#[test]
fn twenty_migrations_lose_nothing() {
    const MIGRATIONS: usize = 20;
    let _turn = real_lab::take_turn();
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let status = run_demo(&[
        "--migrations",
        &MIGRATIONS.to_string(),
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(status.success(), "the demo ended with {status}");

    let report: Report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report.migrations.len(), MIGRATIONS);
    for migration in &report.migrations {
        assert_eq!(migration.error, "", "migration {}", migration.number);
    }
    assert!(report.typist.keys > 0);
    assert_eq!(report.typist.lost, 0, "keys lost");
    assert!(report.typist.same_session, "the session was lost");
    assert_eq!(report.typist.content_equal, Some(true), "the document");
    // At the rate and with the load that the demo has for everyone.
    for name in ["udp", "tcp", "ping"] {
        let probe = report.probes.iter().find(|probe| probe.name == name);
        let probe = probe.unwrap_or_else(|| panic!("the demo probes by {name}"));
        assert!(probe.sent > 100, "{name}");
        assert_eq!(
            (probe.lost, probe.duplicated),
            (0, 0),
            "{name} answers lost or doubled"
        );
    }
}

fn run_demo(arguments: &[&str]) -> ExitStatus {
    let mut demo = Program::new(env!("CARGO_BIN_EXE_elab"))
        .current_dir(real_lab::WORKSPACE)
        .args(["demo", "--name", "test-demo", "--fast-boot", "--quick"])
        .args(arguments)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + DEMO_PATIENCE;
    loop {
        if let Some(status) = demo.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            // Its hosts end with it.
            demo.kill().unwrap();
            demo.wait().unwrap();
            panic!("the demo did not end within {DEMO_PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn memory_is_equal_on_both_sides() {
    let lab = RealLab::start("test-memory");
    let idle = hashes_of_a_migration(&lab, "h2");

    lab.run("elab-dirty 8 2 </dev/null >/dev/null 2>&1 &");
    let dirtying = hashes_of_a_migration(&lab, "h1");
    let sent_again = lab.log().events().any(|event| {
        matches!(
            event,
            Event::MigrationRound {
                migration: 2,
                round: 1..,
                pages: 1..,
                ..
            }
        )
    });
    assert!(sent_again, "the guest wrote no memory");

    lab.run("elab-disk write /root/written 5 </dev/null >/root/numbers 2>&1 &");
    let writing = hashes_of_a_migration(&lab, "h2");

    let probe = lab.lab().prober().start_probe(probe_config()).unwrap();
    let receiving = hashes_of_a_migration(&lab, "h1");
    lab.lab().prober().stop_probe(probe).unwrap();

    // Each load was there, and what it did is whole.
    let records = lab.run("sync; wc -l </root/numbers");
    let records: u32 = records.trim().parse().expect("a number");
    assert!(records > 0, "the guest wrote nothing to its disk");
    assert_eq!(
        lab.run(&format!("elab-disk check /root/written {records}")),
        "ok\n"
    );
    let answers = lab.log().events().filter_map(|event| match event {
        Event::ProbeSamples { answers_ns, .. } => Some(answers_ns),
        _ => None,
    });
    // Comparing stops the guest for seconds, and the queues before it are bounded: not every datagram has an answer here.
    let answered = answers.flatten().flatten().count();
    assert!(answered > 0, "the guest received nothing");
    // A hash that is always the same would be equal too.
    let all = HashSet::from([idle, dirtying, writing, receiving]);
    assert_eq!(all.len(), 4, "the guest's memory did not change");

    // What the devices wrote is missed by a host that does not count it. The guest is of no use then. What a disk reads fills pages
    // that nothing else writes to; a datagram's page is the driver's as well.
    lab.run(
        "while echo 3 >/proc/sys/vm/drop_caches; do cat /dev/vda >/dev/null; done </dev/null >/dev/null 2>&1 &",
    );
    let without = NegativeControls {
        no_device_marks: true,
        ..NegativeControls::default()
    };
    let before = lab.log().records().len();
    // Whether such a guest still answers is left to chance.
    let _ = lab.lab().migrate_without(GUEST, "h2", true, without);
    let (source, destination) = both_hashes(&lab, before);
    assert_ne!(source, destination, "devices wrote nothing");
    lab.stop();
}

fn probe_config() -> ProbeConfig {
    ProbeConfig {
        kind: ProbeKind::Udp,
        to: std::net::SocketAddrV4::new(SESSION.guest_address(1), ECHO_PORT),
        interval_ns: 4_000_000,
    }
}

/// Moves the guest and gives the hash of its memory, on which both sides have to agree.
fn hashes_of_a_migration(lab: &RealLab, to: &str) -> String {
    let before = lab.log().records().len();
    lab.migrate(to, true).unwrap();
    let (source, destination) = both_hashes(lab, before);
    assert_eq!(source, destination, "the guest's memory on its way to {to}");
    source
}

fn both_hashes(lab: &RealLab, before: usize) -> (String, String) {
    let hash = |end: Role| {
        let records = lab.log().records();
        let mut hashes = records.into_iter().skip(before).filter_map(|record| {
            let Event::MemoryHash { vm, role, hash, .. } = record.event else {
                return None;
            };
            (vm == GUEST && role == end).then_some(hash)
        });
        let only = hashes.next().expect("the end of a migration hashes");
        assert_eq!(hashes.next(), None, "one hash is expected");
        only
    };
    (hash(Role::Source), hash(Role::Destination))
}
