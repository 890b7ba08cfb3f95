//! Deterministic simulation: random guests on random networks and a server that crashes.
//!
//! A seed reproduces a run: it is printed when one fails.

mod bad_state;
mod host;
mod image;
mod renewing;
mod server;
#[path = "../support/mod.rs"]
mod support;

use fastrand::Rng;
use host::{Host, Weather};
use image::{Kind, SIZE};
use server::{Lies, Server};
use support::guest::Guest;
use vdi::{Access, Completion, DiskId, DiskState, Op};

const PATH: &str = "sr/disk.vhd";

/// One run: a server, up to two hosts, one guest that runs on one of them.
struct World {
    rng: Rng,
    server: Server,
    guest: Guest,
    now_ns: u64,
    crash_every: u32,
}

impl World {
    fn new(seed: u64, kind: Kind, lies: Lies) -> Self {
        let mut server = Server::new();
        server.lies = lies;
        let (files, stamps) = image::files(kind);
        let guest = Guest::new(stamps);
        for (name, content) in files {
            server.put(name, content);
        }
        Self {
            rng: Rng::with_seed(seed),
            server,
            guest,
            now_ns: 0,
            crash_every: 0,
        }
    }

    fn host(&mut self, name: &str) -> Host {
        Host::new(name, self.now_ns, &mut self.rng)
    }

    fn step(&mut self, hosts: &mut [&mut Host]) {
        self.now_ns += self.rng.u64(..2_000_000);
        self.server.now_ns = self.now_ns;
        if self.crash_every > 0 && self.rng.u32(..self.crash_every) == 0 {
            self.server.crash(&mut self.rng);
            hosts
                .iter_mut()
                .for_each(|host| host.server_died(self.now_ns));
        }
        for host in hosts {
            host.step(&mut self.server, &mut self.rng, self.now_ns);
        }
    }

    fn open(&mut self, host: &mut Host, access: Access) -> Result<DiskId, String> {
        host.storage.open_disk(PATH, access, self.now_ns);
        self.opened(&mut [host])
    }

    fn opened(&mut self, hosts: &mut [&mut Host]) -> Result<DiskId, String> {
        for _ in 0..1_000_000 {
            self.step(hosts);
            let last = hosts.last_mut().expect("at least one host");
            if let Some(at) = last
                .completions
                .iter()
                .position(|c| matches!(c, Completion::Opened { .. }))
            {
                let Some(Completion::Opened { result, .. }) = last.completions.remove(at) else {
                    unreachable!("found there")
                };
                return result.map(|(disk, _)| disk).map_err(|why| why.to_string());
            }
        }
        Err("opening never ended".into())
    }

    fn collect(&mut self, host: &mut Host) -> Result<(), String> {
        while let Some(completion) = host.completions.pop_front() {
            match completion {
                Completion::Io { id, result, .. } => self.guest.on_end(id, result)?,
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        Ok(())
    }

    /// The guest runs for so many operations, and until they have ended.
    fn run_guest(&mut self, host: &mut Host, disk: DiskId, ops: usize) -> Result<(), String> {
        let mut left = ops;
        for _ in 0..3_000_000 {
            if left > 0 && self.guest.in_flight() < 12 && self.rng.bool() {
                let (id, op) = self.guest.random_op(&mut self.rng);
                host.storage.submit(disk, id, op, self.now_ns);
                left -= 1;
            }
            self.step(&mut [host]);
            self.collect(host)?;
            if left == 0 && self.guest.in_flight() == 0 {
                return Ok(());
            }
        }
        Err(format!("{} operations never ended", self.guest.in_flight()))
    }

    fn read_all(&mut self, host: &mut Host, disk: DiskId) -> Result<Vec<u8>, String> {
        host.storage.submit(
            disk,
            0,
            Op::Read {
                offset: 0,
                len: SIZE as u32,
            },
            self.now_ns,
        );
        for _ in 0..1_000_000 {
            self.step(&mut [host]);
            if let Some(completion) = host.completions.pop_front() {
                let Completion::Io { id: 0, result, .. } = completion else {
                    return Err(format!("unexpected {completion:?}"));
                };
                return result.map_err(|why| why.to_string());
            }
        }
        Err("reading the disk never ended".into())
    }

    /// Everything dies; another host looks at what is left.
    fn check_after_crash(&mut self, host: Host) -> Result<(), String> {
        drop(host);
        self.crash_every = 0;
        self.server.crash(&mut self.rng);
        image::check(self.server.content("disk.vhd"))?;
        self.now_ns += 60_000_000_000;
        let mut heir = self.host("h2");
        let disk = self.open(&mut heir, Access::ReadWrite)?;
        let content = self.read_all(&mut heir, disk)?;
        self.guest.check_survivors(&content)
    }
}

/// The server's disk fails now and then; what succeeded counts.
fn failures(seed: u64, kind: Kind) -> Result<(), String> {
    let mut world = World::new(seed, kind, Lies::default());
    let mut host = world.host("h1");
    let disk = world.open(&mut host, Access::ReadWrite)?;
    world.server.fail_every = 20;
    world.crash_every = 2000;
    world.run_guest(&mut host, disk, 150)?;
    world.server.fail_every = 0;
    let content = world.read_all(&mut host, disk)?;
    world.guest.check_current(&content)?;
    world.check_after_crash(host)
}

/// A guest works through broken connections and crashes of the server; then everything dies.
fn storm(seed: u64, kind: Kind, lies: Lies) -> Result<(), String> {
    let mut world = World::new(seed, kind, lies);
    let mut host = world.host("h1");
    host.weather = Weather {
        break_every: 400,
        ..Weather::default()
    };
    world.crash_every = 700;
    let disk = world.open(&mut host, Access::ReadWrite)?;
    let ops = world.rng.usize(20..200);
    world.run_guest(&mut host, disk, ops)?;
    let content = world.read_all(&mut host, disk)?;
    world.guest.check_current(&content)?;
    if world.guest.errors > 0 {
        return Err(format!("{} operations failed", world.guest.errors));
    }
    world.check_after_crash(host)
}

/// A guest moves from host to host while connections break.
fn moves(seed: u64, kind: Kind, lies: Lies) -> Result<(), String> {
    let mut world = World::new(seed, kind, lies);
    world.crash_every = 3000;
    let mut source = world.host("h1");
    source.weather = Weather {
        break_every: 2000,
        ..Weather::default()
    };
    let mut disk = world.open(&mut source, Access::ReadWrite)?;
    for round in 0..4 {
        let name = if round % 2 == 0 { "h2" } else { "h1" };
        let mut destination = world.host(name);
        destination.weather = source.weather;
        let ops = world.rng.usize(..60);
        world.run_guest(&mut source, disk, ops)?;
        destination.storage.prepare_disk(PATH, world.now_ns);
        let prepared = world.opened(&mut [&mut source, &mut destination])?;
        let ops = world.rng.usize(..60);
        world.run_guest(&mut source, disk, ops)?;
        source.storage.commit_early(disk, world.now_ns);
        let ops = world.rng.usize(..10);
        world.run_guest(&mut source, disk, ops)?;

        source.storage.drain(disk, world.now_ns);
        while !source.storage.is_drained(disk) {
            world.step(&mut [&mut source]);
        }
        let state = source
            .storage
            .save_disk(disk)
            .map_err(|why| why.to_string())?;
        let wire = postcard::to_allocvec(&state).expect("it can be encoded");
        let state: DiskState = postcard::from_bytes(&wire).expect("it can be decoded");
        destination
            .storage
            .restore_disk(prepared, &state)
            .map_err(|why| why.to_string())?;
        destination
            .storage
            .take_lease(prepared, state.epoch, world.now_ns);
        loop {
            world.step(&mut [&mut source, &mut destination]);
            match destination.completions.pop_front() {
                Some(Completion::Taken { result, .. }) => {
                    result.map_err(|why| why.to_string())?;
                    break;
                }
                Some(other) => return Err(format!("unexpected {other:?}")),
                None => {}
            }
        }
        // The old owner does not know yet, and writes.
        let writes = *world.server.writes_by.get(source_name(round)).unwrap_or(&0);
        source.storage.submit(
            disk,
            1 << 40,
            Op::Write {
                offset: 0,
                data: vec![0xee; 512],
            },
            world.now_ns,
        );
        for _ in 0..2000 {
            world.step(&mut [&mut source]);
        }
        let after = *world.server.writes_by.get(source_name(round)).unwrap_or(&0);
        if after != writes {
            return Err("the old owner has written after the hand-over".into());
        }
        let refused = source
            .completions
            .iter()
            .any(|c| matches!(c, Completion::LeaseLost { .. }));
        if !refused {
            return Err("the old owner was not told".into());
        }
        (source, disk) = (destination, prepared);
    }
    let ops = world.rng.usize(..60);
    world.run_guest(&mut source, disk, ops)?;
    let content = world.read_all(&mut source, disk)?;
    world.guest.check_current(&content)?;
    world.check_after_crash(source)
}

fn source_name(round: i32) -> &'static str {
    if round % 2 == 0 { "h1" } else { "h2" }
}

/// A server, or whoever sits between, sends nonsense: operations may fail, but nothing panics.
fn nonsense(seed: u64, kind: Kind) {
    let mut world = World::new(seed, kind, Lies::default());
    let mut host = world.host("h1");
    host.weather.break_every = 300;
    host.storage
        .open_disk(PATH, Access::ReadWrite, world.now_ns);
    let mut open = None;
    for step in 0..4000 {
        host.weather.corrupt_every = if open.is_none() { 30 } else { 5 };
        if let Some(disk) = open
            && step % 16 == 0
        {
            let (id, op) = world.guest.random_op(&mut world.rng);
            host.storage.submit(disk, id, op, world.now_ns);
        }
        world.step(&mut [&mut host]);
        while let Some(completion) = host.completions.pop_front() {
            match completion {
                Completion::Opened {
                    result: Ok((disk, _)),
                    ..
                } => open = Some(disk),
                Completion::Opened { result: Err(_), .. } | Completion::LeaseLost { .. } => return,
                _ => {}
            }
        }
    }
}

/// A file that is not quite a VHD: it opens or is refused, but nothing panics.
fn damage(seed: u64, kind: Kind) {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(seed, kind, Lies::default());
    let (files, _) = image::files(kind);
    for (name, mut content) in files {
        for _ in 0..rng.usize(1..4) {
            let at = if rng.bool() {
                rng.usize(..2048)
            } else {
                rng.usize(..content.len())
            };
            content[at] = if rng.bool() { rng.u8(..) } else { 0xff };
        }
        if rng.u8(..4) == 0 {
            content.truncate(rng.usize(..content.len()));
        }
        image::seal(&mut content);
        world.server.put(name, content);
    }
    let mut host = world.host("h1");
    if let Ok(disk) = world.open(&mut host, Access::ReadWrite) {
        let _ = world.read_all(&mut host, disk);
    }
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("VDI_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(25);
    0..count
}

fn each_seed(name: &str, run: impl Fn(u64) -> Result<(), String>) {
    for seed in seeds() {
        if let Err(why) = run(seed) {
            panic!("{name}, seed {seed}: {why}");
        }
    }
}

/// A lie of the server must be found out by one of the seeds; else the test proves nothing.
fn is_found_out(run: impl Fn(u64) -> Result<(), String>) {
    let found = (0..400).any(|seed| run(seed).is_err());
    assert!(found, "no seed found it out");
}

#[test]
fn acknowledged_data_survives_on_a_dynamic_disk() {
    each_seed("dynamic", |seed| {
        storm(seed, Kind::Dynamic, Lies::default())
    });
}

#[test]
fn acknowledged_data_survives_on_a_differencing_disk() {
    each_seed("differencing", |seed| {
        storm(seed, Kind::Differencing, Lies::default())
    });
}

#[test]
fn acknowledged_data_survives_on_a_fixed_disk() {
    each_seed("fixed", |seed| storm(seed, Kind::Fixed, Lies::default()));
}

#[test]
fn a_moving_guest_keeps_its_data_and_only_one_host_writes() {
    each_seed("moving, dynamic", |seed| {
        moves(seed, Kind::Dynamic, Lies::default())
    });
    each_seed("moving, differencing", |seed| {
        moves(seed, Kind::Differencing, Lies::default())
    });
}

#[test]
fn what_succeeds_on_a_failing_disk_survives() {
    for kind in [Kind::Dynamic, Kind::Differencing, Kind::Fixed] {
        each_seed(&format!("failures, {kind:?}"), |seed| failures(seed, kind));
    }
}

#[test]
fn nonsense_from_the_server_is_survived() {
    for seed in 0..seeds().end * 4 {
        nonsense(
            seed,
            if seed % 2 == 0 {
                Kind::Dynamic
            } else {
                Kind::Differencing
            },
        );
    }
}

#[test]
fn a_damaged_file_is_survived() {
    for seed in 0..seeds().end * 8 {
        damage(
            seed,
            [Kind::Dynamic, Kind::Differencing, Kind::Fixed][seed as usize % 3],
        );
    }
}

#[test]
fn control_a_commit_that_does_nothing_is_found_out() {
    let lies = Lies {
        commit_does_nothing: true,
        ..Lies::default()
    };
    is_found_out(|seed| storm(seed, Kind::Dynamic, lies));
}

/// Without epochs nothing tells a write that comes late from a lost connection.
#[test]
fn control_writes_that_come_late_are_found_out() {
    let lies = Lies {
        leases_not_enforced: true,
        ..Lies::default()
    };
    is_found_out(|seed| storm(seed, Kind::Dynamic, lies));
}

#[test]
fn control_a_verifier_that_outlives_a_crash_is_found_out() {
    let lies = Lies {
        constant_verifier: true,
        ..Lies::default()
    };
    is_found_out(|seed| storm(seed, Kind::Dynamic, lies));
}

#[test]
fn control_leases_that_are_not_enforced_are_found_out() {
    let lies = Lies {
        leases_not_enforced: true,
        ..Lies::default()
    };
    is_found_out(|seed| moves(seed, Kind::Dynamic, lies));
}
