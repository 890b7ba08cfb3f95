//! A machine whose KVM nests, on a machine that has no KVM: Debian's kernel with its `kvm_amd`, and its QEMU, on a CPU with AMD SVM that
//! QEMU emulates. What runs there goes the way of a runner with nested virtualization: our image is KVM's guest, and its guests are nested.
//!
//! It does not know what is run: a folder is its second disk, and the program `run` in it decides. The image in a container was no way,
//! for KVM belongs to the kernel.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use xshell::Shell;

use crate::guest::manifest::{Manifest, hex};
use crate::guest::packages::Distribution;
use crate::guest::{cached, disk, initrd, packages, rootfs};

/// What runs a lab: QEMU, and what judges its guests' file systems.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "e2fsprogs",
    "qemu-system-x86",
    "qemu-utils",
];
/// As of the guest's initrd; `kvm_amd` nests unless it is told not to.
const MODULES: &[(&str, bool)] = &[
    ("virtio_pci", true),
    ("virtio_blk", true),
    ("ext4", true),
    ("crc32c_generic", false),
    ("kvm_amd", true),
];
const INIT: &str = include_str!("../nested/init");
/// Raised when the way of building changes without any other input of the recipe's hash changing.
const RECIPE_VERSION: u32 = 1;

const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";
const DISK: &str = "disk.raw";
/// What the last line of a run begins with; the exit code follows.
const ENDED: &str = "elab: ended with ";

/// The machine.
#[derive(Clone, Debug)]
pub struct NestedMachine {
    folder: PathBuf,
}

impl NestedMachine {
    /// Gives it from the cache, verified, or builds it there; `progress` is told what happens.
    ///
    /// # Errors
    /// A tool is missing, a package cannot be had, or the disk is full.
    pub fn build(cache: &Path, progress: &dyn Fn(&str)) -> Result<Self> {
        let distribution = Distribution::of_this_machine()?;
        let name = format!("nested-{}", &recipe_hash(&distribution)[..16]);
        let folder = cached(cache, &name, progress, |work, result| {
            progress("machine that nests: fetching packages");
            packages::require_tools()?;
            let sh = Shell::new()?;
            let names: Vec<&str> = PACKAGES
                .iter()
                .copied()
                .chain([distribution.kernel])
                .collect();
            let packages = packages::download(&sh, &work.join("apt"), &names)?;
            progress(&format!(
                "machine that nests: unpacking {} packages",
                packages.len()
            ));
            let root = work.join("root");
            rootfs::unpack(&root, &packages)?;
            let kernel = rootfs::find_kernel(&root)?;
            fs::copy(&kernel.image, result.join(KERNEL))?;
            rootfs::link_applets(&sh, &root)?;
            initrd::write(&sh, &root, &kernel, MODULES, &result.join(INITRD))?;
            configure(&root)?;
            disk::write_ext4(&sh, &root, &result.join(DISK))?;
            Manifest::of(result, &packages)?.write(result)
        })?;
        Ok(Self { folder })
    }

    /// Boots with `program` as the disk below `/program`, runs `/program/run` there and gives its exit code; `said` is told each line.
    /// What is written there is forgotten.
    ///
    /// # Errors
    /// QEMU cannot be started, or the time is over.
    pub fn run(&self, program: &Path, limit_s: u32, said: &mut dyn FnMut(&str)) -> Result<i32> {
        let work = tempfile::tempdir_in(self.folder.parent().context("a cache is a folder")?)?;
        let disk = work.path().join("program.raw");
        disk::write_ext4(&Shell::new()?, program, &disk)?;
        let errors = work.path().join("errors");
        let mut qemu = self
            .command(&disk, limit_s)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("QEMU cannot be started: qemu-system-x86_64")?;
        let console = qemu.stdout.take().context("QEMU has no output")?;
        let mut code = None;
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            said(&line);
            if let Some(number) = line.strip_prefix(ENDED) {
                code = number.parse().ok();
            }
        }
        let status = qemu.wait()?;
        match code {
            Some(code) => Ok(code),
            None => bail!(
                "it did not end by itself within {limit_s} s ({status})\n{}",
                fs::read_to_string(&errors).unwrap_or_default()
            ),
        }
    }

    fn command(&self, program: &Path, limit_s: u32) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", &limit_s.to_string(), "qemu-system-x86_64"])
            // KVM asks for more than emulation's default CPU tells of itself, and this one is known to Linux as a real one.
            // One CPU: with two, three of five tries failed, one by a page table of the outer kernel that was walked as a guest's.
            .args("-machine q35 -accel tcg -cpu EPYC,+svm,+npt -smp 1 -m 4096".split(' '))
            .args("-nodefaults -display none -serial stdio -no-reboot".split(' '))
            .arg("-kernel")
            .arg(self.folder.join(KERNEL))
            .arg("-initrd")
            .arg(self.folder.join(INITRD))
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        for (id, file) in [("system", &*self.folder.join(DISK)), ("program", program)] {
            command.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id={id},snapshot=on",
                file.display()
            ));
            let device = format!("virtio-blk-pci,drive={id},disable-legacy=on");
            command.args(["-device", &device]);
        }
        command
    }
}

fn configure(root: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "program"] {
        fs::create_dir_all(root.join(folder))?;
    }
    rootfs::write(&root.join("usr/sbin/init"), 0o755, INIT.as_bytes())?;
    rootfs::write(
        &root.join("etc/passwd"),
        0o644,
        b"root:x:0:0::/root:/bin/sh\n",
    )?;
    let sh = root.join("usr/bin/sh");
    if fs::symlink_metadata(&sh).is_err() {
        symlink("busybox", &sh)?;
    }
    // The initrd has those that are needed.
    fs::remove_dir_all(root.join("usr/lib/modules"))?;
    rootfs::prune(root)
}

fn recipe_hash(distribution: &Distribution) -> String {
    let mut hash = Sha256::new();
    hash.update(RECIPE_VERSION.to_le_bytes());
    for part in [&*distribution.name, distribution.kernel, INIT, initrd::INIT]
        .into_iter()
        .chain(PACKAGES.iter().copied())
        .chain(MODULES.iter().map(|(name, _)| *name))
    {
        hash.update(part);
        hash.update(b"\n");
    }
    hex(&hash.finalize())
}
