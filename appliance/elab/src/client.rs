//! Finds a running lab by its name and tells it what to do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lab_protocol::connection::SOCKET;
use lab_protocol::{Command, Connection};
use serde_json::Value;

use crate::run_folder;

/// A connection to a running lab.
#[derive(Debug)]
pub struct Client {
    folder: PathBuf,
    connection: Connection,
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
        let connection = Connection::open(&folder).with_context(|| {
            format!(
                "lab \"{name}\" is starting or ending: {} does not answer",
                folder.join(SOCKET).display()
            )
        })?;
        Ok(Self { folder, connection })
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
        Ok(self.connection.execute(command)?)
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
