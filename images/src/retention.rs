//! Old images go, so that a cache does not grow with every change of a recipe.
//!
//! Whoever uses an image stamps it. A lab may start hosts from it for as long as it runs, so what was used lately stays
//! whatever its number; beyond that the newest few do. Asking the labs would need a registry of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So many of a kind stay in any case: those of a few branches that one changes between.
const KEPT: usize = 3;
/// No lab runs for longer than this from one image.
const IN_USE: Duration = Duration::from_secs(24 * 60 * 60);

/// Stamps an image as used now.
pub(crate) fn mark_used(image: &Path) -> io::Result<()> {
    File::open(image)?.set_modified(SystemTime::now())
}

/// Removes the files and folders of `cache` whose names begin with `prefix` but the newest and those lately used. To be called
/// by one process at a time.
pub(crate) fn remove_old(cache: &Path, prefix: &str) -> io::Result<()> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    let now = SystemTime::now();
    for (used, path) in found.into_iter().rev().skip(KEPT) {
        if now.duration_since(used).is_ok_and(|age| age > IN_USE) {
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_what_was_used_lately_stay() {
        let cache = tempfile::tempdir().unwrap();
        let make = |name: &str, days: u64| {
            let path = cache.path().join(name);
            if name.ends_with(".iso") {
                fs::write(&path, "x").unwrap();
            } else {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("disk"), "x").unwrap();
            }
            let used = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60 + 60);
            File::open(path).unwrap().set_modified(used).unwrap();
        };
        for (name, days) in [
            ("session-a", 9),
            ("session-b", 8),
            ("session-c", 7),
            ("session-d", 6),
            ("session-e", 5),
            ("other-a", 99),
        ] {
            make(name, days);
        }
        let names = || {
            let mut names: Vec<_> = fs::read_dir(cache.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        mark_used(&cache.path().join("session-a")).unwrap();
        remove_old(cache.path(), "session-").unwrap();
        assert_eq!(names(), ["other-a", "session-a", "session-d", "session-e"]);
        for name in ["session-f", "session-g", "session-h"] {
            make(name, 0);
            mark_used(&cache.path().join(name)).unwrap();
        }
        remove_old(cache.path(), "session-").unwrap();
        let used = [
            "other-a",
            "session-a",
            "session-f",
            "session-g",
            "session-h",
        ];
        assert_eq!(names(), used, "four were used within a day");
        for (name, days) in [
            ("h-1.iso", 4),
            ("h-2.iso", 3),
            ("h-3.iso", 2),
            ("h-4.iso", 1),
        ] {
            make(name, days);
        }
        remove_old(cache.path(), "h-").unwrap();
        assert!(!cache.path().join("h-1.iso").exists());
        assert!(cache.path().join("h-2.iso").exists());
    }
}
