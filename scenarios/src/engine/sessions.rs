//! What works in the guests during a run, and what watches them: typists, probes, health checks, loads.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab_protocol::{Event, ProbeKind};

use super::{Engine, Lab, SOURCE, health, reconnect};
use crate::scenario::file::{Guest, Scenario, Session};
use crate::session::{self, Follower, HUMAN_US, MAX_ROWS, SessionConfig, Stream, Typist};

const SSH_PORT: u16 = 22;
/// RFC 862.
const ECHO_PORT: u16 = 7;
/// Opening a session is a log-in and the start of a program.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How much memory a guest goes round in, unless told.
const WORKING_SET_MIB: u32 = 8;
const CHUNK: usize = 16 * 1024;
/// Where the disk probe writes in the guest.
const DISK_FILE: &str = "/root/elab-disk.dat";

/// Everything that goes on beside the steps.
pub(super) struct Sessions {
    typists: Vec<Typist>,
    probes: Vec<u64>,
    disks: Vec<Disk>,
    followers: Vec<Follower>,
    health: Vec<health::Watch>,
    loads: Vec<NetworkLoad>,
}

/// A disk probe: what it reported is compared with the disk at the end.
struct Disk {
    guest: String,
    records: Arc<AtomicU64>,
}

/// Runs a command in a guest over a connection of its own and gives what it prints.
pub(super) fn output(lab: &dyn Lab, guest: &str, command: &str) -> Result<String, String> {
    let stream = lab
        .connect(guest, SSH_PORT)
        .map_err(|error| format!("cannot reach {guest}: {error}"))?;
    let said = session::output(stream, &lab.access(guest)?, command)
        .map_err(|error| format!("in {guest}: {error}"))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The event log's name for a session. The measured one is the first guest's; reports tell the others apart by this.
fn source_of(scenario: &Scenario, guest: &str) -> String {
    let measured = scenario.guests.get_ref().first();
    if measured.is_some_and(|first| first.name.get_ref() == guest) {
        "session".into()
    } else {
        format!("session/{guest}")
    }
}

impl Sessions {
    /// Opens everything; typing has begun when this returns.
    pub(super) fn open(engine: &mut Engine) -> Result<Self, String> {
        let mut sessions = Self {
            typists: Vec::new(),
            probes: Vec::new(),
            disks: Vec::new(),
            followers: Vec::new(),
            health: Vec::new(),
            loads: Vec::new(),
        };
        let scenario = Arc::clone(&engine.scenario);
        for link in &scenario.pool.links {
            let command = lab_protocol::Command::LinkSet {
                link: link.link.get_ref().clone(),
                fault: link.quality().fault(),
            };
            engine.lab.execute(&command)?;
        }
        if let Some(quality) = &scenario.storage.link {
            let command = lab_protocol::Command::LinkSet {
                link: "nfs:storage".into(),
                fault: quality.fault(),
            };
            engine.lab.execute(&command)?;
        }
        for guest in scenario.guests.get_ref() {
            sessions.start_load(&engine.lab, guest)?;
        }
        for (number, session) in scenario.sessions.iter().enumerate() {
            if session.typist {
                sessions.start_typist(engine, session, number)?;
            }
        }
        for session in &scenario.sessions {
            sessions.start_probes(&engine.lab, session)?;
        }
        Ok(sessions)
    }

    fn start_load(&mut self, lab: &Arc<dyn Lab>, guest: &Guest) -> Result<(), String> {
        let name = guest.name.get_ref();
        let load = &guest.load;
        let background = |command: &str| {
            output(
                &**lab,
                name,
                &format!("{command} </dev/null >/dev/null 2>&1 &"),
            )
            .map_err(|error| format!("cannot start the load: {error}"))
        };
        if load.dirty_mib_s > 0 {
            let size = load.working_set_mib.unwrap_or(WORKING_SET_MIB);
            background(&format!("elab-dirty {size} {}", load.dirty_mib_s))?;
        }
        if load.disk {
            background(
                "sh -c 'while :; do dd if=/dev/zero of=/root/load bs=64k count=64 conv=fsync; done'",
            )?;
        }
        if load.network {
            self.loads.push(NetworkLoad::start(&**lab, name)?);
        }
        Ok(())
    }

    fn start_typist(
        &mut self,
        engine: &mut Engine,
        session: &Session,
        number: usize,
    ) -> Result<(), String> {
        let lab = Arc::clone(&engine.lab);
        let guest = session.guest.get_ref();
        let stream = lab
            .connect(guest, SSH_PORT)
            .map_err(|error| format!("cannot reach {guest}'s SSH server: {error}"))?;
        let source = source_of(&engine.scenario, guest);
        // One cast a session, named as the session's source.
        let recording = lab
            .folder()
            .join(format!("{}.output.jsonl", source.replace('/', "-")));
        let config = SessionConfig {
            vm: guest.clone(),
            access: lab.access(guest)?,
            folder: "/root".into(),
            rows: MAX_ROWS,
            seed: engine.drive.seed.wrapping_add(number as u64),
            interval_us: HUMAN_US,
            origin: Instant::now() - Duration::from_nanos(lab.now_ns()),
            patience: session.patience.0,
            recording: Some(recording),
        };
        let reconnect = session
            .reconnect
            .then(|| reconnect::reconnect(Arc::clone(&lab), guest.clone()));
        let opened = engine.records.len();
        let journal = Arc::clone(&lab);
        let typist = Typist::start_again(stream, config, reconnect, move |event| {
            journal.record(&source, event);
        })
        .map_err(|error| error.to_string())?;
        let guest = guest.clone();
        let deadline = Instant::now() + OPEN_DEADLINE.mul_f64(engine.drive.factor);
        let open = engine.wait(deadline, |engine| {
            let is_open = engine.records[opened..]
                .iter()
                .any(|record| matches!(&record.event, Event::SessionOpen { vm } if *vm == guest));
            (is_open || typist.has_ended()).then_some(is_open)
        });
        match open {
            Ok(true) => {
                self.typists.push(typist);
                Ok(())
            }
            Err(super::GaveUp::Interrupted) => Err("interrupted".into()),
            _ => Err(match typist.finish() {
                Ok(_) => format!("the session with {guest} ended before it began"),
                Err(error) => format!("the session with {guest}: {error}"),
            }),
        }
    }

    fn start_probes(&mut self, lab: &Arc<dyn Lab>, session: &Session) -> Result<(), String> {
        let guest = session.guest.get_ref();
        let probes = &session.probes;
        for (kind, hz) in [
            (ProbeKind::Udp, probes.udp_hz),
            (ProbeKind::Tcp, probes.tcp_hz),
            (ProbeKind::Ping, probes.ping_hz),
        ] {
            if hz > 0 {
                let interval = Duration::from_secs(1) / u32::from(hz);
                let probe = lab
                    .start_probe(guest, kind, interval)
                    .map_err(|error| format!("cannot start a probe: {error}"))?;
                self.probes.push(probe);
            }
        }
        if let Some(interval_ms) = 1000_u16.checked_div(probes.disk_hz) {
            let records = Arc::new(AtomicU64::new(0));
            let command = format!("elab-disk write {DISK_FILE} {interval_ms}");
            let (journal, vm, count) = (Arc::clone(lab), guest.clone(), Arc::clone(&records));
            self.follow(lab, guest, &command, move |line| {
                if let Ok(number) = line.parse() {
                    count.store(number + 1, Ordering::Relaxed);
                    let vm = vm.clone();
                    journal.record("session", Event::DiskRecord { vm, number });
                }
            })?;
            self.disks.push(Disk {
                guest: guest.clone(),
                records,
            });
        }
        if probes.clock_hz > 0 {
            let (journal, vm) = (Arc::clone(lab), guest.clone());
            let mut number = 0;
            let command = clock_command(probes.clock_hz);
            self.follow(lab, guest, &command, move |line| {
                let mut words = line.split(' ').map(str::parse);
                if let (Some(Ok(realtime_ns)), Some(Ok(monotonic_ns))) =
                    (words.next(), words.next())
                {
                    let vm = vm.clone();
                    journal.record(
                        "session",
                        Event::GuestClock {
                            vm,
                            number,
                            realtime_ns,
                            monotonic_ns,
                        },
                    );
                    number += 1;
                }
            })?;
        }
        if let Some(check) = &session.health {
            let watch = health::Watch::start(Arc::clone(lab), guest.clone(), check.clone())?;
            self.health.push(watch);
        }
        Ok(())
    }

    fn follow(
        &mut self,
        lab: &Arc<dyn Lab>,
        guest: &str,
        command: &str,
        on_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<(), String> {
        let stream = lab
            .connect(guest, SSH_PORT)
            .map_err(|error| format!("cannot reach {guest}: {error}"))?;
        let follower = Follower::start(stream, lab.access(guest)?, command.to_owned(), on_line)
            .map_err(|error| format!("in {guest}: {error}"))?;
        self.followers.push(follower);
        Ok(())
    }

    /// Lets everyone finish: typists complete their row and compare the document, probes hand in their samples. The first error
    /// is given; a lost session is one, and whether that fails the run is for the verdict to say.
    pub(super) fn close(&mut self, engine: &mut Engine) -> Result<(), String> {
        let lab = Arc::clone(&engine.lab);
        self.health.clear();
        self.loads.clear();
        for typist in self.typists.drain(..) {
            // The event log has it: the verdict does not need this word.
            if let Err(error) = typist.finish() {
                (engine.drive.progress)(&format!("a session: {error}"));
            }
        }
        for follower in self.followers.drain(..) {
            follower.stop();
        }
        for disk in self.disks.drain(..) {
            check_disk(&*lab, &disk);
        }
        for probe in self.probes.drain(..) {
            lab.stop_probe(probe)
                .map_err(|error| format!("the probes: {error}"))?;
        }
        Ok(())
    }
}

/// Prints `CLOCK_REALTIME` (0) and `CLOCK_MONOTONIC` (1) in nanoseconds, by `clock_gettime` (228 on x86-64): the guest has no module
/// for it.
fn clock_command(hz: u16) -> String {
    let interval = 1.0 / f64::from(hz);
    format!(
        "perl -e '$|=1; sub t {{ my $b = \"\\0\" x 16; syscall(228, $_[0], $b); my ($s, $n) = unpack \"qq\", $b; return sprintf \"%d%09d\", $s, $n }} while (1) {{ print t(0), \" \", t(1), \"\\n\"; select undef, undef, undef, {interval} }}'"
    )
}

/// Asks the guest whether its disk holds what it reported.
fn check_disk(lab: &dyn Lab, disk: &Disk) {
    let records = disk.records.load(Ordering::Relaxed);
    let command = format!("elab-disk check {DISK_FILE} {records} 2>&1");
    let (equal, detail) = match output(lab, &disk.guest, &command) {
        Ok(said) if said.trim() == "ok" => (true, String::new()),
        Ok(said) => (false, said.trim().to_owned()),
        Err(error) => (false, error),
    };
    lab.record(
        SOURCE,
        Event::DiskChecked {
            vm: disk.guest.clone(),
            equal,
            records,
            detail,
        },
    );
}

/// Sends data to a guest's echo service and reads it back, as fast as it goes. It ends when dropped.
struct NetworkLoad {
    ending: Arc<AtomicBool>,
    stream: std::os::unix::net::UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl NetworkLoad {
    fn start(lab: &dyn Lab, guest: &str) -> Result<Self, String> {
        let words = |error| format!("cannot start the network load of {guest}: {error}");
        let Stream::Unix(stream) = lab.connect(guest, ECHO_PORT).map_err(words)? else {
            return Err("the lab gives no local stream".into());
        };
        let ending = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ending);
        let mut line = stream.try_clone().map_err(words)?;
        let thread = std::thread::Builder::new()
            .name("network load".into())
            .spawn(move || {
                let mut chunk = vec![0x55; CHUNK];
                // Whatever ends the connection ends the load; the probes see what that means.
                while !flag.load(Ordering::Relaxed)
                    && line.write_all(&chunk).is_ok()
                    && line.read_exact(&mut chunk).is_ok()
                {}
            })
            .map_err(words)?;
        Ok(Self {
            ending,
            stream,
            thread: Some(thread),
        })
    }
}

impl Drop for NetworkLoad {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // Wakes the thread where it waits for an answer.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
