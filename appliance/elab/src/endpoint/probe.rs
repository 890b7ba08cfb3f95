//! Probes: requests on a fixed schedule that never waits for an answer (open loop), so that a silence shows
//! in full. Latency counts from when a request was *due*, and the probe's own lateness is kept, because a
//! probe that was late itself has measured nothing.
//!
//! [`Series`] is the book-keeping, without sockets or clocks.

use std::collections::VecDeque;
use std::net::SocketAddrV4;

use lab_protocol::{Event, ProbeKind};

/// How many requests are reported together at most.
const STRETCH: usize = 250;
/// A request without an answer is waited for so long; then it counts as lost.
pub const PATIENCE_NS: u64 = 5_000_000_000;

/// What a probe does.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// UDP or TCP echo, or ping.
    pub kind: ProbeKind,
    /// Whom it asks; a ping ignores the port.
    pub to: SocketAddrV4,
    /// Time between requests.
    pub interval_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    answer_ns: Option<u64>,
}

/// The schedule and the answers of one probe.
#[derive(Debug)]
pub struct Series {
    kind: ProbeKind,
    interval_ns: u64,
    start_ns: u64,
    /// Number of the next request.
    next: u64,
    /// Number of the first request that is not reported yet.
    first: u64,
    asked: VecDeque<Asked>,
    late_max_ns: u64,
    duplicated: u64,
    reordered: u64,
    highest_answered: Option<u64>,
}

impl Series {
    /// A schedule whose first request is due at `start_ns`.
    #[must_use]
    pub fn new(kind: ProbeKind, interval_ns: u64, start_ns: u64) -> Self {
        Self {
            kind,
            interval_ns: interval_ns.max(1),
            start_ns,
            next: 0,
            first: 0,
            asked: VecDeque::new(),
            late_max_ns: 0,
            duplicated: 0,
            reordered: 0,
            highest_answered: None,
        }
    }

    fn due_ns(&self, number: u64) -> u64 {
        self.start_ns + number * self.interval_ns
    }

    /// When the next request is due.
    #[must_use]
    pub fn next_due_ns(&self) -> u64 {
        self.due_ns(self.next)
    }

    /// The number of the request to send now, if one is due. Those that are late come one after another.
    pub fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_due_ns();
        if due > now_ns {
            return None;
        }
        self.late_max_ns = self.late_max_ns.max(now_ns - due);
        self.asked.push_back(Asked::default());
        self.next += 1;
        Some(self.next - 1)
    }

    /// An answer has arrived. One to no request of ours, or that was given up, is ignored.
    pub fn answered(&mut self, number: u64, now_ns: u64) {
        if number >= self.next || number < self.first {
            return;
        }
        let due = self.due_ns(number);
        let position =
            usize::try_from(number - self.first).expect("fewer requests wait than memory holds");
        let asked = &mut self.asked[position];
        if asked.answer_ns.is_some() {
            self.duplicated += 1;
            return;
        }
        asked.answer_ns = Some(now_ns.saturating_sub(due));
        if self
            .highest_answered
            .is_some_and(|highest| highest > number)
        {
            self.reordered += 1;
        }
        self.highest_answered = self.highest_answered.max(Some(number));
    }

    /// A stretch that is complete: each of its requests is answered or given up. With `all`, whatever is left.
    pub fn take_stretch(&mut self, now_ns: u64, all: bool) -> Option<Event> {
        let wanted = if all {
            self.asked.len().min(STRETCH)
        } else {
            STRETCH
        };
        if wanted == 0 || self.asked.len() < wanted {
            return None;
        }
        let given_up = |number: u64| self.due_ns(number).saturating_add(PATIENCE_NS) <= now_ns;
        let complete = (self.first..)
            .zip(self.asked.iter().take(wanted))
            .all(|(number, asked)| asked.answer_ns.is_some() || given_up(number));
        if !complete && !all {
            return None;
        }
        let first = self.first;
        let answers_ns = self
            .asked
            .drain(..wanted)
            .map(|asked| asked.answer_ns)
            .collect();
        self.first += wanted as u64;
        Some(Event::ProbeSamples {
            probe: self.kind,
            first,
            due_ns: self.due_ns(first),
            interval_ns: self.interval_ns,
            late_max_ns: std::mem::take(&mut self.late_max_ns),
            duplicated: std::mem::take(&mut self.duplicated),
            reordered: std::mem::take(&mut self.reordered),
            answers_ns,
        })
    }

    /// Whether every request so far is answered or given up.
    #[must_use]
    pub fn settled(&self, now_ns: u64) -> bool {
        (self.first..).zip(&self.asked).all(|(number, asked)| {
            asked.answer_ns.is_some() || self.due_ns(number).saturating_add(PATIENCE_NS) <= now_ns
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn series() -> Series {
        Series::new(ProbeKind::Udp, MS, 10 * MS)
    }

    fn samples(event: Event) -> (u64, u64, u64, u64, u64, Vec<Option<u64>>) {
        match event {
            Event::ProbeSamples {
                first,
                due_ns,
                late_max_ns,
                duplicated,
                reordered,
                answers_ns,
                ..
            } => (
                first,
                due_ns,
                late_max_ns,
                duplicated,
                reordered,
                answers_ns,
            ),
            other => panic!("not samples: {other:?}"),
        }
    }

    #[test]
    fn the_schedule_never_waits_and_late_requests_are_all_sent() {
        let mut series = series();
        assert_eq!(series.take_due(9 * MS), None);
        assert_eq!(series.take_due(10 * MS), Some(0));
        assert_eq!(series.take_due(10 * MS), None);
        let late: Vec<u64> = std::iter::from_fn(|| series.take_due(14 * MS)).collect();
        assert_eq!(late, [1, 2, 3, 4]);
        assert_eq!(series.next_due_ns(), 15 * MS);
        let (_, _, late_max_ns, ..) = samples(series.take_stretch(14 * MS, true).unwrap());
        assert_eq!(late_max_ns, 3 * MS);
    }

    #[test]
    fn latency_counts_from_due() {
        let mut series = series();
        series.take_due(12 * MS);
        series.answered(0, 13 * MS);
        let (first, due, _, _, _, answers) = samples(series.take_stretch(13 * MS, true).unwrap());
        assert_eq!((first, due, answers), (0, 10 * MS, vec![Some(3 * MS)]));
    }

    #[test]
    fn duplicates_and_reordering_are_counted_and_the_first_answer_stands() {
        let mut series = series();
        for _ in 0..3 {
            series.take_due(100 * MS);
        }
        series.answered(2, 101 * MS);
        series.answered(1, 102 * MS);
        series.answered(1, 103 * MS);
        series.answered(7, 103 * MS);
        let (_, _, _, duplicated, reordered, answers) =
            samples(series.take_stretch(103 * MS, true).unwrap());
        assert_eq!((duplicated, reordered), (1, 1));
        assert_eq!(answers, [None, Some(91 * MS), Some(89 * MS)]);
    }

    #[test]
    fn a_stretch_waits_for_answers_until_patience_ends() {
        let mut series = series();
        let end = 10 * MS + STRETCH as u64 * MS;
        while series.take_due(end).is_some() {}
        for number in 0..STRETCH as u64 {
            if number != 7 {
                series.answered(number, end);
            }
        }
        assert_eq!(series.take_stretch(end, false), None);
        assert!(!series.settled(end));
        let late = 17 * MS + PATIENCE_NS;
        assert!(series.settled(late) || series.next_due_ns() < late);
        let (_, _, _, _, _, answers) = samples(series.take_stretch(late, false).unwrap());
        assert_eq!(answers.len(), STRETCH);
        assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 1);
        series.answered(7, late);
        assert_eq!(
            series
                .take_stretch(late, true)
                .map(|event| samples(event).3)
                .unwrap_or(0),
            0
        );
    }
}
