//! Scenario files: TOML in, a checked [`Scenario`] out, or errors that name file, line and column.
//!
//! It knows what a scenario may say, and nothing of how it is run.

mod check;
pub(crate) mod diagnostic;
pub mod figure;
pub mod file;
pub mod library;
mod matrix;
mod place;
pub mod step;
pub mod units;

use std::path::Path;

pub use check::{EVENTS, NETWORKS};
pub use diagnostic::{Diagnostic, ScenarioError};
pub use file::Scenario;
use matrix::Misfit;
pub use matrix::{Combination, words};
use place::Places;

/// Longest file: one that is longer is something else.
const FILE_MAX: u64 = 1 << 20;

/// A scenario as it is run: one combination of the file's matrix.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The scenario.
    pub scenario: Scenario,
    /// Its combination of the matrix, in words; empty without a matrix.
    pub words: String,
    /// The same for a machine: `path=value`, TOML values.
    pub settings: Vec<String>,
}

/// Reads and checks the text of a scenario; `file` names it in errors. Without a matrix there is one variant.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(file: &str, text: &str) -> Result<Vec<Variant>, ScenarioError> {
    let error = |diagnostics| ScenarioError {
        file: file.into(),
        text: text.into(),
        diagnostics,
    };
    let scenario: Scenario =
        toml::from_str(text).map_err(|wrong| error(vec![diagnostic::from_toml(&wrong, text)]))?;
    let diagnostics = check::check(&scenario, text);
    if !diagnostics.is_empty() {
        return Err(error(diagnostics));
    }
    let misfit = |wrong: Misfit, with: &str| {
        let mut path = vec!["matrix"];
        path.extend(wrong.path.as_deref());
        let message = format!("{with}{}", wrong.words);
        error(vec![Diagnostic::new(Places::of(text).find(&path), message)])
    };
    let combinations = matrix::combinations(&scenario.matrix).map_err(|wrong| misfit(wrong, ""))?;
    combinations
        .into_iter()
        .map(|combination| {
            let words = words(&combination);
            let scenario = with(text, &combination).map_err(|mut wrong| {
                // Of several values nobody can say which one is at fault.
                if let [(path, _)] = &combination[..] {
                    wrong.path.get_or_insert_with(|| path.clone());
                }
                misfit(wrong, &format!("with {words}: "))
            })?;
            let settings = combination
                .into_iter()
                .map(|(path, value)| format!("{path}={value}"))
                .collect();
            Ok(Variant {
                scenario,
                words,
                settings,
            })
        })
        .collect()
}

/// Reads the text of a scenario with some of its values replaced: `path=value`, the value being TOML.
///
/// # Errors
/// What is wrong with it.
pub fn parse_with(file: &str, text: &str, settings: &[String]) -> Result<Scenario, ScenarioError> {
    let error = |words: String| ScenarioError {
        file: file.into(),
        text: text.into(),
        diagnostics: vec![Diagnostic::new(0..0, words)],
    };
    parse(file, text)?;
    let mut combination = Vec::new();
    for setting in settings {
        let (path, value) = setting
            .split_once('=')
            .ok_or_else(|| error(format!("\"{setting}\" is no setting: write PATH=VALUE")))?;
        // What is no TOML value is taken for a word.
        let value = format!("v = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut table| table.remove("v"))
            .unwrap_or_else(|| toml::Value::String(value.into()));
        combination.push((path.trim().to_owned(), value));
    }
    with(text, &combination).map_err(|wrong| error(wrong.words))
}

fn with(text: &str, combination: &Combination) -> Result<Scenario, Misfit> {
    let reader = |wrong: toml::de::Error| Misfit::of_all(wrong.message().to_owned());
    if combination.is_empty() {
        return toml::from_str(text).map_err(reader);
    }
    let mut table: toml::Table = text.parse().map_err(reader)?;
    table.remove("matrix");
    for (path, value) in combination {
        matrix::put(&mut table, path, value.clone())?;
    }
    // Written out again, so that places refer to a text that exists.
    let text = table.to_string();
    let scenario: Scenario = toml::from_str(&text).map_err(reader)?;
    match check::check(&scenario, &text).into_iter().next() {
        None => Ok(scenario),
        Some(one) => Err(Misfit::of_all(one.message)),
    }
}

/// Reads and checks a scenario file.
///
/// # Errors
/// All that is wrong with it.
pub fn read(path: &Path) -> Result<(String, Vec<Variant>), ScenarioError> {
    let file = path.display().to_string();
    let unreadable = |words: String| ScenarioError {
        file: file.clone(),
        text: String::new(),
        diagnostics: vec![Diagnostic::new(0..0, words)],
    };
    let length = std::fs::metadata(path)
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?
        .len();
    if length > FILE_MAX {
        return Err(unreadable("is longer than 1 MiB: no scenario is".into()));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let variants = parse(&file, &text)?;
    Ok((text, variants))
}

/// Reads and checks what a word stands for: a scenario file, or a scenario that comes with the program.
///
/// # Errors
/// All that is wrong with it, or that there is none.
pub fn find(word: &str) -> Result<(String, Vec<Variant>), ScenarioError> {
    let path = Path::new(word);
    match library::find(word) {
        Some(included) if !path.is_file() => {
            let variants = parse(word, included.text)?;
            Ok((included.text.into(), variants))
        }
        // Whoever means a file writes a path, or the end of its name.
        None if path.components().count() == 1 && path.extension().is_none() && !path.exists() => {
            let names = library::ALL.iter().map(|one| one.name);
            let help = match diagnostic::nearest(word, names) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "`elab list` names them".into(),
            };
            let message = "no such file, and no scenario of this name comes with the program";
            Err(ScenarioError {
                file: word.into(),
                text: String::new(),
                diagnostics: vec![Diagnostic::new(0..0, message).help(Some(help))],
            })
        }
        _ => read(path),
    }
}

/// The JSON schema of scenario files.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Scenario).to_value()
}

/// Reads a pattern of events that stands by itself, TOML as in a scenario file.
///
/// # Errors
/// In words for people.
pub fn pattern(text: &str) -> Result<file::Pattern, String> {
    let pattern: file::Pattern =
        toml::from_str(text).map_err(|wrong| diagnostic::from_toml(&wrong, text).in_words())?;
    let kind = pattern.event.get_ref();
    if EVENTS.contains(&kind.as_str()) {
        Ok(pattern)
    } else {
        let help = diagnostic::suggest(kind, EVENTS);
        Err(format!("there is no event \"{kind}\"; {help}"))
    }
}
