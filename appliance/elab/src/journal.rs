//! The lab's event log: `events.jsonl`, one [`Record`] a line, numbered without holes.
//!
//! One thread writes; whoever reports only hands over, so that no probe or switch ever waits for a disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use lab_protocol::{Event, Record, SCHEMA};

/// Takes records. Clones write to the same log.
#[derive(Clone, Debug)]
pub struct Journal {
    lines: Sender<Line>,
}

/// Hears each record as it is written.
pub type Subscriber = Box<dyn FnMut(&Record) + Send>;

enum Line {
    Record {
        t_ns: u64,
        error_ns: u64,
        source: String,
        event: Event,
    },
    Subscribe(Subscriber),
    Finish,
}

/// Owns the log's thread.
#[derive(Debug)]
pub struct JournalWriter {
    lines: Sender<Line>,
    thread: JoinHandle<io::Result<()>>,
}

impl Journal {
    /// Begins a log, replacing an older one.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<(Self, JournalWriter)> {
        let file = BufWriter::new(File::create(path)?);
        let (lines, incoming) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(file, &incoming))?;
        let writer = JournalWriter {
            lines: lines.clone(),
            thread,
        };
        Ok((Self { lines }, writer))
    }

    /// Has every record that is written from now on told to `subscriber`, on the log's thread.
    pub fn subscribe(&self, subscriber: Subscriber) {
        // As with records: a log that has ended has nothing more to tell.
        let _ = self.lines.send(Line::Subscribe(subscriber));
    }

    /// Records what the lab itself saw.
    pub fn record(&self, t_ns: u64, source: &str, event: Event) {
        self.record_mapped(t_ns, 0, source, event);
    }

    /// Records what was stamped by another clock, with the bound of the mapping's error.
    pub fn record_mapped(&self, t_ns: u64, error_ns: u64, source: &str, event: Event) {
        // Without its writer the lab has ended, and what is said then is not part of the log.
        let _ = self.lines.send(Line::Record {
            t_ns,
            error_ns,
            source: source.into(),
            event,
        });
    }
}

impl JournalWriter {
    /// Writes what has been handed over and closes the file.
    ///
    /// # Errors
    /// When a record could not be written.
    pub fn finish(self) -> io::Result<()> {
        // A writer that has failed says why below.
        let _ = self.lines.send(Line::Finish);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the log's thread has failed")))
    }
}

/// Writes until the end; flushes whenever nothing is waiting, so that readers see each record at once.
fn write(mut file: impl Write, lines: &Receiver<Line>) -> io::Result<()> {
    let mut seq = 0;
    let mut subscribers: Vec<Subscriber> = Vec::new();
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some(line) = next {
            match line {
                Line::Record {
                    t_ns,
                    error_ns,
                    source,
                    event,
                } => {
                    let record = Record {
                        schema: SCHEMA,
                        seq,
                        t_ns,
                        error_ns,
                        source,
                        event,
                    };
                    serde_json::to_writer(&mut file, &record)?;
                    file.write_all(b"\n")?;
                    seq += 1;
                    for subscriber in &mut subscribers {
                        subscriber(&record);
                    }
                }
                Line::Subscribe(subscriber) => subscribers.push(subscriber),
                Line::Finish => return file.flush(),
            }
            next = lines.try_recv().ok();
        }
        file.flush()?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_numbered_without_holes_and_complete_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let (journal, writer) = Journal::create(&path).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let journal = journal.clone();
                std::thread::spawn(move || {
                    for number in 0..50 {
                        let text = format!("{thread}/{number}");
                        journal.record(number, "lab", Event::Mark { text });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        writer.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let records: Vec<Record> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(records.len(), 200);
        assert!(
            records
                .iter()
                .zip(0..)
                .all(|(record, seq)| record.seq == seq)
        );
    }

    #[test]
    fn a_subscriber_hears_what_comes_after_it_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, writer) = Journal::create(&folder.path().join("events.jsonl")).unwrap();
        let mark = |text: &str| Event::Mark { text: text.into() };
        journal.record(1, "lab", mark("before"));
        let (sender, heard) = mpsc::channel();
        journal.subscribe(Box::new(move |record| sender.send(record.seq).unwrap()));
        journal.record(2, "lab", mark("one"));
        journal.record(3, "lab", mark("two"));
        writer.finish().unwrap();
        assert_eq!(heard.iter().collect::<Vec<_>>(), [1, 2]);
    }
}
