//! What a run's folder holds for the eye: recording of the session, consoles, reports.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use scenarios::evidence::cast::Recording;
use serde_json::Value;

use crate::app::Run;
use crate::screen::{Output, Screens};

/// Ending of a session's recording: a header line with its size, then a line of [nanoseconds, text] for whatever was printed.
const RECORDING: &str = ".output.jsonl";
/// So much of a console is read when one attaches.
const CONSOLE_TAIL: u64 = 64 * 1024;

/// A file that grows, read as it does.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            rest: Vec::new(),
        }
    }

    /// What was appended since, from `from_end` bytes before the end at first. A file that is not there yet has nothing.
    fn read(&mut self, from_end: Option<u64>) -> io::Result<Vec<u8>> {
        if self.file.is_none() {
            let mut file = match File::open(&self.path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            if let Some(from_end) = from_end {
                let length = file.metadata()?.len();
                file.seek(SeekFrom::Start(length.saturating_sub(from_end)))?;
            }
            self.file = Some(file);
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// Whole lines that were appended since.
    fn lines(&mut self) -> io::Result<Vec<String>> {
        let fresh = self.read(None)?;
        self.rest.extend(fresh);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

/// The files of a run that make screens.
#[derive(Debug)]
pub struct Recordings {
    folder: PathBuf,
    /// The first recording that was found.
    session: Option<Tail>,
    console: Option<(String, Tail)>,
}

impl Recordings {
    /// Of a run's folder.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            session: None,
            console: None,
        }
    }

    /// Reads what has come into `screens`. Says whether the session or the console printed anything.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn follow(&mut self, screens: &mut Screens) -> io::Result<Printed> {
        let mut printed = Printed::default();
        if self.session.is_none() {
            self.session = find_recording(&self.folder)?.map(Tail::new);
        }
        if let Some(session) = &mut self.session {
            for line in session.lines()? {
                printed.session |= take_line(&line, screens);
            }
        }
        if let Some(vm) = screens.attached().map(str::to_owned) {
            if self.console.as_ref().is_none_or(|(known, _)| *known != vm) {
                let path = self.folder.join(format!("{vm}.console.log"));
                self.console = Some((vm.clone(), Tail::new(path)));
            }
            if let Some((_, tail)) = &mut self.console {
                let bytes = tail.read(Some(CONSOLE_TAIL))?;
                printed.console = !bytes.is_empty();
                if printed.console {
                    screens.add_console_output(&vm, &bytes);
                }
            }
        }
        Ok(printed)
    }
}

/// The recording of a run's first session, if there is one yet.
fn find_recording(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(RECORDING) {
            names.push(path);
        }
    }
    Ok(names.into_iter().min())
}

/// Writes what a run's session showed in a stretch of the lab's time, as an asciicast beside its log; gives the file.
///
/// # Errors
/// When there is no recording, or the file cannot be written.
pub fn save_recording(folder: &Path, from_ns: u64, to_ns: u64) -> io::Result<PathBuf> {
    let path = find_recording(folder)?.ok_or(io::ErrorKind::NotFound)?;
    let mut recording = Recording::read(&path)?;
    // It begins with the screen as it was then.
    let mut before = vt100::Parser::new(recording.rows, recording.columns, 0);
    let mut output = Vec::new();
    for (t_ns, text) in recording.output {
        if t_ns < from_ns {
            before.process(text.as_bytes());
        } else if t_ns <= to_ns {
            output.push((t_ns, text));
        }
    }
    let state = before.screen().contents_formatted();
    output.insert(0, (from_ns, String::from_utf8_lossy(&state).into_owned()));
    recording.output = output;
    let file = folder.join(format!("recording-{}s.cast", from_ns / 1_000_000_000));
    std::fs::write(
        &file,
        recording.asciicast("a recording of the session", &[]),
    )?;
    Ok(file)
}

/// Takes a line of a recording; `true` when it printed.
fn take_line(line: &str, screens: &mut Screens) -> bool {
    match serde_json::from_str(line) {
        Ok(Value::Object(header)) => {
            let size = |name: &str| u16::try_from(header.get(name)?.as_u64()?).ok();
            if let (Some(columns), Some(rows)) = (size("columns"), size("rows")) {
                screens.resize_session(rows, columns);
            }
            false
        }
        Ok(Value::Array(fields)) => match (
            fields.first().and_then(Value::as_u64),
            fields.get(1).and_then(Value::as_str),
        ) {
            (Some(t_ns), Some(text)) => {
                screens.add_session_output(Output {
                    t_ns,
                    bytes: text.as_bytes().to_vec(),
                });
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// What printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// The session.
    pub session: bool,
    /// The console that is looked at.
    pub console: bool,
}

impl Printed {
    /// Whether anything did.
    #[must_use]
    pub fn any(self) -> bool {
        self.session || self.console
    }
}

/// The runs below `base`, the newest first.
///
/// # Errors
/// When the folder cannot be read; one that is not there has no runs.
pub fn list(base: &Path, now: SystemTime) -> io::Result<Vec<Run>> {
    let entries = match std::fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        let Ok(log) = std::fs::metadata(folder.join("events.jsonl")) else {
            continue;
        };
        let age = log
            .modified()
            .ok()
            .and_then(|written| now.duration_since(written).ok());
        let mut run = Run {
            name: folder
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            age_s: age.map_or(0, |age| age.as_secs()),
            running: crate::lab_link::ask(&folder, &lab_protocol::Command::Status).is_ok(),
            folder,
            ..Run::default()
        };
        add_report(&mut run);
        runs.push(run);
    }
    runs.sort_by(|a, b| a.age_s.cmp(&b.age_s).then_with(|| a.name.cmp(&b.name)));
    Ok(runs)
}

/// What its report says, if it has one.
fn add_report(run: &mut Run) {
    let Ok(text) = std::fs::read_to_string(run.folder.join("report.json")) else {
        return;
    };
    let Ok(report) = serde_json::from_str::<Value>(&text) else {
        return;
    };
    run.migrations = report["migrations"].as_array().map(|all| all.len() as u64);
    run.pause_ms = report["migrations"].as_array().and_then(|all| {
        let mut pauses: Vec<f64> = all
            .iter()
            .filter_map(|one| one["pause_ms"].as_f64())
            .collect();
        pauses.sort_by(f64::total_cmp);
        pauses.get(pauses.len() / 2).copied()
    });
    run.keys_lost = report["typist"]["lost"].as_u64();
    run.gap_ms = report["probes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|probe| probe["name"] == "udp")
        .and_then(|probe| median(&probe["gap_ms"]));
}

/// The median of a list of figures, or the figure itself.
fn median(value: &Value) -> Option<f64> {
    let Some(values) = value.as_array() else {
        return value.as_f64();
    };
    let mut numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_followed_as_it_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("session{RECORDING}"));
        let mut recordings = Recordings::new(folder.path());
        let mut screens = Screens::default();
        assert_eq!(recordings.follow(&mut screens).unwrap(), Printed::default());

        let whole = "{\"columns\":40,\"rows\":10}\n[1500,\"mov\"]\n[1750,\"ie\"]\n";
        let (early, _) = whole.split_at(whole.len() - 5);
        std::fs::write(&path, early).unwrap();
        assert!(recordings.follow(&mut screens).unwrap().session);
        screens.show_at(None);
        assert_eq!(screens.session().size(), (10, 40));
        assert_eq!(screens.session().contents(), "mov");

        std::fs::write(&path, whole).unwrap();
        recordings.follow(&mut screens).unwrap();
        screens.show_at(Some(1749));
        assert_eq!(screens.session().contents(), "mov");
        screens.show_at(Some(1750));
        assert_eq!(screens.session().contents(), "movie");
    }

    #[test]
    fn a_recording_begins_with_the_screen_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let lines =
            "{\"columns\":40,\"rows\":10}\n[1000,\"the \"]\n[2000,\"gold\"]\n[3000,\" rush\"]\n";
        std::fs::write(folder.path().join(format!("session{RECORDING}")), lines).unwrap();
        let file = save_recording(folder.path(), 1500, 2500).unwrap();
        let cast = std::fs::read_to_string(file).unwrap();
        let printed: String = cast
            .lines()
            .skip(1)
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()[2]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let mut screen = vt100::Parser::new(10, 40, 0);
        screen.process(printed.as_bytes());
        assert_eq!(screen.screen().contents(), "the gold");
    }

    #[test]
    fn a_folder_without_runs_has_none() {
        let now = SystemTime::now();
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(list(&folder.path().join("none"), now).unwrap(), []);
        std::fs::create_dir(folder.path().join("other")).unwrap();
        assert_eq!(list(folder.path(), now).unwrap(), []);
        let run = folder.path().join("demo");
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join("events.jsonl"), "").unwrap();
        std::fs::write(
            run.join("report.json"),
            r#"{"migrations":[{},{}],"typist":{"lost":0}}"#,
        )
        .unwrap();
        let runs = list(folder.path(), now).unwrap();
        assert_eq!(
            (runs[0].name.as_str(), runs[0].migrations, runs[0].running),
            ("demo", Some(2), false)
        );
    }
}
