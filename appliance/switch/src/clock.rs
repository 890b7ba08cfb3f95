//! The one clock of a lab: nanoseconds of `CLOCK_MONOTONIC` since the lab's start.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Reads the lab's clock. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct LabClock {
    start_monotonic_ns: u64,
    start_unix_ns: u64,
}

impl LabClock {
    /// A clock that shows 0 now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start_monotonic_ns: read(ClockId::CLOCK_MONOTONIC),
            start_unix_ns: read(ClockId::CLOCK_REALTIME),
        }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.of_monotonic(read(ClockId::CLOCK_MONOTONIC))
    }

    /// This clock's reading for one of `CLOCK_MONOTONIC`, which all processes of a machine share; 0 for what was before
    /// the start.
    #[must_use]
    pub fn of_monotonic(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_sub(self.start_monotonic_ns)
    }

    /// The wall clock at the start, in nanoseconds since 1970.
    #[must_use]
    pub fn start_unix_ns(&self) -> u64 {
        self.start_unix_ns
    }
}

fn read(clock: ClockId) -> u64 {
    // It fails for clocks that do not exist only; Linux has both of them (clock_gettime(2)).
    let time = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
