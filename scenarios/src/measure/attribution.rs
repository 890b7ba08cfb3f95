//! Where an interruption went.
//!
//! The silence that a probe saw around the pause of a migration, from its last answer to its next, is cut by the marks of the
//! hypervisors and the switch. A piece counts as explained only where two marks bound it, or where it is no longer than
//! what the same probe sees in quiet time. The rest, and whatever lies beyond the error of the marks, is *unattributed*: a large share
//! of it says that the lab does not understand its own figure.

use lab_protocol::{Phase, Role};

use super::{Window, migration::Migration};

/// A named piece of an interruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name as reports print it.
    pub name: &'static str,
    /// Its length.
    pub ns: u64,
}

/// An interruption cut into pieces; the pieces and the rest add up to the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The whole silence.
    pub window: Window,
    /// The explained pieces in order of time.
    pub pieces: Vec<Piece>,
    /// What no mark explains.
    pub unattributed_ns: u64,
}

/// The names of the pieces, in order of time, and what each is; reports print this as their legend.
pub const PIECES: [(&str, &str); 10] = [
    (
        "pre-copy",
        "the guest runs, slowed by the copying of its memory",
    ),
    (
        "before the stop",
        "the last answer was on its way, no more than usual",
    ),
    ("drain", "vCPUs stopped; the disk I/O in flight completes"),
    ("last pages", "the last dirty pages travel"),
    (
        "device state",
        "vCPU and device state travels and is loaded",
    ),
    (
        "lease hand-over",
        "the disk's lease moves: the commit point",
    ),
    (
        "resume",
        "clock set, network announced, queues rung, until the guest's first instruction",
    ),
    (
        "network relearn",
        "the guest runs, but the switch still sends its frames to the source",
    ),
    (
        "guest catch-up",
        "the guest works off what had waited, with cold caches (in emulation: its code is translated anew), until it first idles",
    ),
    (
        "delivery",
        "from then to the probe's first answer, no more than usual",
    ),
];

/// Cuts a probe's silence by the marks of the migration in it. `usual_ns` is the same probe's longest silence in quiet time. `None` when
/// the migration has not all its marks.
#[must_use]
pub fn attribute(silence: Window, migration: &Migration, usual_ns: u64) -> Option<Attribution> {
    let mark = |role, phase| migration.mark(role, phase).map(|mark| mark.t_ns);
    // The beginnings of the explained stretches in order; each ends where the next begins.
    let first_instruction = migration.first_instruction?.0;
    let cuts = [
        ("drain", mark(Role::Source, Phase::Drain)?),
        ("last pages", mark(Role::Source, Phase::LastPages)?),
        ("device state", mark(Role::Source, Phase::DeviceState)?),
        (
            "lease hand-over",
            mark(Role::Destination, Phase::LeaseHandOver)?,
        ),
        ("resume", mark(Role::Destination, Phase::Resume)?),
        ("network relearn", first_instruction),
        // Announced before the first instruction, so as a rule the switch knows by then and nothing is left to relearn.
        (
            "guest catch-up",
            migration.relearnt_ns.unwrap_or(0).max(first_instruction),
        ),
        (
            "delivery",
            migration
                .caught_up_ns
                .or(migration.first_frame_ns)
                .unwrap_or(first_instruction),
        ),
    ];
    let mut pieces = Vec::new();
    let mut unattributed_ns = 0;
    let mut push = |name, ns: u64| {
        if ns > 0 {
            pieces.push(Piece { name, ns });
        }
    };

    // Until the stop the guest ran: as much silence as is usual needs no explanation, and what exceeds it is the copying's
    // where it had begun.
    let stop = cuts[0].1.clamp(silence.start_ns, silence.end_ns);
    let copying = mark(Role::Source, Phase::PreCopy)?.clamp(silence.start_ns, stop);
    let before = stop - silence.start_ns;
    let brownout = before.saturating_sub(usual_ns).min(stop - copying);
    push("pre-copy", brownout);
    push("before the stop", before.min(usual_ns));
    unattributed_ns += (before - brownout).saturating_sub(usual_ns);

    let mut from = stop;
    for pair in cuts.windows(2) {
        // Stamps of two hosts may cross within their error; time is never counted twice.
        let to = pair[1].1.clamp(from, silence.end_ns);
        push(pair[0].0, to - from);
        from = to;
    }

    let after = silence.end_ns - from;
    push("delivery", after.min(usual_ns));
    unattributed_ns += after.saturating_sub(usual_ns);
    Some(Attribution {
        window: silence,
        pieces,
        unattributed_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::migration::Mark, *};

    const MS: u64 = 1_000_000;

    fn migration(first_instruction: u64, first_frame: u64) -> Migration {
        let mark = |ms: u64, role, phase| Mark {
            t_ns: ms * MS,
            error_ns: 0,
            role,
            phase,
        };
        Migration {
            number: 1,
            vm: "session".into(),
            from: "h1".into(),
            to: "h2".into(),
            requested_ns: 0,
            ended_ns: Some(500 * MS),
            error: String::new(),
            marks: vec![
                mark(60, Role::Source, Phase::PreCopy),
                mark(100, Role::Source, Phase::Drain),
                mark(102, Role::Source, Phase::LastPages),
                mark(106, Role::Source, Phase::DeviceState),
                mark(109, Role::Destination, Phase::LeaseHandOver),
                mark(111, Role::Destination, Phase::Resume),
            ],
            first_instruction: Some((first_instruction * MS, 0)),
            first_frame_ns: Some(first_frame * MS),
            relearnt_ns: Some(111 * MS),
            caught_up_ns: None,
            rounds: Vec::new(),
            hashes: [None, None],
        }
    }

    fn named(attribution: &Attribution, name: &str) -> u64 {
        attribution
            .pieces
            .iter()
            .find(|piece| piece.name == name)
            .map_or(0, |piece| piece.ns / MS)
    }

    #[test]
    fn each_piece_gets_its_time_and_all_add_up() {
        let silence = Window {
            start_ns: 98 * MS,
            end_ns: 142 * MS,
        };
        let found = attribute(silence, &migration(112, 140), 3 * MS).unwrap();
        let expected = [2, 2, 4, 3, 2, 1, 28, 2];
        let lengths: Vec<u64> = found.pieces.iter().map(|piece| piece.ns / MS).collect();
        assert_eq!(lengths, expected);
        assert_eq!(found.unattributed_ns, 0);
        let sum: u64 = found.pieces.iter().map(|piece| piece.ns).sum();
        assert_eq!(sum + found.unattributed_ns, silence.len_ns());
    }

    #[test]
    fn a_stall_that_no_mark_bounds_is_unattributed() {
        // 50 ms of silence before the stop, 40 of them under pre-copy, and 200 ms after the guest had spoken again.
        let silence = Window {
            start_ns: 50 * MS,
            end_ns: 340 * MS,
        };
        let found = attribute(silence, &migration(112, 140), 3 * MS).unwrap();
        assert_eq!(found.unattributed_ns, (7 + 197) * MS);
        assert_eq!(named(&found, "pre-copy"), 40);
        assert_eq!(named(&found, "guest catch-up"), 28);
    }

    #[test]
    fn a_guest_that_has_spoken_may_still_be_catching_up() {
        let mut busy = migration(112, 120);
        busy.caught_up_ns = Some(150 * MS);
        let silence = Window {
            start_ns: 98 * MS,
            end_ns: 142 * MS,
        };
        let found = attribute(silence, &busy, 3 * MS).unwrap();
        assert_eq!(named(&found, "guest catch-up"), 30);
        assert_eq!(found.unattributed_ns, 0);
    }

    #[test]
    fn a_late_announcement_is_named() {
        let mut late = migration(112, 140);
        late.relearnt_ns = Some(130 * MS);
        let found = attribute(
            Window {
                start_ns: 98 * MS,
                end_ns: 142 * MS,
            },
            &late,
            3 * MS,
        )
        .unwrap();
        assert_eq!(
            (
                named(&found, "network relearn"),
                named(&found, "guest catch-up")
            ),
            (18, 10)
        );
    }

    #[test]
    fn crossing_stamps_are_not_counted_twice() {
        let mut crossed = migration(112, 140);
        crossed.marks[4].t_ns = 105 * MS;
        let silence = Window {
            start_ns: 98 * MS,
            end_ns: 142 * MS,
        };
        let found = attribute(silence, &crossed, 3 * MS).unwrap();
        let sum: u64 = found.pieces.iter().map(|piece| piece.ns).sum();
        assert_eq!(sum + found.unattributed_ns, silence.len_ns());
    }

    #[test]
    fn a_migration_without_its_marks_is_not_explained() {
        let mut missing = migration(112, 140);
        missing.marks.remove(4);
        assert_eq!(
            attribute(
                Window {
                    start_ns: 0,
                    end_ns: 1
                },
                &missing,
                0
            ),
            None
        );
    }
}
