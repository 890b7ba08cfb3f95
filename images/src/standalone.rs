//! One hypervisor host by itself in QEMU: guests from a boot module, their consoles on the serial port.
//!
//! For tests and benchmarks of the hypervisor alone: no lab, no network, no storage. The command line is
//! described in `hvcore/boot-info/src/standalone.rs`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::hypervisor;

/// A host to be started.
#[derive(Clone, Debug)]
pub struct Host {
    /// The hypervisor image.
    pub image: PathBuf,
    /// The kernel of all guests, alone or with an initial RAM disk behind it.
    pub module: PathBuf,
    /// Memory of the machine in MiB.
    pub memory_mib: u32,
    /// Virtual time: every instruction takes a nanosecond, so what is measured does not depend on the
    /// machine that runs QEMU.
    pub virtual_time: bool,
    /// Run under KVM, with nested virtualization, instead of emulation.
    pub kvm: bool,
    /// When QEMU is told to end, in seconds; [`KILL_AFTER_S`] later it is killed.
    pub limit_s: u32,
    /// QEMU's program.
    pub program: PathBuf,
}

/// So long a QEMU that was told to end has time for it. One that waits in the kernel for a broken KVM takes none.
pub const KILL_AFTER_S: u32 = 1;

impl Host {
    /// A host for the test guests.
    ///
    /// # Errors
    /// When image or guests do not build.
    pub fn with_test_guests() -> Result<Self> {
        Ok(Self::new(
            hypervisor::build()?,
            hypervisor::build_test_guests()?,
        ))
    }

    /// A host that boots this image, with this kernel for its guests.
    #[must_use]
    pub fn new(image: PathBuf, module: PathBuf) -> Self {
        Self {
            image,
            module,
            memory_mib: 768,
            virtual_time: false,
            kvm: false,
            limit_s: 60,
            program: "qemu-system-x86_64".into(),
        }
    }

    /// Runs guests until the last one has ended; gives what the serial port said.
    ///
    /// # Errors
    /// When QEMU cannot be started, or the time is over: the error then carries the output so far.
    pub fn run(&self, guests: &str) -> Result<String> {
        let shell = Shell::new()?;
        let Self {
            image,
            module,
            program,
            ..
        } = self;
        let kill_after = KILL_AFTER_S.to_string();
        let (limit, memory) = (self.limit_s.to_string(), self.memory_mib.to_string());
        let accelerator = if self.kvm { "kvm" } else { "tcg" };
        let time: &[&str] = if self.virtual_time {
            &[
                "-icount",
                "shift=0,sleep=off",
                "-rtc",
                "clock=vm,base=2030-01-01",
            ]
        } else {
            &[]
        };
        let output = cmd!(
            shell,
            "timeout --kill-after {kill_after} {limit} {program} -machine q35 -accel {accelerator} -cpu max -m {memory} -display none
             -serial stdio -no-reboot -nic none -kernel {image} -initrd {module} -append {guests} {time...}"
        )
        .quiet()
        .ignore_status()
        .output()
        .context("QEMU cannot be started: qemu-system-x86_64")?;
        let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        if said.contains("elab: host switched off") {
            return Ok(said);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "the host did not end within {limit} s ({}); it said:\n{said}\n{errors}",
            output.status
        )
    }
}

/// What one kind of exit costs, there and back, in nanoseconds of virtual time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitCost {
    /// What the guest did.
    pub name: String,
    /// Nanoseconds, which are instructions of hypervisor and guest.
    pub ns: u64,
}

/// Measures exits in virtual time: the figures change only when the code does.
///
/// # Errors
/// When something does not build or run.
pub fn exit_costs() -> Result<Vec<ExitCost>> {
    let host = Host {
        virtual_time: true,
        ..Host::with_test_guests()?
    };
    let said = host.run("guest memory=8 -- test=bench")?;
    let costs = parse_costs(&said);
    ensure!(
        !costs.is_empty(),
        "the benchmark guest measured nothing:\n{said}"
    );
    Ok(costs)
}

/// The lines `bench NAME N ns`.
fn parse_costs(said: &str) -> Vec<ExitCost> {
    let cost = |line: &str| {
        let (name, ns) = line
            .strip_prefix("bench ")?
            .strip_suffix(" ns")?
            .split_once(' ')?;
        Some(ExitCost {
            name: name.to_owned(),
            ns: ns.parse().ok()?,
        })
    };
    said.lines().filter_map(cost).collect()
}

/// Puts a kernel and an initial RAM disk into one module, cut so that the host finds where one ends: a
/// signature behind the kernel is left out.
///
/// # Errors
/// When a file cannot be read or written, or the kernel is no bzImage.
pub fn linux_module(kernel: &Path, initrd: &Path, module: &Path) -> Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut bytes = read(kernel)?;
    let length = boot_info::standalone::kernel_length(&bytes)
        .filter(|length| *length <= bytes.len())
        .with_context(|| format!("{} is no bzImage", kernel.display()))?;
    bytes.truncate(length);
    bytes.extend(read(initrd)?);
    std::fs::write(module, bytes).with_context(|| format!("cannot write {}", module.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_the_benchmark_count() {
        let said = "elab: x\nbench cpuid 1177 ns\nbench broken ns\nok bench\nbench timer 5 ns\n";
        let costs = parse_costs(said);
        assert_eq!(costs.len(), 2);
        assert_eq!((costs[0].name.as_str(), costs[0].ns), ("cpuid", 1177));
    }
}
