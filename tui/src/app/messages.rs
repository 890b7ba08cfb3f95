//! What comes into the application and what it asks for: its whole border with the outside.

use crossterm::event::KeyEvent;
use lab_protocol::Command;

/// An earlier run, for the list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Its folder's name.
    pub name: String,
    /// Its folder.
    pub folder: std::path::PathBuf,
    /// Seconds since it was written.
    pub age_s: u64,
    /// Whether it runs now.
    pub running: bool,
    /// Migrations in its report.
    pub migrations: Option<u64>,
    /// Median of the UDP gap, in milliseconds.
    pub gap_ms: Option<f64>,
    /// Median of the vCPUs' pause, in milliseconds.
    pub pause_ms: Option<f64>,
    /// Keys lost.
    pub keys_lost: Option<u64>,
}

/// A command that runs beside this screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its words, without `elab`.
    pub words: String,
    /// The last that it said.
    pub said: String,
    /// Whether it was told to end.
    pub ending: bool,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// A key.
    Key(KeyEvent),
    /// The mouse was pressed at this cell.
    Click {
        /// Column from 0.
        x: u16,
        /// Row from 0.
        y: u16,
    },
    /// The wheel: down is positive.
    Scroll(i32),
    /// The lab has answered a command.
    Answer {
        /// The command's words.
        words: String,
        /// What it said.
        result: Result<String, String>,
    },
    /// A command that runs beside this screen has said something.
    Progress {
        /// The command's words.
        words: String,
        /// Its last line.
        said: String,
    },
    /// One's own shell in the guest has printed.
    ShellPrinted {
        /// What.
        bytes: Vec<u8>,
        /// When it was here, on our clock.
        at_ns: u64,
    },
    /// It is over, and why.
    ShellEnded(String),
    /// The list of runs was read.
    Runs(Vec<Run>),
    /// Time has passed.
    Tick,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the lab.
    Send(Command),
    /// Read the list of runs.
    ListRuns,
    /// Show another run.
    Open(std::path::PathBuf),
    /// Show a report, in whatever shows such files.
    OpenReport(std::path::PathBuf),
    /// Write what the session showed in a stretch of the lab's time.
    SaveRecording {
        /// From here on.
        from_ns: u64,
        /// Up to here.
        to_ns: u64,
    },
    /// Run this program with these words, beside this screen.
    Run(Vec<String>),
    /// End what runs beside this screen with these words.
    CancelRun(String),
    /// Open a shell in the guest, on a terminal of this size.
    OpenShell {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Type into it.
    TypeShell(Vec<u8>),
    /// Leave, ending the lab first if so said.
    Leave {
        /// Whether the lab shall end.
        down: bool,
    },
}
