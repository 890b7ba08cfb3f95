//! Commands that run beside the screen, each as this program anew. They go on when the screen is left, so what they print goes
//! into a file; its last line is their progress. One that is cancelled is told to end as by Ctrl-C, cleans up, and is forgotten.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::app::Input;

/// How often it is looked what a command has printed, and whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// More of a line than fits on any screen.
const LINE_MOST: usize = 1000;

/// A command that runs.
#[derive(Debug)]
pub struct Beside {
    /// What it prints.
    pub output: PathBuf,
    cancel: Sender<()>,
}

impl Beside {
    /// Tells it to end. Said twice, it ends at once.
    pub fn cancel(&self) {
        // One that has ended needs nothing.
        let _ = self.cancel.send(());
    }
}

/// Starts a command; what it prints lies below `runs`. Its progress and its end come as inputs.
///
/// # Errors
/// When it cannot be started.
pub fn start(words: &[String], runs: &Path, inputs: Sender<Input>) -> io::Result<Beside> {
    let output = output_file(words, runs);
    std::fs::create_dir_all(runs)?;
    let log = File::create(&output)?;
    let child = Command::new(std::env::current_exe()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let (cancel, cancelled) = channel();
    let running = Running {
        child,
        output: output.clone(),
        words: words.to_vec(),
    };
    std::thread::Builder::new()
        .name("beside".into())
        .spawn(move || {
            let words = running.words.join(" ");
            let result = running.watch(&cancelled, &inputs);
            // Nobody looks any more when this fails.
            let _ = inputs.send(Input::Answer { words, result });
        })?;
    Ok(Beside { output, cancel })
}

fn output_file(words: &[String], runs: &Path) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = words.join("-").chars().map(plain).take(80).collect();
    runs.join(format!("{name}.log"))
}

struct Running {
    child: Child,
    output: PathBuf,
    words: Vec<String>,
}

impl Running {
    /// Until it has ended.
    fn watch(mut self, cancel: &Receiver<()>, inputs: &Sender<Input>) -> Result<String, String> {
        let mut file = File::open(&self.output).map_err(|error| error.to_string())?;
        let mut said = LastLine::default();
        let mut cancelled = false;
        loop {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            let mut fresh = Vec::new();
            file.read_to_end(&mut fresh)
                .map_err(|error| error.to_string())?;
            if said.take(&fresh) {
                let progress = Input::Progress {
                    words: self.words.join(" "),
                    said: said.line.clone(),
                };
                // The command goes on without us.
                let _ = inputs.send(progress);
            }
            match ended {
                Some(status) if status.success() => return Ok(said.line),
                Some(_) if cancelled => return self.forget(),
                Some(_) => return Err(format!("{}; see {}", said.line, self.output.display())),
                None => {}
            }
            match cancel.recv_timeout(LOOK_EVERY) {
                Ok(()) => {
                    // Nobody has waited for the child yet, so its number is its own.
                    kill_process(Pid::from_child(&self.child), Signal::TERM)
                        .map_err(|error| format!("cannot end it: {error}"))?;
                    cancelled = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The screen is gone.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Removes what it printed, and what an export keeps so that another could go on from there.
    fn forget(&self) -> Result<String, String> {
        let mut left = vec![self.output.clone()];
        if let [first, _, file, ..] = self.words.as_slice()
            && first == "export"
        {
            left.extend(
                [".part", ".part.json", ".part.json.new"].map(|end| format!("{file}{end}").into()),
            );
        }
        for path in left {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!(
                        "cancelled, but {} is left: {error}",
                        path.display()
                    ));
                }
                _ => {}
            }
        }
        Ok("cancelled".into())
    }
}

/// The last whole line of what was printed.
#[derive(Debug, Default)]
struct LastLine {
    line: String,
    begun: Vec<u8>,
}

impl LastLine {
    /// Takes more; says whether there is another last line.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let mut changed = false;
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                // What is indented says more of the line before.
                let more = self.begun.starts_with(b"  ") && !self.begun.contains(&b'%');
                let line = String::from_utf8_lossy(&self.begun).trim().to_owned();
                self.begun.clear();
                if !line.is_empty() && !more {
                    self.line = line;
                    changed = true;
                }
            } else if self.begun.len() < LINE_MOST {
                self.begun.push(*byte);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let mut said = LastLine::default();
        assert!(!said.take(b"10 % of"));
        assert!(said.take(b" 3 GiB\n"));
        assert_eq!(said.line, "10 % of 3 GiB");
        assert!(!said.take(b"\n"));
        assert!(said.take(b"20 %\r30 %\r"));
        assert_eq!(said.line, "30 %");
        assert!(said.take(b"  4 % of 3 GiB\n"));
        assert!(said.take(b"created VM\n  disk\n  network card\n"));
        assert_eq!(said.line, "created VM");
    }

    #[test]
    fn an_export_that_is_cancelled_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["g1.xva.part", "g1.xva.part.json", "export.log"] {
            std::fs::write(path(name), "").unwrap();
        }
        let running = Running {
            child: Command::new("sleep").arg("1000").spawn().unwrap(),
            output: path("export.log").into(),
            words: vec!["export".into(), "g1".into(), path("g1.xva")],
        };
        let (cancel, cancelled) = channel();
        let (inputs, _incoming) = channel();
        cancel.send(()).unwrap();
        assert_eq!(running.watch(&cancelled, &inputs), Ok("cancelled".into()));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_is_printed_lies_in_a_file_of_a_plain_name() {
        let words = ["export", "g1", "/tmp/a b.xva"].map(str::to_owned);
        let file = output_file(&words, Path::new("runs"));
        assert_eq!(file, Path::new("runs/export-g1--tmp-a-b-xva.log"));
    }
}
