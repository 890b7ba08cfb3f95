//! The session guest directly under QEMU, without our hypervisor: what it does there is the yardstick for what it
//! does on a host of ours.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{READY, SessionGuest};

const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// A running guest; it is killed when dropped, and what it wrote to its disk is forgotten.
pub struct PlainQemu {
    child: Child,
    ssh_port: u16,
    boot_time: Duration,
    known_hosts: TempDir,
    ssh_key: std::path::PathBuf,
}

impl Drop for PlainQemu {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PlainQemu {
    /// Boots, by emulation, until the guest's SSH server listens.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started, or the guest is not ready within a minute: the error then carries its console.
    pub fn boot(guest: &SessionGuest) -> Result<Self> {
        let ssh_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .context("no port on loopback is free")?
            .port();
        let known_hosts = tempfile::tempdir()?;
        let host_key = std::fs::read_to_string(&guest.ssh_host_key)?;
        std::fs::write(
            known_hosts.path().join("known_hosts"),
            format!("[127.0.0.1]:{ssh_port} {host_key}"),
        )?;
        let begun = Instant::now();
        let mut child = command(guest, ssh_port)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("QEMU cannot be started: qemu-system-x86_64")?;
        let console = child.stdout.take().context("QEMU has no output")?;
        let mut qemu = Self {
            child,
            ssh_port,
            boot_time: Duration::ZERO,
            known_hosts,
            ssh_key: guest.ssh_key.clone(),
        };
        let (lines, seen) = mpsc::channel();
        // It ends with QEMU's output. Nobody may listen any more by then.
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let mut said = String::new();
        loop {
            match seen.recv_timeout(BOOT_LIMIT.saturating_sub(begun.elapsed())) {
                Ok(line) if line.contains(READY) => break,
                Ok(line) => said.push_str(&line),
                Err(_) => bail!("the guest is not ready within {BOOT_LIMIT:?}; it said:\n{said}"),
            }
        }
        qemu.boot_time = begun.elapsed();
        Ok(qemu)
    }

    /// From QEMU's start to the line that says that the SSH server listens.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Runs a command in the guest by stock `ssh`, which checks the host key.
    ///
    /// # Errors
    ///
    /// `ssh` cannot be started.
    pub fn ssh(&self, command: &str) -> Result<Output> {
        let known_hosts = self.known_hosts.path().join("known_hosts");
        let option = |text: String| ["-o".to_owned(), text];
        Command::new("ssh")
            .args(["-F", "none", "-p", &self.ssh_port.to_string()])
            .args(option("BatchMode=yes".into()))
            .args(option("StrictHostKeyChecking=yes".into()))
            .args(option("ConnectTimeout=20".into()))
            .args(option(format!(
                "UserKnownHostsFile={}",
                known_hosts.display()
            )))
            .arg("-i")
            .arg(&self.ssh_key)
            .args(["root@127.0.0.1", command])
            .stdin(Stdio::null())
            .output()
            .context("ssh cannot be started")
    }
}

fn command(guest: &SessionGuest, ssh_port: u16) -> Command {
    // 10.0.2.0/24 is the network of QEMU's user mode.
    let parameters = guest.command_line("g1", "10.0.2.15/24", Some("10.0.2.2"));
    let disk = format!(
        "file={},format=vpc,if=none,id=disk,snapshot=on",
        guest.disk_vhd.display()
    );
    let network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args("-machine q35 -accel tcg -cpu max -m 256 -nodefaults".split(' '))
        .args("-display none -serial stdio -no-reboot".split(' '))
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd)
        .args(["-append", &parameters, "-drive", &disk])
        .args(["-device", "virtio-blk-pci,drive=disk,disable-legacy=on"])
        .args(["-netdev", &network])
        .args([
            "-device",
            "virtio-net-pci,netdev=net,disable-legacy=on,romfile=",
        ]);
    command
}
