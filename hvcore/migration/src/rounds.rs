//! The rounds of pre-copy: how long each took, what it left, and when another one would gain nothing.

use host_protocol::Round;

/// A round that leaves more than this share of its predecessor's dirty pages has not got closer.
const PROGRESS_NUMERATOR: usize = 3;
const PROGRESS_DENOMINATOR: usize = 4;

/// After so many rounds that got no closer, waiting longer gives no shorter pause.
const MAX_STALLED: u32 = 3;

/// The round under way, and what those before it came to.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// The one under way; what it copies is counted here.
    pub current: Round,
    began_ns: u64,
    sent_ns: u64,
    last_dirty: usize,
    stalled: u32,
    round_trip_ns: u64,
}

impl Rounds {
    /// Before the first, with so many pages to copy.
    pub fn new(pages: usize, now_ns: u64) -> Self {
        Self {
            current: Round::default(),
            began_ns: now_ns,
            sent_ns: now_ns,
            last_dirty: pages,
            stalled: 0,
            round_trip_ns: u64::MAX,
        }
    }

    /// A round begins.
    pub fn begin(&mut self, number: u32, now_ns: u64) {
        self.current = Round {
            number,
            ..Round::default()
        };
        self.began_ns = now_ns;
    }

    /// All of its pages have been said.
    pub fn sent(&mut self, now_ns: u64) {
        self.sent_ns = now_ns;
    }

    /// The destination has all of its pages.
    pub fn confirmed(&mut self, now_ns: u64) {
        self.round_trip_ns = self.round_trip_ns.min(now_ns - self.sent_ns);
    }

    /// The round as it is told, which leaves so many pages dirty.
    pub fn report(&mut self, now_ns: u64, dirty_after: usize) -> Round {
        self.current.duration_ns = now_ns - self.began_ns;
        self.current.dirty_after =
            u32::try_from(dirty_after).expect("guests have less than 16 TiB");
        self.current
    }

    /// Whether several rounds in a row, and now one that leaves so many pages dirty, got no closer.
    pub fn have_stalled(&mut self, dirty: usize) -> bool {
        if dirty * PROGRESS_DENOMINATOR > self.last_dirty * PROGRESS_NUMERATOR {
            self.stalled += 1;
        } else {
            self.stalled = 0;
        }
        self.last_dirty = dirty;
        self.stalled >= MAX_STALLED
    }

    /// What a message takes to the destination: half the shortest time from the end of a round to its confirmation.
    pub fn transit_ns(&self) -> u64 {
        self.round_trip_ns / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_rounds_that_get_no_closer_are_enough() {
        let mut rounds = Rounds::new(1000, 0);
        assert!(!rounds.have_stalled(1000));
        assert!(!rounds.have_stalled(751));
        assert!(rounds.have_stalled(564));
    }

    #[test]
    fn a_round_that_gets_closer_gives_new_patience() {
        let mut rounds = Rounds::new(1000, 0);
        assert!(!rounds.have_stalled(1000));
        assert!(!rounds.have_stalled(1000));
        assert!(!rounds.have_stalled(750));
        assert!(!rounds.have_stalled(750));
        assert!(!rounds.have_stalled(750));
        assert!(rounds.have_stalled(750));
    }

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut rounds = Rounds::new(10, 0);
        for (sent, confirmed) in [(100, 900), (1000, 1300), (2000, 2500)] {
            rounds.sent(sent);
            rounds.confirmed(confirmed);
        }
        assert_eq!(rounds.transit_ns(), 150);
    }
}
