//! `elab bench`: what an idle lab costs, how long a guest boots, what its disk and network carry; how long it is out of reach
//! when it changes its host ([`crate::downtime`]) and the demo's migrations follow.
//!
//! All is measured on this machine's clock and is worth something on a quiet machine only; every sample is kept, so that
//! its spread can be seen. What one host does alone is measured in virtual time, by the crate `images`.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use images::guest::PlainQemu;
use lab_protocol::Command;
use scenarios::measure::statistics::quantile;
use scenarios::session::{self, Access, Stream};
use serde::Serialize;

use crate::assembly::{Artifacts, GUEST};
use crate::join;
use crate::lab::Lab;
use crate::network::SESSION;

/// How long an idle lab is watched for one sample.
const IDLE: Duration = Duration::from_secs(5);
/// Ticks a second of the times in `/proc/PID/stat`: fixed in Linux's interface (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// A guest boots in seconds.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// RFC 862.
const ECHO_PORT: u16 = 7;
const MB: f64 = 1e6;
/// Bytes of one pass over the network, each way.
const NETWORK_BYTES: usize = 8 << 20;
/// A pass that takes longer than this has failed.
const PASS_PATIENCE: Duration = Duration::from_secs(60);

/// A figure with all its samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Name.
    pub name: String,
    /// Unit.
    pub unit: String,
    /// In the order of measuring.
    pub samples: Vec<f64>,
}

impl Measured {
    pub(crate) fn new(name: &str, unit: &str, samples: Vec<f64>) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            samples,
        }
    }
}

/// What the disk and the network of a lab's guest carry.
///
/// # Errors
/// When the guest does not do what it is asked.
pub fn guest(
    lab: &Lab,
    artifacts: &Artifacts,
    repeats: u32,
    progress: &dyn Fn(&str),
) -> Result<Vec<Measured>> {
    let access = join::access(artifacts)?;
    let mut measured = Vec::new();
    progress("an idle lab");
    let samples = repeat(repeats, || idle_cpu(lab))?;
    measured.push(Measured::new(
        "idle lab: its hosts, a guest, storage",
        "% of a core",
        samples,
    ));
    progress("boots of the guest: on a host, and directly under QEMU");
    let (mut on_host, mut directly) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        directly.push(PlainQemu::boot(&artifacts.guest)?.boot_time().as_secs_f64());
        on_host.push(boot(lab)?);
    }
    let ratios = on_host
        .iter()
        .zip(&directly)
        .map(|(ours, plain)| ours / plain);
    let ratios = ratios.collect();
    measured.push(Measured::new("guest boot on a host", "s", on_host));
    measured.push(Measured::new(
        "guest boot directly under QEMU",
        "s",
        directly,
    ));
    measured.push(Measured::new("guest boot, ratio of the two", "", ratios));
    for (name, command) in [
        (
            "disk read, 1 MiB at a time",
            "dd if=/dev/vda of=/dev/null bs=1M count=64 iflag=direct",
        ),
        (
            "disk read, 4 KiB at a time",
            "dd if=/dev/vda of=/dev/null bs=4k count=2048 iflag=direct",
        ),
        (
            "disk write, 1 MiB at a time, synced",
            "dd if=/dev/zero of=/root/bench bs=1M count=32 oflag=direct conv=fsync; rm /root/bench >&2",
        ),
    ] {
        progress(name);
        let samples = repeat(repeats, || disk(lab, &access, command))?;
        measured.push(Measured::new(name, "MB/s", samples));
    }
    progress("network, both ways");
    let samples = repeat(repeats, || network(lab))?;
    measured.push(Measured::new("TCP echo, each way", "MB/s", samples));
    Ok(measured)
}

fn repeat(times: u32, mut measure: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    (0..times).map(|_| measure()).collect()
}

/// Boots the guest again; gives seconds until its session is ready.
fn boot(lab: &Lab) -> Result<f64> {
    lab.execute(&Command::VmDestroy { vm: GUEST.into() })?;
    let begun = Instant::now();
    lab.execute(&Command::VmStart {
        vm: GUEST.into(),
        host: "h1".into(),
    })?;
    lab.wait_for_console(GUEST, images::guest::READY, BOOT_PATIENCE)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// CPU time of this program and the programs it has started, while nothing happens, in percent of a core.
fn idle_cpu(lab: &Lab) -> Result<f64> {
    let (begun, before) = (Instant::now(), cpu_seconds()?);
    ensure!(!lab.wait_or_stop(IDLE), "interrupted");
    let used = cpu_seconds()? - before;
    Ok(100.0 * used / begun.elapsed().as_secs_f64())
}

fn cpu_seconds() -> Result<f64> {
    let own = std::process::id();
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")
        .context("cannot list processes")?
        .flatten()
    {
        // One that has ended meanwhile has no times any more.
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some(stat) = Stat::parse(&text)
            && (stat.pid == own || stat.parent == own)
        {
            ticks += stat.ticks;
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Of a process (proc(5), `/proc/PID/stat`).
#[derive(Debug, PartialEq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// In user mode and in the kernel.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything.
        let (pid, rest) = text.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: ticks(11)? + ticks(12)?,
        })
    }
}

/// Runs `dd` in the guest; gives MB/s by the guest's own clock, without the time of logging in.
fn disk(lab: &Lab, access: &Access, command: &str) -> Result<f64> {
    let guest = SocketAddrV4::new(SESSION.guest_address(1), join::SSH_PORT);
    let stream = lab
        .client()
        .connect(guest)
        .context("cannot reach the guest's SSH server")?;
    let said = session::output(Stream::Unix(stream), access, &format!("({command}) 2>&1"))?;
    let said = String::from_utf8_lossy(&said);
    rate(&said)
        .with_context(|| format!("dd in the guest said something else than expected: {said}"))
}

/// From dd's last line: `33554432 bytes (34 MB, 32 MiB) copied, 0.41 s, 82 MB/s`.
fn rate(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains(" copied, "))?;
    let bytes: f64 = line.split(' ').next()?.parse().ok()?;
    let (_, after) = line.split_once(" copied, ")?;
    let seconds: f64 = after.split(' ').next()?.parse().ok()?;
    Some(bytes / seconds / MB)
}

/// Sends to the guest's echo port and reads back.
fn network(lab: &Lab) -> Result<f64> {
    let guest = SocketAddrV4::new(SESSION.guest_address(1), ECHO_PORT);
    let mut stream = lab
        .client()
        .connect(guest)
        .context("cannot reach the guest's echo port")?;
    stream
        .set_read_timeout(Some(PASS_PATIENCE))
        .context("cannot limit the wait")?;
    let mut writer = stream.try_clone().context("cannot share the stream")?;
    let begun = Instant::now();
    let writing = std::thread::spawn(move || writer.write_all(&vec![0x55; NETWORK_BYTES]));
    let mut got = vec![0; NETWORK_BYTES];
    stream
        .read_exact(&mut got)
        .context("the echo ended early")?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(
        writing.join().is_ok_and(|written| written.is_ok()) && got.iter().all(|byte| *byte == 0x55),
        "the echo is not what was sent"
    );
    Ok(NETWORK_BYTES as f64 / seconds / MB)
}

/// The figures for people.
#[must_use]
pub fn show(measured: &[Measured]) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "{:<38} {:>10} {:>10} {:>10}   unit\n",
        "", "least", "median", "most"
    );
    for one in measured {
        let at = |q| quantile(&one.samples, q).unwrap_or(f64::NAN);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<38} {:>10.2} {:>10.2} {:>10.2}   {}",
            one.name,
            at(0.0),
            at(0.5),
            at(1.0),
            one.unit
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_process_are_found_behind_any_name() {
        let text = "42 (a ) b (c) S 7 42 42 0 -1 4194304 9 0 0 0 120 34 5 6 20 0 1 0 99 0 0";
        let stat = Stat {
            pid: 42,
            parent: 7,
            ticks: 154,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("42 (cut off"), None);
    }

    #[test]
    fn the_rate_comes_from_the_guests_own_figures() {
        let said = "32+0 records in\n32+0 records out\n33554432 bytes (34 MB, 32 MiB) copied, 0.5 s, 67 MB/s\n";
        assert!((rate(said).unwrap() - 67.1).abs() < 0.1);
        assert_eq!(rate("dd: not found\n"), None);
    }
}
