//! What a lab reports and what it can be told: all that the command line, the terminal interface,
//! scenarios, checkers and reports know of a lab.
//!
//! A lab appends [`Record`]s to `events.jsonl` in its folder, one JSON object a line, and takes [`Command`]s as JSON
//! lines on the Unix socket `lab.sock` beside it, answering each with a [`Response`] line.
//!
//! All times are nanoseconds of one clock, the machine's `CLOCK_MONOTONIC`, counted from the lab's start.

#![forbid(unsafe_code)]

pub mod command;
pub mod connection;
pub mod event;

pub use command::{Command, LinkFault, Response, Restart, RestartFrom};
pub use connection::{Connection, ExecuteError};
pub use event::{Event, Phase, PoolMark, ProbeKind, Record, Role};

/// Version of the records and commands here; a reader refuses a higher one.
pub const SCHEMA: u32 = 1;
