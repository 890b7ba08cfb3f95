//! The demo on real hosts with a real guest, as a user runs it, in a folder of its own.
//!
//! Only what must hold on any machine is asserted: how fast it was depends on what else the machine does.

use std::path::Path;
use std::process::Command;

#[test]
fn a_session_lives_through_migrations() {
    // Images are kept where all tests of the workspace keep them.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_elab"))
        .args([
            "demo",
            "--quick",
            "--fast-boot",
            "--verify",
            "--migrations",
            "2",
            "--name",
            "test",
            "--json",
        ])
        .arg(&json)
        .current_dir(&workspace)
        .output()
        .unwrap();
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text =
        std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("no report: {error}\n{said}"));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let migrations = report["migrations"].as_array().unwrap();
    assert_eq!(migrations.len(), 2, "{said}");
    for migration in migrations {
        assert_eq!(migration["error"], "", "{said}");
        assert_eq!(
            migration["memory_equal"], true,
            "guest memory differs: {migration}"
        );
        assert!(migration["pause_ms"].as_f64().unwrap() > 0.0, "{migration}");
        assert!(migration["bytes"].as_u64().unwrap() > 0, "{migration}");
    }
    assert_eq!(migrations[0]["to"], "h2");
    assert_eq!(migrations[1]["to"], "h1");
    let typist = &report["typist"];
    assert!(typist["keys"].as_u64().unwrap() > 20, "{typist}");
    assert_eq!(typist["lost"], 0, "{said}");
    assert_eq!(typist["content_equal"], true, "{said}");
    assert_eq!(typist["same_session"], true, "{said}");
    for probe in report["probes"].as_array().unwrap() {
        assert!(probe["sent"].as_u64().unwrap() > 100, "{probe}");
        assert_eq!(
            probe["duplicated"], 0,
            "a frame was delivered twice: {probe}"
        );
    }
}
