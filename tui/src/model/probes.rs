//! What the probes and the typist saw.

use lab_protocol::{Event, ProbeKind, Record};
use scenarios::measure::Window;
use scenarios::measure::series::Series;

/// So many samples of one probe are kept at most: a quarter of an hour at 1 kHz.
const SAMPLES_KEPT: usize = 900_000;
/// So many typed keys are kept for the view.
const KEYS_KEPT: usize = 4096;

/// A key that was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// What it writes.
    pub text: String,
    /// From due to echo; `None` when no echo came.
    pub latency_ns: Option<u64>,
}

/// The worst of what a probe saw in one column of a strip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// Nothing was due.
    #[default]
    Empty,
    /// The longest time from due to answer.
    Worst(u64),
    /// At least one request has no answer.
    Lost,
}

/// Samples of all probes.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    series: Vec<(ProbeKind, Series)>,
    /// Keys in the order in which they were due.
    pub keys: Vec<Typed>,
    /// Keys in all.
    pub keys_typed: u64,
    /// Keys without an echo.
    pub keys_lost: u64,
}

impl Probes {
    /// Takes the next record.
    pub fn apply(&mut self, record: &Record) {
        let kind = match &record.event {
            Event::ProbeSamples { probe, .. } => *probe,
            Event::Key {
                text,
                due_ns,
                echo_ns,
                ..
            } => {
                self.keys_typed += 1;
                self.keys_lost += u64::from(echo_ns.is_none());
                if self.keys.len() >= 2 * KEYS_KEPT {
                    self.keys.drain(..KEYS_KEPT);
                }
                self.keys.push(Typed {
                    text: text.clone(),
                    latency_ns: echo_ns.map(|echo| echo.saturating_sub(*due_ns)),
                });
                ProbeKind::Typist
            }
            _ => return,
        };
        let more = Series::of(std::slice::from_ref(record), kind);
        let index = self.series.iter().position(|(known, _)| *known == kind);
        let series = match index {
            Some(index) => &mut self.series[index].1,
            None => {
                self.series.push((kind, Series::default()));
                self.series.sort_by_key(|(kind, _)| order(*kind));
                let index = self.series.iter().position(|(known, _)| *known == kind);
                &mut self.series[index.expect("it was pushed above")].1
            }
        };
        series.interval_ns = more.interval_ns;
        series.duplicated += more.duplicated;
        series.reordered += more.reordered;
        series.lateness.extend(more.lateness);
        let sorted = match (series.samples.last(), more.samples.first()) {
            (Some(last), Some(first)) => last.due_ns <= first.due_ns,
            _ => true,
        };
        series.samples.extend(more.samples);
        if !sorted {
            series.samples.sort_by_key(|sample| sample.due_ns);
        }
        if series.samples.len() >= 2 * SAMPLES_KEPT {
            series.samples.drain(..SAMPLES_KEPT);
        }
    }

    /// The probes that have spoken, the typist first.
    #[must_use]
    pub fn kinds(&self) -> Vec<ProbeKind> {
        self.series.iter().map(|(kind, _)| *kind).collect()
    }

    /// The samples of a probe.
    #[must_use]
    pub fn series(&self, kind: ProbeKind) -> Option<&Series> {
        self.series
            .iter()
            .find(|(known, _)| *known == kind)
            .map(|(_, series)| series)
    }

    /// A probe's strip: the worst latency in each of `columns` equal parts of a window.
    #[must_use]
    pub fn strip(&self, kind: ProbeKind, window: Window, columns: usize) -> Vec<Column> {
        let mut strip = vec![Column::Empty; columns];
        let Some(series) = self.series(kind) else {
            return strip;
        };
        let span = u128::from(window.len_ns().max(1));
        for sample in series.due_in(window) {
            let at = u128::from(sample.due_ns - window.start_ns) * columns as u128 / span;
            let cell = &mut strip[at as usize];
            *cell = match (*cell, sample.latency_ns()) {
                (Column::Lost, _) | (_, None) => Column::Lost,
                (Column::Worst(worst), Some(latency)) => Column::Worst(worst.max(latency)),
                (Column::Empty, Some(latency)) => Column::Worst(latency),
            };
        }
        strip
    }

    /// Median of the latencies in a window, in nanoseconds.
    #[must_use]
    pub fn median_ns(&self, kind: ProbeKind, window: Window) -> Option<u64> {
        let mut latencies: Vec<u64> = self
            .series(kind)?
            .due_in(window)
            .iter()
            .filter_map(scenarios::measure::series::Sample::latency_ns)
            .collect();
        if latencies.is_empty() {
            return None;
        }
        let middle = latencies.len() / 2;
        Some(*latencies.select_nth_unstable(middle).1)
    }
}

/// The typist first, for he is who it is about.
fn order(kind: ProbeKind) -> u8 {
    match kind {
        ProbeKind::Typist => 0,
        ProbeKind::Udp => 1,
        ProbeKind::Tcp => 2,
        ProbeKind::Ping => 3,
        ProbeKind::Disk => 4,
        ProbeKind::Clock => 5,
    }
}

/// The name of a probe.
#[must_use]
pub fn probe_name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Typist => "typist",
        ProbeKind::Udp => "udp",
        ProbeKind::Tcp => "tcp",
        ProbeKind::Ping => "ping",
        ProbeKind::Disk => "disk",
        ProbeKind::Clock => "clock",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(first_ms: u64, answers: &[Option<u64>]) -> Record {
        Record {
            schema: 1,
            seq: 0,
            t_ns: 0,
            error_ns: 0,
            source: "session".into(),
            event: Event::ProbeSamples {
                probe: ProbeKind::Udp,
                first: 0,
                due_ns: first_ms * 1_000_000,
                interval_ns: 1_000_000,
                late_max_ns: 0,
                duplicated: 0,
                reordered: 0,
                answers_ns: answers.to_vec(),
            },
        }
    }

    #[test]
    fn a_column_shows_the_worst_that_was_due_in_it() {
        let mut probes = Probes::default();
        probes.apply(&samples(0, &[Some(5), Some(9), Some(3), None]));
        let window = Window {
            start_ns: 0,
            end_ns: 6_000_000,
        };
        assert_eq!(
            probes.strip(ProbeKind::Udp, window, 3),
            [Column::Worst(9), Column::Lost, Column::Empty]
        );
        assert_eq!(probes.strip(ProbeKind::Tcp, window, 2), [Column::Empty; 2]);
    }

    #[test]
    fn records_out_of_order_make_the_same_strip() {
        let (early, late) = (samples(0, &[Some(1); 3]), samples(3, &[Some(2); 3]));
        let window = Window {
            start_ns: 0,
            end_ns: 6_000_000,
        };
        let mut strips = [[&early, &late], [&late, &early]].map(|order| {
            let mut probes = Probes::default();
            for record in order {
                probes.apply(record);
            }
            probes.strip(ProbeKind::Udp, window, 6)
        });
        assert_eq!(strips[0], strips[1]);
        assert_eq!(strips[0].pop(), Some(Column::Worst(2)));
    }
}
