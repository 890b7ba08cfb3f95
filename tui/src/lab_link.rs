//! The way to a running lab: a thread that sends commands to its socket and gives back what it says, so that a slow
//! answer never holds up a key.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use lab_protocol::{Command, Response};
use serde_json::Value;

use crate::app::Input;
use crate::command;

/// Sends commands, in order.
#[derive(Debug)]
pub struct LabLink {
    commands: Sender<Command>,
}

impl LabLink {
    /// A link to the lab whose socket lies in `folder`. Answers go to `answers`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(folder: &Path, answers: Sender<Input>) -> std::io::Result<Self> {
        let socket = folder.join("lab.sock");
        let (commands, incoming) = channel();
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || serve(&socket, &incoming, &answers))?;
        Ok(Self { commands })
    }

    /// Sends a command; its answer comes as an input.
    pub fn send(&self, command: Command) {
        // The thread lives as long as we do.
        let _ = self.commands.send(command);
    }
}

fn serve(socket: &Path, commands: &Receiver<Command>, answers: &Sender<Input>) {
    let mut connection = None;
    for command in commands {
        let typed = matches!(command, Command::ConsoleInput { .. });
        let result = execute(&mut connection, socket, &command);
        // Each key at a console would be a message.
        if typed && result.is_ok() {
            continue;
        }
        let answer = Input::Answer {
            words: command::words(&command),
            result,
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// Asks the lab for something at once, outside any thread: how far its clock is, or that it may end.
///
/// # Errors
/// What the lab says, or that it does not answer.
pub fn ask(folder: &Path, command: &Command) -> Result<Value, String> {
    exchange(&mut None, &folder.join("lab.sock"), command)
}

fn execute(
    connection: &mut Option<BufReader<UnixStream>>,
    socket: &Path,
    command: &Command,
) -> Result<String, String> {
    exchange(connection, socket, command).map(|value| match value {
        Value::Null => String::new(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    })
}

fn exchange(
    connection: &mut Option<BufReader<UnixStream>>,
    socket: &Path,
    command: &Command,
) -> Result<Value, String> {
    let gone = |_| "the lab does not answer; it has ended or is ending".to_owned();
    let reader = match connection {
        Some(reader) => reader,
        None => {
            let stream = UnixStream::connect(socket).map_err(gone)?;
            connection.insert(BufReader::new(stream))
        }
    };
    let mut line = serde_json::to_string(command).map_err(|error| error.to_string())?;
    line.push('\n');
    let mut answer = String::new();
    let exchanged = reader
        .get_mut()
        .write_all(line.as_bytes())
        .and_then(|()| reader.read_line(&mut answer));
    if let Err(error) = exchanged {
        *connection = None;
        return Err(gone(error));
    }
    match serde_json::from_str(&answer) {
        Ok(Response::Ok { value }) => Ok(value),
        Ok(Response::Error { message }) => Err(message),
        Err(_) => {
            *connection = None;
            Err("the lab ended before it answered".into())
        }
    }
}
