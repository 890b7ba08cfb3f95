//! What a run leaves behind, and what is made of it: recordings of sessions, captures, the machine's fingerprint.

pub mod archive;
mod capture;
pub mod cast;
pub mod fingerprint;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use lab_protocol::{Event, Record};
use sha2::{Digest, Sha256};

use crate::verdict::file_system::FileSystem;
use cast::Recording;

/// What a lab needs while it runs and nobody afterwards; the settings of hosts hold the pool's key.
const SCAFFOLDING: [&str; 4] = [".sock", ".conf", "lock", "processes.json"];
/// Where the guests' disks are.
const EXPORT: &str = "export";
/// What was found on the guests' disks.
const FILE_SYSTEMS: &str = "file-systems.json";
/// Ending of a session's recording.
const RECORDING: &str = ".output.jsonl";
/// Ending of the capture of a port.
const CAPTURE: &str = ".pcapng";

/// Makes of a run's raw evidence what people open: a cast of each session, phases in the captures.
///
/// # Errors
/// When files cannot be read or written.
pub fn finish(folder: &Path, title: &str, records: &[Record]) -> io::Result<()> {
    for name in names(folder)? {
        if let Some(session) = name.strip_suffix(RECORDING) {
            let recording = Recording::read(&folder.join(&name))?;
            let cast = recording.asciicast(title, records);
            fs::write(folder.join(format!("{session}.cast")), cast)?;
        }
        if name.ends_with(CAPTURE) {
            capture::annotate(&folder.join(&name), &marks_since_1970(records))?;
        }
    }
    Ok(())
}

/// Marks of the event log as captures count time.
fn marks_since_1970(records: &[Record]) -> Vec<(u64, String)> {
    let start = records.iter().find_map(|record| match record.event {
        Event::LabStarted { unix_ns, .. } => Some(unix_ns),
        _ => None,
    });
    let start = start.unwrap_or_default();
    cast::markers(records)
        .into_iter()
        .map(|(t_ns, text)| (start + t_ns, text))
        .collect()
}

/// Writes down what was found on the guests' disks, so that a run can be judged again.
///
/// # Errors
/// When the file cannot be written.
pub fn write_file_systems(folder: &Path, found: &[(String, FileSystem)]) -> io::Result<()> {
    fs::write(folder.join(FILE_SYSTEMS), serde_json::to_vec_pretty(found)?)
}

/// What [`write_file_systems`] wrote; nothing for a run that has none.
///
/// # Errors
/// When the file holds something else.
pub fn read_file_systems(folder: &Path) -> io::Result<Vec<(String, FileSystem)>> {
    match fs::read(folder.join(FILE_SYSTEMS)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes what is large and says nothing about a run that passed: disks and captures.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_heavy(folder: &Path) -> io::Result<()> {
    let export = folder.join(EXPORT);
    if export.exists() {
        fs::remove_dir_all(export)?;
    }
    for name in names(folder)? {
        if name.ends_with(CAPTURE) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

/// Removes what only a running lab needs.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_scaffolding(folder: &Path) -> io::Result<()> {
    for name in names(folder)? {
        if SCAFFOLDING.iter().any(|ending| name.ends_with(ending)) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

/// Names in a folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// SHA-256 of a file, hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
