//! Maps a host's clock to the lab's, with a bound on the error.
//!
//! An exchange that left at `sent`, was stamped `host` by the host, and came back at `received` says that the
//! host's clock showed `host` at some moment between: the middle is wrong by half the round trip at most. The exchange
//! with the smallest bound is the best; as it ages its bound grows by what the two clocks may drift apart, until a
//! newer one is better (the idea of NTP's clock filter, RFC 5905 section 10).

use std::collections::VecDeque;

/// Exchanges that are remembered.
const KEPT: usize = 64;
/// Both clocks come from the same oscillator; the host's rate was measured by it, to better than this.
const DRIFT_PER_MILLION: u64 = 20;

#[derive(Clone, Copy, Debug)]
struct Exchange {
    sent_ns: u64,
    received_ns: u64,
    host_ns: u64,
}

impl Exchange {
    fn bound_ns(&self, at_ns: u64) -> u64 {
        let age = at_ns.abs_diff(self.received_ns);
        (self.received_ns - self.sent_ns).div_ceil(2) + age / 1_000_000 * DRIFT_PER_MILLION
    }
}

/// The mapping for one host.
#[derive(Clone, Debug, Default)]
pub struct ClockMap {
    exchanges: VecDeque<Exchange>,
}

/// A moment of a host on the lab's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The moment.
    pub t_ns: u64,
    /// How far it may be wrong.
    pub error_ns: u64,
}

impl ClockMap {
    /// Adds an exchange. One that came back before it left is ignored.
    pub fn add(&mut self, sent_ns: u64, received_ns: u64, host_ns: u64) {
        if received_ns < sent_ns {
            return;
        }
        if self.exchanges.len() == KEPT {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(Exchange {
            sent_ns,
            received_ns,
            host_ns,
        });
    }

    /// Maps a stamp that arrived at `now_ns`. Before the first exchange the arrival is all that is known, and the error
    /// is as large as time itself.
    #[must_use]
    pub fn map(&self, host_ns: u64, now_ns: u64) -> Mapped {
        let Some(best) = self
            .exchanges
            .iter()
            .min_by_key(|exchange| exchange.bound_ns(now_ns))
        else {
            return Mapped {
                t_ns: now_ns,
                error_ns: now_ns,
            };
        };
        let middle = i128::from(best.sent_ns) + i128::from(best.received_ns - best.sent_ns) / 2;
        let t_ns = middle + i128::from(host_ns) - i128::from(best.host_ns);
        // Nothing is heard of before it happens.
        let t_ns = t_ns.clamp(0, i128::from(now_ns));
        Mapped {
            t_ns: u64::try_from(t_ns).unwrap_or(now_ns),
            error_ns: best.bound_ns(now_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_quickest_exchange_decides() {
        let mut map = ClockMap::default();
        // The host's clock is 100 ms behind.
        map.add(200 * MS, 230 * MS, 101 * MS);
        map.add(300 * MS, 301 * MS, 200 * MS + MS / 2);
        map.add(400 * MS, 450 * MS, 349 * MS);
        let mapped = map.map(400 * MS, 600 * MS);
        assert_eq!(mapped.t_ns, 500 * MS);
        assert!((MS / 2..MS).contains(&mapped.error_ns), "{mapped:?}");
    }

    #[test]
    fn the_truth_lies_within_the_bound() {
        let offset = 7_777 * MS;
        let mut random = fastrand::Rng::with_seed(1);
        let mut map = ClockMap::default();
        let mut now = 10_000 * MS;
        for _ in 0..1000 {
            let (out, back) = (random.u64(0..3 * MS), random.u64(0..3 * MS));
            map.add(now, now + out + back, now + out - offset);
            now += 100 * MS;
            let truth = now - random.u64(0..50 * MS);
            let mapped = map.map(truth - offset, now);
            assert!(
                mapped.t_ns.abs_diff(truth) <= mapped.error_ns,
                "{mapped:?} {truth}"
            );
            assert!(mapped.error_ns < 6 * MS);
        }
    }

    #[test]
    fn an_old_exchange_gives_way() {
        let mut map = ClockMap::default();
        map.add(0, 2, 1);
        // A minute later the bound has grown to more than this one's millisecond.
        map.add(60_000 * MS, 60_001 * MS, 60_005 * MS);
        let mapped = map.map(60_005 * MS, 60_010 * MS);
        assert_eq!(mapped.t_ns, 60_000 * MS + MS / 2);
    }

    #[test]
    fn nothing_is_heard_before_it_happens_and_nothing_overflows() {
        let mut map = ClockMap::default();
        assert_eq!(
            map.map(5, 9),
            Mapped {
                t_ns: 9,
                error_ns: 9
            }
        );
        map.add(10, 20, 0);
        assert_eq!(map.map(u64::MAX, 100).t_ns, 100);
        map.add(30, 20, 0);
        assert_eq!(map.map(0, 100).t_ns, 15);
    }
}
