//! Rates: what passes the switch's ports, and what the storage server does, between the last two reports of each.

use std::collections::{BTreeMap, VecDeque};

use lab_protocol::Event;
use lab_protocol::Record;
use lab_protocol::event::{OperationCounters, PortCounters};

/// Reports come once a second.
const SECOND_NS: u64 = 1_000_000_000;
/// So many seconds of a port's past are kept.
const HISTORY: usize = 60;

/// A port of the switch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Port {
    /// Bits a second from the port.
    pub sent_bps: f64,
    /// Frames a second from the port.
    pub sent_fps: f64,
    /// Bits a second to the port.
    pub received_bps: f64,
    /// Frames a second to the port.
    pub received_fps: f64,
    /// Frames lost since the lab began.
    pub dropped: u64,
    /// Bits in the last seconds, both directions together, the newest last.
    pub history: VecDeque<f64>,
    counters: PortCounters,
}

/// An operation of the storage server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operation {
    /// `Read`, `Write`, ...
    pub name: String,
    /// Calls since the server's start.
    pub calls: u64,
    /// Calls a second.
    pub per_s: f64,
    /// Mean time to the reply of these; `None` when there were none.
    pub mean_us: Option<f64>,
    /// What they took since the server's start, together.
    pub time_us: u64,
}

/// All rates.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    ports: BTreeMap<(String, String), Port>,
    ports_at_ns: Option<u64>,
    /// In the server's order.
    pub operations: Vec<Operation>,
    /// Bytes a second that clients read.
    pub read_per_s: f64,
    /// Bytes a second that clients write.
    pub written_per_s: f64,
    bytes: (u64, u64),
    storage_at_ns: Option<u64>,
}

impl Statistics {
    /// A port, once it has been told of.
    #[must_use]
    pub fn port(&self, network: &str, port: &str) -> Option<&Port> {
        self.ports.get(&(network.to_owned(), port.to_owned()))
    }

    /// Takes the next record.
    pub fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::PortStatistics { ports } => self.take_ports(record.t_ns, ports),
            Event::StorageStatistics {
                operations,
                read_bytes,
                written_bytes,
            } => {
                let span_s = span_s(self.storage_at_ns.replace(record.t_ns), record.t_ns);
                let bytes = (*read_bytes, *written_bytes);
                let rate = |now, before| span_s.map_or(0.0, |s| grown(now, before) as f64 / s);
                self.read_per_s = rate(bytes.0, self.bytes.0);
                self.written_per_s = rate(bytes.1, self.bytes.1);
                self.bytes = bytes;
                self.take_operations(operations, span_s);
            }
            // Its counters begin anew.
            Event::StorageState { state } if state == "started" => {
                self.storage_at_ns = None;
                self.bytes = (0, 0);
                self.operations.clear();
                (self.read_per_s, self.written_per_s) = (0.0, 0.0);
            }
            _ => {}
        }
    }

    fn take_ports(&mut self, t_ns: u64, changed: &[PortCounters]) {
        let span_s = span_s(self.ports_at_ns.replace(t_ns), t_ns);
        for port in self.ports.values_mut() {
            port.sent_bps = 0.0;
            port.sent_fps = 0.0;
            port.received_bps = 0.0;
            port.received_fps = 0.0;
        }
        for now in changed {
            let key = (now.network.clone(), now.port.clone());
            let port = self.ports.entry(key).or_default();
            let before = std::mem::replace(&mut port.counters, now.clone());
            port.dropped = now.dropped;
            let Some(span_s) = span_s else { continue };
            let rate = |now, before| grown(now, before) as f64 / span_s;
            port.sent_bps = 8.0 * rate(now.sent_bytes, before.sent_bytes);
            port.sent_fps = rate(now.sent_frames, before.sent_frames);
            port.received_bps = 8.0 * rate(now.received_bytes, before.received_bytes);
            port.received_fps = rate(now.received_frames, before.received_frames);
        }
        for port in self.ports.values_mut() {
            if port.history.len() == HISTORY {
                port.history.pop_front();
            }
            port.history.push_back(port.sent_bps + port.received_bps);
        }
    }

    fn take_operations(&mut self, now: &[OperationCounters], span_s: Option<f64>) {
        let before = std::mem::take(&mut self.operations);
        for counters in now {
            let before = before.iter().find(|one| one.name == counters.name);
            let last = before.map_or((0, 0), |one| (one.calls, one.time_us));
            let calls = grown(counters.calls, last.0);
            let time_us = grown(counters.time_us, last.1);
            self.operations.push(Operation {
                name: counters.name.clone(),
                calls: counters.calls,
                per_s: span_s.map_or(0.0, |s| calls as f64 / s),
                mean_us: (calls > 0).then(|| time_us as f64 / calls as f64),
                time_us: counters.time_us,
            });
        }
    }
}

/// Seconds between two reports; `None` before the first. After a pause, in which nothing happened, what is reported is of
/// the last second.
fn span_s(before: Option<u64>, now: u64) -> Option<f64> {
    let span_ns = now.checked_sub(before?).filter(|span| *span > 0)?;
    let of_one_report = if span_ns < 2 * SECOND_NS {
        span_ns
    } else {
        SECOND_NS
    };
    Some(of_one_report as f64 / 1e9)
}

/// How much a counter has grown; one that is less than it was began anew.
fn grown(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(events: Vec<(u64, Event)>) -> Statistics {
        let mut statistics = Statistics::default();
        for (t_ms, event) in events {
            statistics.apply(&Record {
                schema: 1,
                seq: 0,
                t_ns: t_ms * 1_000_000,
                error_ns: 0,
                source: "switch".into(),
                event,
            });
        }
        statistics
    }

    fn ports(frames: &[(&str, u64)]) -> Event {
        let port = |(name, frames): &(&str, u64)| PortCounters {
            network: "mgmt".into(),
            port: (*name).into(),
            sent_frames: *frames,
            sent_bytes: frames * 100,
            ..PortCounters::default()
        };
        Event::PortStatistics {
            ports: frames.iter().map(port).collect(),
        }
    }

    #[test]
    fn a_rate_is_what_has_grown_between_two_reports() {
        let first = vec![
            (1000, ports(&[("h1", 50), ("h2", 7)])),
            (3000 - 1, ports(&[("h1", 250)])),
        ];
        let rates = fold(first.clone());
        let h1 = rates.port("mgmt", "h1").unwrap();
        assert!((h1.sent_fps - 200.0 / 1.999).abs() < 1e-9, "{h1:?}");
        assert!((h1.sent_bps - 160_000.0 / 1.999).abs() < 1e-6, "{h1:?}");
        assert_eq!(rates.port("mgmt", "h2").unwrap().sent_fps, 0.0);
        assert!(rates.port("mgmt", "h3").is_none());

        // Quiet, and a minute later a second of work.
        let later = [(4000, ports(&[])), (64_000, ports(&[("h1", 260)]))];
        let rates = fold(first.into_iter().chain(later).collect());
        let h1 = rates.port("mgmt", "h1").unwrap();
        assert_eq!(h1.sent_fps, 10.0);
        assert_eq!(h1.history.len(), 4);
    }

    #[test]
    fn an_operations_latency_is_that_of_the_last_second() {
        let report = |calls, time_us, read_bytes| Event::StorageStatistics {
            operations: vec![OperationCounters {
                name: "READ".into(),
                calls,
                time_us,
            }],
            read_bytes,
            written_bytes: 0,
        };
        let mut events = vec![(1000, report(10, 5000, 100)), (2000, report(30, 9000, 500))];
        let rates = fold(events.clone());
        let read = &rates.operations[0];
        assert_eq!(
            (read.calls, read.per_s, read.mean_us),
            (30, 20.0, Some(200.0))
        );
        assert_eq!(rates.read_per_s, 400.0);

        events.push((3000, report(30, 9000, 500)));
        assert_eq!(fold(events.clone()).operations[0].mean_us, None);

        let started = Event::StorageState {
            state: "started".into(),
        };
        events.extend([
            (4000, started),
            (5000, report(2, 10, 40)),
            (6000, report(3, 30, 41)),
        ]);
        let rates = fold(events);
        let read = &rates.operations[0];
        assert_eq!((read.per_s, read.mean_us), (1.0, Some(20.0)));
        assert_eq!(rates.read_per_s, 1.0);
    }
}
