//! The way to a running lab: a thread that sends commands to its socket and gives back what it says, so that a slow
//! answer never holds up a key.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use lab_protocol::{Command, Connection, ExecuteError};
use serde_json::{Map, Value};

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
        let folder = folder.to_owned();
        let (commands, incoming) = channel();
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || serve(&folder, &incoming, &answers))?;
        Ok(Self { commands })
    }

    /// Sends a command; its answer comes as an input.
    pub fn send(&self, command: Command) {
        // The thread lives as long as we do.
        let _ = self.commands.send(command);
    }
}

fn serve(folder: &Path, commands: &Receiver<Command>, answers: &Sender<Input>) {
    let mut connection = None;
    for command in commands {
        let typed = matches!(command, Command::ConsoleInput { .. });
        let result = execute(&mut connection, folder, &command);
        // Each key at a console would be a message.
        if typed && result.is_ok() {
            continue;
        }
        let answer = Input::Answer {
            words: command::words(&command),
            result: result.map_err(|error| error.to_string()),
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
pub fn ask(folder: &Path, command: &Command) -> Result<Value, ExecuteError> {
    Connection::open(folder)
        .map_err(ExecuteError::Ended)?
        .execute(command)
}

fn execute(
    connection: &mut Option<Connection>,
    folder: &Path,
    command: &Command,
) -> Result<String, ExecuteError> {
    let open = match connection.take() {
        Some(open) => open,
        None => Connection::open(folder).map_err(ExecuteError::Ended)?,
    };
    let result = connection.insert(open).execute(command);
    if matches!(result, Err(ExecuteError::Ended(_))) {
        *connection = None;
    }
    result.map(|value| match value {
        Value::Null => String::new(),
        Value::Object(fields) => in_words(&fields),
        Value::String(text) => text,
        other => other.to_string(),
    })
}

/// The fields of an answer; what is no single figure or word is for programs.
fn in_words(fields: &Map<String, Value>) -> String {
    let words = fields.iter().filter_map(|(name, value)| {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some(format!("{} {value}", name.replace('_', " ")))
    });
    words.collect::<Vec<_>>().join(", ")
}
