//! Results of several shards, or of several days, as if one machine had made them all.
//!
//! Limits are judged anew over all runs: a median of medians would be another figure.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use scenarios::report::book::{Book, ScenarioReport};
use scenarios::scenario;

use super::arms;

/// Joins the results in `folders` into the new folder `into`, with the evidence of their runs.
///
/// # Errors
/// When one holds no results, the same run is in two, or they are of different scenarios of one name.
pub fn merge(folders: &[PathBuf], into: &Path, command: String) -> Result<Book> {
    fs::create_dir(into).with_context(|| format!("cannot make {}", into.display()))?;
    let mut merged: Vec<ScenarioReport> = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut unix_s, mut seconds) = (u64::MAX, 0.0);
    for folder in folders {
        let book = arms::book(folder)?
            .with_context(|| format!("{} is no folder of results", folder.display()))?;
        unix_s = unix_s.min(book.unix_s);
        seconds += book.seconds;
        for one in book.scenarios {
            take_file(folder, &one.name, into)?;
            for run in &one.runs {
                if !seen.insert((one.name.clone(), one.variant.clone(), run.number)) {
                    bail!(
                        "run {} of {} is in two of these results; give each shard its own number, as --shard 2/4",
                        run.number,
                        one.title()
                    );
                }
                take_evidence(folder, &run.folder, into)?;
            }
            match merged
                .iter_mut()
                .find(|other| other.name == one.name && other.variant == one.variant)
            {
                Some(other) => other.runs.extend(one.runs),
                None => merged.push(one),
            }
        }
    }
    let scenarios = merged
        .into_iter()
        .map(|mut one| {
            let mut runs = std::mem::take(&mut one.runs);
            runs.sort_by_key(|run| run.number);
            let settings = runs.first().map_or(&[][..], |run| &run.settings);
            let file = into.join(format!("{}.toml", one.name));
            let text = read(&file)?;
            let scenario = scenario::parse_with(&file.display().to_string(), &text, settings)?;
            let mut joined = ScenarioReport::new(&scenario, &one.variant, runs);
            joined.hold_as(&one);
            Ok(joined)
        })
        .collect::<Result<_>>()?;
    let book = Book::new(command, unix_s, seconds, scenarios);
    book.write(into)
        .with_context(|| format!("cannot write the report into {}", into.display()))?;
    Ok(book)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The scenario's file, which must be the same everywhere.
fn take_file(folder: &Path, name: &str, into: &Path) -> Result<()> {
    let file = format!("{name}.toml");
    let text = read(&folder.join(&file))?;
    let there = into.join(&file);
    if there.exists() {
        if read(&there)? != text {
            bail!(
                "{} is another scenario than that of the results before it",
                folder.join(&file).display()
            );
        }
        return Ok(());
    }
    fs::write(&there, text).with_context(|| format!("cannot write {}", there.display()))
}

fn take_evidence(folder: &Path, run: &str, into: &Path) -> Result<()> {
    let from = folder.join(run);
    // A name in a report is not to lead out of its folder.
    let plain = Path::new(run).components().count() == 1 && !run.starts_with('.');
    if !plain || !from.is_dir() {
        return Ok(());
    }
    copy(&from, &into.join(run)).with_context(|| format!("cannot copy {}", from.display()))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use scenarios::report::book::SCHEMA;
    use scenarios::report::run::RunReport;
    use scenarios::scenario::library;
    use scenarios::verdict::Verdict;

    use super::*;

    fn run(number: u32, verdict: Verdict) -> RunReport {
        RunReport {
            schema: SCHEMA,
            scenario: "storage-pause".into(),
            variant: String::new(),
            settings: Vec::new(),
            number,
            seed: number.into(),
            command: String::new(),
            verdict,
            reasons: Vec::new(),
            checks: Vec::new(),
            figures: [("longest-echo".to_owned(), vec![9.0])].into(),
            steps: Vec::new(),
            seconds: 30.0,
            folder: format!("storage-pause-{number}"),
            machine: Default::default(),
            measured: None,
            echoes_ms: Vec::new(),
        }
    }

    fn shard(base: &Path, name: &str, runs: Vec<RunReport>) -> PathBuf {
        let folder = base.join(name);
        fs::create_dir(&folder).unwrap();
        let text = library::find("storage-pause").unwrap().text;
        fs::write(folder.join("storage-pause.toml"), text).unwrap();
        for run in &runs {
            fs::create_dir(folder.join(&run.folder)).unwrap();
            fs::write(folder.join(&run.folder).join("events.jsonl"), "").unwrap();
        }
        let scenario = scenario::parse_with("storage-pause", text, &[]).unwrap();
        let report = ScenarioReport::new(&scenario, "", runs);
        Book::new("elab run".into(), 5, 60.0, vec![report])
            .write(&folder)
            .unwrap();
        folder
    }

    #[test]
    fn shards_make_one_report_whose_verdict_is_the_worst() {
        let base = tempfile::tempdir().unwrap();
        let a = shard(
            base.path(),
            "a",
            vec![run(1, Verdict::Passed), run(3, Verdict::Passed)],
        );
        let b = shard(base.path(), "b", vec![run(2, Verdict::Failed)]);
        let into = base.path().join("all");
        let book = merge(&[a.clone(), b], &into, "elab report merge".into()).unwrap();
        let [one] = &book.scenarios[..] else {
            panic!("{:?}", book.scenarios)
        };
        assert_eq!(
            one.runs.iter().map(|run| run.number).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(one.figures["longest-echo"].samples.len(), 3);
        assert_eq!(book.verdict, Verdict::Failed);
        assert!(into.join("report.html").is_file());
        assert!(into.join("storage-pause-2/events.jsonl").is_file());

        let twice = base.path().join("twice");
        let error = merge(&[a.clone(), a], &twice, String::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("run 1 of storage-pause is in two"),
            "{error}"
        );
    }

    #[test]
    fn two_scenarios_of_one_name_are_not_mixed() {
        let base = tempfile::tempdir().unwrap();
        let a = shard(base.path(), "a", vec![run(1, Verdict::Passed)]);
        let b = shard(base.path(), "b", vec![run(2, Verdict::Passed)]);
        let file = b.join("storage-pause.toml");
        let other = fs::read_to_string(&file).unwrap() + "# changed\n";
        fs::write(&file, other).unwrap();
        let error = merge(&[a, b], &base.path().join("all"), String::new()).unwrap_err();
        assert!(error.to_string().contains("is another scenario"), "{error}");
    }
}
