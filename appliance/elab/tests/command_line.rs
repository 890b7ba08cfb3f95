//! The program as a user calls it: help, errors, exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn elab(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_elab"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("COLUMNS")
        .output()
        .expect("the program was built with this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program writes UTF-8")
}

/// Compares with a file of `tests/golden`; with `ELAB_BLESS=1` writes it instead.
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("ELAB_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{name} has changed; if it shall, run with ELAB_BLESS=1. It is now:\n{actual}"
    );
}

#[test]
fn help_is_as_written_down() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments) in [
        ("help.txt", &["--help"][..]),
        ("help-demo.txt", &["demo", "--help"]),
        ("help-up.txt", &["up", "--help"]),
        ("help-vm-migrate.txt", &["vm", "migrate", "--help"]),
        ("help-link-set.txt", &["link", "set", "--help"]),
        ("help-run.txt", &["run", "--help"]),
        ("help-compare.txt", &["compare", "--help"]),
    ] {
        let output = elab(folder.path(), arguments);
        assert!(output.status.success());
        golden(name, &text(&output.stdout));
    }
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&[][..], "Usage: elab <COMMAND>"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["link", "set", "h1:mgmt"], "--cut"),
        (&["link", "set", "h1:mgmt", "--delay", "20"], "us, ms, s"),
        (&["link", "set", "h1:mgmt", "--loss", "2"], "0 to 1"),
        (&["demo", "--migrations", "many"], "--migrations"),
        (&["up", "--hosts", "99"], "1..=16"),
        (&["host", "explode", "h1"], "explode"),
    ] {
        let output = elab(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(words), "{arguments:?} says:\n{error}");
    }
}

#[test]
fn commands_without_a_lab_say_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["status"][..],
        &["down"],
        &["vm", "list"],
        &["host", "pull", "h1"],
        &["link", "heal", "h1:mgmt"],
        &["sr", "kill"],
        &["console"],
    ] {
        let output = elab(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(
            text(&output.stderr),
            "elab: no lab \"lab\" is running here; `elab up --name lab` starts one\n",
            "{arguments:?}"
        );
    }
}

#[test]
fn doctor_speaks_json_and_its_code_says_whether_all_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let output = elab(folder.path(), &["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    for name in ["QEMU", "accelerator", "free memory", "free disk", "CPUs"] {
        assert!(
            findings.iter().any(|finding| finding["name"] == name),
            "{name}"
        );
    }
    let complete = findings.iter().all(|finding| finding["ok"] == true);
    assert_eq!(output.status.code(), Some(if complete { 0 } else { 3 }));
    for finding in findings.iter().filter(|finding| finding["ok"] == false) {
        assert_ne!(finding["remedy"], "", "{finding}");
    }
}

#[test]
fn a_wrong_scenario_ends_with_2_and_is_told_where() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("wrong.toml"),
        "name = \"x\"\nwhy = \"A test.\"\n[[gests]]\nname = \"session\"\n",
    )
    .unwrap();
    for arguments in [["check", "wrong.toml"], ["run", "wrong.toml"]] {
        let output = elab(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(
            error.contains("wrong.toml:3:3: unknown field `gests`"),
            "{error}"
        );
        assert!(error.contains("did you mean `guests`?"), "{error}");
    }
    let output = elab(folder.path(), &["run", "no-such-scenario"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!folder.path().join(".elab/run").exists());
}

#[test]
fn what_a_scenario_can_say_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let schema = elab(folder.path(), &["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["steps"].is_object());
    let list = elab(folder.path(), &["list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert!(names.contains(&"demo") && names.len() > 10, "{names:?}");
    let figures = text(&elab(folder.path(), &["list", "--figures"]).stdout);
    assert!(figures.contains("longest-echo"), "{figures}");
}
