//! A simulated lab with stalls of exactly known length and place: every figure of the report must find them.

mod support;

use std::{fs, path::Path};

use lab_protocol::{Event, Phase, ProbeKind, Record, Role};
use scenarios::report::run::figures_of;
use scenarios::report::{Limits, Run, figure};
use support::Log;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// A quiet answer takes this long.
const QUIET: u64 = 2 * MS;

/// Where a stall is put.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// The guest is stopped: the pause itself.
    Pause,
    /// After the guest's first frame, with nothing to explain it.
    Network,
    /// The storage server answers the hand-over of the lease late.
    Storage,
    /// The probe sends late.
    Probe,
}

/// A run of ten seconds per migration with one stall in each.
fn run(stalls: &[u64], place: Place) -> Vec<Record> {
    let mut log = Log(Vec::new());
    let machine = Event::LabStarted {
        name: "test".into(),
        version: "0".into(),
        accelerator: "tcg".into(),
        qemu: "7.2".into(),
        cpu: "a CPU".into(),
        unix_ns: 0,
    };
    log.push(0, "lab", machine);
    log.push(
        SECOND,
        "session",
        Event::SessionOpen {
            vm: "session".into(),
        },
    );
    for (index, stall) in stalls.iter().enumerate() {
        let number = index as u32 + 1;
        let begin = SECOND + index as u64 * 10 * SECOND;
        let stop = begin + 5 * SECOND;
        let run_on = stop
            + match place {
                Place::Pause => *stall,
                Place::Storage => 4 * MS + stall,
                Place::Network | Place::Probe => 4 * MS,
            };
        // The lease moves late, and with it all that follows.
        let handed_over = match place {
            Place::Storage => stop + 4 * MS + stall - MS / 2,
            _ => stop + 4 * MS,
        };
        let vm = || "session".to_owned();
        let phase = |log: &mut Log, t, role, phase| {
            let host = if role == Role::Source { "h1" } else { "h2" };
            let event = Event::MigrationPhase {
                vm: vm(),
                migration: number,
                host: host.into(),
                role,
                phase,
                detail: String::new(),
            };
            log.push(t, host, event);
        };
        log.push(
            stop - 800 * MS,
            "lab",
            Event::MigrationRequested {
                vm: vm(),
                migration: number,
                from: "h1".into(),
                to: "h2".into(),
            },
        );
        phase(&mut log, stop - 700 * MS, Role::Source, Phase::PreCopy);
        phase(&mut log, stop, Role::Source, Phase::Drain);
        phase(&mut log, stop + MS, Role::Source, Phase::LastPages);
        phase(&mut log, stop + 2 * MS, Role::Source, Phase::DeviceState);
        phase(
            &mut log,
            stop + 3 * MS,
            Role::Destination,
            Phase::LeaseHandOver,
        );
        phase(&mut log, handed_over, Role::Destination, Phase::Resume);
        log.push(
            run_on,
            "h2",
            Event::FirstInstruction {
                vm: vm(),
                host: "h2".into(),
            },
        );
        log.push(
            run_on,
            "h2",
            Event::FirstFrame {
                vm: vm(),
                host: "h2".into(),
            },
        );
        let rounds = Event::MigrationRound {
            vm: vm(),
            migration: number,
            round: 0,
            pages: 100,
            zero_pages: 50,
            bytes: 409_600,
            duration_ns: MS,
            dirty_after: 3,
        };
        log.push(run_on, "h1", rounds);
        log.push(
            run_on + 100 * MS,
            "lab",
            Event::MigrationEnded {
                vm: vm(),
                migration: number,
                error: String::new(),
            },
        );

        // Answers due while the guest cannot answer come when it can again.
        let silent = match place {
            Place::Pause | Place::Storage => stop..run_on,
            Place::Network | Place::Probe => stop + 20 * MS..stop + 20 * MS + stall,
        };
        let answers_ns = (0..10_000)
            .map(|i| {
                let due = begin + i * MS;
                let answer = due + QUIET;
                Some(if silent.contains(&answer) {
                    silent.end - due
                } else {
                    QUIET
                })
            })
            .collect();
        let late_max_ns = if place == Place::Probe { *stall } else { 0 };
        let samples = Event::ProbeSamples {
            probe: ProbeKind::Udp,
            first: index as u64 * 10_000,
            due_ns: begin,
            interval_ns: MS,
            late_max_ns,
            duplicated: 0,
            reordered: 0,
            answers_ns,
        };
        log.push(begin + 10 * SECOND - 1, "session", samples);
        for key in 0..100 {
            let due_ns = begin + key * 100 * MS;
            let echo = due_ns + 5 * MS;
            let echo_ns = Some(if silent.contains(&echo) {
                silent.end + 5 * MS
            } else {
                echo
            });
            log.push(
                due_ns,
                "session",
                Event::Key {
                    index: key as u32,
                    text: "x".into(),
                    due_ns,
                    sent_ns: due_ns,
                    echo_ns,
                },
            );
        }
    }
    let end = log.0.iter().map(|record| record.t_ns).max().unwrap();
    log.push(
        end,
        "session",
        Event::DocumentChecked {
            equal: true,
            bytes: 1,
            detail: String::new(),
        },
    );
    log.0
}

/// The longest silence by the raw samples alone, computed by a script that shares nothing with the report.
fn longest_silence_of(csv: &Path) -> f64 {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recompute.sh");
    let output = std::process::Command::new("sh")
        .arg(script)
        .arg(csv)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let silence = said.split_whitespace().next().unwrap_or_default();
    silence
        .parse()
        .unwrap_or_else(|_| panic!("the script says {said}"))
}

#[test]
fn a_pause_is_found_at_its_length_and_named() {
    for stall in [10, 50, 200, 1000] {
        let run = Run::of(&run(&[stall * MS], Place::Pause), &Limits::default());
        let one = &run.report.migrations[0];
        let gap = one.udp_gap_ms.unwrap();
        assert!(
            (gap - stall as f64).abs() <= 1.5,
            "{gap} ms found for {stall} ms"
        );
        assert_eq!(one.pause_ms, Some(stall as f64));
        let resume = one
            .phases
            .iter()
            .find(|phase| phase.name == "resume")
            .unwrap();
        assert!(
            (resume.ms - (stall as f64 - 4.0)).abs() <= 1.5,
            "{:?}",
            one.phases
        );
        assert!(one.unattributed_ms.unwrap() / gap < 0.05, "{one:?}");
        assert_eq!(one.udp_baseline_gap_ms, Some(1.0));
    }
}

#[test]
fn a_storage_server_that_stalls_is_found_at_its_length_and_named() {
    for stall in [10, 50, 200, 1000] {
        let run = Run::of(&run(&[stall * MS], Place::Storage), &Limits::default());
        let one = &run.report.migrations[0];
        let gap = one.udp_gap_ms.unwrap();
        let expected = stall as f64 + 4.0;
        assert!(
            (gap - expected).abs() <= 1.5,
            "{gap} ms found for {expected} ms"
        );
        assert_eq!(one.pause_ms, Some(expected));
        let lease = one
            .phases
            .iter()
            .find(|phase| phase.name == "lease hand-over")
            .unwrap();
        assert!((lease.ms - stall as f64).abs() <= 1.5, "{:?}", one.phases);
        assert!(one.unattributed_ms.unwrap() / gap < 0.05, "{one:?}");
    }
}

/// The disk probe's figure, from the times at which records were reported.
#[test]
fn a_disk_that_stalls_is_found_at_its_length() {
    for stall in [10, 50, 200, 1000] {
        let mut log = Log(Vec::new());
        for number in 0..100 {
            let late = if number >= 50 { stall * MS } else { 0 };
            let event = Event::DiskRecord {
                vm: "session".into(),
                number,
            };
            log.push(SECOND + number * 20 * MS + late, "session", event);
        }
        let report = Run::of(&log.0, &Limits::default()).report;
        let figures = figures_of(&report, &log.0);
        assert_eq!(figures["run-disk-gap"], [20.0 + stall as f64]);
    }
}

/// A fault in the quiet time is nothing that is usual: it may not explain an interruption later.
#[test]
fn a_fault_is_no_baseline() {
    let mut records = run(&[30 * MS], Place::Pause);
    let quiet = Run::of(&records, &Limits::default()).report.migrations[0].udp_baseline_gap_ms;
    assert_eq!(quiet, Some(1.0));
    for record in &mut records {
        if let Event::ProbeSamples { answers_ns, .. } = &mut record.event {
            // Two seconds into the run nothing is answered for a second.
            for (index, answer) in answers_ns.iter_mut().enumerate().skip(2000).take(1000) {
                *answer = Some((3000 - index as u64) * MS);
            }
        }
    }
    let mut log = Log(records);
    let fault = |fault: &str| Event::LinkFault {
        link: "h1:session>".into(),
        fault: fault.into(),
    };
    log.push(2 * SECOND + SECOND, "lab", fault("cut"));
    log.push(3 * SECOND + SECOND, "lab", fault("healed"));
    log.0.sort_by_key(|record| record.t_ns);
    let report = Run::of(&log.0, &Limits::default()).report;
    assert_eq!(report.migrations[0].udp_baseline_gap_ms, Some(1.0));
}

#[test]
fn a_stall_that_nothing_explains_is_unattributed() {
    for stall in [10, 50, 200, 1000] {
        let run = Run::of(&run(&[stall * MS], Place::Network), &Limits::default());
        let one = &run.report.migrations[0];
        assert!((one.udp_gap_ms.unwrap() - stall as f64).abs() <= 1.5);
        assert!(one.unattributed_ms.unwrap() > stall as f64 * 0.9, "{one:?}");
        let expectation = run
            .report
            .expectations
            .iter()
            .find(|one| one.name == "unattributed, median")
            .unwrap();
        assert!(!expectation.passed);
    }
}

#[test]
fn a_late_probe_voids_its_figure() {
    for stall in [10, 50, 200, 1000] {
        let run = Run::of(&run(&[stall * MS], Place::Probe), &Limits::default());
        assert_eq!(run.report.migrations[0].probe_late_ms, stall as f64);
        assert!(!run.report.migrations[0].valid);
        assert_eq!(run.report.figure(figure::UDP_GAP), None);
    }
}

#[test]
fn the_figures_follow_from_the_raw_samples() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::of(
        &run(&[30 * MS, 40 * MS, 90 * MS], Place::Pause),
        &Limits::default(),
    );
    run.write(folder.path()).unwrap();
    let probe = &run.report.probes[0];
    assert_eq!(
        probe.gap_ms,
        Some(longest_silence_of(&folder.path().join(&probe.samples)))
    );
    let gaps = run.report.figure(figure::UDP_GAP).unwrap();
    assert_eq!(gaps.samples.len(), 3);
    assert!((gaps.spread.max - 90.0).abs() <= 1.0);

    let read: scenarios::report::Report =
        serde_json::from_slice(&fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(read, run.report);
    if let Some(keep) = std::env::var_os("ELAB_KEEP_REPORT") {
        run.write(Path::new(&keep)).unwrap();
    }
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains(&run.report.headline));
    for elsewhere in ["http://", "https://", "<script"] {
        assert!(
            !page.contains(elsewhere),
            "the page must need nothing but itself, found {elsewhere}"
        );
    }
}

#[test]
fn a_lost_key_fails_the_run() {
    let mut records = run(&[30 * MS], Place::Pause);
    let limits = Limits {
        pause_ms: 50.0,
        ..Limits::default()
    };
    let passed = Run::of(&records, &limits);
    assert!(passed.report.passed, "{:#?}", passed.report.expectations);
    for record in &mut records {
        if let Event::Key {
            index: 50, echo_ns, ..
        } = &mut record.event
        {
            *echo_ns = None;
        }
    }
    let report = Run::of(&records, &limits).report;
    assert!(!report.passed);
    assert_eq!(report.typist.lost, 1);
}

#[test]
fn an_empty_log_is_reported_as_such() {
    let report = Run::of(&[], &Limits::default()).report;
    assert!(!report.passed);
    assert!(
        report.headline.starts_with("No migration succeeded"),
        "{}",
        report.headline
    );
}
