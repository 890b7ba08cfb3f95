//! A typist's rhythm: a fixed schedule that never waits for an echo, so that a stall shows in full.

use std::ops::RangeInclusive;

/// Microseconds between the keys of a person who types 8 to 12 keys a second.
pub const HUMAN_US: RangeInclusive<u64> = 83_000..=125_000;

/// When keys are due.
#[derive(Debug)]
pub struct Rhythm {
    random: fastrand::Rng,
    interval_us: RangeInclusive<u64>,
    next_ns: u64,
}

impl Rhythm {
    /// The first key is due one interval after `start_ns`.
    #[must_use]
    pub fn new(seed: u64, interval_us: RangeInclusive<u64>, start_ns: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            interval_us,
            next_ns: start_ns,
        }
    }

    /// When the next key is due.
    pub fn next_due_ns(&mut self) -> u64 {
        self.next_ns += self.random.u64(self.interval_us.clone()) * 1000;
        self.next_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_rhythm_within_its_bounds() {
        let times = |seed| {
            let mut rhythm = Rhythm::new(seed, HUMAN_US, 0);
            (0..200).map(|_| rhythm.next_due_ns()).collect::<Vec<_>>()
        };
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        assert!(
            times(7)
                .windows(2)
                .all(|pair| (83_000_000..=125_000_000).contains(&(pair[1] - pair[0])))
        );
    }
}
