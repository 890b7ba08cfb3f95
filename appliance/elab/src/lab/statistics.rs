//! What passes the switch, told once a second.
//!
//! As events and not as answers to a question: a finished run then shows its rates like a running one. The switch counts
//! anyway; asking it is a message to its thread.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use lab_protocol::Event;
use lab_protocol::event::PortCounters;
use switch::PortState;

use super::Inner;

const EVERY: Duration = Duration::from_secs(1);

/// What has changed of the counters since the last look.
#[derive(Debug, Default)]
struct Changes {
    before: Vec<PortCounters>,
    was_busy: bool,
}

impl Changes {
    /// The ports whose counters have changed; none at all is worth telling once.
    fn since_last(&mut self, now: Vec<PortCounters>) -> Option<Vec<PortCounters>> {
        let changed: Vec<_> = now
            .iter()
            .filter(|port| !self.before.contains(port))
            .cloned()
            .collect();
        let busy = !changed.is_empty();
        let told = (busy || self.was_busy).then_some(changed);
        (self.before, self.was_busy) = (now, busy);
        told
    }
}

impl Inner {
    /// Tells what passes the switch until the lab ends.
    pub(crate) fn watch_ports(self: &Arc<Self>) -> Result<()> {
        let inner = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("statistics".into())
            .spawn(move || watch(&inner))
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn watch(inner: &Weak<Inner>) {
    let mut changes = Changes::default();
    loop {
        std::thread::sleep(EVERY);
        let Some(inner) = inner.upgrade() else { return };
        let stopping = inner.lock().stopping;
        // A switch that is gone ends the lab by other ways.
        let Some(ports) = inner.switch.ports().ok().filter(|_| !stopping) else {
            return;
        };
        if let Some(ports) = changes.since_last(ports.into_iter().map(counters).collect()) {
            inner.journal.record(
                inner.clock.now_ns(),
                "switch",
                Event::PortStatistics { ports },
            );
        }
    }
}

fn counters(port: PortState) -> PortCounters {
    PortCounters {
        network: port.network,
        port: port.port,
        sent_frames: port.counters.sent_frames,
        sent_bytes: port.counters.sent_bytes,
        received_frames: port.counters.received_frames,
        received_bytes: port.counters.received_bytes,
        dropped: port.counters.dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, sent_frames: u64) -> PortCounters {
        PortCounters {
            port: name.into(),
            sent_frames,
            ..PortCounters::default()
        }
    }

    #[test]
    fn only_what_changed_is_told_and_quiet_once() {
        let mut changes = Changes::default();
        let all = |a, b| vec![port("h1", a), port("h2", b)];
        assert_eq!(changes.since_last(all(1, 1)), Some(all(1, 1)));
        assert_eq!(changes.since_last(all(2, 1)), Some(vec![port("h1", 2)]));
        assert_eq!(changes.since_last(all(2, 1)), Some(Vec::new()));
        assert_eq!(changes.since_last(all(2, 1)), None);
        assert_eq!(changes.since_last(all(2, 5)), Some(vec![port("h2", 5)]));
    }
}
