//! Which commit a program was built from.
//!
//! A bundle is told when it is built. Anything else asks git about the work tree that the program's own file lies in: written into
//! each build, the commit would have everything compiled again after each one.

use std::path::Path;
use std::process::{Command, Stdio};

/// The commit of this program, with `-dirty` when the work tree has changes; empty when it is not known.
#[must_use]
pub fn commit() -> String {
    if let Some(told) = option_env!("ELAB_COMMIT") {
        return told.into();
    }
    std::env::current_exe()
        .ok()
        .and_then(|program| describe(program.parent()?))
        .unwrap_or_default()
}

/// What git says of the work tree around a folder; `None` where there is none.
fn describe(folder: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_tree_is_described_and_another_folder_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let identity = [
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@example.org",
                "-c",
                "commit.gpgsign=false",
            ];
            let status = Command::new("git")
                .current_dir(folder.path())
                .args(identity)
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(status.unwrap().success(), "{arguments:?}");
        };
        assert_eq!(describe(folder.path()), None);
        git(&["init"]);
        std::fs::write(folder.path().join("a"), "1").unwrap();
        git(&["add", "a"]);
        git(&["commit", "-m", "first"]);
        let clean = describe(folder.path()).unwrap();
        assert_eq!(clean.len(), 12, "{clean}");
        std::fs::write(folder.path().join("a"), "2").unwrap();
        assert_eq!(describe(folder.path()), Some(format!("{clean}-dirty")));
    }
}
