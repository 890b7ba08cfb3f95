//! Child processes that cannot outlive the lab.
//!
//! Each child has a thread that starts it and waits for it. The kernel kills the child when that thread ends
//! (`PR_SET_PDEATHSIG`), so nothing is left behind even by a lab that is itself killed. A child that slipped through
//! (the lab died between `fork` and `prctl`) is found by the run folder's list at the next start.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How a process ended, in words: `exit status: 1`, `signal: 9 (SIGKILL)`.
pub type Ending = String;

/// A running child; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    ended: Arc<(Mutex<Option<Ending>>, Condvar)>,
}

impl Process {
    /// Starts `command`. `on_end` is called from the child's own thread once it has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        mut command: Command,
        on_end: impl FnOnce(&Ending) + Send + 'static,
    ) -> io::Result<Self> {
        // Ctrl-C in the terminal is for the lab, which then ends its children in order.
        command.process_group(0);
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec the closure calls prctl and getppid alone, both async-signal-safe, and allocates
        // nothing.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() == parent {
                    Ok(())
                } else {
                    Err(io::ErrorKind::BrokenPipe.into())
                }
            });
        }
        let ended = Arc::new((Mutex::new(None), Condvar::new()));
        let (started, result) = mpsc::channel();
        let shared = Arc::clone(&ended);
        std::thread::Builder::new()
            .name(format!("{name} process"))
            .spawn(move || {
                let spawned = command.spawn();
                // What the child alone is to hold is closed here.
                drop(command);
                let child = match spawned {
                    Ok(child) => child,
                    Err(error) => {
                        // The caller waits for this below.
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let pid = Pid::from_raw(
                    i32::try_from(child.id()).expect("a process number is positive and small"),
                );
                let _ = started.send(Ok(pid));
                let ending = wait(child, pid, &shared);
                on_end(&ending);
            })?;
        let pid = result
            .recv()
            .map_err(|_| io::Error::other("the thread that starts processes has failed"))??;
        Ok(Self {
            name: name.into(),
            pid,
            ended,
        })
    }

    /// The process number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        lock(&self.ended.0).clone()
    }

    /// Sends a signal; `false` when the process has ended.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        // The number is not reaped, hence not reused, before `ended` is set, and that needs this lock.
        let ended = lock(&self.ended.0);
        if ended.is_some() {
            return Ok(false);
        }
        kill(self.pid, signal)?;
        Ok(true)
    }

    /// Waits until it has ended, but not for ever.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> Option<Ending> {
        let deadline = Instant::now() + patience;
        let (ended, changed) = &*self.ended;
        let mut ended = lock(ended);
        while ended.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            ended = changed
                .wait_timeout(ended, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        ended.clone()
    }

    /// Kills it and waits for the end.
    ///
    /// # Errors
    /// When it does not end although killed: the kernel holds it.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        match self.wait(Duration::from_secs(10)) {
            Some(_) => Ok(()),
            None => Err(io::Error::other(format!(
                "{} (process {}) does not end",
                self.name, self.pid
            ))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The parent-death signal is the second net under this one.
        let _ = self.signal(Signal::SIGKILL);
    }
}

fn wait(mut child: Child, pid: Pid, shared: &(Mutex<Option<Ending>>, Condvar)) -> Ending {
    // Waits without reaping, so that the number stays ours until the lock is held.
    while let Err(nix::errno::Errno::EINTR) =
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    {}
    let mut ended = lock(&shared.0);
    let ending = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown: {error}"),
    };
    *ended = Some(ending.clone());
    shared.1.notify_all();
    ending
}

fn lock(ended: &Mutex<Option<Ending>>) -> MutexGuard<'_, Option<Ending>> {
    ended.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let mut command = Command::new("sleep");
        command.arg("1000");
        Process::start("sleeper", command, |_| {}).unwrap()
    }

    fn exists(pid: Pid) -> bool {
        kill(pid, None).is_ok()
    }

    #[test]
    fn an_ending_is_reported_once_and_in_words() {
        let (sender, endings) = mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let process = Process::start("sh", command, move |ending| {
            sender.send(ending.clone()).unwrap()
        })
        .unwrap();
        assert_eq!(
            process.wait(Duration::from_secs(10)).unwrap(),
            "exit status: 3"
        );
        assert_eq!(
            endings.recv_timeout(Duration::from_secs(10)).unwrap(),
            "exit status: 3"
        );
        assert!(!process.signal(Signal::SIGKILL).unwrap());
    }

    #[test]
    fn kill_and_drop_end_it() {
        let process = sleeper();
        assert_eq!(process.ending(), None);
        process.kill().unwrap();
        assert!(process.ending().unwrap().contains("SIGKILL"));
        let dropped = sleeper();
        let (pid, ended) = (dropped.pid(), Arc::clone(&dropped.ended));
        drop(dropped);
        let shared = (&ended.0, &ended.1);
        let (guard, timeout) = shared
            .1
            .wait_timeout_while(lock(shared.0), Duration::from_secs(10), |ended| {
                ended.is_none()
            })
            .unwrap();
        assert!(guard.is_some() && !timeout.timed_out());
        assert!(!exists(pid));
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let error =
            Process::start("none", Command::new("/nonexistent/program"), |_| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
