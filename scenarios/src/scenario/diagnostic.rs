//! What is wrong with a scenario file, and where: file, line, column, the line itself, and what may have been meant.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// Where: bytes of the text; empty for the file as a whole.
    pub span: Range<usize>,
    /// What to do instead.
    pub help: Option<String>,
}

/// A file that is no scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScenarioError {
    /// Name of the file.
    pub file: String,
    /// Its text.
    pub text: String,
    /// What is wrong with it, in order of place.
    pub diagnostics: Vec<Diagnostic>,
}

impl Diagnostic {
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span,
            help: None,
        }
    }

    /// Without its place.
    pub(super) fn in_words(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.message),
            None => self.message.clone(),
        }
    }

    pub(crate) fn help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }
}

/// The one of `known` that may have been meant by a word that is none of them.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, candidate) = known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)?;
    // Two of five letters wrong is a slip; more is another word.
    (distance * 5 <= word.chars().count().max(3) * 2).then_some(candidate)
}

/// "did you mean" for a word that is not one of `known`, or the list of them.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("known are: {}", known.join(", ")),
    }
}

/// From the TOML reader's own error.
pub(crate) fn from_toml(error: &toml::de::Error, text: &str) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    let whole = error.message();
    // serde says: unknown field `x`, expected one of `a`, `b` (or: expected `a` or `b`).
    let quoted: Vec<&str> = whole.split('`').skip(1).step_by(2).collect();
    let unknown = whole.starts_with("unknown field") || whole.starts_with("unknown variant");
    let (message, help) = match quoted.split_first() {
        Some((word, known)) if unknown && !known.is_empty() => {
            let kind = if whole.starts_with("unknown field") {
                "field"
            } else {
                "value"
            };
            (
                format!("unknown {kind} `{word}`"),
                Some(suggest(word, known.iter().copied())),
            )
        }
        _ => (whole.replace('\n', ", "), None),
    };
    // A table's span covers all of it: the first line says enough.
    let end = text[span.clone()]
        .find('\n')
        .map_or(span.end, |newline| span.start + newline);
    Diagnostic {
        message,
        span: span.start..end,
        help,
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            self.show(one, f)?;
        }
        Ok(())
    }
}

impl ScenarioError {
    fn show(&self, one: &Diagnostic, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if one.span.is_empty() && one.span.start == 0 {
            write!(f, "{}: {}", self.file, one.message)?;
        } else {
            let before = &self.text[..one.span.start];
            let line = before.matches('\n').count() + 1;
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let column = before[line_start..].chars().count() + 1;
            let shown = self.text[line_start..].lines().next().unwrap_or_default();
            let width = one.span.end.min(line_start + shown.len()) - one.span.start;
            let carets = self.text[one.span.start..one.span.start + width]
                .chars()
                .count()
                .max(1);
            let margin = " ".repeat(line.to_string().len());
            writeln!(f, "{}:{line}:{column}: {}", self.file, one.message)?;
            writeln!(f, "{margin} |")?;
            writeln!(f, "{line} | {shown}")?;
            write!(
                f,
                "{margin} | {}{}",
                " ".repeat(column - 1),
                "^".repeat(carets)
            )?;
        }
        if let Some(help) = &one.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn a_slip_is_told_from_another_word() {
        let known = ["guests", "steps", "pool"];
        assert_eq!(suggest("gests", known), "did you mean `guests`?");
        assert_eq!(suggest("sptes", known), "did you mean `steps`?");
        assert_eq!(suggest("network", known), "known are: guests, steps, pool");
    }
}
