//! The small machine: QEMU, and the archive that Linux unpacks as its first root.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{cpio, system::System};

const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "nfs", "nfsv3"];
const PATIENCE: Duration = Duration::from_secs(420);

/// A running machine. Ends when dropped.
pub struct Machine(Child);

impl Machine {
    /// Boots; what it prints is the lines.
    pub fn start(kernel: &Path, initramfs: &Path) -> (Self, impl Iterator<Item = String>) {
        let mut child = Command::new("timeout")
            .arg(PATIENCE.as_secs().to_string())
            .args([
                "qemu-system-x86_64",
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-cpu",
                "max",
            ])
            .args([
                "-m",
                "512",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
                "-nodefaults",
            ])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net",
            ])
            .args(["-append", "console=ttyS0 quiet panic=-1", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 is needed: install the package qemu-system-x86");
        let lines = BufReader::new(child.stdout.take().expect("piped")).split(b'\n');
        let lines = lines.map(|line| {
            let line = line.expect("read");
            String::from_utf8_lossy(&line).trim_end().to_owned()
        });
        (Self(child), lines)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended by itself, unless the test failed before that.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Busybox, the modules in the order of their dependencies, the script, the tools.
pub fn initramfs(system: &System, port: u16) -> Vec<u8> {
    let mut archive = cpio::Archive::default();
    for dir in [
        "bin", "dev", "etc", "mnt", "modules", "proc", "sys", "tmp", "tools",
    ] {
        archive.directory(dir);
    }
    let init = include_str!("init.sh").replace("@PORT@", &port.to_string());
    archive.file("init", init.as_bytes());
    archive.file("bin/busybox", &read(&system.busybox));
    archive.file(
        "etc/passwd",
        b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ntests:x:977:977::/:/bin/sh\n",
    );
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\ntests:x:977:\n");
    archive.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\n");
    archive.file(
        "etc/pjdfstest.toml",
        b"[features]\n[settings]\nnaptime = 0.02\n[dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n",
    );
    archive.console("dev/console");
    let mut order = String::new();
    for module in load_order(&system.modules) {
        let name = module
            .file_name()
            .and_then(OsStr::to_str)
            .expect("UTF-8")
            .to_owned();
        archive.file(&format!("modules/{name}"), &read(&module));
        order += &format!("{name}\n");
    }
    archive.file("modules/order", order.as_bytes());
    for tool in ["fsx", "pjdfstest"] {
        archive.file(&format!("tools/{tool}"), &read(&system.tools.join(tool)));
    }
    archive.finish()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The modules and what they need, each after what it needs itself.
fn load_order(modules: &Path) -> Vec<PathBuf> {
    let table = String::from_utf8(read(&modules.join("modules.dep"))).expect("UTF-8");
    let mut order = Vec::new();
    for module in MODULES {
        let line = table.lines().find(|line| {
            let (path, _) = line.split_once(':').unwrap_or_default();
            path.ends_with(&format!("/{module}.ko"))
        });
        // A module that is not in the table is built into the kernel.
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
            continue;
        };
        // The last that is listed is to be loaded first.
        for path in needs.split_whitespace().rev().chain([path]) {
            let path = modules.join(path);
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}
