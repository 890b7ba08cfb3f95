//! The way to a running lab: commands as lines on its socket, each answered by a line.
//!
//! Blocking, one command at a time: whoever must not wait gives it a thread of its own.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::{Command, Response};

/// Name of the socket in a lab's folder.
pub const SOCKET: &str = "lab.sock";

/// Why a command yielded nothing.
#[derive(Debug)]
pub enum ExecuteError {
    /// The lab cannot be reached any more.
    Ended(io::Error),
    /// The lab's own words.
    Refused(String),
}

impl std::fmt::Display for ExecuteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(_) => f.write_str("the lab does not answer; it has ended or is ending"),
            Self::Refused(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for ExecuteError {}

/// A connection to a running lab.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the lab whose folder this is.
    ///
    /// # Errors
    /// When none listens there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(folder.join(SOCKET))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Has a command carried out and gives what it yields. After [`ExecuteError::Ended`] the connection is of no more use.
    ///
    /// # Errors
    /// What the lab says, or that it has ended.
    pub fn execute(&mut self, command: &Command) -> Result<Value, ExecuteError> {
        let answer = self.exchange(command).map_err(ExecuteError::Ended)?;
        match serde_json::from_str(&answer) {
            Ok(Response::Ok { value }) => Ok(value),
            Ok(Response::Error { message }) => Err(ExecuteError::Refused(message)),
            Err(error) => Err(ExecuteError::Ended(error.into())),
        }
    }

    fn exchange(&mut self, command: &Command) -> io::Result<String> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        line.clear();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_lab_answers_refuses_or_is_gone() {
        let folder = std::env::temp_dir().join(format!("lab-protocol-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let lab = std::thread::spawn(move || {
            let mut connection = BufReader::new(listener.accept().unwrap().0);
            for answer in [
                r#"{"result":"ok","value":7}"#,
                r#"{"result":"error","message":"no"}"#,
            ] {
                let mut line = String::new();
                connection.read_line(&mut line).unwrap();
                assert_eq!(line, "{\"command\":\"status\"}\n");
                writeln!(connection.get_mut(), "{answer}").unwrap();
            }
        });
        let mut connection = Connection::open(&folder).unwrap();
        assert_eq!(connection.execute(&Command::Status).unwrap(), 7);
        let refused = connection.execute(&Command::Status).unwrap_err();
        assert_eq!(refused.to_string(), "no");
        lab.join().unwrap();
        let ended = connection.execute(&Command::Status).unwrap_err();
        assert!(matches!(ended, ExecuteError::Ended(_)), "{ended}");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(Connection::open(&folder).is_err());
    }
}
