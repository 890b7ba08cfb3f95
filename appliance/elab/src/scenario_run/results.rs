//! Where results lie: `.elab/results/<time>-<name>/`, each with its report and the folders of its runs; how long they are kept.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use scenarios::evidence;
use scenarios::history::calendar;

use super::one::{RUN_FILE, SCENARIO_FILE};
use crate::run_folder;

/// Results, below the working folder.
pub const RESULTS: &str = ".elab/results";
/// A link to the newest.
const LATEST: &str = "latest";

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// So many results at most.
    pub results: usize,
    /// None older than this.
    pub age: Duration,
    /// So many bytes in all.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            results: 100,
            age: Duration::from_secs(30 * 24 * 3600),
            bytes: 4 << 30,
        }
    }
}

/// Makes the folder of new results, and lets go of what retention does not allow to stay.
///
/// # Errors
/// When it cannot be made.
pub fn begin(base: &Path, name: &str, retention: Retention) -> Result<PathBuf> {
    fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
    prune(base, retention).with_context(|| format!("cannot tidy {}", base.display()))?;
    let now = unix_s();
    let stem = format!("{}-{name}", stamp(now));
    let folder = match taken(base, &stem)? {
        0 => base.join(&stem),
        highest => base.join(format!("{stem}-{}", highest + 1)),
    };
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let latest = base.join(LATEST);
    let _ = fs::remove_file(&latest);
    if let Some(name) = folder.file_name() {
        // Only a convenience: a file system without links has results all the same.
        let _ = symlink(name, &latest);
    }
    Ok(folder)
}

/// The highest number of a folder whose name begins with `stem`; the first has none in its name and counts as 1. Results of one second are
/// told apart by it, and a number that was let go of is not given again, for the order of names is the order of age.
fn taken(base: &Path, stem: &str) -> std::io::Result<u32> {
    let mut highest = 0;
    for entry in fs::read_dir(base)? {
        let name = entry?.file_name();
        let number = match name.to_str().and_then(|name| name.strip_prefix(stem)) {
            Some("") => Some(1),
            Some(rest) => rest.strip_prefix('-').and_then(|rest| rest.parse().ok()),
            None => None,
        };
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest)
}

/// Removes what runs that were killed have left below `runs`. Their processes went with them; those that slipped through
/// are ended here.
///
/// # Errors
/// When a folder cannot be looked at or removed.
pub fn sweep(runs: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(runs) else {
        return Ok(());
    };
    for entry in entries {
        let folder = entry.context("cannot read the folder of runs")?.path();
        // Labs of other commands keep their folders: only a run has its scenario with it. One that has its report as well has
        // ended in order, and someone wants it.
        let unended = folder.join(SCENARIO_FILE).is_file() && !folder.join(RUN_FILE).exists();
        if unended && !run_folder::is_running(&folder)? {
            run_folder::end_leftovers(runs)?;
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot delete {}", folder.display()))?;
        }
    }
    Ok(())
}

/// Moves the folder of a run that has ended to its results.
///
/// # Errors
/// When it cannot be moved.
pub fn take_run(run: &Path, to: &Path) -> Result<()> {
    evidence::remove_scaffolding(run).with_context(|| format!("cannot tidy {}", run.display()))?;
    fs::rename(run, to)
        .with_context(|| format!("cannot move {} to {}", run.display(), to.display()))
}

fn prune(base: &Path, retention: Retention) -> std::io::Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        // Names begin with the time, so they sort by age.
        if entry.file_type()?.is_dir() {
            all.push((
                entry.file_name(),
                entry.path(),
                entry.metadata()?.modified()?,
            ));
        }
    }
    all.sort();
    let now = SystemTime::now();
    let mut bytes = 0;
    for (kept, (_, path, modified)) in all.iter().rev().enumerate() {
        bytes += size_of(path)?;
        let old = now.duration_since(*modified).unwrap_or_default() > retention.age;
        // Room for the one that begins.
        if old || kept + 1 >= retention.results || bytes > retention.bytes {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn size_of(path: &Path) -> std::io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += size_of(&entry?.path())?;
    }
    Ok(bytes)
}

/// Seconds since 1970.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A time as `20260131T235959Z` (ISO 8601, basic form).
fn stamp(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = calendar::date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_dates() {
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(951_782_399), "20000228T235959Z");
        assert_eq!(stamp(951_782_400), "20000229T000000Z");
        assert_eq!(stamp(1_795_279_415), "20261121T164335Z");
    }

    #[test]
    fn what_killed_runs_left_goes_and_other_labs_stay() {
        let runs = tempfile::tempdir().unwrap();
        for (name, scenario) in [("demo-1", true), ("lab", false)] {
            fs::create_dir(runs.path().join(name)).unwrap();
            if scenario {
                fs::write(runs.path().join(name).join(SCENARIO_FILE), "").unwrap();
            }
        }
        let living = run_folder::RunFolder::take(runs.path(), "demo-2").unwrap();
        fs::write(living.file(SCENARIO_FILE), "").unwrap();
        sweep(runs.path()).unwrap();
        let left = ["demo-1", "demo-2", "lab"].map(|name| runs.path().join(name).exists());
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn the_oldest_go_first_and_the_newest_stays() {
        let base = tempfile::tempdir().unwrap();
        let retention = Retention {
            results: 3,
            ..Retention::default()
        };
        let names: Vec<_> = (0..5)
            .map(|_| begin(base.path(), "demo", retention).unwrap())
            .collect();
        let left: Vec<_> = names.iter().filter(|path| path.exists()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(names[4].exists() && !names[0].exists());
        assert!(base.path().join(LATEST).exists());
        fs::write(names[4].join("large"), vec![0; 4096]).unwrap();
        let small = Retention {
            bytes: 1000,
            ..Retention::default()
        };
        begin(base.path(), "demo", small).unwrap();
        assert!(!names[4].exists());
    }
}
