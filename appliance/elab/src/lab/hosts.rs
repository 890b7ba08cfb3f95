//! Power of the hosts, and the connection to each one's control service.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use host_protocol::{Command, VmState};
use lab_protocol::Event;
use nix::sys::signal::Signal;

use super::state::{GaveUp, Power};
use super::{HostSpec, Inner};
use crate::control::Connection;
use crate::network::{MANAGEMENT, NFS_PORT, PREFIX, STORAGE, control_service};
use crate::process::Process;

/// A host that was asked to power off has so long before its plug is pulled.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(15);
/// Why a VM stopped with its host.
pub(super) const LOST_POWER: &str = "its host lost power";
/// Time between two tries to reach a host that refuses.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Why a host will not be there however long one waits.
enum Ending {
    /// It went off by itself, and how.
    Died(String),
    /// It and the lab do not understand or trust each other, and why.
    Refused(String),
}

impl Inner {
    pub(crate) fn spec(&self, host: &str) -> Result<&HostSpec> {
        self.specs
            .iter()
            .find(|spec| spec.name == host)
            .ok_or_else(|| {
                let names: Vec<_> = self.specs.iter().map(|spec| spec.name.as_str()).collect();
                anyhow!(
                    "there is no host \"{host}\"; the hosts are {}",
                    names.join(", ")
                )
            })
    }

    /// The text from which a host configures itself.
    fn host_settings(&self, spec: &HostSpec) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key}={value}");
        };
        line("name", &spec.name);
        line(
            "management",
            &format_args!("{}/{PREFIX}", MANAGEMENT.host_address(spec.number)),
        );
        line(
            "storage",
            &format_args!("{}/{PREFIX}", STORAGE.host_address(spec.number)),
        );
        line("nfs", &format_args!("{}:{NFS_PORT}", STORAGE.lab_address()));
        line("export", &"/export");
        line("key", &self.key_hex);
        line("mtu", &MANAGEMENT.mtu);
        text
    }

    /// Leaves the settings where the host's QEMU finds them. They hold the pool's key, so they are for this user only.
    fn write_settings(&self, spec: &HostSpec) -> std::io::Result<()> {
        let path = self.folder.file(&format!("{}.conf", spec.name));
        // The mode counts for a new file only.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(self.host_settings(spec).as_bytes())
    }

    pub(crate) fn power_on(self: &Arc<Self>, host: &str) -> Result<()> {
        let spec = self.spec(host)?.clone();
        if self.lock().hosts[host].power != Power::Off {
            bail!("{host} has power already");
        }
        self.write_settings(&spec)
            .with_context(|| format!("cannot write the settings of {host}"))?;
        let log = self.folder.file(&format!("{host}.qemu.log"));
        let log =
            fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self
            .launcher
            .command(&spec, self.folder.path())
            .with_context(|| format!("cannot prepare {host}'s machine"))?;
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().context("cannot share the log")?);
        command.stderr(log);
        let cycle = self.update(|state| {
            let host = state.hosts.get_mut(&spec.name)?;
            host.cycle += 1;
            host.refused = None;
            host.events_heard = 0;
            host.heard_until_ns = self.clock.now_ns();
            host.booting = true;
            Some(host.cycle)
        });
        let cycle = cycle.context("the host has vanished from the state")?;
        let program = command.get_program().to_owned();
        let (inner, name) = (Arc::downgrade(self), host.to_owned());
        let process = Process::start(host, command, move |ending| {
            if let Some(inner) = inner.upgrade() {
                inner.host_ended(&name, cycle, ending);
            }
        })
        .with_context(|| format!("cannot start {} for {host}", program.display()))?;
        self.folder.add_process(host, process.pid())?;
        let process = Arc::new(process);
        self.update(|state| {
            if let Some(entry) = state.hosts.get_mut(host) {
                // It may have ended between its start and here.
                entry.power = if process.ending().is_none() {
                    Power::On
                } else {
                    Power::Off
                };
                entry.process = Some(Arc::clone(&process));
                entry.died = process.ending();
            }
        });
        self.host_power(host, "power-on");
        let inner = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("{host} control"))
            .spawn(move || inner.keep_connected(&spec, cycle))
            .context("cannot start a thread")?;
        Ok(())
    }

    fn host_ended(&self, host: &str, cycle: u32, ending: &str) {
        let by_itself = self.update(|state| {
            let stopping = state.stopping;
            let entry = state.hosts.get_mut(host)?;
            if entry.cycle != cycle {
                return None;
            }
            let by_itself = entry.power != Power::Off && !stopping;
            if by_itself {
                entry.died = Some(ending.to_owned());
            }
            Some(by_itself)
        });
        if by_itself.is_none() {
            return;
        }
        self.without_power(host);
        if by_itself == Some(true) {
            self.host_power(host, "died");
            self.message(
                "error",
                format!("{host} went off by itself ({ending}); see {host}.qemu.log and {host}.serial.log in the run folder"),
            );
        }
    }

    /// A host has no power any more: nobody talks to it, and what ran there does not.
    fn without_power(&self, host: &str) {
        let (connection, lost) = self.update(|state| {
            let connection = state.hosts.get_mut(host).and_then(|entry| {
                entry.power = Power::Off;
                entry.status = None;
                entry.connection.take()
            });
            let mut lost = Vec::new();
            for (name, vm) in &mut state.vms {
                if vm.host.as_deref() == Some(host) && vm.state != VmState::Halted {
                    vm.state = VmState::Halted;
                    vm.stopped = Some(LOST_POWER.into());
                    lost.push(name.clone());
                }
            }
            (connection, lost)
        });
        if let Some(connection) = connection {
            connection.close();
        }
        for vm in lost {
            self.record(Event::VmStopped {
                vm,
                host: host.into(),
                reason: LOST_POWER.into(),
            });
        }
    }

    fn host_power(&self, host: &str, state: &str) {
        self.record(Event::HostPower {
            host: host.into(),
            state: state.into(),
        });
    }

    /// Connects to a host's control service again and again while this power cycle lasts.
    fn keep_connected(self: Arc<Self>, spec: &HostSpec, cycle: u32) {
        loop {
            let over = |state: &mut super::State| {
                let host = &state.hosts[&spec.name];
                (host.cycle != cycle || host.power == Power::Off).then_some(())
            };
            match self.wait(Duration::ZERO, over) {
                Err(GaveUp::Deadline) => {}
                Ok(()) | Err(GaveUp::Stopping) => return,
            }
            match self.connect_once(spec, cycle) {
                Ok(()) => {}
                // A wrong key or version does not get better by trying.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    self.refused(spec, &error.to_string());
                    return;
                }
                Err(_) => {
                    if self.wait(RETRY_AFTER, over) != Err(GaveUp::Deadline) {
                        return;
                    }
                }
            }
        }
    }

    /// A host cannot be spoken with as long as it has power.
    fn refused(&self, spec: &HostSpec, why: &str) {
        self.message("error", format!("{}: {why}", spec.name));
        self.update(|state| {
            if let Some(host) = state.hosts.get_mut(&spec.name) {
                host.refused = Some(why.into());
            }
        });
    }

    /// One connection, from its opening to its end.
    fn connect_once(self: &Arc<Self>, spec: &HostSpec, cycle: u32) -> std::io::Result<()> {
        let stream = self.control.connect(control_service(spec.number))?;
        self.attend(spec, cycle, stream)
    }

    /// Proves both ends to each other, then listens until the connection ends.
    fn attend(
        self: &Arc<Self>,
        spec: &HostSpec,
        cycle: u32,
        stream: UnixStream,
    ) -> std::io::Result<()> {
        let heard = self.lock().hosts[&spec.name].events_heard;
        let (connection, listener) = Connection::open(stream, &self.key, self.clock, heard)?;
        let current = self.update(|state| {
            let host = state.hosts.get_mut(&spec.name)?;
            (host.cycle == cycle && !state.stopping).then(|| {
                host.connection = Some(connection.clone());
                host.status = None;
                std::mem::take(&mut host.booting)
            })
        });
        if current.is_none() {
            return Ok(());
        }
        self.in_turn(|| match self.lock().pool.clone() {
            Some(setup) => connection.tell(host_protocol::Command::Protect(setup)),
            None => Ok(()),
        })?;
        if current == Some(true) {
            let (inner, host) = (Arc::clone(self), spec.name.clone());
            std::thread::Builder::new()
                .name(format!("{host} boot"))
                .spawn(move || inner.start_on_boot(&host))?;
        }
        let error = listener.run(|heard| self.hear(&spec.name, heard));
        self.update(|state| {
            if let Some(host) = state.hosts.get_mut(&spec.name)
                && host.cycle == cycle
            {
                host.connection = None;
                host.status = None;
            }
        });
        let expected = {
            let state = self.lock();
            state.stopping || state.hosts[&spec.name].power == Power::Off
        };
        if !expected {
            self.message(
                "warning",
                format!("the control connection to {} ended: {error}", spec.name),
            );
        }
        Ok(())
    }

    pub(crate) fn connection(&self, host: &str) -> Result<Connection> {
        self.spec(host)?;
        let state = self.lock();
        let entry = &state.hosts[host];
        match (&entry.connection, entry.power) {
            (Some(connection), _) => Ok(connection.clone()),
            (None, Power::Off) => bail!("{host} is off; `elab host power-on {host}` starts it"),
            (None, Power::Frozen) => {
                bail!("{host} is frozen; `elab host thaw {host}` lets it go on")
            }
            (None, Power::On) => bail!(
                "{host} does not answer yet; its console is {host}.serial.log in the run folder"
            ),
        }
    }

    /// Waits until a host can be told something.
    pub(crate) fn wait_for_host(&self, host: &str, patience: Duration) -> Result<()> {
        let outcome = self.wait(patience, |state| {
            let entry = &state.hosts[host];
            match (&entry.connection, &entry.died, &entry.refused) {
                (Some(_), ..) => Some(Ok(())),
                (None, Some(ending), _) => Some(Err(Ending::Died(ending.clone()))),
                (None, None, Some(why)) => Some(Err(Ending::Refused(why.clone()))),
                (None, None, None) => None,
            }
        });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Ending::Refused(why))) => bail!("{host} cannot be used: {why}"),
            Ok(Err(Ending::Died(ending))) => {
                let log = fs::read_to_string(self.folder.file(&format!("{host}.qemu.log")))
                    .unwrap_or_default();
                bail!("{host} went off by itself ({ending}) {}", log.trim())
            }
            Err(GaveUp::Stopping) => bail!("interrupted"),
            Err(GaveUp::Deadline) => {
                let serial =
                    fs::read(self.folder.file(&format!("{host}.serial.log"))).unwrap_or_default();
                let serial = String::from_utf8_lossy(&serial);
                let last: Vec<_> = serial
                    .lines()
                    .rev()
                    .filter(|line| !line.trim().is_empty())
                    .take(5)
                    .collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                bail!(
                    "{host} did not come up within {} s; the end of its console ({host}.serial.log):\n{}",
                    patience.as_secs(),
                    last.join("\n")
                )
            }
        }
    }

    /// Orderly: guests are stopped first.
    pub(crate) fn power_off(&self, host: &str) -> Result<()> {
        let connection = self.connection(host)?;
        let process = self.process(host)?;
        self.update(|state| {
            if let Some(entry) = state.hosts.get_mut(host) {
                entry.power = Power::Off;
            }
        });
        // A host may power off before its answer is on the wire.
        let answer = connection.call(Command::PowerOff, POWER_OFF_PATIENCE);
        if process.wait(POWER_OFF_PATIENCE).is_none() {
            process.kill()?;
            self.host_power(host, "power-off");
            match answer {
                Err(error) => bail!("{host} did not power off ({error}); its plug was pulled"),
                Ok(_) => bail!("{host} did not power off in time; its plug was pulled"),
            }
        }
        self.host_power(host, "power-off");
        Ok(())
    }

    /// The plug is pulled.
    pub(crate) fn pull(&self, host: &str) -> Result<()> {
        let process = self.process(host)?;
        self.host_power(host, "pulled");
        self.update(|state| {
            if let Some(entry) = state.hosts.get_mut(host) {
                entry.power = Power::Off;
            }
        });
        process.kill()?;
        self.without_power(host);
        Ok(())
    }

    pub(crate) fn freeze(&self, host: &str, freeze: bool) -> Result<()> {
        let process = self.process(host)?;
        let (signal, power, word) = if freeze {
            (Signal::SIGSTOP, Power::Frozen, "frozen")
        } else {
            (Signal::SIGCONT, Power::On, "thawed")
        };
        self.host_power(host, word);
        process.signal(signal)?;
        self.update(|state| {
            if let Some(entry) = state.hosts.get_mut(host) {
                entry.power = power;
            }
        });
        Ok(())
    }

    fn process(&self, host: &str) -> Result<Arc<Process>> {
        self.spec(host)?;
        let state = self.lock();
        let entry = &state.hosts[host];
        match (&entry.process, entry.power) {
            (Some(process), Power::On | Power::Frozen) => Ok(Arc::clone(process)),
            _ => bail!("{host} is off"),
        }
    }

    /// Ends every child, at the end of the lab.
    pub(crate) fn end_processes(&self) {
        let (connections, processes) = self.update(|state| {
            let connections: Vec<_> = state
                .hosts
                .values_mut()
                .filter_map(|host| host.connection.take())
                .collect();
            let mut processes: Vec<_> = state
                .hosts
                .values_mut()
                .filter_map(|host| host.process.take())
                .collect();
            processes.extend(state.storage.take());
            (connections, processes)
        });
        for connection in connections {
            connection.close();
        }
        for process in processes {
            if let Err(error) = process.kill() {
                self.message("error", error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use host_protocol::{HostEvent, HostStatus, VmStatus};
    use lab_protocol::{Command as LabCommand, Record};
    use serde_json::Value;

    use super::*;
    use crate::lab::Lab;
    use crate::lab::test_lab::{self, FakeHost};

    const MS: u64 = 1_000_000;

    #[test]
    fn nobody_waits_for_a_host_that_cannot_be_spoken_with() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[]);
        let spec = lab.inner.spec("h2").unwrap().clone();
        let why = "the host speaks version 1 of the control protocol, this lab 2";
        lab.inner.refused(&spec, why);
        let error = lab
            .inner
            .wait_for_host("h2", Duration::from_secs(1000))
            .unwrap_err();
        assert_eq!(error.to_string(), format!("h2 cannot be used: {why}"));

        // With another image in it, it may be one that can.
        for command in [
            LabCommand::HostPull { host: "h2".into() },
            LabCommand::HostPowerOn { host: "h2".into() },
        ] {
            lab.execute(&command).unwrap();
        }
        assert_eq!(lab.inner.lock().hosts["h2"].refused, None);
    }

    /// Both hosts have power, and each VM runs on the host with it.
    fn lab(base: &std::path::Path, vms: &[(&str, &str)]) -> Lab {
        let configs = vms
            .iter()
            .zip(1..)
            .map(|((vm, _), number)| test_lab::vm(vm, number));
        let lab = test_lab::start(base, configs.collect());
        for host in ["h1", "h2"] {
            lab.execute(&LabCommand::HostPowerOn { host: host.into() })
                .unwrap();
        }
        for (name, host) in vms {
            lab.inner.update(|state| {
                let vm = state.vms.get_mut(*name).unwrap();
                vm.host = Some((*host).into());
                vm.state = VmState::Running;
            });
        }
        lab
    }

    fn vms(lab: &Lab) -> Value {
        lab.execute(&LabCommand::Status).unwrap()["vms"].clone()
    }

    #[test]
    fn what_ran_on_a_host_without_power_is_halted() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[("here", "h1"), ("there", "h2")]);
        lab.execute(&LabCommand::HostPull { host: "h1".into() })
            .unwrap();
        let vms = vms(&lab);
        assert_eq!(
            (&vms[0]["state"], &vms[0]["stopped"]),
            (&"halted".into(), &LOST_POWER.into())
        );
        assert_eq!(
            (&vms[1]["state"], &vms[1]["host"]),
            (&"running".into(), &"h2".into())
        );
    }

    fn status(vms: &[u8]) -> HostStatus {
        let vm = |number: &u8| VmStatus {
            id: [*number; 16],
            name: "guest".into(),
            state: VmState::Running,
            memory_mib: 1,
            cpu_ns: 0,
            exits: 0,
        };
        HostStatus {
            memory_total: 0,
            memory_free: 0,
            storage_up: true,
            vms: vms.iter().map(vm).collect(),
        }
    }

    /// A connection of `host` during which `act` is its control service.
    fn connected(lab: &Lab, host: &str, now: HostStatus, act: impl FnOnce(&mut FakeHost) + Send) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let spec = lab.inner.spec(host).unwrap();
        let cycle = lab.inner.lock().hosts[host].cycle;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut fake = FakeHost::new(theirs, &lab.inner.key, now);
                act(&mut fake);
            });
            lab.inner.attend(spec, cycle, ours).unwrap();
        });
    }

    #[test]
    fn a_host_that_can_be_reached_again_says_what_was_missed() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[("guest", "h1")]);
        connected(&lab, "h2", status(&[]), |fake| {
            assert!(fake.serve_until(|fake| fake.asked == 1));
        });
        assert_eq!(vms(&lab)[0]["host"], "h1");
        // The guest moves while nobody hears of it.
        let moved_ns = lab.clock().now_ns();
        std::thread::sleep(Duration::from_millis(20));
        let told = std::sync::Mutex::new(Vec::new());
        connected(&lab, "h2", status(&[1]), |fake| {
            assert!(fake.serve_until(|fake| !fake.told.is_empty()));
            told.lock().unwrap().append(&mut fake.told);
        });
        let now = vms(&lab);
        assert_eq!(
            (&now[0]["host"], &now[0]["state"]),
            (&"h2".into(), &"running".into())
        );
        assert_eq!(*told.lock().unwrap(), [Command::AttachConsole([1; 16])]);
        // h1 knows nothing of it any more either.
        connected(&lab, "h1", status(&[]), |fake| {
            assert!(fake.serve_until(|fake| fake.asked == 1));
        });
        assert_eq!(vms(&lab), now);
        let log = base.path().join("test/events.jsonl");
        lab.stop("test").unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        let runs: Vec<Record> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|record: &Record| matches!(&record.event, Event::VmState { .. }))
            .collect();
        let [runs] = &runs[..] else {
            panic!("one record is expected: {runs:?}")
        };
        let state = "running".into();
        let (vm, host) = ("guest".into(), "h2".into());
        assert_eq!(runs.event, Event::VmState { vm, host, state });
        assert!(
            runs.t_ns.abs_diff(moved_ns) <= runs.error_ns,
            "{runs:?} {moved_ns}"
        );
        assert!((10 * MS..10_000 * MS).contains(&runs.error_ns), "{runs:?}");
    }

    #[test]
    fn what_is_told_again_on_a_new_connection_is_recorded_once() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[("guest", "h1")]);
        let note = |text: &str| HostEvent::Pool {
            mark: host_protocol::pool::PoolMark::Note,
            vm: None,
            about: None,
            text: text.into(),
        };
        connected(&lab, "h2", status(&[]), |fake| {
            assert_eq!(fake.heard, 0);
            fake.report_numbered(2, note("two"));
            fake.report_numbered(3, note("three"));
            assert!(fake.serve_until(|fake| fake.asked == 1));
        });
        connected(&lab, "h2", status(&[]), |fake| {
            assert_eq!(fake.heard, 3);
            fake.report_numbered(3, note("three"));
            fake.report_numbered(4, note("four"));
            assert!(fake.serve_until(|fake| fake.asked == 1));
        });
        let log = base.path().join("test/events.jsonl");
        lab.stop("test").unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        let told: Vec<String> = log
            .lines()
            .filter_map(
                |line| match serde_json::from_str::<Record>(line).unwrap().event {
                    Event::Pool { text, .. } => Some(text),
                    _ => None,
                },
            )
            .collect();
        assert_eq!(told, ["two", "three", "four"]);
    }

    #[test]
    fn a_guest_that_was_let_go_is_the_destinations_until_that_says_more() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[("guest", "h1")]);
        lab.inner.update(|state| {
            state.vms.get_mut("guest").unwrap().migration = Some(crate::lab::state::Move {
                from: "h1".into(),
                to: "h2".into(),
            });
        });
        connected(&lab, "h1", status(&[1]), |fake| {
            assert!(fake.serve_until(|fake| fake.asked == 1));
            fake.status = status(&[]);
            fake.report(HostEvent::Stopped {
                vm: [1; 16],
                reason: host_protocol::StopReason::Migrated,
            });
            assert!(fake.serve_until(|fake| fake.asked == 2));
        });
        let moving = vms(&lab);
        assert_eq!(
            (&moving[0]["host"], &moving[0]["state"]),
            (&"h2".into(), &"starting".into())
        );
        let error = lab.inner.vm_start("guest", "h1").unwrap_err().to_string();
        assert!(
            error.contains("h1 does not answer") || error.contains("on h2"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_that_was_handed_to_a_host_without_power_is_halted() {
        let base = tempfile::tempdir().unwrap();
        let lab = lab(base.path(), &[("guest", "h1")]);
        lab.inner.update(|state| {
            state.vms.get_mut("guest").unwrap().migration = Some(crate::lab::state::Move {
                from: "h1".into(),
                to: "h2".into(),
            });
        });
        lab.execute(&LabCommand::HostPull { host: "h2".into() })
            .unwrap();
        connected(&lab, "h1", status(&[]), |fake| {
            fake.report(HostEvent::Stopped {
                vm: [1; 16],
                reason: host_protocol::StopReason::Migrated,
            });
            assert!(fake.serve_until(|fake| fake.asked == 1));
        });
        let lost = vms(&lab);
        assert_eq!(
            (&lost[0]["state"], &lost[0]["stopped"]),
            (&"halted".into(), &LOST_POWER.into())
        );
    }
}
