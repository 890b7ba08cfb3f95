//! The lab's side of a host's control service.

mod clock_map;
mod connection;

pub use clock_map::{ClockMap, Mapped};
pub use connection::{CallError, Connection, Heard, Listener};
