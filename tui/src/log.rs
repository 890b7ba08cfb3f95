//! The event log of a run as a file that may still grow.
//!
//! Its bytes are read as they are and cut into lines, which takes a fraction of a second for a million of them; a line is parsed
//! when it is folded into the model or shown. So a long log opens at once, and only what is looked at costs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use lab_protocol::Record;

/// Read at once; a screen is drawn between two reads.
const CHUNK: u64 = 64 << 20;

/// The lines of a log.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    bytes: Vec<u8>,
    /// Where each whole line ends, its newline included.
    ends: Vec<usize>,
    /// Bytes before this have been searched for newlines.
    searched: usize,
}

impl Log {
    /// Opens a log and reads what is there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| {
            format!(
                "cannot read {}: a run folder holds an events.jsonl",
                path.display()
            )
        })?;
        let mut log = Self {
            file: Some(file),
            ..Self::default()
        };
        log.follow()
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(log)
    }

    /// A log of these lines, for tests and pictures.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let mut log = Self {
            bytes,
            ..Self::default()
        };
        log.find_lines();
        log
    }

    /// Reads what was appended since; says whether there was anything.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn follow(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let before = self.ends.len();
        file.take(CHUNK).read_to_end(&mut self.bytes)?;
        self.find_lines();
        Ok(self.ends.len() > before)
    }

    fn find_lines(&mut self) {
        let fresh = &self.bytes[self.searched..];
        let newlines = fresh.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        self.ends
            .extend(newlines.map(|(at, _)| self.searched + at + 1));
        self.searched = self.bytes.len();
    }

    /// Number of whole lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A line as it is in the file.
    #[must_use]
    pub fn line(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    /// A line's record; `None` where a line is no record this program knows.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<Record> {
        let record: Record = serde_json::from_slice(self.line(index)?).ok()?;
        (record.schema <= lab_protocol::SCHEMA).then_some(record)
    }

    /// Reads all that is there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_to_end(&mut self) -> io::Result<()> {
        while self.follow()? {}
        Ok(())
    }

    /// The kind that a line names, without parsing it; it stands in its first hundred bytes or so.
    #[must_use]
    pub fn kind(&self, index: usize) -> Option<&[u8]> {
        const FIELD: &[u8] = b"\"kind\":\"";
        let line = self.line(index)?;
        let at = line
            .windows(FIELD.len())
            .position(|window| window == FIELD)?;
        line[at + FIELD.len()..].split(|byte| *byte == b'"').next()
    }

    /// Time of the last record, or 0.
    #[must_use]
    pub fn last_t_ns(&self) -> u64 {
        // Hosts' stamps come a little out of order.
        let last = self.len().saturating_sub(64)..self.len();
        last.filter_map(|index| self.record(index))
            .map(|record| record.t_ns)
            .max()
            .unwrap_or(0)
    }

    /// Whether a line contains a text, letter case aside.
    #[must_use]
    pub fn contains(&self, index: usize, lower_case: &str) -> bool {
        let wanted = lower_case.as_bytes();
        self.line(index).is_some_and(|line| {
            wanted.is_empty()
                || line
                    .windows(wanted.len())
                    .any(|window| window.eq_ignore_ascii_case(wanted))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LINE: &str =
        r#"{"schema":1,"seq":0,"t_ns":7,"error_ns":0,"source":"lab","kind":"mark","text":"Here"}"#;

    #[test]
    fn a_line_counts_when_it_is_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{LINE}\n{}", &LINE[..20]).unwrap();
        let mut log = Log::open(file.path()).unwrap();
        assert_eq!(log.len(), 1);
        writeln!(file, "{}", &LINE[20..]).unwrap();
        assert!(log.follow().unwrap());
        assert!(!log.follow().unwrap());
        assert_eq!(log.len(), 2);
        assert_eq!(log.record(1).unwrap().t_ns, 7);
        assert!(log.contains(1, "here") && !log.contains(1, "there"));
        assert_eq!(log.kind(1), Some(&b"mark"[..]));
    }

    #[test]
    fn what_is_no_record_is_shown_but_not_folded() {
        let log = Log::from_bytes(b"garbage\n{\"schema\":99}\n\n".to_vec());
        assert_eq!(log.len(), 3);
        assert!((0..3).all(|index| log.record(index).is_none()));
        assert_eq!(log.line(0), Some(&b"garbage\n"[..]));
        assert_eq!(log.line(3), None);
        assert_eq!(log.kind(1), None);
    }
}
