//! From an event log to figures.
//!
//! Everything here is a pure function of the records of a run, so any figure of a report can be computed
//! again, by us or by anyone, from the files in the run's folder.

pub mod attribution;
pub mod migration;
pub mod outage;
pub mod series;
pub mod statistics;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use lab_protocol::Record;

/// A stretch of time on the lab's clock, in nanoseconds: from `start`, up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First nanosecond.
    pub start_ns: u64,
    /// First nanosecond after.
    pub end_ns: u64,
}

impl Window {
    /// Its length.
    #[must_use]
    pub fn len_ns(self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// Whether a moment lies in it.
    #[must_use]
    pub fn contains(self, t_ns: u64) -> bool {
        (self.start_ns..self.end_ns).contains(&t_ns)
    }

    /// Whether the two share a moment.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start_ns < other.end_ns && other.start_ns < self.end_ns
    }
}

/// Why an event log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file itself.
    #[error("cannot read the event log {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One of its lines.
    #[error("{path}, line {line}: this is not a record of a lab")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by a newer lab.
    #[error("{path} has schema {found}, but this program knows only up to {known}: use the program that wrote it, or a newer one", known = lab_protocol::SCHEMA)]
    Schema {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
}

/// Reads an event log. A last line without its newline, as a killed lab leaves it, is left out.
///
/// # Errors
/// When the file cannot be read, or holds something else than records.
pub fn read_log(path: &Path) -> Result<Vec<Record>, LogError> {
    let io = |source| LogError::Io {
        path: path.to_owned(),
        source,
    };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut records = Vec::new();
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        if reader.read_line(&mut text).map_err(io)? == 0 || !text.ends_with('\n') {
            break;
        }
        let record: Record = serde_json::from_str(&text).map_err(|source| LogError::Line {
            path: path.to_owned(),
            line,
            source,
        })?;
        if record.schema > lab_protocol::SCHEMA {
            return Err(LogError::Schema {
                path: path.to_owned(),
                found: record.schema,
            });
        }
        records.push(record);
    }
    Ok(records)
}
