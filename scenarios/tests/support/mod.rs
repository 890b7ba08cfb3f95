//! The event log of a run that is made up.

use lab_protocol::{Event, Record, SCHEMA};

/// Records with numbers in the order in which they were pushed.
pub struct Log(pub Vec<Record>);

impl Log {
    /// Appends what `source` says of a moment.
    pub fn push(&mut self, t_ns: u64, source: &str, event: Event) {
        let seq = self.0.len() as u64;
        self.0.push(Record {
            schema: SCHEMA,
            seq,
            t_ns,
            error_ns: 0,
            source: source.into(),
            event,
        });
    }
}
