//! Which accelerator runs the hosts: KVM where nested virtualization really works, else TCG with AMD SVM emulated.

use std::fmt;
use std::fs;
use std::path::Path;

/// The accelerator and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator {
    kvm: bool,
    reason: String,
}

impl Accelerator {
    /// Emulation, and why.
    #[must_use]
    pub fn tcg(reason: impl Into<String>) -> Self {
        Self {
            kvm: false,
            reason: reason.into(),
        }
    }

    /// The hardware's, and what proved it.
    #[must_use]
    pub fn kvm(reason: impl Into<String>) -> Self {
        Self {
            kvm: true,
            reason: reason.into(),
        }
    }

    /// `kvm` or `tcg`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.kvm { "kvm" } else { "tcg" }
    }

    /// Whether it is KVM.
    #[must_use]
    pub fn is_kvm(&self) -> bool {
        self.kvm
    }

    /// QEMU's machine. Nothing here uses SMM, which KVM would have to emulate, beside guests that are nested.
    #[must_use]
    pub fn machine(&self) -> &'static str {
        if self.kvm { "q35,smm=off" } else { "q35" }
    }

    /// QEMU's CPU model with SVM and nested paging.
    #[must_use]
    pub fn cpu_model(&self) -> &'static str {
        if self.kvm { "host" } else { "max" }
    }

    /// Why it was chosen.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Chooses. `try_nested` runs a nested guest under KVM, within a deadline of its own, and says what came of it;
    /// it is called only when everything else speaks for KVM, because a device node alone proves nothing.
    pub fn choose(try_nested: impl FnOnce() -> Result<(), String>) -> Self {
        Self::choose_on(Path::new("/"), try_nested)
    }

    fn choose_on(root: &Path, try_nested: impl FnOnce() -> Result<(), String>) -> Self {
        let device = root.join("dev/kvm");
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(&device) {
            return Self::tcg(format!("/dev/kvm cannot be used: {error}"));
        }
        let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let has_svm = cpuinfo
            .lines()
            .filter_map(|line| line.strip_prefix("flags"))
            .any(|flags| flags.split_whitespace().any(|flag| flag == "svm"));
        if !has_svm {
            return Self::tcg("this CPU has no AMD SVM, which the hypervisor needs under KVM");
        }
        let nested = fs::read_to_string(root.join("sys/module/kvm_amd/parameters/nested"))
            .unwrap_or_default();
        if !matches!(nested.trim(), "1" | "Y") {
            return Self::tcg("nested virtualization is off (module kvm_amd, parameter nested)");
        }
        match try_nested() {
            Ok(()) => Self::kvm("a nested guest ran under KVM"),
            Err(why) => Self::tcg(format!("a nested guest does not run under KVM: {why}")),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = if self.kvm { "KVM" } else { "TCG (emulation)" };
        write!(f, "{words}: {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use images::standalone::Host;

    use super::*;
    use crate::assembly::NESTED_LIMIT_S;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const AMD: [(&str, &str); 3] = [
        ("dev/kvm", ""),
        ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu svm npt\n"),
        ("sys/module/kvm_amd/parameters/nested", "1\n"),
    ];

    #[test]
    fn kvm_is_chosen_only_when_a_nested_guest_ran() {
        let root = machine(&AMD);
        assert!(Accelerator::choose_on(root.path(), || Ok(())).is_kvm());
        let refused = Accelerator::choose_on(root.path(), || Err("no answer in 10 s".into()));
        assert!(!refused.is_kvm());
        assert!(
            refused.to_string().contains("no answer in 10 s"),
            "{refused}"
        );
    }

    /// The device opens, and a QEMU that uses it neither runs nor ends: so it is with a nested KVM whose host denies it.
    #[test]
    fn a_device_that_opens_but_runs_nothing_costs_seconds() {
        let root = machine(&AMD);
        let program = root.path().join("qemu");
        fs::write(
            &program,
            "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n",
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let host = Host {
            image: "/dev/null".into(),
            module: "/dev/null".into(),
            memory_mib: 64,
            virtual_time: false,
            kvm: true,
            limit_s: NESTED_LIMIT_S,
            program,
        };
        let began = Instant::now();
        let chosen = Accelerator::choose_on(root.path(), || {
            host.run("").map(drop).map_err(|error| format!("{error:#}"))
        });
        assert!(!chosen.is_kvm());
        assert!(
            chosen.reason().contains("does not run under KVM"),
            "{chosen}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn whatever_is_missing_is_named_and_no_guest_is_tried() {
        for missing in 0..AMD.len() {
            let mut files = AMD.to_vec();
            files.remove(missing);
            let root = machine(&files);
            let chosen = Accelerator::choose_on(root.path(), || panic!("tried without need"));
            assert!(!chosen.is_kvm(), "{chosen}");
            assert!(!chosen.reason().is_empty());
        }
    }
}
