//! Two arms of a comparison on one machine, interleaved A B B A, so that whatever drifts meanwhile (heat, other work) falls on
//! both alike.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use scenarios::report::book::{Book, ScenarioReport};
use scenarios::scenario::Scenario;

use super::results;

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arm {
    /// A program: this one, of another version.
    Program(PathBuf),
    /// A hypervisor image, run by this program.
    Image(PathBuf),
}

impl Arm {
    /// An arm by the name of its file: images end with `.iso` or `.elf`, programs can be executed.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("iso" | "elf") => Ok(Self::Image(path)),
            _ if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                Ok(Self::Program(path))
            }
            _ => bail!(
                "{} is neither results, nor an image (.iso, .elf), nor a program",
                path.display()
            ),
        }
    }

    fn command(&self, scenario: &str, seed: u64, json: &Path) -> Result<Command> {
        let this = std::env::current_exe().context("cannot find this program's own file")?;
        let program = match self {
            Self::Program(path) => path.clone(),
            Self::Image(_) => this,
        };
        let mut command = Command::new(program);
        command
            .args([
                "run",
                scenario,
                "-n",
                "1",
                "--seed",
                &seed.to_string(),
                "--json",
            ])
            .arg(json)
            .stdout(Stdio::null());
        if let Self::Image(path) = self {
            command.arg("--image").arg(path);
            if path.extension().is_some_and(|ending| ending == "elf") {
                command.arg("--fast-boot");
            }
        }
        Ok(command)
    }
}

/// Which arm each run is of: A B B A A B B A ..., each `runs` times.
#[must_use]
pub fn order(runs: u32) -> Vec<usize> {
    (0..runs * 2)
        .map(|position| usize::from(matches!(position % 4, 1 | 2)))
        .collect()
}

/// Runs a scenario with both arms; gives a book of each.
///
/// # Errors
/// When a run leaves no report.
pub fn run(
    arms: [&Arm; 2],
    word: &str,
    scenario: &Scenario,
    runs: u32,
    progress: &dyn Fn(&str),
) -> Result<[Book; 2]> {
    let scratch = tempfile::tempdir().context("no temporary folder can be made")?;
    let json = scratch.path().join("report.json");
    let mut reports = [Vec::new(), Vec::new()];
    let order = order(runs);
    for (position, arm) in order.iter().enumerate() {
        // Both arms see the same seeds.
        let seed = scenario.seed.wrapping_add(reports[*arm].len() as u64);
        progress(&format!(
            "run {} of {}: {}",
            position + 1,
            order.len(),
            ["A", "B"][*arm]
        ));
        let _ = std::fs::remove_file(&json);
        let mut command = arms[*arm].command(word, seed, &json)?;
        let status = command.status().context("cannot start the run")?;
        let text = std::fs::read_to_string(&json)
            .with_context(|| format!("a run of {} left no report ({status})", ["A", "B"][*arm]))?;
        let book: Book = serde_json::from_str(&text).context("the report is of another version")?;
        reports[*arm].extend(book.scenarios.into_iter().flat_map(|one| one.runs));
    }
    Ok(reports.map(|runs| {
        let seconds = runs.iter().map(|run| run.seconds).sum();
        let report = ScenarioReport::new(scenario, "", runs);
        Book::new(String::new(), results::unix_s(), seconds, vec![report])
    }))
}

/// A book from a results folder or a `report.json`; `None` when the path is neither.
///
/// # Errors
/// When it is damaged.
pub fn book(path: &Path) -> Result<Option<Book>> {
    let file = if path.is_dir() {
        path.join("report.json")
    } else if path.extension().is_some_and(|ending| ending == "json") {
        path.to_owned()
    } else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let book = serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of `elab run`", file.display()))?;
    Ok(Some(book))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_interleaved_and_equally_often_first() {
        assert_eq!(order(4), [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(order(3).iter().filter(|arm| **arm == 0).count(), 3);
    }

    #[test]
    fn an_arm_is_told_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("x.iso");
        std::fs::write(&image, "").unwrap();
        assert!(matches!(Arm::of(&image).unwrap(), Arm::Image(_)));
        assert!(matches!(
            Arm::of(Path::new("/bin/sh")).unwrap(),
            Arm::Program(_)
        ));
        let text = folder.path().join("notes");
        std::fs::write(&text, "").unwrap();
        assert!(Arm::of(&text).is_err());
    }
}
