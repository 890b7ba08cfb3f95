//! How far something is and when it ends.

use std::time::Duration;

/// What is shown of an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Time left, as soon as it can be told. Never more than it was before.
    pub left: Option<Duration>,
}

/// Is told how far it is.
pub type Watch<'a> = dyn FnMut(Progress) + 'a;

/// Before this nothing can be said of the speed.
const WARM_UP: Duration = Duration::from_secs(1);

/// Estimates the time left by the mean speed so far. If things slow down, the estimate stands still rather than running
/// backwards.
#[derive(Clone, Debug)]
pub struct Estimate {
    total: u64,
    begun: u64,
    done: u64,
    left: Option<Duration>,
}

impl Estimate {
    /// Of `total` bytes, `begun` were done earlier.
    #[must_use]
    pub fn new(total: u64, begun: u64) -> Self {
        let begun = begun.min(total);
        Self {
            total,
            begun,
            done: begun,
            left: None,
        }
    }

    /// So much is done, so long after the start.
    pub fn advance(&mut self, done: u64, elapsed: Duration) -> Progress {
        self.done = done.clamp(self.done, self.total);
        let now = self.done - self.begun;
        if elapsed >= WARM_UP && now > 0 || self.done == self.total {
            let rest = (self.total - self.done) as f64 / now.max(1) as f64;
            let left = elapsed.mul_f64(rest.min(1e6));
            self.left = Some(self.left.map_or(left, |before| before.min(left)));
        }
        Progress {
            done: self.done,
            total: self.total,
            left: self.left,
        }
    }
}
