//! Migrations in a simulated world: every kind of failure at every message, thousands of seeds, and negative
//! controls that show that the checks can fail.

mod support;

use std::rc::Rc;

use migration::{DestinationOutcome, SourceOutcome};
use support::{
    guest::Guest,
    world::{Ended, Fault, Setup, ends, run},
};

fn must_run(setup: &Setup) -> Ended {
    run(setup).unwrap_or_else(|broken| panic!("{broken}\n{setup:#?}"))
}

#[test]
fn guests_move_whole_and_lose_no_frame() {
    for seed in 0..400 {
        let mut setup = Setup::new(seed, Fault::None);
        setup.writes_per_tick = [0, 1, 3, 20][seed as usize % 4];
        let ended = must_run(&setup);
        assert_eq!(ended.source, Some(SourceOutcome::Moved), "{setup:?}");
        assert_eq!(ended.destination, Some(DestinationOutcome::Arrived));
    }
}

/// The beginning of each message, and its middle: the bytes before have left then, this one has not.
fn positions(ended: &Ended) -> Vec<usize> {
    ended
        .boundaries
        .iter()
        .flat_map(|at| [*at, at + 17])
        .collect()
}

#[test]
fn any_single_failure_at_any_message_leaves_one_guest_where_the_lease_is() {
    let mut before = 0;
    let mut after = 0;
    for seed in 0..12 {
        let clean = must_run(&Setup::new(seed, Fault::None));
        let stopped_at = clean.stopped_at.unwrap();
        for at in positions(&clean) {
            for fault in [
                Fault::KillSource(at),
                Fault::KillDestination(at),
                Fault::Cut(at),
                Fault::ServerDown(at),
                Fault::Cancel(at),
                Fault::Damage(at),
            ] {
                let ended = must_run(&Setup::new(seed, fault));
                let kept = matches!(ended.source, Some(SourceOutcome::Kept { .. }));
                if kept {
                    before += 1;
                } else {
                    after += 1;
                }
                // Before the guest stops, the source keeps it whatever happens elsewhere.
                if at <= stopped_at
                    && matches!(
                        fault,
                        Fault::KillDestination(_) | Fault::Cut(_) | Fault::Cancel(_)
                    )
                {
                    assert!(kept, "{fault:?} at {at} of {stopped_at}: {ended:?}");
                }
            }
        }
        for at in clean.answers {
            must_run(&Setup::new(seed, Fault::CutBack(at)));
        }
    }
    assert!(before > 100 && after > 100, "{before} kept, {after} not");
}

/// A storage server that takes its time leaves room for second thoughts, which come too late when the destination has asked first.
#[test]
fn a_migration_that_is_cancelled_too_late_loses_no_frame() {
    let setup = |seed, fault| Setup {
        lease_latency_ns: 20_000_000,
        ..Setup::new(seed, fault)
    };
    let mut moved = 0;
    for seed in 0..12 {
        let clean = must_run(&setup(seed, Fault::None));
        let stopped_at = clean.stopped_at.unwrap();
        for at in positions(&clean).into_iter().filter(|at| *at > stopped_at) {
            let ended = must_run(&setup(seed, Fault::Cancel(at)));
            moved += usize::from(ended.source == Some(SourceOutcome::Moved));
        }
    }
    assert!(moved > 100, "{moved}");
}

#[test]
fn a_guest_that_writes_faster_than_the_network_is_stopped_after_the_last_round() {
    let mut setup = Setup::new(1, Fault::None);
    setup.writes_per_tick = 200;
    let ended = must_run(&setup);
    assert_eq!(ended.source, Some(SourceOutcome::Moved));
}

#[test]
fn a_stranger_gets_nothing() {
    let mut setup = Setup::new(1, Fault::None);
    setup.destination_key = [2; 32];
    let ended = must_run(&setup);
    assert!(matches!(ended.source, Some(SourceOutcome::Kept { why }) if why.contains("key")));
    assert!(ended.boundaries.len() <= 2, "no page was sent");
}

#[test]
fn a_destination_that_cannot_load_the_state_says_so_before_the_guest_stops() {
    let mut setup = Setup::new(1, Fault::None);
    setup.fail_rehearsal = true;
    let ended = must_run(&setup);
    assert!(
        matches!(&ended.source, Some(SourceOutcome::Kept { why }) if why.contains("does not know")),
        "{ended:?}"
    );
    assert_eq!(ended.stopped_at, None);
}

#[test]
fn without_marks_of_device_writes_the_guest_arrives_damaged() {
    let broken = (0..40)
        .filter(|seed| {
            let mut setup = Setup::new(*seed, Fault::None);
            setup.config.verify = false;
            setup.config.controls.no_device_marks = true;
            run(&setup).is_err()
        })
        .count();
    assert!(broken > 30, "only {broken} of 40 runs noticed");
}

#[test]
fn hosts_of_different_versions_say_so() {
    // Bytes 4 and 5 of a message are its version.
    let of_another_version = |mut bytes: Vec<u8>| {
        bytes[4] += 1;
        bytes
    };
    let (mut source, mut destination) = ends(&Setup::new(0, Fault::None));
    let shared = Rc::default();
    let mut guests = [0, 1].map(|host| Guest::new(host, &shared));
    let mut room = [0; 4096];
    source.on_connected();
    let length = source.transmit(&mut room);
    destination.receive(&of_another_version(room[..length].to_vec()));
    destination.advance(&mut guests[1], 0);
    assert!(
        matches!(destination.outcome(), Some(DestinationOutcome::Refused { why }) if why.contains("speaks version 2")),
        "{:?}",
        destination.outcome()
    );
    let length = destination.transmit(&mut room);
    source.receive(&of_another_version(room[..length].to_vec()));
    source.advance(&mut guests[0]);
    assert!(
        matches!(source.outcome(), Some(SourceOutcome::Kept { why }) if why.contains("speaks version 2")),
        "{:?}",
        source.outcome()
    );
}

#[test]
fn the_rehearsed_copy_receives_what_the_guest_receives() {
    for seed in 0..20 {
        let ended = must_run(&Setup::new(seed, Fault::None));
        let copied = ended.copy_received;
        assert!(copied.len() >= 3, "seed {seed}: {copied:?}");
        let without_gap = copied.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        assert!(without_gap, "seed {seed}: {copied:?}");
    }
}

#[test]
fn what_the_rehearsal_changes_would_be_noticed() {
    let broken = (0..20)
        .filter(|seed| {
            let mut setup = Setup::new(*seed, Fault::None);
            setup.config.verify = false;
            setup.writes_per_tick = 0;
            setup.conceal_spoilt = true;
            run(&setup).is_err()
        })
        .count();
    assert_eq!(broken, 20);
}

#[test]
fn a_damaged_guest_is_found_by_its_hash_and_stays() {
    let mut setup = Setup::new(0, Fault::None);
    setup.config.verify = true;
    setup.config.controls.no_device_marks = true;
    let ended = must_run(&setup);
    assert!(
        matches!(&ended.source, Some(SourceOutcome::Kept { why }) if why.contains("memory differs")),
        "{ended:?}"
    );
}

#[test]
fn without_lease_enforcement_two_copies_run() {
    let mut doubled = 0;
    for seed in 0..8 {
        let clean = must_run(&Setup::new(seed, Fault::None));
        for at in clean.answers {
            let mut setup = Setup::new(seed, Fault::CutBack(at));
            setup.enforce_lease = false;
            doubled += usize::from(run(&setup).is_err_and(|why| why.contains("two running")));
        }
    }
    assert!(doubled > 0, "the check for two copies never fired");
}

#[test]
fn without_forwarding_frames_are_lost() {
    let lost = (0..20)
        .filter(|seed| {
            let mut setup = Setup::new(*seed, Fault::None);
            setup.config.controls.no_forward = true;
            run(&setup).is_err_and(|why| why.contains("frames arrived"))
        })
        .count();
    assert!(lost > 10, "only {lost} of 20 runs noticed");
}
