//! Commands that run beside the screen, each as this program anew. They go on when the screen is left, so what they print goes
//! into a file; its last line is their progress.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::app::Input;

/// How often it is looked what a command has printed, and whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// More of a line than fits on any screen.
const LINE_MOST: usize = 1000;

/// Starts a command; what it prints lies below `runs`. Its progress and its end come as inputs.
///
/// # Errors
/// When it cannot be started.
pub fn start(words: &[String], runs: &Path, inputs: Sender<Input>) -> io::Result<()> {
    let output = output_file(words, runs);
    let log = File::create(&output)?;
    let child = Command::new(std::env::current_exe()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let words = words.join(" ");
    std::thread::Builder::new()
        .name("beside".into())
        .spawn(move || {
            let result = watch(child, &output, &words, &inputs);
            // Nobody looks any more when this fails.
            let _ = inputs.send(Input::Answer { words, result });
        })?;
    Ok(())
}

fn output_file(words: &[String], runs: &Path) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = words.join("-").chars().map(plain).take(80).collect();
    runs.join(format!("{name}.log"))
}

fn watch(
    mut child: Child,
    output: &Path,
    words: &str,
    inputs: &Sender<Input>,
) -> Result<String, String> {
    let mut file = File::open(output).map_err(|error| error.to_string())?;
    let mut said = LastLine::default();
    loop {
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        let mut fresh = Vec::new();
        file.read_to_end(&mut fresh)
            .map_err(|error| error.to_string())?;
        if said.take(&fresh) {
            let progress = Input::Progress {
                words: words.to_owned(),
                said: said.line.clone(),
            };
            // The command goes on without us.
            let _ = inputs.send(progress);
        }
        match ended {
            Some(status) if status.success() => return Ok(said.line),
            Some(_) => return Err(format!("{}; see {}", said.line, output.display())),
            None => std::thread::sleep(LOOK_EVERY),
        }
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
                let line = String::from_utf8_lossy(&self.begun).trim().to_owned();
                self.begun.clear();
                if !line.is_empty() {
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
    }

    #[test]
    fn what_is_printed_lies_in_a_file_of_a_plain_name() {
        let words = ["export", "g1", "/tmp/a b.xva"].map(str::to_owned);
        let file = output_file(&words, Path::new("runs"));
        assert_eq!(file, Path::new("runs/export-g1--tmp-a-b-xva.log"));
    }
}
