//! The one clock of a lab: nanoseconds of `CLOCK_MONOTONIC` since the lab's start.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Reads the lab's clock. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct LabClock {
    start: Instant,
    start_unix_ns: u64,
}

impl LabClock {
    /// A clock that shows 0 now.
    #[must_use]
    pub fn start() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            start_unix_ns: saturate(unix.as_nanos()),
        }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        saturate(self.start.elapsed().as_nanos())
    }

    /// The wall clock at the start, in nanoseconds since 1970.
    #[must_use]
    pub fn start_unix_ns(&self) -> u64 {
        self.start_unix_ns
    }
}

fn saturate(ns: u128) -> u64 {
    u64::try_from(ns).unwrap_or(u64::MAX)
}
