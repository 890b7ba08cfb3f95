//! The guests' own clocks: they never run backward and keep step with the lab's.

use lab_protocol::Event;

use super::{Check, Evidence, at};

/// So far a guest's clock may move against the lab's over a run. A migration that forgets its own duration shows as the length of
/// its pause and transfer, a wrong frequency as much more.
const STEP_LIMIT_NS: i128 = 100_000_000;

/// A reading: when it reached the lab, and the guest's clocks.
#[derive(Clone, Copy)]
struct Reading {
    t_ns: u64,
    realtime_ns: u64,
    monotonic_ns: u64,
}

/// No clock runs backward, jumps or drifts.
pub(super) fn clocks(evidence: &Evidence<'_>) -> Option<Check> {
    let mut read = 0;
    let mut wrong = None;
    let mut guests = evidence
        .scenario
        .sessions
        .iter()
        .filter(|session| session.probes.clock_hz > 0)
        .map(|session| session.guest.get_ref().as_str())
        .peekable();
    guests.peek()?;
    for guest in guests {
        let readings: Vec<Reading> = evidence
            .records
            .iter()
            .filter_map(|record| match &record.event {
                Event::GuestClock {
                    vm,
                    realtime_ns,
                    monotonic_ns,
                    ..
                } if vm == guest => Some(Reading {
                    t_ns: record.t_ns,
                    realtime_ns: *realtime_ns,
                    monotonic_ns: *monotonic_ns,
                }),
                _ => None,
            })
            .collect();
        read += readings.len();
        if let Some(found) = look(&readings) {
            wrong.get_or_insert_with(|| format!("in {guest}: {found}"));
        }
    }
    Some(Check::new(
        "clocks",
        wrong,
        format!("{read} readings, monotonic and in step"),
    ))
}

fn look(readings: &[Reading]) -> Option<String> {
    if readings.len() < 10 {
        return Some(format!("read {} times only", readings.len()));
    }
    for pair in readings.windows(2) {
        for (name, before, after) in [
            (
                "CLOCK_MONOTONIC",
                pair[0].monotonic_ns,
                pair[1].monotonic_ns,
            ),
            ("CLOCK_REALTIME", pair[0].realtime_ns, pair[1].realtime_ns),
        ] {
            if after < before {
                return Some(format!(
                    "{name} ran back by {:.1} ms before {}",
                    (before - after) as f64 / 1e6,
                    at(pair[1].t_ns)
                ));
            }
        }
    }
    // A reading arrives late, never early: the least offset of a stretch is the one with the least delay.
    let offset = |one: &Reading| i128::from(one.t_ns) - i128::from(one.monotonic_ns);
    let tenth = (readings.len() / 10).max(5);
    let first = readings[..tenth].iter().map(offset).min()?;
    let last = readings[readings.len() - tenth..]
        .iter()
        .map(offset)
        .min()?;
    let step = last - first;
    (step.abs() > STEP_LIMIT_NS).then(|| {
        format!(
            "CLOCK_MONOTONIC moved {:+.1} ms against the lab's clock",
            -(step as f64) / 1e6
        )
    })
}
