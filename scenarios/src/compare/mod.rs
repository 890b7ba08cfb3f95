//! Compares two sets of runs of one scenario: is B worse than A, better, or the same?
//!
//! A difference must be both unlikely by chance and large enough to matter; where the runs cannot tell, the answer is
//! "inconclusive". What ran on different machines is not compared at all.

pub mod statistics;

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::report::book::Book;
use crate::scenario::figure;

/// A difference that chance explains this often is no finding.
const ALPHA: f64 = 0.05;
/// Fewer values than this on either side prove nothing.
const VALUES_MIN: usize = 5;
/// The least difference that matters: the greater of these.
const LEAST_MS: f64 = 10.0;
const LEAST_SHARE: f64 = 0.10;
/// Figures for which more is worse; what only describes the conditions is left out.
const COMPARED: [&str; 7] = [
    "longest-echo",
    "udp-gap",
    "vcpu-pause",
    "total",
    "wire",
    "run-echo-p95",
    "run-disk-gap",
];

/// What a comparison came to; the worst of several is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// B is better.
    Better,
    /// The difference, if there is any, does not matter.
    Equivalent,
    /// The runs cannot tell.
    Inconclusive,
    /// B is worse.
    Worse,
    /// They ran on different machines.
    NotComparable,
}

impl Outcome {
    /// In words.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Equivalent => "equivalent",
            Self::Inconclusive => "inconclusive",
            Self::Worse => "WORSE",
            Self::NotComparable => "not comparable",
        }
    }

    /// As a program's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Better | Self::Equivalent => 0,
            Self::Worse => 1,
            Self::Inconclusive | Self::NotComparable => 4,
        }
    }
}

/// A figure on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Scenario and figure.
    pub title: String,
    /// The figure's unit.
    pub unit: String,
    /// Median of A, and how many values.
    pub a: (f64, usize),
    /// Median of B, and how many values.
    pub b: (f64, usize),
    /// In which the difference lies with 90 %.
    pub interval: [f64; 2],
    /// The least difference that matters here.
    pub least: f64,
    /// Probability of this difference by chance, corrected for the number of figures.
    pub p: f64,
    /// What that comes to.
    pub outcome: Outcome,
}

/// Two books, compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The worst of the figures.
    pub outcome: Outcome,
    /// Why they are not comparable, if they are not.
    pub reason: String,
    /// Every figure that both have.
    pub figures: Vec<Compared>,
}

/// Compares two books.
#[must_use]
pub fn compare(a: &Book, b: &Book) -> Comparison {
    let not = |reason: String| Comparison {
        outcome: Outcome::NotComparable,
        reason,
        figures: Vec::new(),
    };
    if let Some(difference) = a.machine.differs(&b.machine) {
        return not(difference);
    }
    let mut figures = Vec::new();
    for one in &a.scenarios {
        let Some(other) = b
            .scenarios
            .iter()
            .find(|other| other.title() == one.title())
        else {
            continue;
        };
        for name in COMPARED {
            if let Some((a, b)) = one.figures.get(name).zip(other.figures.get(name)) {
                let unit = figure::find(name).map_or("", |figure| figure.unit);
                let title = format!("{}: {}", one.title(), a.title);
                figures.push(figure_of(title, unit, &a.samples, &b.samples));
            }
        }
    }
    if figures.is_empty() {
        return not("they have no scenario with a figure in common".into());
    }
    decided(figures)
}

/// A figure to be compared: its title and unit, the values of A, those of B.
pub type Pair<'a> = (String, &'a str, &'a [f64], &'a [f64]);

/// Compares figures by their values.
#[must_use]
pub fn of_values<'a>(figures: impl IntoIterator<Item = Pair<'a>>) -> Comparison {
    let figures = figures.into_iter();
    decided(
        figures
            .map(|(title, unit, a, b)| figure_of(title, unit, a, b))
            .collect(),
    )
}

/// Corrects for the number of figures, and says what each comes to.
fn decided(mut figures: Vec<Compared>) -> Comparison {
    let corrected = statistics::holm(&figures.iter().map(|one| one.p).collect::<Vec<_>>());
    for (one, p) in figures.iter_mut().zip(corrected) {
        one.p = p;
        one.outcome = outcome(one);
    }
    Comparison {
        outcome: figures
            .iter()
            .map(|one| one.outcome)
            .max()
            .unwrap_or(Outcome::Inconclusive),
        reason: String::new(),
        figures,
    }
}

fn figure_of(title: String, unit: &str, a: &[f64], b: &[f64]) -> Compared {
    let least = if unit == "ms" { LEAST_MS } else { 0.0 };
    let [median_a, median_b] = [a, b].map(statistics::median);
    // One-sided, towards where the difference is: twice that is the chance of so large a difference either way.
    let one_sided = if median_b >= median_a {
        statistics::p_greater(a, b)
    } else {
        statistics::p_greater(b, a)
    };
    Compared {
        title,
        unit: unit.into(),
        a: (median_a, a.len()),
        b: (median_b, b.len()),
        interval: statistics::interval(a, b),
        least: least.max(median_a.abs() * LEAST_SHARE),
        p: (one_sided * 2.0).min(1.0),
        outcome: Outcome::Inconclusive,
    }
}

fn outcome(one: &Compared) -> Outcome {
    let difference = one.b.0 - one.a.0;
    if one.a.1.min(one.b.1) < VALUES_MIN {
        return Outcome::Inconclusive;
    }
    let [low, high] = one.interval;
    if one.p <= ALPHA && difference >= one.least {
        Outcome::Worse
    } else if one.p <= ALPHA && -difference >= one.least {
        Outcome::Better
    } else if low > -one.least && high < one.least {
        Outcome::Equivalent
    } else {
        Outcome::Inconclusive
    }
}

/// The comparison as a terminal shows it.
#[must_use]
pub fn summary(comparison: &Comparison, names: [&str; 2]) -> String {
    let mut out = String::new();
    let mut line =
        |text: String| writeln!(out, "{}", text.trim_end()).expect("a String takes any text");
    line(format!(
        "{} against {}: {}",
        names[1],
        names[0],
        comparison.outcome.word()
    ));
    if !comparison.reason.is_empty() {
        line(comparison.reason.clone());
        return out;
    }
    line(String::new());
    line(format!(
        "{:<38} {:>12} {:>12} {:>20} {:>7}   {}",
        "median of", "A", "B", "B - A, 90 %", "p", "B is"
    ));
    for one in &comparison.figures {
        line(format!(
            "{:<38} {:>9.1} {:<2} {:>9.1} {:<2} {:>20} {:>7.3}   {}",
            one.title,
            one.a.0,
            one.unit,
            one.b.0,
            one.unit,
            format!("{:+.1} to {:+.1}", one.interval[0], one.interval[1]),
            one.p,
            one.outcome.word()
        ));
    }
    let (a, b) = comparison
        .figures
        .first()
        .map_or((0, 0), |one| (one.a.1, one.b.1));
    line(String::new());
    line(format!(
        "{a} and {b} values; a difference counts from 10 ms and 10 % on, and when chance makes one of any figure at most once in 20 comparisons."
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::statistics::Spread;
    use crate::report::book::{ScenarioReport, Values};
    use crate::verdict::Verdict;

    fn book(samples: Vec<f64>, cpu: &str) -> Book {
        let values = Values {
            title: "longest echo".into(),
            unit: "ms".into(),
            spread: Spread::of(&samples).unwrap(),
            samples,
        };
        let scenario = ScenarioReport {
            name: "demo".into(),
            variant: String::new(),
            why: String::new(),
            verdict: Verdict::Passed,
            headline: String::new(),
            limits: Vec::new(),
            figures: [("longest-echo".to_owned(), values)].into(),
            runs: Vec::new(),
            quarantined: String::new(),
        };
        let mut book = Book::new(String::new(), 0, 0.0, vec![scenario]);
        book.machine.cpu = cpu.into();
        book
    }

    fn spread_around(middle: f64, width: f64, count: usize) -> Vec<f64> {
        (0..count)
            .map(|i| middle + width * (i as f64 / count as f64 - 0.5))
            .collect()
    }

    fn of(a: Vec<f64>, b: Vec<f64>) -> Outcome {
        compare(&book(a, "x"), &book(b, "x")).outcome
    }

    #[test]
    fn worse_better_equivalent_and_inconclusive_are_told_apart() {
        let usual = || spread_around(80.0, 20.0, 20);
        assert_eq!(of(usual(), spread_around(120.0, 20.0, 20)), Outcome::Worse);
        assert_eq!(of(usual(), spread_around(50.0, 20.0, 20)), Outcome::Better);
        assert_eq!(
            of(usual(), spread_around(81.0, 20.0, 20)),
            Outcome::Equivalent
        );
        // Certainly different, and not by enough to matter.
        assert_eq!(
            of(spread_around(80.0, 2.0, 40), spread_around(84.0, 2.0, 40)),
            Outcome::Equivalent
        );
        assert_eq!(
            of(
                spread_around(80.0, 200.0, 6),
                spread_around(100.0, 200.0, 6)
            ),
            Outcome::Inconclusive
        );
        assert_eq!(of(vec![80.0; 3], vec![200.0; 3]), Outcome::Inconclusive);
    }

    #[test]
    fn different_machines_are_not_compared() {
        let comparison = compare(&book(vec![1.0; 9], "x"), &book(vec![1.0; 9], "y"));
        assert_eq!(comparison.outcome, Outcome::NotComparable);
        assert_eq!(comparison.reason, "CPU: x and y");
    }
}
