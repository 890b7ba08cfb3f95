//! The folder of one lab: its log, its sockets, its consoles, and the list of its processes.
//!
//! A lab holds a lock on its folder while it lives, so a second one of the same name is refused, and one that was
//! killed is told from one that runs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where run folders lie, below the working folder.
pub const RUNS: &str = ".elab/run";
/// A socket's path has 108 bytes in Linux (`unix(7)`); the longest name below the folder must still fit.
const LONGEST_FOLDER: usize = 80;

/// A folder that this process holds.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    processes: Mutex<Vec<Entry>>,
    /// None once the lab is over, whoever still looks at the folder.
    lock: Mutex<Option<Flock<File>>>,
}

/// A process of a lab. The start time tells it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    pid: i32,
    start_ticks: u64,
}

impl RunFolder {
    /// Takes the folder of lab `name` below `base`, ending whatever a killed lab of any name has left behind there.
    ///
    /// # Errors
    /// When a lab of that name is running, or the folder cannot be made.
    pub fn take(base: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = base.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        if path.as_os_str().len() > LONGEST_FOLDER {
            bail!(
                "{} is too long a path for sockets ({LONGEST_FOLDER} bytes at most); start the lab from a folder nearer to the root",
                path.display()
            );
        }
        end_leftovers(base)?;
        let Some(lock) = try_lock(&path)? else {
            bail!(
                "lab \"{name}\" is running; end it with `elab down --name {name}`, or choose another --name"
            );
        };
        remove_old_evidence(&path)?;
        Ok(Self {
            path,
            processes: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Lets the next lab of this name have the folder.
    pub fn release(&self) {
        drop(
            self.lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Puts a process on the list of those to be ended if the lab is killed.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn add_process(&self, name: &str, pid: Pid) -> Result<()> {
        // It may have ended already; then there is nothing to remember.
        let Some(start_ticks) = start_ticks(pid) else {
            return Ok(());
        };
        let mut processes = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.retain(|entry| start_ticks_of(entry) == Some(entry.start_ticks));
        processes.push(Entry {
            name: name.into(),
            pid: pid.as_raw(),
            start_ticks,
        });
        write_list(&self.path, &processes)
    }
}

/// The names that make good folder names, and nothing else.
fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || !name.chars().all(fine) {
        bail!("\"{name}\" is no name for a lab: 1 to 32 letters, digits, - or _");
    }
    Ok(())
}

/// Removes what an earlier lab of this name has left for people: it would be mistaken for this one's.
fn remove_old_evidence(folder: &Path) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let old = [".console.log", ".serial.log", ".qemu.log", ".pcapng"]
            .iter()
            .any(|ending| name.ends_with(ending))
            || ["nfs-sr.log", "report.json", "report.html"].contains(&name.as_str());
        if old {
            fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        }
    }
    Ok(())
}

fn try_lock(folder: &Path) -> Result<Option<Flock<File>>> {
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Whether a lab holds this folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn is_running(folder: &Path) -> Result<bool> {
    Ok(folder.join("lock").exists() && try_lock(folder)?.is_none())
}

/// Kills the processes of labs below `base` that were themselves killed.
///
/// # Errors
/// When a list of processes cannot be read.
pub fn end_leftovers(base: &Path) -> Result<()> {
    for folder in fs::read_dir(base).with_context(|| format!("cannot read {}", base.display()))? {
        let folder = folder?.path();
        let list = folder.join("processes.json");
        let text = match fs::read_to_string(&list) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", list.display()));
            }
        };
        // Held until its processes are ended, so that no new lab takes the folder meanwhile.
        let Some(_lock) = try_lock(&folder)? else {
            continue;
        };
        let entries: Vec<Entry> = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; delete it", list.display()))?;
        for entry in entries {
            if start_ticks_of(&entry) == Some(entry.start_ticks) {
                // Gone in between is as good.
                let _ = kill(Pid::from_raw(entry.pid), Signal::SIGKILL);
            }
        }
        fs::remove_file(&list).with_context(|| format!("cannot delete {}", list.display()))?;
    }
    Ok(())
}

fn write_list(folder: &Path, processes: &[Entry]) -> Result<()> {
    let path = folder.join("processes.json");
    let next = folder.join("processes.json.new");
    let text = serde_json::to_string(processes).context("cannot write down the processes")?;
    fs::write(&next, text)
        .and_then(|()| fs::rename(&next, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn start_ticks_of(entry: &Entry) -> Option<u64> {
    start_ticks(Pid::from_raw(entry.pid))
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat` (proc(5)). The name in field 2 may hold
/// anything, but ends with the last parenthesis.
fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_second_lab_of_the_same_name_is_refused_while_the_first_lives() {
        let base = tempfile::tempdir().unwrap();
        let first = RunFolder::take(base.path(), "one").unwrap();
        let error = RunFolder::take(base.path(), "one").unwrap_err();
        assert!(
            error.to_string().contains("elab down --name one"),
            "{error}"
        );
        RunFolder::take(base.path(), "two").unwrap();
        drop(first);
        RunFolder::take(base.path(), "one").unwrap();
    }

    #[test]
    fn processes_of_a_killed_lab_are_ended_and_those_of_a_living_one_are_not() {
        let base = tempfile::tempdir().unwrap();
        let mut orphan = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = |child: &std::process::Child| Pid::from_raw(i32::try_from(child.id()).unwrap());
        let killed = RunFolder::take(base.path(), "killed").unwrap();
        killed.add_process("h1", pid(&orphan)).unwrap();
        // The lock goes with the process; the list stays.
        drop(killed);
        let living = RunFolder::take(base.path(), "living").unwrap();
        assert!(!orphan.wait().unwrap().success());
        living.add_process("h1", pid(&child)).unwrap();
        RunFolder::take(base.path(), "third").unwrap();
        assert!(
            child.try_wait().unwrap().is_none(),
            "a living lab's process was ended"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_number_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(stranger.id()).unwrap();
        let folder = RunFolder::take(base.path(), "killed").unwrap();
        let entry = Entry {
            name: "h1".into(),
            pid,
            start_ticks: 1,
        };
        write_list(folder.path(), &[entry]).unwrap();
        drop(folder);
        RunFolder::take(base.path(), "next").unwrap();
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn evidence_of_an_earlier_lab_goes_and_all_else_stays() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("one");
        fs::create_dir(&folder).unwrap();
        for name in [
            "session.console.log",
            "h1.serial.log",
            "report.html",
            "up.log",
            "notes.txt",
        ] {
            fs::write(folder.join(name), "x").unwrap();
        }
        RunFolder::take(base.path(), "one").unwrap();
        let mut left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "notes.txt", "up.log"]);
    }

    #[test]
    fn names_stay_inside_the_folder() {
        let base = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b", "a b", &"x".repeat(33)] {
            assert!(RunFolder::take(base.path(), name).is_err(), "{name}");
        }
    }
}
