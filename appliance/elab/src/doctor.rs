//! `elab doctor`: what this machine offers, what is missing, and how to get it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use images::bundle::Bundle;
use serde::Serialize;

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

/// Ubuntu 22.04's. From 6.1 on one walk serves guests' and nested page tables (`target/i386/tcg/sysemu/excp_helper.c`), so that
/// the nested ones get the D bits by which a migration finds what the guest wrote.
const QEMU_LEAST: (u32, u32) = (6, 2);

fn qemu() -> Finding {
    let remedy = format!(
        "sudo apt-get install -y qemu-system-x86 ({}.{} or newer)",
        QEMU_LEAST.0, QEMU_LEAST.1
    );
    match assembly::qemu_version() {
        Err(_) => finding("QEMU", false, "not installed", remedy),
        Ok(version) => finding("QEMU", is_new_enough(&version), version, remedy),
    }
}

/// Whether a version such as `7.2.22 (Debian ...)` is at least [`QEMU_LEAST`].
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version
        .split(['.', ' ', '('])
        .map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= QEMU_LEAST,
        _ => false,
    }
}

fn accelerator() -> Finding {
    // Where everything speaks for KVM, a nested guest is run: seconds, as at a lab's start.
    let chosen = assembly::choose_accelerator(&|_| {});
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
    // What judges the guests' file systems is needed always, what builds images only where they are built.
    let judge = [("e2fsck", "e2fsprogs"), ("qemu-img", "qemu-utils")];
    if Bundle::beside_this_program().is_some() {
        return judge
            .map(|(program, package)| tool(program, package))
            .into();
    }
    let guest = images::guest::TOOLS.iter().copied();
    let iso = [
        (
            "grub-mkrescue",
            "grub-common grub-pc-bin grub-efi-amd64-bin",
        ),
        ("xorriso", "xorriso"),
        ("mformat", "mtools"),
    ];
    judge
        .into_iter()
        .chain(guest)
        .chain(iso)
        .map(|(program, packages)| tool(program, packages))
        .collect()
}

fn tool(program: &str, packages: &str) -> Finding {
    match find_program(program) {
        Some(path) => finding(program, true, path.display().to_string(), ""),
        None => finding(
            program,
            false,
            "not installed",
            format!("sudo apt-get install -y {packages}"),
        ),
    }
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
    fn an_old_qemu_is_told_from_a_new_one() {
        for new in [
            "6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)",
            "7.2.22 (Debian)",
            "10.0.2",
        ] {
            assert!(is_new_enough(new), "{new}");
        }
        for old in ["6.1.1", "5.2.0 (Debian 1:5.2+dfsg-11)", "", "new"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }

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
