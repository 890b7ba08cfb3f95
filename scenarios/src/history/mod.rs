//! Results that outlive their folders: one line of JSON for each run, in files that only grow, so that they can be sent, kept under
//! version control, and joined with `cat`.
//!
//! A line names the commit, the hash of the hypervisor image and the machine it was made on; nothing here decides what may be
//! compared with what but [`Fingerprint::differs`]. A database was left out: a year of nights is some megabytes.

pub mod calendar;
pub mod trend;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::evidence::fingerprint::Fingerprint;
use crate::measure::statistics::quantile;
use crate::report::book::{Book, title};
use crate::verdict::Verdict;

/// Version of a line; fields are only added within a version.
pub const FORM: u32 = 1;
/// So many of the latest runs say how long the next will take.
const RECENT: usize = 20;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`FORM`].
    pub history: u32,
    /// When the results it belongs to were made, seconds since 1970.
    pub unix_s: u64,
    /// What the program was built from; empty when that is not known.
    pub commit: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Its combination of the matrix in words.
    pub variant: String,
    /// Number among the runs of these results, from 1.
    pub number: u32,
    /// Seed of all that was left to chance.
    pub seed: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// Why that is not "passed".
    pub reasons: Vec<String>,
    /// How long it took; 0 when it did not come up.
    pub seconds: f64,
    /// Figures by name, in order of the migrations or one a run.
    pub figures: BTreeMap<String, Vec<f64>>,
    /// What it was made on, and the hash of the image.
    pub machine: Fingerprint,
    /// A line for the shell that makes it again.
    pub command: String,
}

impl Entry {
    /// The entries of a book, all made from one commit.
    #[must_use]
    pub fn of_book(book: &Book, commit: &str) -> Vec<Self> {
        let entry = |run: &crate::report::run::RunReport| Self {
            history: FORM,
            unix_s: book.unix_s,
            commit: commit.into(),
            scenario: run.scenario.clone(),
            variant: run.variant.clone(),
            number: run.number,
            seed: run.seed,
            verdict: run.verdict,
            reasons: run.reasons.clone(),
            seconds: run.seconds,
            figures: run.figures.clone(),
            machine: run.machine.clone(),
            command: run.command.clone(),
        };
        book.runs().map(entry).collect()
    }

    /// Name and variant of the scenario.
    #[must_use]
    pub fn title(&self) -> String {
        title(&self.scenario, &self.variant)
    }
}

/// A file that is no history this program can read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be read at all.
    #[error("cannot read the history {}: {error}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A newer program has written it.
    #[error("{}:{line}: a line of version {found}; this program reads versions up to {FORM}, use a newer one", file.display())]
    Newer {
        /// Which.
        file: PathBuf,
        /// Where.
        line: usize,
        /// Its version.
        found: u64,
    },
}

/// All that is known of earlier runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// In order of time.
    pub entries: Vec<Entry>,
    /// Lines that could not be read, each with its place and the reason.
    pub left_out: Vec<String>,
}

impl History {
    /// Reads files as if they were one. A run that is in two of them counts once; a line that a crash has torn is left out and told.
    ///
    /// # Errors
    /// When a file cannot be read, or is of a newer version.
    pub fn read(files: &[PathBuf]) -> Result<Self, HistoryError> {
        let mut all = Self::default();
        let mut seen = HashSet::new();
        for file in files {
            let text = std::fs::read_to_string(file).map_err(|error| HistoryError::Read {
                file: file.clone(),
                error,
            })?;
            for (line, text) in (1..).zip(text.lines()) {
                if text.trim().is_empty() || !seen.insert(text.to_owned()) {
                    continue;
                }
                all.take(file, line, text)?;
            }
        }
        // Stable: runs of the same results stay in their order.
        all.entries.sort_by_key(|entry| entry.unix_s);
        Ok(all)
    }

    fn take(&mut self, file: &Path, line: usize, text: &str) -> Result<(), HistoryError> {
        let entry = serde_json::from_str::<serde_json::Value>(text).and_then(|value| {
            let found = value["history"].as_u64().unwrap_or(0);
            if found > u64::from(FORM) {
                return Ok(Err(found));
            }
            serde_json::from_value::<Entry>(value).map(Ok)
        });
        match entry {
            Ok(Ok(entry)) => self.entries.push(entry),
            Ok(Err(found)) => {
                return Err(HistoryError::Newer {
                    file: file.to_owned(),
                    line,
                    found,
                });
            }
            Err(error) => self
                .left_out
                .push(format!("{}:{line}: {error}", file.display())),
        }
        Ok(())
    }

    /// How long a run of a scenario takes, by the middle one of its latest; `None` for one that has never come up.
    #[must_use]
    pub fn expected(&self, scenario: &str, variant: &str) -> Option<Duration> {
        let latest: Vec<f64> = self
            .entries
            .iter()
            .rev()
            .filter(|entry| entry.scenario == scenario && entry.variant == variant)
            .map(|entry| entry.seconds)
            .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
            .take(RECENT)
            .collect();
        quantile(&latest, 0.5).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}

/// Appends entries to a file, which is made if it is missing. Several programs may do so at once.
///
/// # Errors
/// When it cannot be written.
pub fn append(file: &Path, entries: &[Entry]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut open = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(file)?;
    // Given back when the file is closed.
    open.lock()?;
    let mut text = String::new();
    if !ends_with_line(&mut open)? {
        // What a crash has torn stays a line of its own.
        text.push('\n');
    }
    for entry in entries {
        text.push_str(&serde_json::to_string(entry)?);
        text.push('\n');
    }
    open.write_all(text.as_bytes())?;
    open.sync_data()
}

fn ends_with_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests;
