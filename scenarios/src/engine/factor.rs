//! How much slower this machine is than the one that deadlines were written on. Deadlines are scaled by it, limits of
//! figures are not.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// What the loop below takes on one core of a 2.6 GHz EPYC with nothing else to do.
const REFERENCE: Duration = Duration::from_millis(9);
const ROUNDS: u64 = 8_000_000;
const PASSES: usize = 5;
/// A machine that is slower than this gets no more time.
const MAX: f64 = 20.0;

/// Measures, in about a twentieth of a second. Never below 1: a deadline guards against hanging, and a faster machine needs none
/// that is shorter.
#[must_use]
pub fn measure() -> f64 {
    let quickest = (0..PASSES).map(|_| pass()).min().unwrap_or(REFERENCE);
    (quickest.as_secs_f64() / REFERENCE.as_secs_f64()).clamp(1.0, MAX)
}

/// A chain of multiplications that no compiler shortens and no cache changes.
fn pass() -> Duration {
    let begun = Instant::now();
    let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..ROUNDS {
        x = black_box(x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 31));
    }
    black_box(x);
    begun.elapsed()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_factor_is_sane() {
        let factor = super::measure();
        assert!((1.0..=super::MAX).contains(&factor));
    }
}
