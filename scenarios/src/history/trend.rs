//! How figures went from commit to commit, machine by machine.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Entry;
use crate::evidence::fingerprint::Fingerprint;
use crate::measure::statistics::Spread;
use crate::report::book::title;
use crate::verdict::Verdict;

/// A scenario on one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trend {
    /// Name of the scenario.
    pub scenario: String,
    /// Its combination of the matrix in words.
    pub variant: String,
    /// On what; figures of another machine are another trend.
    pub machine: Fingerprint,
    /// In order of time.
    pub points: Vec<Point>,
}

/// All runs of one commit with one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Empty when it is not known.
    pub commit: String,
    /// SHA-256 of the hypervisor image.
    pub image: String,
    /// Version of the program.
    pub elab: String,
    /// When the first of them was made, seconds since 1970.
    pub unix_s: u64,
    /// How many passed, proved nothing, failed.
    pub verdicts: [usize; 3],
    /// How long they took.
    pub seconds: Option<Spread>,
    /// Each figure that they have.
    pub figures: BTreeMap<String, Figure>,
}

/// A figure over the runs of a point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Middle, tail, worst.
    #[serde(flatten)]
    pub spread: Spread,
    /// Every value, run by run.
    pub samples: Vec<f64>,
}

impl Trend {
    /// The trends in some entries, which are in order of time.
    #[must_use]
    pub fn all(entries: &[Entry]) -> Vec<Self> {
        let mut groups: Vec<(&Entry, Vec<Vec<&Entry>>)> = Vec::new();
        for entry in entries {
            let same = |first: &Entry| {
                first.scenario == entry.scenario
                    && first.variant == entry.variant
                    && first.machine.differs(&entry.machine).is_none()
            };
            let position = match groups.iter().position(|(first, _)| same(first)) {
                Some(position) => position,
                None => {
                    groups.push((entry, Vec::new()));
                    groups.len() - 1
                }
            };
            let points = &mut groups[position].1;
            let made_of = |one: &Entry| (one.commit.clone(), one.machine.image.clone());
            match points
                .iter_mut()
                .find(|runs| made_of(runs[0]) == made_of(entry))
            {
                Some(runs) => runs.push(entry),
                None => points.push(vec![entry]),
            }
        }
        let mut trends: Vec<Self> = groups
            .into_iter()
            .map(|(first, points)| Self {
                scenario: first.scenario.clone(),
                variant: first.variant.clone(),
                machine: first.machine.clone(),
                points: points.iter().map(|runs| Point::of(runs)).collect(),
            })
            .collect();
        trends.sort_by(|a, b| (&a.scenario, &a.variant).cmp(&(&b.scenario, &b.variant)));
        trends
    }

    /// Name and variant of the scenario.
    #[must_use]
    pub fn title(&self) -> String {
        title(&self.scenario, &self.variant)
    }

    /// The medians of a figure as a line of small bars, from zero; a point without it is a gap.
    #[must_use]
    pub fn sparkline(&self, figure: &str) -> String {
        let median =
            |point: &Point| -> Option<f64> { Some(point.figures.get(figure)?.spread.median) };
        let values: Vec<Option<f64>> = self.points.iter().map(median).collect();
        sparkline(&values)
    }
}

impl Point {
    fn of(runs: &[&Entry]) -> Self {
        let verdicts = [Verdict::Passed, Verdict::Inconclusive, Verdict::Failed]
            .map(|verdict| runs.iter().filter(|run| run.verdict == verdict).count());
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for run in runs {
            for (name, values) in &run.figures {
                samples.entry(name).or_default().extend(values);
            }
        }
        let figures = samples.into_iter().filter_map(|(name, samples)| {
            let spread = Spread::of(&samples)?;
            Some((name.to_owned(), Figure { spread, samples }))
        });
        let seconds: Vec<f64> = runs
            .iter()
            .map(|run| run.seconds)
            .filter(|seconds| *seconds > 0.0)
            .collect();
        Self {
            commit: runs[0].commit.clone(),
            image: runs[0].machine.image.clone(),
            elab: runs[0].machine.elab.clone(),
            unix_s: runs[0].unix_s,
            verdicts,
            seconds: Spread::of(&seconds),
            figures: figures.collect(),
        }
    }

    /// How many runs there were.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.verdicts.iter().sum()
    }
}

/// Values as small bars, from zero, so that noise does not look like a cliff.
#[must_use]
pub fn sparkline(values: &[Option<f64>]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    values
        .iter()
        .map(|value| match value {
            None => ' ',
            Some(value) if most > 0.0 => {
                let level = (value / most * BARS.len() as f64).ceil();
                BARS[(level.max(1.0) as usize - 1).min(BARS.len() - 1)]
            }
            Some(_) => BARS[0],
        })
        .collect()
}
