//! `elab doctor`: what this machine offers, what is missing, and how to get it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::accelerator::Accelerator;
use crate::assembly::{self, IMAGES};
use crate::run_folder::RUNS;

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether a lab can run with it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing is needed.
    pub remedy: String,
}

/// Memory that two hosts and the lab need.
const MEMORY_MIB: u64 = 2048;
/// Disk that images and one run need.
const DISK_MIB: u64 = 2048;

/// Looks at everything.
#[must_use]
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![qemu(), accelerator(), memory(), cpus(), disk()];
    findings.extend(tools());
    findings
}

/// The findings for people.
#[must_use]
pub fn show(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = if finding.ok { "ok     " } else { "MISSING" };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{mark} {:<22} {}", finding.name, finding.found);
        if !finding.remedy.is_empty() {
            let _ = writeln!(out, "        {:<22} {}", "", finding.remedy);
        }
    }
    out
}

fn finding(name: &str, ok: bool, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        name: name.into(),
        ok,
        found: found.into(),
        remedy: if ok { String::new() } else { remedy.into() },
    }
}

fn qemu() -> Finding {
    let remedy = "sudo apt-get install -y qemu-system-x86 (7.2 or newer)";
    match assembly::qemu_version() {
        Err(_) => finding("QEMU", false, "not installed", remedy),
        Ok(version) => {
            // The network backend `stream` is what the switch speaks; it came with 7.2.
            let mut numbers = version
                .split(['.', ' ', '('])
                .map_while(|part| part.parse::<u32>().ok());
            let new_enough = (numbers.next(), numbers.next()) >= (Some(7), Some(2));
            finding("QEMU", new_enough, version, remedy)
        }
    }
}

fn accelerator() -> Finding {
    // Trying a nested guest is left to a lab's start: here it would make a diagnosis wait for a boot.
    let chosen = Accelerator::choose(|| Err("tried when a lab starts".into()));
    finding("accelerator", true, chosen.to_string(), "")
}

fn memory() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
        / 1024;
    finding(
        "free memory",
        available >= MEMORY_MIB,
        format!("{available} MiB"),
        format!(
            "a lab of two hosts needs {MEMORY_MIB} MiB; end something, or give hosts less with --host-memory"
        ),
    )
}

fn cpus() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = format!("{count} × {}", assembly::cpu_model());
    finding(
        "CPUs",
        count >= 2,
        found,
        "one CPU works, but a migration then measures this machine; use two",
    )
}

fn disk() -> Finding {
    let here = Path::new(".");
    match nix::sys::statvfs::statvfs(here) {
        Ok(stat) => {
            let free = (stat.blocks_available() * stat.fragment_size()) >> 20;
            let remedy = format!("images and a run need {DISK_MIB} MiB in {IMAGES} and {RUNS}");
            finding("free disk", free >= DISK_MIB, format!("{free} MiB"), remedy)
        }
        Err(errno) => finding(
            "free disk",
            false,
            errno.to_string(),
            "work in a folder that exists",
        ),
    }
}

fn tools() -> Vec<Finding> {
    let guest = images::guest::TOOLS.iter().copied();
    let iso = [
        (
            "grub-mkrescue",
            "grub-common grub-pc-bin grub-efi-amd64-bin",
        ),
        ("xorriso", "xorriso"),
        ("mformat", "mtools"),
    ];
    guest
        .chain(iso)
        .map(|(program, packages)| match find_program(program) {
            Some(path) => finding(program, true, path.display().to_string(), ""),
            None => finding(
                program,
                false,
                "not installed",
                format!("sudo apt-get install -y {packages}"),
            ),
        })
        .collect()
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Where an administrator's programs are; a user's PATH may leave them out.
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_remedy_and_what_is_there_without() {
        let shown = show(&[
            finding("QEMU", true, "7.2", "install it"),
            finding(
                "xorriso",
                false,
                "not installed",
                "sudo apt-get install -y xorriso",
            ),
        ]);
        assert!(!shown.contains("install it"));
        assert!(
            shown.contains("MISSING xorriso") && shown.contains("sudo apt-get install -y xorriso")
        );
    }
}
