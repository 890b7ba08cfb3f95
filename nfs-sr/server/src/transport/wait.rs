//! Whether an event loop waits for the next call awake or asleep.
//!
//! A processor with nothing to do halts, and in a virtual machine it takes tens of microseconds to wake: longer than to read a
//! page from memory and answer. So for a client that calls again as soon as it is answered the loop stays awake for a
//! moment. To stay awake always would take a processor from whoever else has work; a handover to another thread is no way
//! either, since that one has to be woken as well.

use std::time::Duration;

/// How soon a call must come that is waited for awake.
pub const SOON: Duration = Duration::from_micros(100);
/// After so many calls in a row that came soon, the next is expected to.
const PROVEN: u32 = 8;
/// The same after a call was waited for awake and did not come: perhaps it cannot, its sender wanting this very processor.
const DOUBTED: u32 = 512;

/// What is known of how soon calls come.
pub struct Expectation {
    /// Calls that must yet come soon, until the next is expected to.
    missing: u32,
}

impl Expectation {
    /// Nothing is known.
    pub fn new() -> Self {
        Self { missing: PROVEN }
    }

    /// The next call is expected soon: it is worth waiting awake, for at most [`SOON`].
    pub fn is_soon(&self) -> bool {
        self.missing == 0
    }

    /// It came after so long.
    pub fn came(&mut self, after: Duration) {
        self.missing = match after < SOON {
            true => self.missing.saturating_sub(1),
            false if self.is_soon() => DOUBTED,
            false => self.missing.max(PROVEN),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of the time spent awake and in vain, if the call comes so long after the reply, or never while the loop is awake.
    fn awake(gap: Duration, comes_while_awake: bool) -> (bool, f64) {
        let mut expectation = Expectation::new();
        let (mut time, mut wasted) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..100_000 {
            let waited = match expectation.is_soon() && !comes_while_awake {
                true => {
                    wasted += SOON;
                    SOON + gap
                }
                false => gap,
            };
            time += waited;
            expectation.came(waited);
        }
        (
            expectation.is_soon(),
            wasted.as_secs_f64() / time.as_secs_f64(),
        )
    }

    #[test]
    fn a_client_that_calls_again_at_once_is_waited_for_awake() {
        assert!(awake(Duration::from_micros(20), true).0);
    }

    #[test]
    fn a_client_that_takes_its_time_is_waited_for_asleep() {
        assert!(!awake(Duration::from_micros(150), true).0);
    }

    #[test]
    fn a_client_that_cannot_run_meanwhile_loses_little() {
        let (_, wasted) = awake(Duration::from_micros(20), false);
        assert!(wasted < 0.01, "{wasted}");
    }

    #[test]
    fn a_client_that_has_stopped_is_waited_for_awake_once() {
        let mut expectation = Expectation::new();
        (0..PROVEN).for_each(|_| expectation.came(Duration::ZERO));
        assert!(expectation.is_soon());
        expectation.came(Duration::from_secs(10));
        assert!(!expectation.is_soon());
    }
}
