//! `elab run` on real hosts with a real guest: results as they are promised, and nothing left behind, however it ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Building images may come first.
const PATIENCE: Duration = Duration::from_secs(300);

/// Short, so that the test is; its name is its lab's, and tells its processes from others'.
const SCENARIO: &str = r#"
name = "NAME"
why = "A test."
[[guests]]
name = "session"
[[sessions]]
guest = "session"
probes = { udp_hz = 50, disk_hz = 5, clock_hz = 5 }
[[steps]]
wait = "3s"
[[steps]]
migrate = { guest = "session", verify = true }
[[steps]]
wait = "WAIT"
[[sometimes]]
what = "memory was copied"
event = { event = "migration-phase", phase = "pre-copy" }
"#;

/// Images are kept where all tests of the workspace keep them.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn scenario(folder: &Path, name: &str, wait: &str) -> PathBuf {
    let file = folder.join(format!("{name}.toml"));
    let text = SCENARIO.replace("NAME", name).replace("WAIT", wait);
    std::fs::write(&file, text).unwrap();
    file
}

fn elab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elab"));
    command.args(arguments).current_dir(workspace());
    command
}

fn start(file: &Path) -> Child {
    elab(&["run", file.to_str().unwrap(), "--fast-boot"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Processes whose command line or working folder names this lab.
fn processes(lab: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let named = String::from_utf8_lossy(&words).contains(lab) || folder.ends_with(lab);
        if named && !words.is_empty() {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the run's lab has its hosts: the run's own process, two hosts, the storage server, and the parent.
fn wait_until_running(lab: &str) {
    eventually("the lab runs", || processes(lab).len() >= 4);
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The hypervisor image as another file with another hash, in the place of the last release's.
fn old_image(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(images::hypervisor::build().unwrap()).unwrap();
    bytes.extend(b"behind the end of what is loaded");
    let old = folder.join("old.elf");
    std::fs::write(&old, bytes).unwrap();
    old
}

#[test]
fn a_scenario_runs_and_its_results_can_be_judged_again_sent_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let file = scenario(folder.path(), "whole", "1s");
    let json = folder.path().join("report.json");
    let old = old_image(folder.path());
    let output = elab(&[
        "run",
        file.to_str().unwrap(),
        "--fast-boot",
        "--capture",
        "--keep",
        "--old-image",
        old.to_str().unwrap(),
        // From the old image to the new one, and back.
        "--set",
        "steps.2.migrate.times=2",
        "--json",
    ])
    .arg(&json)
    .output()
    .unwrap();
    let said_by_run = said(&output);
    let text = std::fs::read_to_string(&json)
        .unwrap_or_else(|error| panic!("no report: {error}\n{said_by_run}"));
    let book: serde_json::Value = serde_json::from_str(&text).unwrap();
    let run = &book["scenarios"][0]["runs"][0];
    // On a machine that is too busy to emulate the guest a probe's datagram may be lost; nothing else may be wrong.
    for check in run["checks"].as_array().unwrap() {
        assert!(
            check["passed"] == true || check["name"] == "probes",
            "{check}\n{said_by_run}"
        );
    }
    assert_eq!(run["checks"].as_array().unwrap().len(), 12, "{run}");
    assert_eq!(run["measured"]["migrations"].as_array().unwrap().len(), 2);
    let image = run["machine"]["image"].as_str().unwrap();
    assert!(image.contains(", h1 "), "both images are named: {image}");
    let place = said_by_run
        .lines()
        .find_map(|line| line.strip_prefix("report: "))
        .unwrap();
    let results = workspace().join(place).parent().unwrap().to_owned();
    let of_run = results.join("whole-1");
    for name in [
        "events.jsonl",
        "run.json",
        "scenario.toml",
        "session.cast",
        "session.console.log",
        "samples/udp.csv",
        "h1-mgmt.pcapng",
        "file-systems.json",
    ] {
        assert!(
            of_run.join(name).exists(),
            "{name} is missing in {}",
            of_run.display()
        );
    }
    for name in ["h1.conf", "lab.sock", "lock"] {
        assert!(!of_run.join(name).exists(), "{name} was left");
    }
    // The capture of the network over which the guest moved says when.
    let capture = std::fs::read(of_run.join("h1-mgmt.pcapng")).unwrap();
    let phase = b"migration 1: drain";
    assert!(
        capture.windows(phase.len()).any(|window| window == phase),
        "no phase in the capture"
    );

    let exported = folder.path().join("run.tar.gz");
    let output = elab(&[
        "export-run",
        of_run.to_str().unwrap(),
        exported.to_str().unwrap(),
    ])
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let output = elab(&["replay", exported.to_str().unwrap()])
        .output()
        .unwrap();
    let verdict = run["verdict"].as_str().unwrap().to_uppercase();
    let again = said(&output).to_uppercase();
    assert!(
        again.contains(&format!("BY ITS EVIDENCE: {verdict}")),
        "{again}"
    );

    let output = elab(&[
        "compare",
        results.to_str().unwrap(),
        results.to_str().unwrap(),
    ])
    .output()
    .unwrap();
    assert_eq!(
        output.status.code(),
        Some(4),
        "one run proves nothing: {}",
        said(&output)
    );
    std::fs::remove_dir_all(results).unwrap();
}

#[test]
fn a_run_that_is_told_to_end_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = scenario(folder.path(), "told", "100s");
    let mut run = start(&file);
    wait_until_running("told-1");
    kill(
        Pid::from_raw(i32::try_from(run.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    eventually("no process is left", || processes("told-1").is_empty());
    assert!(!workspace().join(".elab/run/told-1").exists());
    // How far it came is kept, its disks are not.
    let kept = workspace().join(".elab/results/latest/told-1");
    assert!(kept.join("events.jsonl").exists());
    assert!(!kept.join("export").exists());
}

#[test]
fn a_run_that_is_killed_takes_its_processes_along_and_the_next_start_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = scenario(folder.path(), "killed", "100s");
    let mut run = start(&file);
    wait_until_running("killed-1");
    let left = workspace().join(".elab/run/killed-1");
    eventually("the run has begun", || left.join("scenario.toml").exists());
    run.kill().unwrap();
    run.wait().unwrap();
    eventually("no process is left", || processes("killed-1").is_empty());
    assert!(left.exists(), "nobody was left to remove it");
    // Any run that starts finds and removes it; this one ends before it has a lab of its own.
    let output = elab(&["run", file.to_str().unwrap(), "--image", "/nonexistent.iso"])
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(!left.exists(), "{}", said(&output));
}
