//! Linux's own NFS client, in a small machine under QEMU: basic and special tests in the manner of Connectathon's, and a busy
//! client whose server is killed and started again.
//!
//! It takes half a minute and packages that the other tests do not need, so it runs only when `NFS_KERNEL_CLIENT=1` is in the
//! environment, as it is at night. Packages: `qemu-system-x86`; the kernel (`linux-image-cloud-amd64`) and
//! `busybox-static` are downloaded and unpacked, not installed. If `NFS_KERNEL_CLIENT_TOOLS` names a directory with `fsx` and
//! `pjdfstest` (the crates, linked statically), they are run too.

mod cpio;

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "nfs", "nfsv3"];
/// What pjdfstest may find. Version 3 of NFS knows no open files: Linux renames one that is removed while it is open, and so it keeps
/// its link. Every server has this one.
const EXPECTED_FAILURES: [&str; 1] = ["unlink::open_file_not_freed"];
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn linux_mounts_works_and_survives_restarts_of_the_server() {
    if std::env::var_os("NFS_KERNEL_CLIENT").is_none() {
        eprintln!("not run: set NFS_KERNEL_CLIENT=1 to test with Linux's NFS client under QEMU");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let system = unpack(dir.path());
    let export = dir.path().join("export");
    std::fs::create_dir(&export).expect("directory");
    let mut server = Program::start(&export, "127.0.0.1:0");
    let listen = server.address.to_string();
    let archive = dir.path().join("initramfs");
    std::fs::write(&archive, initramfs(&system, server.address.port())).expect("write");
    let mut machine = Machine::start(&system.kernel, &archive);
    let (mut lines, mut begun) = (Vec::new(), Instant::now());
    for line in BufReader::new(machine.0.stdout.take().expect("piped")).lines() {
        let line = line.expect("read").trim_end().to_owned();
        println!("{line}");
        if line == "BUSY" {
            begun = Instant::now();
            for pause in [300, 700, 200, 500] {
                // The client is to be met at whatever it is doing just then.
                std::thread::sleep(Duration::from_millis(pause));
                drop(server);
                server = Program::start(&export, &listen);
            }
        }
        lines.push(line);
    }
    println!("busy for {:?} with four kills", begun.elapsed());
    assert!(
        lines.iter().any(|line| line == "END"),
        "the machine did not come to its end"
    );
    let failed: Vec<&String> = lines
        .iter()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let posix = lines.iter().filter(|line| line.ends_with("FAILED"));
    let unexpected: Vec<&String> = posix
        .filter(|line| {
            !EXPECTED_FAILURES
                .iter()
                .any(|known| line.starts_with(known))
        })
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    let tools = std::env::var_os("NFS_KERNEL_CLIENT_TOOLS").is_some();
    assert_eq!(
        lines.iter().any(|line| line.starts_with("Summary")),
        tools,
        "pjdfstest ran to its end"
    );
    assert!(
        lines.iter().filter(|line| line.starts_with("PASS")).count() >= 16,
        "all checks were made"
    );
}

struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(export: &Path, listen: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nfs-sr"))
            .arg("serve")
            .arg(export)
            .args(["--listen", listen])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.next().expect("a line").expect("UTF-8");
        std::thread::spawn(move || lines.for_each(drop));
        let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
        let address = ready["tcp"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address");
        Self { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("reaped");
    }
}

struct Machine(Child);

impl Machine {
    fn start(kernel: &Path, initramfs: &Path) -> Self {
        let child = Command::new("timeout")
            .arg(PATIENCE.as_secs().to_string())
            .args([
                "qemu-system-x86_64",
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "512",
            ])
            .args([
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
        Self(child)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended by itself, unless the test failed before that.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct System {
    kernel: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
}

/// Downloads and unpacks Debian's kernel and busybox.
fn unpack(dir: &Path) -> System {
    let script = r#"set -e
        kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
        apt-get download -q "$kernel" busybox-static
        for deb in *.deb; do dpkg-deb -x "$deb" system; done
        version=$(basename system/lib/modules/*)
        depmod -b system "$version" 2>/dev/null || system/bin/busybox depmod -b "$PWD/system" "$version"
        echo "$version""#;
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .expect("a shell");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let version = text.lines().last().expect("the version");
    let system = dir.join("system");
    System {
        kernel: system.join(format!("boot/vmlinuz-{version}")),
        modules: system.join("lib/modules").join(version),
        busybox: system.join("bin/busybox"),
    }
}

/// The archive that Linux unpacks as its first root: busybox, the modules in the order of their dependencies, the script.
fn initramfs(system: &System, port: u16) -> Vec<u8> {
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
    if let Some(tools) = std::env::var_os("NFS_KERNEL_CLIENT_TOOLS") {
        for tool in ["fsx", "pjdfstest"] {
            archive.file(
                &format!("tools/{tool}"),
                &read(&Path::new(&tools).join(tool)),
            );
        }
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
