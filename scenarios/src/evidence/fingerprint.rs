//! What a run was made on. Figures of machines with different fingerprints are not compared.

use std::fs;

use serde::{Deserialize, Serialize};

use lab_protocol::{Event, Record};

/// A machine and what ran on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Model of the CPU.
    pub cpu: String,
    /// Logical CPUs.
    pub cpus: usize,
    /// RAM, MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// `tcg` (emulation) or `kvm`.
    pub accelerator: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Version of this program.
    pub elab: String,
    /// SHA-256 of the hypervisor image, hexadecimal.
    pub image: String,
    /// How much slower than the reference machine; see [`crate::engine::factor`].
    pub factor: f64,
    /// Load average of the last minute, when the run began: what else the machine did.
    pub load: f64,
}

impl Fingerprint {
    /// Of this machine; what the lab knows is added by [`Self::with_lab`].
    #[must_use]
    pub fn of_this_machine(factor: f64, image: String) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory_kib: u64 = read("/proc/meminfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or_default();
        let load = read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_default();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            image,
            factor: (factor * 100.0).round() / 100.0,
            load,
            ..Self::default()
        }
    }

    /// Adds what a lab's first record says.
    #[must_use]
    pub fn with_lab(mut self, records: &[Record]) -> Self {
        for record in records {
            if let Event::LabStarted {
                version,
                accelerator,
                qemu,
                cpu,
                ..
            } = &record.event
            {
                self.elab.clone_from(version);
                self.accelerator.clone_from(accelerator);
                self.qemu.clone_from(qemu);
                self.cpu.clone_from(cpu);
                break;
            }
        }
        self
    }

    /// Why figures of the two cannot be compared; `None` when they can. What is compared may differ in program and image.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<String> {
        let pairs = [
            ("CPU", self.cpu.clone(), other.cpu.clone()),
            ("CPUs", self.cpus.to_string(), other.cpus.to_string()),
            (
                "accelerator",
                self.accelerator.clone(),
                other.accelerator.clone(),
            ),
            ("QEMU", self.qemu.clone(), other.qemu.clone()),
            ("kernel", self.kernel.clone(), other.kernel.clone()),
        ];
        pairs
            .into_iter()
            .find(|(_, a, b)| a != b)
            .map(|(name, a, b)| format!("{name}: {a} and {b}"))
    }
}
