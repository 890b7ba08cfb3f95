//! Which commit broke a scenario: `git bisect` in a work tree of its own, so that the user's stays as it is.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::assembly::IMAGES;
use crate::cli::Inconclusive;

/// What to look for.
#[derive(Clone, Debug)]
pub struct Search {
    /// A revision at which the scenario passes.
    pub good: String,
    /// One at which it fails.
    pub bad: String,
    /// Builds the program, in the work tree.
    pub build: String,
    /// The program that was built, below the work tree.
    pub program: PathBuf,
    /// The scenario: a file, or a name.
    pub scenario: String,
    /// Runs at each revision.
    pub runs: u32,
}

/// What a revision came to; `git bisect` knows these three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Good,
    Bad,
    Skip,
}

/// Searches the repository in `folder`; gives what git says of the first bad commit.
///
/// # Errors
/// When git refuses, or the search leads nowhere.
pub fn run(folder: &Path, search: &Search, progress: &dyn Fn(&str)) -> Result<String> {
    let scratch = tempfile::tempdir().context("no temporary folder can be made")?;
    let tree = scratch.path().join("tree");
    git(
        folder,
        &[
            "worktree",
            "add",
            "--detach",
            "--quiet",
            &tree.display().to_string(),
            &search.bad,
        ],
    )?;
    let found = share_images(folder, &tree).and_then(|()| bisect(&tree, search, progress));
    // Git notes work trees: this one is let go of, whatever came.
    let _ = git(&tree, &["bisect", "reset"]);
    let removed = git(
        folder,
        &["worktree", "remove", "--force", &tree.display().to_string()],
    );
    let found = found?;
    removed?;
    Ok(found)
}

/// Lets the revisions use what images there are, and leave theirs: they are known by the hash of their recipe. Without this, each search
/// would build a guest first.
fn share_images(folder: &Path, tree: &Path) -> Result<()> {
    let Ok(images) = folder.join(IMAGES).canonicalize() else {
        return Ok(());
    };
    let link = tree.join(IMAGES);
    let made = match link.parent() {
        Some(parent) => std::fs::create_dir_all(parent),
        None => Ok(()),
    };
    made.and_then(|()| symlink(images, &link))
        .with_context(|| format!("cannot make {}", link.display()))
}

/// Proves what was said of one end of the search. Git takes it for granted, and would blame a commit that has done nothing.
fn check_end(
    tree: &Path,
    search: &Search,
    (revision, said): (&str, Word),
    progress: &dyn Fn(&str),
) -> Result<()> {
    git(tree, &["checkout", "--quiet", "--detach", revision])?;
    let (word, why) = judge(tree, search)?;
    progress(&format!("{revision}: {why}"));
    match word {
        Word::Skip => Err(Inconclusive(format!("{revision} cannot be judged: {why}")).into()),
        _ if word == said => Ok(()),
        _ => bail!(
            "{revision} is {why}, not {}: there is nothing to find between the two",
            if said == Word::Good { "good" } else { "bad" }
        ),
    }
}

fn bisect(tree: &Path, search: &Search, progress: &dyn Fn(&str)) -> Result<String> {
    for end in [(&search.bad[..], Word::Bad), (&search.good, Word::Good)] {
        check_end(tree, search, end, progress)?;
    }
    // Without the dashes git takes a revision that does not exist for a path, and searches for ever.
    git(tree, &["bisect", "start", &search.bad, &search.good, "--"])?;
    loop {
        let revision = git(tree, &["log", "-1", "--format=%h %s"])?;
        let (word, why) = judge(tree, search)?;
        progress(&format!("{}: {why}", revision.trim()));
        let said = git(
            tree,
            &[
                "bisect",
                match word {
                    Word::Good => "good",
                    Word::Bad => "bad",
                    Word::Skip => "skip",
                },
            ],
        )?;
        if said.contains("is the first bad commit") {
            return Ok(said.trim().to_owned());
        }
        if said.contains("only 'skip'ped commits left") {
            let words = format!(
                "it is one of these, which cannot all be judged:\n{}",
                said.trim()
            );
            return Err(Inconclusive(words).into());
        }
    }
}

/// Builds and runs the revision that is checked out; gives what it came to, in words as well.
fn judge(tree: &Path, search: &Search) -> Result<(Word, String)> {
    let skipped = |what: &str, output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        let words = format!("skipped, {what}: {}", last.unwrap_or("it says nothing"));
        (Word::Skip, words)
    };
    let built = Command::new("sh")
        .args(["-c", &search.build])
        .current_dir(tree)
        .output()
        .context("cannot run a shell")?;
    if !built.status.success() {
        return Ok(skipped("it does not build", &built));
    }
    let ran = Command::new(tree.join(&search.program))
        .args(["run", &search.scenario, "-n", &search.runs.to_string()])
        .current_dir(tree)
        .output();
    Ok(match ran {
        Err(error) => (
            Word::Skip,
            format!(
                "skipped, {} cannot be run: {error}",
                search.program.display()
            ),
        ),
        Ok(output) => match output.status.code() {
            Some(0) => (Word::Good, "good".into()),
            Some(1) => (Word::Bad, "bad".into()),
            _ => skipped(&format!("it proves nothing ({})", output.status), &output),
        },
    })
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("git cannot be run; install it: sudo apt-get install -y git")?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    // A search that ends among skipped commits ends with an error, and says which.
    if status.success() || said.contains("only 'skip'ped commits left") {
        Ok(said)
    } else {
        bail!(
            "git {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&stderr).trim()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository whose program fails from its sixth commit on, and does not build at the third.
    fn repository(folder: &Path) {
        let run = |arguments: &[&str]| git(folder, arguments).unwrap();
        run(&["init", "--quiet"]);
        run(&["config", "user.email", "a@b"]);
        run(&["config", "user.name", "a"]);
        for number in 1..=9 {
            let code = i32::from(number >= 6);
            let program = format!("#!/bin/sh\n# {number}\nexit {code}\n");
            std::fs::write(folder.join("source"), program).unwrap();
            let build = if number == 3 {
                "exit 1"
            } else {
                "cp source program && chmod +x program"
            };
            std::fs::write(folder.join("build"), build).unwrap();
            run(&["add", "."]);
            run(&["commit", "--quiet", "-m", &format!("commit {number}")]);
            run(&["tag", &format!("v{number}")]);
        }
    }

    fn search(good: &str, bad: &str) -> Search {
        Search {
            good: good.into(),
            bad: bad.into(),
            build: "sh build".into(),
            program: "program".into(),
            scenario: "demo".into(),
            runs: 1,
        }
    }

    #[test]
    fn the_first_bad_commit_is_found_and_the_repository_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        let found = run(folder.path(), &search("v1", "v8"), &|_| {}).unwrap();
        assert!(found.contains("commit 6"), "{found}");
        assert_eq!(
            git(folder.path(), &["worktree", "list"])
                .unwrap()
                .lines()
                .count(),
            1
        );
        assert_eq!(git(folder.path(), &["status", "--porcelain"]).unwrap(), "");
    }

    #[test]
    fn revisions_that_cannot_be_judged_are_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        let told = std::cell::RefCell::new(Vec::new());
        let mut search = search("v5", "v7");
        search.build =
            "if grep -q '# 6' source; then echo no compiler >&2; exit 1; fi; sh build".into();
        let error = run(folder.path(), &search, &|words| {
            told.borrow_mut().push(words.to_owned());
        })
        .unwrap_err();
        assert!(error.is::<Inconclusive>(), "{error}");
        let told = told.into_inner();
        assert_eq!(told[..2], ["v7: bad", "v5: good"]);
        assert!(
            told[2].ends_with("commit 6: skipped, it does not build: no compiler"),
            "{told:?}"
        );
    }

    #[test]
    fn an_end_that_is_not_what_was_said_of_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        for (good, bad, why) in [
            ("v1", "v5", "v5 is good, not bad"),
            ("v7", "v8", "v7 is bad, not good"),
            ("v3", "v8", "v3 cannot be judged"),
        ] {
            let error = run(folder.path(), &search(good, bad), &|_| {}).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn revisions_share_the_images_that_there_are_and_leave_them() {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        std::fs::write(folder.path().join(".git/info/exclude"), ".elab\n").unwrap();
        let images = folder.path().join(IMAGES);
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(images.join("session"), "").unwrap();
        let mut search = search("v1", "v8");
        search.build += &format!(" && [ -e {IMAGES}/session ]");
        let found = run(folder.path(), &search, &|_| {}).unwrap();
        assert!(found.contains("commit 6"), "{found}");
        assert!(images.join("session").exists());
    }

    #[test]
    fn a_revision_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        assert!(run(folder.path(), &search("v1", "v99"), &|_| {}).is_err());
        assert!(run(folder.path(), &search("v0", "v9"), &|_| {}).is_err());
        assert_eq!(
            git(folder.path(), &["worktree", "list"])
                .unwrap()
                .lines()
                .count(),
            1
        );
    }
}
