//! Boots the session guest directly under QEMU, without our hypervisor: what it does here is the yardstick
//! for what it does there.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use images::guest::{READY, SessionGuest, build};

const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// A QEMU process, killed when dropped.
struct Qemu {
    child: Child,
    ssh_port: u16,
    boot: Duration,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    /// Boots to the ready line.
    fn boot(guest: &SessionGuest) -> Self {
        let ssh_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let start = Instant::now();
        let mut child = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "256",
                "-nodefaults",
            ])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initrd)
            .arg("-append")
            .arg(guest.command_line("g1", "10.0.2.15/24", Some("10.0.2.2")))
            .arg("-drive")
            // The cached image stays as it was built.
            .arg(format!(
                "file={},format=vpc,if=none,id=disk,snapshot=on",
                guest.disk_vhd.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk,disable-legacy=on"])
            .arg("-netdev")
            .arg(format!(
                "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"
            ))
            .args([
                "-device",
                "virtio-net-pci,netdev=net,disable-legacy=on,romfile=",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let console = child.stdout.take().expect("piped");
        let (lines, seen) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let mut console = String::new();
        loop {
            let left = BOOT_LIMIT.saturating_sub(start.elapsed());
            match seen.recv_timeout(left) {
                Ok(line) if line.contains(READY) => break,
                Ok(line) => console.push_str(&line),
                Err(_) => {
                    let _ = child.kill();
                    panic!("the guest did not become ready in {BOOT_LIMIT:?}; console:\n{console}");
                }
            }
        }
        Self {
            child,
            ssh_port,
            boot: start.elapsed(),
        }
    }

    /// Runs a command in the guest by stock `ssh`.
    fn ssh(&self, guest: &SessionGuest, known_hosts: &Path, command: &str) -> Output {
        Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
            ])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
            .args([
                "-o",
                "ConnectTimeout=20",
                "-p",
                &self.ssh_port.to_string(),
                "-i",
            ])
            .arg(&guest.ssh_key)
            .args(["root@127.0.0.1", command])
            .stdin(Stdio::null())
            .output()
            .expect("ssh runs")
    }
}

#[test]
fn it_boots_to_a_session_that_works() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.elab/images");
    let guest = build(&cache, &|line| eprintln!("{line}")).expect("the guest builds");
    let qemu = Qemu::boot(&guest);
    eprintln!(
        "session ready {:.2} s after QEMU's start",
        qemu.boot.as_secs_f64()
    );

    let folder = tempfile::tempdir().expect("a folder");
    let known_hosts = folder.path().join("known_hosts");
    let host_key = std::fs::read_to_string(&guest.ssh_host_key).expect("host key");
    std::fs::write(
        &known_hosts,
        format!("[127.0.0.1]:{} {host_key}", qemu.ssh_port),
    )
    .expect("file");

    let check = |command: &str, expected: &str| {
        let output = qemu.ssh(&guest, &known_hosts, command);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(expected),
            "{command}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    };
    check("cat /proc/mounts", "/dev/vda / ext4 rw");
    check("echo 'let A0 = 6*7' >/tmp/sheet && sc -W% /tmp/sheet", "42");
    check(
        "elab-disk write /root/records 1 5 && elab-disk check /root/records 5",
        "ok",
    );
    check("timeout 2 elab-dirty 8 2; echo ended by $?", "ended by 124");
    check("printf hello | timeout 2 nc 127.0.0.1 7", "hello");
    // inetd answers no datagram from a loopback address.
    let udp_echo = "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Proto => q(udp), PeerAddr => q(10.0.2.15:7)); \
                    $s->send(q(hello)); alarm 5; $s->recv($_, 9); print'";
    check(udp_echo, "hello");
}
