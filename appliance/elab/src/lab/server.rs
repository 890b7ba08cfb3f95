//! `lab.sock`: commands as JSON lines, each answered by a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use lab_protocol::{Command, Response};

use super::Inner;

/// The socket's name in the run folder.
pub(crate) const SOCKET: &str = "lab.sock";
/// Longest command line.
const MAX_LINE: u64 = 64 * 1024;

impl Inner {
    pub(crate) fn serve(self: &Arc<Self>) -> Result<()> {
        let path = self.folder.file(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        let inner = Arc::downgrade(self);
        // It ends with the process: a lab is the last thing its process does.
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let inner = Weak::clone(&inner);
                    // Without a thread for it the client sees its connection closed.
                    let _ = std::thread::Builder::new()
                        .name("command".into())
                        .spawn(move || answer(&stream, &inner));
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }
}

/// Answers one client until it goes or the lab ends.
fn answer(stream: &UnixStream, inner: &Weak<Inner>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let response = match (serde_json::from_str::<Command>(&line), inner.upgrade()) {
            (_, None) => error("the lab has ended"),
            (Err(wrong), _) => error(format!("this is no command: {wrong}")),
            (Ok(command), Some(inner)) => match inner.execute(&command) {
                Ok(value) => Response::Ok { value },
                Err(wrong) => error(format!("{wrong:#}")),
            },
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        let mut writer = stream;
        writer.write_all(text.as_bytes())?;
        // What follows a line that was cut is no beginning of another.
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

fn error(message: impl Into<String>) -> Response {
    Response::Error {
        message: message.into(),
    }
}
