//! A share of many runs, so that several machines make a campaign together: each is told the same words and its own number, and
//! all come to the same division without talking.

use std::str::FromStr;
use std::time::Duration;

use scenarios::measure::statistics::quantile;

/// Which share of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    index: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no share: write 1/4 for the first of four");
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let number = |part: &str| part.parse::<u16>().map_err(|_| wrong());
        let (index, of) = (number(index)?.into(), number(of)?.into());
        if (1..=of).contains(&index) {
            Ok(Self { index, of })
        } else {
            Err(wrong())
        }
    }
}

impl Shard {
    /// Which of some runs are in this share, by how long each may take: the longest first, each to the share that has least
    /// to do so far. No share is then longer than 4/3 of the best division (Graham 1969, "Bounds on Multiprocessing
    /// Timing Anomalies").
    #[must_use]
    pub fn of(self, times: &[Duration]) -> Vec<bool> {
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|run| (std::cmp::Reverse(times[*run]), *run));
        let mut shares = vec![Duration::ZERO; self.of];
        let mut mine = vec![false; times.len()];
        for run in order {
            let least = shares
                .iter()
                .enumerate()
                .min_by_key(|(_, load)| **load)
                .map_or(0, |(share, _)| share);
            shares[least] += times[run];
            mine[run] = least + 1 == self.index;
        }
        mine
    }
}

/// How long each of some runs will take: what was measured of it, or else its limit times the share that the measured ones take of
/// theirs. Limits are many times what a run takes, so one among measured times would fill a share by itself.
#[must_use]
pub fn expected(limits: &[Duration], measured: &[Option<Duration>]) -> Vec<Duration> {
    let shares: Vec<f64> = limits
        .iter()
        .zip(measured)
        .filter_map(|(limit, measured)| Some((*measured)?.as_secs_f64() / limit.as_secs_f64()))
        .collect();
    let share = quantile(&shares, 0.5).unwrap_or(1.0);
    limits
        .iter()
        .zip(measured)
        .map(|(limit, measured)| measured.unwrap_or_else(|| limit.mul_f64(share)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_measured_takes_its_limit_as_the_others_take_theirs() {
        let s = Duration::from_secs;
        let limits = [s(100), s(200), s(300)];
        assert_eq!(expected(&limits, &[None; 3]), limits);
        let measured = [Some(s(10)), None, Some(s(60))];
        assert_eq!(expected(&limits, &measured), [s(10), s(20), s(60)]);
        assert!(expected(&[], &[]).is_empty());
    }

    #[test]
    fn measured_times_make_evener_shares_than_limits() {
        let mut random = fastrand::Rng::with_seed(7);
        let s = Duration::from_secs;
        let took: Vec<Duration> = (0..40).map(|_| s(random.u64(20..200))).collect();
        // Everything has the same limit, as scenarios do that nobody has thought about.
        let limits = vec![s(600); 40];
        let longest = |times: &[Duration]| {
            let load = |index| {
                let mine = Shard { index, of: 4 }.of(times);
                mine.iter()
                    .zip(&took)
                    .filter(|(mine, _)| **mine)
                    .map(|(_, took)| took.as_secs())
                    .sum::<u64>()
            };
            (1..=4).map(load).max().unwrap()
        };
        let known: Vec<Option<Duration>> = took.iter().copied().map(Some).collect();
        let (by_time, by_limit) = (longest(&expected(&limits, &known)), longest(&limits));
        let best = took.iter().map(Duration::as_secs).sum::<u64>() / 4;
        assert!(by_time < best + best / 20, "{by_time} of {best} at best");
        assert!(by_limit > by_time, "{by_limit} and {by_time}");
    }

    #[test]
    fn a_share_is_written_as_a_fraction() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, of: 3 }));
        for wrong in ["", "2", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/2/3"] {
            let error = wrong.parse::<Shard>().unwrap_err();
            assert!(error.contains("1/4 for the first of four"), "{error}");
        }
    }

    #[test]
    fn each_run_is_in_one_share_and_shares_are_even() {
        let mut random = fastrand::Rng::with_seed(1);
        for of in 1..9 {
            for runs in 0..40 {
                let seconds: Vec<u64> = (0..runs).map(|_| random.u64(1..300)).collect();
                let times: Vec<Duration> =
                    seconds.iter().copied().map(Duration::from_secs).collect();
                let shares: Vec<Vec<bool>> = (1..=of)
                    .map(|index| Shard { index, of }.of(&times))
                    .collect();
                for run in 0..runs {
                    assert_eq!(shares.iter().filter(|mine| mine[run]).count(), 1);
                }
                let loads: Vec<u64> = shares
                    .iter()
                    .map(|mine| {
                        (0..runs)
                            .filter(|run| mine[*run])
                            .map(|run| seconds[run])
                            .sum()
                    })
                    .collect();
                let longest = seconds.iter().max().copied().unwrap_or(0);
                let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
                assert!(most - least <= longest, "{loads:?}");
            }
        }
    }
}
