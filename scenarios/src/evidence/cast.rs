//! Recordings of sessions. While a session runs, what its terminal shows is appended to a file as it comes, so that a run that is killed
//! leaves it too; afterwards it becomes an asciicast with a marker at each phase of a migration.
//!
//! asciicast v3: <https://docs.asciinema.org/manual/asciicast/v3/>. A header line, then `[interval, code, data]` lines with the
//! seconds since the event before; code `o` is output, `m` a marker.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use lab_protocol::{Event, Phase, Record, Role};
use serde::{Deserialize, Serialize};

/// Appends a terminal's output to a file.
#[derive(Debug)]
pub struct Recorder {
    file: BufWriter<File>,
    /// An incomplete character at the end of the output so far.
    partial: Vec<u8>,
    failed: bool,
}

/// First line of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Size {
    columns: u16,
    rows: u16,
}

impl Recorder {
    /// Begins a recording of a terminal of this size.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, columns: u16, rows: u16) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut file, &Size { columns, rows })?;
        file.write_all(b"\n")?;
        Ok(Self {
            file,
            partial: Vec::new(),
            failed: false,
        })
    }

    /// The terminal was sent this. A recording that cannot be written ends; the session goes on.
    pub fn output(&mut self, t_ns: u64, data: &[u8]) {
        if self.failed {
            return;
        }
        self.partial.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.partial) {
            Ok(_) => self.partial.len(),
            // Not yet whole; anything else that is no UTF-8 is replaced.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.partial.len(),
        };
        let text = String::from_utf8_lossy(&self.partial[..whole]).into_owned();
        self.partial.drain(..whole);
        let line = (t_ns, text);
        self.failed = serde_json::to_writer(&mut self.file, &line).is_err()
            || self.file.write_all(b"\n").is_err()
            || self.file.flush().is_err();
    }
}

/// What a terminal was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
    /// When, on the lab's clock, and what.
    pub output: Vec<(u64, String)>,
}

impl Recording {
    /// Reads what a [`Recorder`] wrote; a last line that is not whole is left out.
    ///
    /// # Errors
    /// When the file cannot be read, or is no recording.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut lines = BufReader::new(File::open(path)?).lines();
        let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        let size: Size = serde_json::from_str(&first)?;
        let mut output = Vec::new();
        for line in lines {
            match serde_json::from_str(&line?) {
                Ok(one) => output.push(one),
                Err(_) => break,
            }
        }
        Ok(Self {
            columns: size.columns,
            rows: size.rows,
            output,
        })
    }

    /// As an asciicast v3.
    #[must_use]
    pub fn asciicast(&self, title: &str, records: &[Record]) -> String {
        enum Line<'a> {
            Output(&'a str),
            Marker(String),
        }
        let mut lines: Vec<(u64, Line<'_>)> = self
            .output
            .iter()
            .map(|(t_ns, text)| (*t_ns, Line::Output(text)))
            .collect();
        let end_ns = self.output.last().map_or(0, |(t_ns, _)| *t_ns);
        lines.extend(
            markers(records)
                .into_iter()
                .map(|(t_ns, text)| (t_ns.min(end_ns), Line::Marker(text))),
        );
        lines.sort_by_key(|(t_ns, _)| *t_ns);
        let header = serde_json::json!({
            "version": 3,
            "term": { "cols": self.columns, "rows": self.rows, "type": "xterm" },
            "title": title,
        });
        let mut cast = format!("{header}\n");
        let mut last_ns = lines.first().map_or(0, |(t_ns, _)| *t_ns);
        for (t_ns, line) in &lines {
            // Milliseconds: what is left out of one interval goes into the next.
            let interval_ms = (t_ns - last_ns) / 1_000_000;
            last_ns += interval_ms * 1_000_000;
            let (code, text) = match line {
                Line::Output(text) => ("o", *text),
                Line::Marker(text) => ("m", text.as_str()),
            };
            let event = serde_json::json!([interval_ms as f64 / 1000.0, code, text]);
            cast.push_str(&format!("{event}\n"));
        }
        cast
    }
}

/// What a viewer may want to jump to: phases of migrations, and what a scenario did.
#[must_use]
pub fn markers(records: &[Record]) -> Vec<(u64, String)> {
    let marker = |record: &Record| {
        let text = match &record.event {
            Event::MigrationRequested {
                migration,
                from,
                to,
                ..
            } => format!("migration {migration}: {from} to {to}"),
            // Both ends pass most phases; that of the side that acts is the one to see.
            Event::MigrationPhase {
                migration,
                role,
                phase,
                ..
            } if acts(*role, *phase) => format!("migration {migration}: {}", name(*phase)),
            Event::MigrationEnded {
                migration, error, ..
            } => match error.as_str() {
                "" => format!("migration {migration}: ended"),
                error => format!("migration {migration}: failed: {error}"),
            },
            Event::LinkFault { link, fault } => format!("link {link}: {fault}"),
            Event::HostPower { host, state } => format!("{host}: {state}"),
            Event::StorageState { state } => format!("storage: {state}"),
            Event::Mark { text } => text.clone(),
            _ => return None,
        };
        Some((record.t_ns, text))
    };
    let mut markers: Vec<_> = records.iter().filter_map(marker).collect();
    markers.sort_by_key(|(t_ns, _)| *t_ns);
    markers
}

fn acts(role: Role, phase: Phase) -> bool {
    match phase {
        Phase::PreCopy | Phase::Drain | Phase::LastPages | Phase::DeviceState | Phase::Aborted => {
            role == Role::Source
        }
        Phase::LeaseHandOver | Phase::Resume => role == Role::Destination,
        Phase::SetUp | Phase::Forward | Phase::Finished => false,
    }
}

/// A phase as reports print it.
#[must_use]
pub fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::SetUp => "set-up",
        Phase::PreCopy => "pre-copy",
        Phase::Drain => "drain",
        Phase::LastPages => "last pages",
        Phase::DeviceState => "device state",
        Phase::LeaseHandOver => "lease hand-over",
        Phase::Resume => "resume",
        Phase::Forward => "forward",
        Phase::Finished => "finished",
        Phase::Aborted => "aborted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_back_and_characters_stay_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.output.jsonl");
        let mut recorder = Recorder::create(&path, 80, 24).unwrap();
        let text = "é";
        recorder.output(1, b"a");
        recorder.output(2, &text.as_bytes()[..1]);
        recorder.output(3, &text.as_bytes()[1..]);
        recorder.output(4, &[0xff]);
        let recording = Recording::read(&path).unwrap();
        assert_eq!((recording.columns, recording.rows), (80, 24));
        let said: Vec<_> = recording
            .output
            .iter()
            .map(|(t, s)| (*t, s.as_str()))
            .collect();
        assert_eq!(said, [(1, "a"), (2, ""), (3, "é"), (4, "\u{fffd}")]);
    }

    #[test]
    fn the_cast_has_intervals_that_add_up_and_markers_between() {
        let recording = Recording {
            columns: 80,
            rows: 24,
            output: (0..100).map(|i| (i * 1_300_000, "x".to_owned())).collect(),
        };
        let mark = Record {
            schema: 1,
            seq: 0,
            t_ns: 50_000_000,
            error_ns: 0,
            source: "lab".into(),
            event: Event::Mark {
                text: "here".into(),
            },
        };
        let cast = recording.asciicast("demo", &[mark]);
        let mut lines = cast.lines();
        let header: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(header["version"], 3);
        assert_eq!(header["term"]["cols"], 80);
        let events: Vec<(f64, String, String)> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let whole: f64 = events.iter().map(|(interval, _, _)| interval).sum();
        assert!((whole - 0.128).abs() < 0.0015, "{whole}");
        let before: f64 = events
            .iter()
            .take_while(|(_, code, _)| code == "o")
            .map(|(interval, _, _)| interval)
            .sum();
        assert!((before - 0.049).abs() < 0.0025, "{before}");
        assert_eq!(events.iter().filter(|(_, code, _)| code == "m").count(), 1);
    }
}
