//! What a night does with results, as a runner calls it: history, gate, report of a release. Runs are made by scripts in the place of
//! labs: they leave a report, which is all that these commands know of one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scenarios::evidence::fingerprint::Fingerprint;
use scenarios::history::{Entry, History};
use scenarios::report::book::{Book, ScenarioReport};
use scenarios::report::run::RunReport;
use scenarios::scenario::{self, library};
use scenarios::verdict::Verdict;

fn elab(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_elab"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(number: u32, echo: f64, verdict: Verdict) -> RunReport {
    RunReport {
        schema: 1,
        scenario: "demo".into(),
        variant: String::new(),
        settings: Vec::new(),
        number,
        seed: number.into(),
        command: format!("elab run demo -n 1 --seed {number}"),
        verdict,
        reasons: Vec::new(),
        checks: Vec::new(),
        figures: [("longest-echo".to_owned(), vec![echo])].into(),
        steps: Vec::new(),
        seconds: 40.0,
        folder: format!("demo-{number}"),
        machine: Fingerprint::default(),
        measured: None,
        echoes_ms: Vec::new(),
    }
}

fn book(unix_s: u64, runs: Vec<RunReport>) -> Book {
    let text = library::find("demo").unwrap().text;
    let scenario = scenario::parse("demo", text).unwrap().remove(0).scenario;
    let report = ScenarioReport::new(&scenario, "", runs);
    Book::new("elab run demo".into(), unix_s, 40.0, vec![report])
}

/// A folder of results.
fn results(folder: &Path, name: &str, unix_s: u64, echo: f64) -> String {
    let results = folder.join(name);
    fs::create_dir(&results).unwrap();
    let runs = (1..=6).map(|number| run(number, echo + f64::from(number), Verdict::Passed));
    book(unix_s, runs.collect()).write(&results).unwrap();
    name.into()
}

#[test]
fn history_shows_each_commit_and_survives_a_torn_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, commit, unix_s, echo) in [
        ("first", "aaaa", 1_795_279_415, 20.0),
        ("second", "bbbb", 1_795_379_415, 90.0),
    ] {
        let name = results(folder, name, unix_s, echo);
        let added = elab(folder, &["history", "--add", &name, "--commit", commit]);
        assert!(added.status.success(), "{}", text(&added.stderr));
    }
    let file = folder.join(".elab/history.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{whole}{{\"torn")).unwrap();
    let shown = elab(folder, &["history", "demo"]);
    let (out, err) = (text(&shown.stdout), text(&shown.stderr));
    assert!(shown.status.success(), "{err}");
    assert!(out.contains("▂█"), "{out}");
    for words in ["aaaa", "2026-11-21", "6/6", "23.0", "96.0"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert!(err.contains("history.jsonl:13:"), "{err}");
    let json = elab(folder, &["history", "--json", "--last", "1"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[0]["points"][0]["commit"], "bbbb");
    assert_eq!(json[0]["points"].as_array().unwrap().len(), 1);
    for (arguments, words) in [
        (&["history", "cancel"][..], "no run of cancel"),
        (&["history", "--file", "none"], "cannot read"),
    ] {
        let output = elab(folder, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(words));
    }
    let unknown = elab(folder, &["history", "--figure", "speed"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn a_release_is_reported_beside_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let old = results(folder, "old", 1_795_279_415, 60.0);
    elab(folder, &["history", "--add", &old, "--commit", "aaaa1111"]);
    let new = results(folder, "new", 1_795_379_415, 20.0);
    let output = elab(
        folder,
        &[
            "release-report",
            &new,
            "--release",
            "1.2",
            "--commit",
            "bbbb",
            "--earlier",
            "1.1=aaaa",
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = fs::read_to_string(folder.join("new/release.html")).unwrap();
    let short = fs::read_to_string(folder.join("new/release.md")).unwrap();
    for words in ["elab 1.2", "63 ms with 1.1: better now", "report.json"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(short.contains("63 ms with 1.1: better now"), "{short}");
    // Without being told, the commits of the history are the releases; without a history there are none.
    let output = elab(folder, &["release-report", &new, "--into", "page"]);
    assert!(output.status.success());
    let page = fs::read_to_string(folder.join("page/release.html")).unwrap();
    assert!(page.contains("aaaa1111"));
    let unknown = elab(folder, &["release-report", &new, "--earlier", "1.0=cccc"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("no run of 1.0 (cccc)"));
}

/// A program in the place of elab: each run takes the next report, of those it has, round and round.
fn program(folder: &Path, name: &str, reports: &[RunReport]) -> PathBuf {
    let of = folder.join(format!("{name}-reports"));
    fs::create_dir(&of).unwrap();
    for (number, report) in reports.iter().enumerate() {
        let text = serde_json::to_string(&book(1, vec![report.clone()])).unwrap();
        fs::write(of.join(number.to_string()), text).unwrap();
    }
    let path = folder.join(name);
    // Called as: run demo -n 1 --seed SEED --json FILE. The scenario's first seed is 1.
    let script = format!(
        "#!/bin/sh\ncp {}/$((($6 - 1) % {})) $8\n",
        of.display(),
        reports.len()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn gate(folder: &Path, base: &Path, candidate: &Path, more: &[&str]) -> (Option<i32>, String) {
    let (base, candidate) = (base.display().to_string(), candidate.display().to_string());
    let words = ["gate", &base, &candidate, "-n", "8"];
    let output = elab(folder, &[&words[..], more].concat());
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn a_gate_is_red_for_what_is_worse_twice_and_for_what_fails() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let reports = |from: u32, to: u32, more: f64| -> Vec<RunReport> {
        let one = |number| run(number, 30.0 + f64::from(number % 8) + more, Verdict::Passed);
        (from..to).map(one).collect()
    };
    let base = program(folder, "base", &reports(0, 16, 0.0));
    let same = program(folder, "same", &reports(0, 16, 0.4));
    let slower = program(folder, "slower", &reports(0, 16, 30.0));
    // Slow in the first trial, and not in the second, which has other seeds.
    let once = [reports(0, 8, 30.0), reports(8, 16, 0.0)].concat();
    let once = program(folder, "once", &once);
    let mut failing = reports(0, 16, 0.0);
    failing[3].verdict = Verdict::Failed;
    let failing = program(folder, "failing", &failing);

    let (code, said) = gate(folder, &base, &same, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("demo: no worse"), "{said}");
    let (code, said) = gate(folder, &base, &slower, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is worse, found twice"), "{said}");
    let (code, said) = gate(folder, &base, &once, &[]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("not in the confirming re-run"), "{said}");
    let (code, said) = gate(folder, &base, &failing, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("1 of 8 runs failed, of the base 0 of 8"),
        "{said}"
    );

    let list = |figure: &str, day: &str| {
        let file = folder.join("list.toml");
        let text = format!(
            "[[quarantine]]\nscenario = \"demo\"\n{figure}owner = \"Ada\"\nlink = \"https://example.org/7\"\nexpires = {day}\n"
        );
        fs::write(file, text).unwrap();
        ["--quarantine", "list.toml"]
    };
    let more = list("figure = \"longest-echo\"\n", "9999-12-31");
    let (code, said) = gate(folder, &base, &slower, &more);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("in quarantine: demo: longest echo: WORSE, until 9999-12-31 (Ada"),
        "{said}"
    );
    let more = list("", "9999-12-31");
    assert_eq!(gate(folder, &base, &failing, &more).0, Some(0));
    assert_eq!(gate(folder, &base, &slower, &more).0, Some(1));
    let more = list("", "2026-01-01");
    let (code, said) = gate(folder, &base, &same, &more);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("list.toml:5:11: past its day"), "{said}");
}

/// A history is lines: files of several machines are joined by joining them.
#[test]
fn histories_of_shards_are_joined_by_cat() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (number, name) in [(0_u32, "a"), (1, "b")] {
        let runs = vec![run(number + 1, 20.0, Verdict::Passed)];
        let entries = Entry::of_book(&book(7, runs), "aaaa");
        scenarios::history::append(&folder.join(name), &entries).unwrap();
    }
    let [a, b] = ["a", "b"].map(|name| fs::read_to_string(folder.join(name)).unwrap());
    fs::write(folder.join("all"), format!("{a}{b}{a}")).unwrap();
    let history = History::read(&[folder.join("all")]).unwrap();
    assert_eq!(history.entries.len(), 2);
}
