//! `elab release-report`: the page that goes with a release.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use scenarios::history::{Entry, History};
use scenarios::report::book::Book;
use scenarios::report::release::{self, EARLIER, Earlier, Release};

use super::evidence::book;
use super::gate;
use super::history::{self, HISTORY};
use crate::scenario_run::origin;
use crate::scenario_run::results::RESULTS;

/// Arguments of `elab release-report`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReleaseArguments {
    /// Folder of the release's results; the newest results if none is given
    pub results: Option<PathBuf>,
    /// How the release is called; the program's version if nothing is given
    #[arg(long = "release", value_name = "NAME")]
    pub name: Option<String>,
    /// What it was built from; as git says of this program if nothing is given
    #[arg(long, value_name = "COMMIT")]
    pub commit: Option<String>,
    /// An earlier release to compare with, as 1.1=0123abc (the beginning of its commit); given twice at most. The last
    /// two commits of the history if none is given
    #[arg(long = "earlier", value_name = "NAME=COMMIT", value_parser = named)]
    pub earlier: Vec<(String, String)>,
    /// History that knows the earlier releases; several files are read as one
    #[arg(long = "file", value_name = "FILE", default_value = HISTORY)]
    pub files: Vec<PathBuf>,
    /// What does not count for a while (TOML)
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,
    /// Folder for release.html and release.md; that of the results if none is given
    #[arg(long, value_name = "FOLDER")]
    pub into: Option<PathBuf>,
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, commit)) if !name.is_empty() && !commit.is_empty() => {
            Ok((name.to_owned(), commit.to_owned()))
        }
        _ => Err("write NAME=COMMIT, as 1.1=0123abc".into()),
    }
}

/// `elab release-report`.
///
/// # Errors
/// When results or history cannot be read, or do not know what is asked for.
pub fn report(arguments: &ReleaseArguments) -> Result<ExitCode> {
    let default = Path::new(RESULTS).join("latest");
    let results = arguments.results.as_deref().unwrap_or(&default);
    let folder = if results.is_dir() {
        results
    } else {
        results.parent().unwrap_or(Path::new("."))
    };
    let book = book(results)?;
    let commit = arguments.commit.clone().unwrap_or_else(origin::commit);
    let there: Vec<PathBuf> = match &arguments.files[..] {
        // The first release has no history, and needs none.
        [file] if !file.exists() && arguments.earlier.is_empty() => Vec::new(),
        files => files.to_vec(),
    };
    let history = history::read(&there)?;
    let quarantine = gate::quarantine(arguments.quarantine.as_deref())?;
    let release = Release {
        name: arguments
            .name
            .clone()
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").into()),
        earlier: earlier(&history, &arguments.earlier, &commit, &book)?,
        commit,
        quarantined: quarantine
            .entries()
            .iter()
            .map(scenarios::gate::quarantine::Held::in_words)
            .collect(),
        hashes: release::hashes(&book, folder)
            .with_context(|| format!("cannot read the raw data in {}", folder.display()))?,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        book: &book,
    };
    let into = arguments.into.as_deref().unwrap_or(folder);
    release
        .write(into)
        .with_context(|| format!("cannot write into {}", into.display()))?;
    println!("{}", into.join("release.html").display());
    println!("{}", into.join("release.md").display());
    Ok(ExitCode::SUCCESS)
}

/// The releases to compare with, the newest first.
fn earlier(
    history: &History,
    named: &[(String, String)],
    commit: &str,
    book: &Book,
) -> Result<Vec<Earlier>> {
    if named.len() > EARLIER {
        bail!("at most {EARLIER} earlier releases are compared with");
    }
    let of = |name: &str, commit: &str| {
        let entries: Vec<&Entry> = history
            .entries
            .iter()
            .filter(|entry| entry.commit.starts_with(commit))
            .collect();
        if entries.is_empty() {
            bail!("the history has no run of {name} ({commit})");
        }
        Ok(Earlier::of(name, &entries, book))
    };
    if !named.is_empty() {
        return named
            .iter()
            .map(|(name, commit)| of(name, commit))
            .collect();
    }
    let mut commits: Vec<&str> = Vec::new();
    for entry in history.entries.iter().rev() {
        let one = entry.commit.as_str();
        let before = entry.unix_s < book.unix_s && !one.is_empty() && one != commit;
        if before && !commits.contains(&one) && commits.len() < EARLIER {
            commits.push(one);
        }
    }
    commits.iter().map(|commit| of(commit, commit)).collect()
}
