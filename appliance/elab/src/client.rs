//! The other side of `lab.sock`: tells a running lab what to do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lab_protocol::{Command, Response};
use serde_json::Value;

use crate::run_folder;

/// A connection to a running lab.
#[derive(Debug)]
pub struct Client {
    folder: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to lab `name` below `base`.
    ///
    /// # Errors
    /// When no such lab runs.
    pub fn connect(base: &Path, name: &str) -> Result<Self> {
        let folder = base.join(name);
        if !folder.exists() || !run_folder::is_running(&folder)? {
            bail!(
                "no lab \"{name}\" is running here; `elab up --name {name}` starts one{}",
                others(base)
            );
        }
        let socket = folder.join("lab.sock");
        let stream = UnixStream::connect(&socket).with_context(|| {
            format!(
                "lab \"{name}\" is starting or ending: {} does not answer",
                socket.display()
            )
        })?;
        Ok(Self {
            folder,
            reader: BufReader::new(stream),
        })
    }

    /// The lab's run folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has a command carried out and gives what it yields.
    ///
    /// # Errors
    /// What the lab says, or that it ended meanwhile.
    pub fn execute(&mut self, command: &Command) -> Result<Value> {
        let mut line = serde_json::to_string(command).context("cannot write the command down")?;
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .context("the lab has ended")?;
        line.clear();
        self.reader
            .read_line(&mut line)
            .context("the lab has ended")?;
        match serde_json::from_str(&line) {
            Ok(Response::Ok { value }) => Ok(value),
            Ok(Response::Error { message }) => Err(anyhow!(message)),
            Err(_) => bail!("the lab ended before it answered"),
        }
    }
}

/// Which labs one could have meant.
fn others(base: &Path) -> String {
    let Ok(folders) = std::fs::read_dir(base) else {
        return String::new();
    };
    let mut names: Vec<_> = folders
        .flatten()
        .filter(|folder| run_folder::is_running(&folder.path()).unwrap_or(false))
        .map(|folder| format!("--name {}", folder.file_name().display()))
        .collect();
    names.sort();
    if names.is_empty() {
        String::new()
    } else {
        format!("; running are: {}", names.join(", "))
    }
}
