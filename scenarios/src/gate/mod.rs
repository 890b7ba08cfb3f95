//! Whether a change may pass: what interleaved runs of base and candidate come to, with one confirming re-run and a list of what is
//! known to be unreliable.
//!
//! It adds no statistics of its own to [`crate::compare`]. A difference counts when it is found twice, in runs of other seeds; what
//! was found once is inconclusive and neither red nor green. Nothing is run again because it failed.

pub mod quarantine;

use std::fmt::Write;

use serde::Serialize;

use crate::compare::{Comparison, Outcome};
use crate::report::book::Book;
use crate::verdict::Verdict;
use quarantine::Quarantine;

/// Base and candidate of one scenario: their runs, and what comparing them gave.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Runs of each that failed, and how many there were.
    pub failed: [(usize, usize); 2],
    /// The figures.
    pub comparison: Comparison,
}

/// What a gate says of one scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Of what.
    pub scenario: String,
    /// What it came to.
    pub outcome: Outcome,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// What was found and does not count, and until when.
    pub quarantined: Vec<String>,
}

impl Trial {
    /// Of the books of two arms.
    #[must_use]
    pub fn of(books: &[Book; 2]) -> Self {
        let failed = books.each_ref().map(|book| {
            let failed = book.runs().filter(|run| run.verdict == Verdict::Failed);
            (failed.count(), book.runs().count())
        });
        let [a, b] = books;
        Self {
            failed,
            comparison: crate::compare::compare(a, b),
        }
    }

    /// Whether something looks worse that counts, so that it is to be found a second time.
    #[must_use]
    pub fn needs_confirming(&self, scenario: &str, quarantine: &Quarantine) -> bool {
        self.failed[1].0 == 0 && !self.worse(scenario, quarantine).is_empty()
    }

    /// Titles of the figures that are worse and count.
    fn worse(&self, scenario: &str, quarantine: &Quarantine) -> Vec<&str> {
        self.comparison
            .figures
            .iter()
            .filter(|one| one.outcome == Outcome::Worse)
            .filter(|one| quarantine.holds(scenario, Some(&one.title)).is_none())
            .map(|one| one.title.as_str())
            .collect()
    }
}

/// Decides about a scenario; `confirming` is the second trial, made only when [`Trial::needs_confirming`] asked for it.
#[must_use]
pub fn decide(
    scenario: &str,
    trial: &Trial,
    confirming: Option<&Trial>,
    quarantine: &Quarantine,
) -> Decision {
    let mut decision = Decision {
        scenario: scenario.into(),
        outcome: Outcome::Equivalent,
        reasons: Vec::new(),
        quarantined: Vec::new(),
    };
    for trial in std::iter::once(trial).chain(confirming) {
        failures(&mut decision, trial, quarantine);
    }
    if trial.comparison.outcome == Outcome::NotComparable {
        decision.add(Outcome::Inconclusive, trial.comparison.reason.clone());
        return decision;
    }
    let first = trial.worse(scenario, quarantine);
    let second = confirming.map(|trial| trial.worse(scenario, quarantine));
    for title in first {
        match &second {
            Some(again) if again.contains(&title) => {
                decision.add(Outcome::Worse, format!("{title} is worse, found twice"));
            }
            Some(_) => decision.add(
                Outcome::Inconclusive,
                format!("{title} was worse once, and not in the confirming re-run"),
            ),
            None => decision.add(
                Outcome::Inconclusive,
                format!("{title} looks worse, and was not tried again because runs failed"),
            ),
        }
    }
    for one in &trial.comparison.figures {
        let held = quarantine.holds(scenario, Some(&one.title));
        match (one.outcome, held) {
            (Outcome::Worse | Outcome::Inconclusive, Some(held)) => {
                decision
                    .quarantined
                    .push(format!("{}: {}, {held}", one.title, one.outcome.word()));
            }
            (Outcome::Inconclusive, None) => decision.add(
                Outcome::Inconclusive,
                format!("{}: {} runs cannot tell", one.title, one.a.1.min(one.b.1)),
            ),
            _ => {}
        }
    }
    decision
}

fn failures(decision: &mut Decision, trial: &Trial, quarantine: &Quarantine) {
    let [(base, of_base), (candidate, of)] = trial.failed;
    if candidate == 0 {
        return;
    }
    let text = format!("{candidate} of {of} runs failed, of the base {base} of {of_base}");
    match quarantine.holds(&decision.scenario, None) {
        Some(held) => decision.quarantined.push(format!("{text}; {held}")),
        // It is not this change that made it fail, and a change cannot be judged by what fails anyway.
        None if base > 0 => decision.add(Outcome::Inconclusive, text),
        None => decision.add(Outcome::Worse, text),
    }
}

impl Decision {
    fn add(&mut self, outcome: Outcome, reason: String) {
        self.outcome = self.outcome.max(outcome);
        self.reasons.push(reason);
    }
}

/// The worst of some decisions.
#[must_use]
pub fn outcome(decisions: &[Decision]) -> Outcome {
    decisions
        .iter()
        .map(|one| one.outcome)
        .max()
        .unwrap_or(Outcome::Inconclusive)
}

/// The decisions as a terminal shows them.
#[must_use]
pub fn summary(decisions: &[Decision]) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes any text");
    for one in decisions {
        let word = match one.outcome {
            Outcome::Equivalent => "no worse",
            other => other.word(),
        };
        line(format!("{}: {word}", one.scenario));
        for reason in &one.reasons {
            line(format!("    {reason}"));
        }
        for held in &one.quarantined {
            line(format!("    in quarantine: {held}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
