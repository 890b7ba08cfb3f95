//! What is known to be unreliable, and does not count until a day: a list with an owner for each entry.
//!
//! ```toml
//! [[quarantine]]
//! scenario = "link-faults"
//! figure = "udp-gap"          # without it: the scenario's failures
//! owner = "Ada"
//! link = "https://example.org/issues/7"
//! expires = 2026-12-31
//! ```
//!
//! Runs in quarantine are made and reported like any other. An entry past its day is an error, so that none is forgotten.

use std::fmt;

use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use crate::report::book::Book;
use crate::scenario::ScenarioError;
use crate::scenario::diagnostic::{Diagnostic, from_toml, suggest};
use crate::scenario::figure;

/// The list; empty without a file.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    entries: Vec<Held>,
}

/// One entry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    scenario: Spanned<String>,
    #[serde(default)]
    figure: Option<Spanned<String>>,
    owner: Spanned<String>,
    link: Spanned<String>,
    expires: Spanned<Datetime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    quarantine: Vec<Held>,
}

impl Quarantine {
    /// Reads a list as it holds on a day (year, month, day).
    ///
    /// # Errors
    /// With the place of each: what is no such list, has no owner or link, or is past its day.
    pub fn parse(file: &str, text: &str, today: (u64, u64, u64)) -> Result<Self, ScenarioError> {
        let error = |diagnostics| ScenarioError {
            file: file.into(),
            text: text.into(),
            diagnostics,
        };
        let read: File =
            toml::from_str(text).map_err(|wrong| error(vec![from_toml(&wrong, text)]))?;
        let wrong: Vec<Diagnostic> = read
            .quarantine
            .iter()
            .flat_map(|held| held.check(today))
            .collect();
        if wrong.is_empty() {
            Ok(Self {
                entries: read.quarantine,
            })
        } else {
            Err(error(wrong))
        }
    }

    /// The entry for a scenario's failures, or for the figure of this title (`scenario: figure`).
    #[must_use]
    pub fn holds(&self, scenario: &str, title: Option<&str>) -> Option<&Held> {
        self.entries.iter().find(|held| {
            let named = held.figure.as_ref().and_then(|name| {
                let title = figure::find(name.get_ref())?.title;
                Some(format!("{scenario}: {title}"))
            });
            held.scenario.get_ref() == scenario && named.as_deref() == title
        })
    }

    /// Notes in a report what of it does not count.
    pub fn mark(&self, book: &mut Book) {
        let words = |held: Option<&Held>| held.map_or_else(String::new, Held::to_string);
        for scenario in &mut book.scenarios {
            scenario.quarantined = words(self.holds(&scenario.name, None));
            for limit in &mut scenario.limits {
                let title = figure::find(&limit.figure).map_or("", |figure| figure.title);
                let title = format!("{}: {title}", scenario.name);
                limit.quarantined = words(self.holds(&scenario.name, Some(&title)));
            }
        }
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Held] {
        &self.entries
    }
}

impl Held {
    /// What it takes out, and until when.
    #[must_use]
    pub fn in_words(&self) -> String {
        let what = match &self.figure {
            Some(figure) => format!("{} of {}", figure.get_ref(), self.scenario.get_ref()),
            None => self.scenario.get_ref().clone(),
        };
        format!("{what} does not count {self}")
    }

    fn check(&self, today: (u64, u64, u64)) -> Vec<Diagnostic> {
        let mut wrong = Vec::new();
        let mut say = |span, message: String| wrong.push(Diagnostic::new(span, message));
        if self.owner.get_ref().trim().is_empty() {
            say(self.owner.span(), "an entry needs an owner".into());
        }
        if !self.link.get_ref().starts_with("https://") {
            let message = "the link is to lead to where it is discussed: https://...";
            say(self.link.span(), message.into());
        }
        match day_of(self.expires.get_ref()) {
            Some(day) if today > day => say(
                self.expires.span(),
                format!(
                    "past its day: \"{}\" must hold again, or {} says until when it need not",
                    self.scenario.get_ref(),
                    self.owner.get_ref()
                ),
            ),
            Some(_) => {}
            None => say(self.expires.span(), "a day is wanted, as 2026-12-31".into()),
        }
        if let Some(name) = &self.figure
            && figure::find(name.get_ref()).is_none()
        {
            let message = format!("no figure `{}`", name.get_ref());
            let known = figure::ALL.iter().map(|figure| figure.name);
            let help = suggest(name.get_ref(), known);
            wrong.push(Diagnostic::new(name.span(), message).help(Some(help)));
        }
        wrong
    }
}

fn day_of(time: &Datetime) -> Option<(u64, u64, u64)> {
    let day = time.date?;
    Some((day.year.into(), day.month.into(), day.day.into()))
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "until {} ({}, {})",
            self.expires.get_ref(),
            self.owner.get_ref(),
            self.link.get_ref()
        )
    }
}
