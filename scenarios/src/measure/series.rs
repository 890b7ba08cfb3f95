//! What a probe saw: requests on a fixed schedule, and when their answers came.

use lab_protocol::{Event, ProbeKind, Record};

use super::Window;

/// One request of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was due by the schedule, which never waits for an answer.
    pub due_ns: u64,
    /// When its first answer came.
    pub answer_ns: Option<u64>,
}

impl Sample {
    /// Time from due to answer.
    #[must_use]
    pub fn latency_ns(&self) -> Option<u64> {
        Some(self.answer_ns?.saturating_sub(self.due_ns))
    }
}

/// A stretch of the schedule in which the probe itself was late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// When.
    pub window: Window,
    /// By how much at most.
    pub max_ns: u64,
}

/// All requests of one probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Time between two requests; 0 for an irregular schedule.
    pub interval_ns: u64,
    /// The requests by due time.
    pub samples: Vec<Sample>,
    /// Answers beyond the first to one request.
    pub duplicated: u64,
    /// Answers that came after the answer to a later request.
    pub reordered: u64,
    /// How late the probe itself was.
    pub lateness: Vec<Lateness>,
}

impl Series {
    /// A probe's requests in a log. The typist's keys count as requests of their own.
    #[must_use]
    pub fn of(records: &[Record], kind: ProbeKind) -> Self {
        let mut series = Self::default();
        for record in records.iter().filter(|record| is_measured(record)) {
            match &record.event {
                // The guest writes the next record when the last is on disk: only the time between two says something.
                Event::DiskRecord { .. } if kind == ProbeKind::Disk => {
                    series.samples.push(Sample {
                        due_ns: record.t_ns,
                        answer_ns: Some(record.t_ns),
                    });
                }
                Event::ProbeSamples {
                    probe,
                    due_ns,
                    interval_ns,
                    late_max_ns,
                    duplicated,
                    reordered,
                    answers_ns,
                    ..
                } if *probe == kind => {
                    series.interval_ns = *interval_ns;
                    series.duplicated += duplicated;
                    series.reordered += reordered;
                    let due = |i: usize| due_ns + i as u64 * interval_ns;
                    series.lateness.push(Lateness {
                        window: Window {
                            start_ns: *due_ns,
                            end_ns: due(answers_ns.len()),
                        },
                        max_ns: *late_max_ns,
                    });
                    series
                        .samples
                        .extend(answers_ns.iter().enumerate().map(|(i, answer)| Sample {
                            due_ns: due(i),
                            answer_ns: answer.map(|latency| due(i) + latency),
                        }));
                }
                Event::Key {
                    due_ns,
                    sent_ns,
                    echo_ns,
                    ..
                } if kind == ProbeKind::Typist => {
                    series.lateness.push(Lateness {
                        window: Window {
                            start_ns: *due_ns,
                            end_ns: *due_ns + 1,
                        },
                        max_ns: sent_ns.saturating_sub(*due_ns),
                    });
                    series.samples.push(Sample {
                        due_ns: *due_ns,
                        answer_ns: *echo_ns,
                    });
                }
                _ => {}
            }
        }
        series.samples.sort_by_key(|sample| sample.due_ns);
        series
    }

    /// Requests without any answer.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.samples
            .iter()
            .filter(|sample| sample.answer_ns.is_none())
            .count() as u64
    }

    /// Requests due in a window.
    #[must_use]
    pub fn due_in(&self, window: Window) -> &[Sample] {
        let from = self
            .samples
            .partition_point(|sample| sample.due_ns < window.start_ns);
        let to = self
            .samples
            .partition_point(|sample| sample.due_ns < window.end_ns);
        &self.samples[from..to]
    }

    /// The longest silence that touches a window: the time between two answers that follow one another, or, where
    /// none follows, until the last request of the series was due. It is `None` when the window has no request.
    ///
    /// Silence begins with an answer and not with a request, since the user's last sign of life is what he saw.
    #[must_use]
    pub fn longest_silence(&self, window: Window) -> Option<Window> {
        self.silences(window)
            .into_iter()
            .max_by_key(|silence| silence.len_ns())
    }

    fn silences(&self, window: Window) -> Vec<Window> {
        let due = self.due_in(window);
        let (Some(first), Some(last)) = (due.first(), due.last()) else {
            return Vec::new();
        };
        let near =
            window.start_ns.saturating_sub(MARGIN_NS)..window.end_ns.saturating_add(MARGIN_NS);
        let mut answers: Vec<u64> = self
            .samples
            .iter()
            .filter_map(|sample| sample.answer_ns)
            .filter(|t| near.contains(t))
            .collect();
        answers.sort_unstable();
        // Where nothing was answered before or after the window, silence lasts from the first request or to the last.
        let (earliest, latest) = (answers.first().copied(), answers.last().copied());
        answers.insert(0, earliest.map_or(first.due_ns, |t| t.min(first.due_ns)));
        answers.push(latest.map_or(last.due_ns, |t| t.max(last.due_ns)));
        answers
            .windows(2)
            .map(|pair| Window {
                start_ns: pair[0],
                end_ns: pair[1],
            })
            .filter(|silence| silence.overlaps(window))
            .collect()
    }

    /// Like [`Self::longest_silence`], but only among the silences that touch `touching`, a stretch within the window.
    #[must_use]
    pub fn longest_silence_touching(&self, window: Window, touching: Window) -> Option<Window> {
        self.silences(window)
            .into_iter()
            .filter(|silence| silence.overlaps(touching))
            .max_by_key(|silence| silence.len_ns())
    }

    /// The longest time from due to answer among the requests due in a window; one without an answer counts until the end of the
    /// window.
    #[must_use]
    pub fn longest_latency_ns(&self, window: Window) -> Option<u64> {
        self.due_in(window)
            .iter()
            .map(|sample| sample.latency_ns().unwrap_or(window.end_ns - sample.due_ns))
            .max()
    }

    /// Times from due to answer, in milliseconds, of the answered requests due in a window.
    #[must_use]
    pub fn latencies_ms(&self, window: Window) -> Vec<f64> {
        self.due_in(window)
            .iter()
            .filter_map(Sample::latency_ns)
            .map(|ns| ns as f64 / 1e6)
            .collect()
    }

    /// How late the probe itself was at worst in a window.
    #[must_use]
    pub fn late_max_ns(&self, window: Window) -> u64 {
        let overlapping = self
            .lateness
            .iter()
            .filter(|lateness| lateness.window.overlaps(window));
        overlapping
            .map(|lateness| lateness.max_ns)
            .max()
            .unwrap_or(0)
    }
}

/// Whether a record is of the session that is measured; those of other guests are told apart by their source.
#[must_use]
pub fn is_measured(record: &Record) -> bool {
    !record.source.starts_with("session/")
}

/// How far outside a window answers are looked for that border a silence in it.
const MARGIN_NS: u64 = 10_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A 1 kHz probe of a second, answered after 1 ms, with silence in `[from, to)` milliseconds: answers due then
    /// come at its end, or never.
    fn probe(from: u64, to: u64, lossy: bool) -> Series {
        let samples = (0..1000)
            .map(|i| {
                let answer = i * MS + MS;
                let silent = (from * MS..to * MS).contains(&answer);
                let late = (!lossy).then_some(to * MS);
                Sample {
                    due_ns: i * MS,
                    answer_ns: if silent { late } else { Some(answer) },
                }
            })
            .collect();
        Series {
            interval_ns: MS,
            samples,
            ..Series::default()
        }
    }

    const ALL: Window = Window {
        start_ns: 0,
        end_ns: 1000 * MS,
    };

    #[test]
    fn a_silence_is_found_whether_answers_are_late_or_lost() {
        for gap in [10, 50, 200] {
            for lossy in [false, true] {
                let silence = probe(300, 300 + gap, lossy).longest_silence(ALL).unwrap();
                let found = silence.len_ns() / MS;
                assert!(
                    found.abs_diff(gap) <= 1,
                    "{found} ms found for {gap} ms, lossy {lossy}"
                );
                assert!(silence.start_ns.abs_diff(300 * MS) <= MS);
            }
        }
    }

    #[test]
    fn a_silence_outside_the_window_is_not_counted() {
        let quiet = Window {
            start_ns: 0,
            end_ns: 200 * MS,
        };
        assert_eq!(
            probe(300, 500, true)
                .longest_silence(quiet)
                .unwrap()
                .len_ns(),
            MS
        );
    }

    #[test]
    fn a_silence_to_the_end_is_counted() {
        let silence = probe(600, 2000, true).longest_silence(ALL).unwrap();
        assert_eq!(silence.len_ns() / MS, 400);
    }

    #[test]
    fn a_closed_loop_probe_misses_what_an_open_loop_finds() {
        // The same stall of 200 ms, seen by a probe that waits for each answer before it sends the next request:
        // one slow request among many, so its 95th percentile shows nothing.
        let open = probe(300, 500, false).latencies_ms(ALL);
        let mut closed = vec![1.0; 800];
        closed.push(200.0);
        let p99 = |values: &[f64]| super::super::statistics::quantile(values, 0.99).unwrap();
        assert!(p99(&open) > 150.0);
        assert!(p99(&closed) < 2.0);
    }
}
