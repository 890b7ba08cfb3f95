//! Whether two sets of values differ: a permutation test on the medians, and a bootstrap interval of their difference. Both assume
//! nothing of how the values are distributed, and both are seeded: the same values give the same answer.

use crate::measure::statistics::quantile;

/// Resamples; the least p-value is one over one more than this (Davison and Hinkley, Bootstrap Methods, 1997, 4.2).
const RESAMPLES: usize = 9_999;
const SEED: u64 = 0xe1ab;

pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(f64::NAN)
}

/// Probability that the median of `b` exceeds that of `a` by as much as it does, or more, if both were of one kind.
#[must_use]
pub fn p_greater(a: &[f64], b: &[f64]) -> f64 {
    let found = median(b) - median(a);
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut pooled: Vec<f64> = [a, b].concat();
    let mut as_far = 0;
    for _ in 0..RESAMPLES {
        random.shuffle(&mut pooled);
        let (first, second) = pooled.split_at(a.len());
        // Sums of the same numbers in another order differ in their last digit.
        if median(second) - median(first) >= found - 1e-9 {
            as_far += 1;
        }
    }
    f64::from(as_far + 1) / (RESAMPLES + 1) as f64
}

/// The interval in which the difference of the medians (`b` minus `a`) lies with 90 %.
#[must_use]
pub fn interval(a: &[f64], b: &[f64]) -> [f64; 2] {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut draw = |values: &[f64]| -> f64 {
        let drawn: Vec<f64> = values
            .iter()
            .map(|_| values[random.usize(..values.len())])
            .collect();
        median(&drawn)
    };
    let differences: Vec<f64> = (0..RESAMPLES).map(|_| draw(b) - draw(a)).collect();
    [0.05, 0.95].map(|q| quantile(&differences, q).unwrap_or(f64::NAN))
}

/// Corrects p-values for their number (Holm, 1979): what is left is the probability of any false alarm.
#[must_use]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![1.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        least = least
            .max(p_values[index] * (p_values.len() - rank) as f64)
            .min(1.0);
        corrected[index] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, count: usize, middle: f64) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..count)
            .map(|_| middle + random.f64() * 40.0 + if random.u8(..) < 16 { 200.0 } else { 0.0 })
            .collect()
    }

    #[test]
    fn false_alarms_are_as_rare_as_promised() {
        let alarms = (0..100)
            .filter(|seed| {
                p_greater(&values(*seed, 12, 80.0), &values(seed + 1000, 12, 80.0)) <= 0.05
            })
            .count();
        assert!(alarms <= 11, "{alarms} of 100");
    }

    #[test]
    fn a_true_difference_is_found() {
        for seed in 0..10 {
            let (a, b) = (values(seed, 20, 80.0), values(seed + 50, 20, 120.0));
            assert!(p_greater(&a, &b) < 0.01);
            assert!(p_greater(&b, &a) > 0.9);
            let [low, high] = interval(&a, &b);
            assert!(low > 5.0 && high < 80.0, "{low} to {high}");
        }
    }

    #[test]
    fn many_questions_need_stronger_answers() {
        assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
        assert_eq!(holm(&[0.5, 0.9]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
