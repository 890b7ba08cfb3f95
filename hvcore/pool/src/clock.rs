//! Two clocks from one: the host's own for what may end too early but not too late, and a steady one for the
//! silence of others.
//!
//! [`Clocks::raw`] is the host's clock. Permission to run guests is measured by it: after a freeze or a jump ahead it is over at once.
//! [`Clocks::steady`] grows by no more than a step with each look. Silence is measured by it: a host that stood still, or whose
//! clock was set, has not listened, and must not hold that against others.

/// What a look at the clock can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jump {
    /// The clock has gone back, by so many nanoseconds: nothing measured by it holds.
    Back(u64),
    /// It has not been looked at for so many nanoseconds, or was set ahead.
    Ahead(u64),
}

/// The clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    raw: u64,
    steady: u64,
    step: u64,
}

impl Clocks {
    /// Starts at a reading; steps of `step` nanoseconds at most.
    pub fn new(now: u64, step: u64) -> Self {
        // Later than every deadline of a pool that has just begun to look.
        Self {
            raw: now,
            steady: 1 << 40,
            step,
        }
    }

    /// Takes a reading.
    pub fn look(&mut self, now: u64) -> Option<Jump> {
        let passed = now.checked_sub(self.raw);
        let back = self.raw.saturating_sub(now);
        self.raw = now;
        match passed {
            None => Some(Jump::Back(back)),
            Some(passed) => {
                self.steady += passed.min(self.step);
                (passed > self.step.saturating_mul(5)).then_some(Jump::Ahead(passed))
            }
        }
    }

    /// The host's own clock, at the last look.
    pub fn raw(&self) -> u64 {
        self.raw
    }

    /// The steady one.
    pub fn steady(&self) -> u64 {
        self.steady
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_adds_one_step_of_silence_and_all_of_its_time_to_the_raw_clock() {
        let mut clocks = Clocks::new(1000, 200);
        let start = clocks.steady();
        assert_eq!(clocks.look(1100), None);
        assert_eq!(clocks.look(9000), Some(Jump::Ahead(7900)));
        assert_eq!((clocks.raw(), clocks.steady()), (9000, start + 300));
        assert_eq!(clocks.look(8000), Some(Jump::Back(1000)));
        assert_eq!((clocks.raw(), clocks.steady()), (8000, start + 300));
    }
}
