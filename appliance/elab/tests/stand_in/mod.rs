//! Labs with hosts that are no hypervisors: a host is a `sleep`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use elab::lab::{HostSpec, LabConfig, Launcher, MachineFacts};
use lab_protocol::Command as LabCommand;
use nix::unistd::Pid;

/// Nothing here takes long; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Starts hosts that do nothing.
pub struct Sleeper;

impl Launcher for Sleeper {
    fn command(&self, _: &HostSpec, folder: &Path) -> std::io::Result<Command> {
        let mut command = Command::new("sleep");
        command.arg("1000").current_dir(folder);
        Ok(command)
    }
}

/// Two hosts, and nothing else.
pub fn config(base: &Path, launcher: Box<dyn Launcher>) -> LabConfig {
    LabConfig {
        name: "test".into(),
        base: base.into(),
        hosts: 2,
        host_memory_mib: 256,
        launcher,
        storage: None,
        vms: Vec::new(),
        seed: 1,
        capture: false,
        facts: MachineFacts::default(),
    }
}

pub fn power_on(host: &str) -> LabCommand {
    LabCommand::HostPowerOn { host: host.into() }
}

/// Children of a lab, from its own list.
pub fn processes(base: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(base.join("test/processes.json")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pid = |entry: &serde_json::Value| {
        Pid::from_raw(i32::try_from(entry["pid"].as_i64().unwrap()).unwrap())
    };
    list.as_array().unwrap().iter().map(pid).collect()
}

/// Whether a process runs. One that has ended but that nobody has waited for does not.
pub fn runs(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
