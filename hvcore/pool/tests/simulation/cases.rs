//! The kinds of simulated runs: what goes wrong in each, and what must hold then.

use std::rc::Rc;

use fastrand::Rng;
use pool::{Event, FenceCause, HostId, Safeguards, Timing, VmIndex};

use crate::world::{MS, SECOND, Shape, World};

/// A kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Everything goes wrong, then all is repaired.
    Chaos,
    /// One host, or several, lose power at once.
    Pull,
    /// The management network alone is cut, in all ways.
    ManagementCut,
    /// The storage fails for all, and all see each other.
    Outage,
    /// One host loses the storage.
    StorageCut,
    /// Hosts are slow, and stand still for several hundred milliseconds.
    Busy,
    /// A host stands still for seconds, and goes on.
    Freeze,
    /// The same while the management network is cut, so that it learns of nothing but by the storage.
    FreezeApart,
    /// Forged, repeated and foreign heartbeats, damaged slots, clocks that jump; and a pull among them.
    Hostile,
    /// Clocks are set ahead and back.
    Clocks,
    /// VMs migrate while hosts are pulled, frozen and cut off.
    Migrations,
    /// All hosts lose power, and all slots of the statefile are damaged before it comes back.
    Blackout,
}

pub const CASES: [Case; 12] = [
    Case::Chaos,
    Case::Pull,
    Case::ManagementCut,
    Case::Outage,
    Case::StorageCut,
    Case::Busy,
    Case::Freeze,
    Case::FreezeApart,
    Case::Hostile,
    Case::Clocks,
    Case::Migrations,
    Case::Blackout,
];

/// After a repair, or after a host was lost, every VM runs again within this time: the leases' time to live, for hosts that were never
/// in the liveset, and the time for a few new livesets and starts.
const BOUND: u64 = 30 * SECOND;
/// From a pull to the order that restarts a VM, when nothing else goes wrong.
const DECISION: u64 = 2000 * MS;

/// What a run has shown.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From each pull to the order to restart, in nanoseconds.
    pub decisions: Vec<u64>,
    /// From each pull to the declaration.
    pub detections: Vec<u64>,
    /// Virtual host-seconds.
    pub host_seconds: f64,
    /// Restarts.
    pub restarts: usize,
}

/// What the pools of a run rely on. Anything but the default is a negative control.
#[derive(Clone, Copy)]
pub struct Setup {
    pub safeguards: Safeguards,
    pub timing: Timing,
    /// The storage server refuses what comes under an old epoch.
    pub enforced: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            safeguards: Safeguards::default(),
            timing: Timing::default(),
            enforced: true,
        }
    }
}

/// One run.
pub fn run(case: Case, seed: u64, setup: &Setup) -> Result<Outcome, String> {
    let mut rng = Rng::with_seed(seed);
    let hosts = match rng.u16(0..1000) {
        0..450 => 2,
        450..700 => 3,
        700..880 => 4,
        880..992 => rng.usize(5..=8),
        992..999 => rng.usize(9..=16),
        _ => rng.usize(17..=64),
    };
    run_with(case, hosts, rng, setup)
}

/// One run with so many hosts.
pub fn run_with(case: Case, hosts: usize, mut rng: Rng, setup: &Setup) -> Result<Outcome, String> {
    let vms = rng.usize(1..=4);
    let shape = Shape {
        hosts,
        vms,
        safeguards: setup.safeguards,
        timing: setup.timing,
    };
    let mut run = Run {
        world: World::new(&shape, rng.fork()),
        rng,
        outcome: Outcome::default(),
    };
    run.world.storage.enforced = setup.enforced;
    let result = run.run(case);
    if std::env::var_os("POOL_HISTORY").is_some() {
        history(&run.world);
    }
    let world = &run.world;
    run.outcome.host_seconds = (world.now - SECOND) as f64 / 1e9 * hosts as f64;
    run.outcome.restarts = world.count(0, |event| matches!(event, Event::Restart { .. }));
    match (&world.violation, result) {
        (Some(violation), _) => Err(violation.clone()),
        (None, Err(why)) => Err(why),
        (None, Ok(())) => Ok(run.outcome),
    }
}

/// Prints what was done to the pools of a run, and what they told people.
pub fn history(world: &World) {
    let done = world.done.iter().map(|(at, host, what)| {
        let line = format!("h{} ----- {what}", host + 1);
        (*at, line)
    });
    let told = world.told.iter().map(|told| {
        let line = format!("h{} {}", told.host + 1, told.event.explain(&world.config));
        (told.at, line)
    });
    let mut lines: Vec<_> = done.chain(told).collect();
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        println!("{:9.3} {line}", (at - SECOND) as f64 / 1e9);
    }
    for (number, host) in (1..).zip(&world.hosts) {
        let status = host.pool.as_ref().map(pool::Pool::status);
        println!("h{number} at the end: {status:?}");
    }
}

struct Run {
    world: World,
    rng: Rng,
    outcome: Outcome,
}

impl Run {
    fn run(&mut self, case: Case) -> Result<(), String> {
        self.form().and_then(|()| match case {
            Case::Chaos => self.chaos(false),
            Case::Migrations => self.chaos(true),
            Case::Pull => self.pull(),
            Case::ManagementCut => self.management_cut(),
            Case::Outage => self.outage(),
            Case::StorageCut => self.storage_cut(),
            Case::Busy => self.busy(),
            Case::Freeze => self.freeze(),
            Case::FreezeApart => {
                self.cut_all_links();
                self.world.longest_boot = 20 * MS;
                self.freeze()
            }
            Case::Hostile => self.hostile(),
            Case::Clocks => self.clocks(),
            Case::Blackout => self.blackout(),
        })
    }

    fn pass(&mut self, duration: u64) {
        let end = self.world.now + duration;
        self.world.run_until(end);
    }

    fn hosts(&self) -> usize {
        self.world.hosts.len()
    }

    fn any_host(&mut self) -> usize {
        self.rng.usize(0..self.world.hosts.len())
    }

    /// Waits until every VM runs, and is reported to.
    fn await_all(&mut self, limit: u64, when: &str) -> Result<(), String> {
        let end = self.world.now + limit;
        while self.world.now < end && self.world.violation.is_none() {
            if self.world.all_run() {
                self.pass(500 * MS);
                if self.world.all_run() {
                    return Ok(());
                }
            }
            self.pass(100 * MS);
        }
        let running: Vec<_> = (0..self.world.config.vms.len())
            .map(|vm| self.world.executing(VmIndex(vm as u16)))
            .collect();
        Err(format!(
            "{when}, VMs run on {running:?} after {} s",
            limit / SECOND
        ))
    }

    /// Hosts boot one after the other; VMs are started when all are in the pool.
    fn form(&mut self) -> Result<(), String> {
        for host in 0..self.hosts() {
            self.world.boot(host);
            let pause = self.rng.u64(0..100 * MS);
            self.pass(pause);
        }
        let hosts = self.hosts();
        let end = self.world.now + 10 * SECOND;
        loop {
            let in_pool = |pool: &pool::Pool| {
                let status = pool.status();
                status.permitted && status.hosts.iter().filter(|host| host.member).count() == hosts
            };
            if self
                .world
                .hosts
                .iter()
                .all(|host| host.pool.as_ref().is_some_and(in_pool))
            {
                break;
            }
            if self.world.now > end {
                return Err("the pool did not form".into());
            }
            self.pass(50 * MS);
        }
        for vm in 0..self.world.config.vms.len() {
            let host = self.any_host();
            self.world.start_by_hand(host, VmIndex(vm as u16));
        }
        self.await_all(5 * SECOND, "after the start")
    }

    fn pull(&mut self) -> Result<(), String> {
        // Whoever has a VM, so that there is something to restart; often the coordinator.
        let victim = self.world.executing(VmIndex(0))[0];
        let mut victims = vec![victim];
        if self.hosts() >= 4 && self.rng.bool() {
            victims.push((victim + 1) % self.hosts());
        }
        let pause = self.rng.u64(0..400 * MS);
        self.pass(pause);
        let at = self.world.now;
        let lost = |event: &Event| matches!(event, Event::Restart { .. });
        for victim in &victims {
            self.world.pull(*victim);
        }
        self.pass(3 * SECOND);
        let first = self
            .world
            .told
            .iter()
            .find(|told| told.at >= at && lost(&told.event));
        let decided = first.ok_or("no VM was restarted within 3 s of a pull")?.at - at;
        let told = &self.world.told;
        let detected = told
            .iter()
            .find(|told| told.at >= at && matches!(told.event, Event::DeclaredDead { .. }))
            .map_or(0, |told| told.at - at);
        if decided > DECISION {
            return Err(format!(
                "a restart was decided {} ms after the pull",
                decided / MS
            ));
        }
        self.outcome.decisions.push(decided);
        self.outcome.detections.push(detected);
        self.await_all(BOUND, "after a pull")?;
        // Power comes back, and the host is let in again, without another restart.
        let back = self.world.now;
        for victim in &victims {
            self.world.boot(*victim);
        }
        self.pass(3 * SECOND);
        self.nothing_restarted(back, "when the host was back")?;
        let all = self.hosts();
        let in_again = self
            .world
            .hosts
            .iter()
            .flat_map(|host| &host.pool)
            .all(|pool| {
                pool.status()
                    .hosts
                    .iter()
                    .filter(|host| host.member)
                    .count()
                    == all
            });
        if in_again {
            Ok(())
        } else {
            Err("a repaired host was not let in".into())
        }
    }

    fn blackout(&mut self) -> Result<(), String> {
        let pause = self.rng.u64(0..2 * SECOND);
        self.pass(pause);
        for host in 0..self.hosts() {
            self.world.pull(host);
        }
        for slot in &mut self.world.storage.slots {
            let byte = self.rng.usize(0..64);
            slot[byte] ^= 1 << self.rng.u8(0..8);
        }
        for host in 0..self.hosts() {
            let pause = self.rng.u64(0..2 * SECOND);
            self.pass(pause);
            self.world.boot(host);
        }
        self.await_all(BOUND, "after a blackout that took the statefile with it")
    }

    fn nothing_restarted(&self, since: u64, when: &str) -> Result<(), String> {
        let restarts = self.world.count(since, |event| {
            matches!(
                event,
                Event::Restart { .. } | Event::SelfFenced(_) | Event::DeclaredDead { .. }
            )
        });
        if restarts > 0 {
            return Err(format!("hosts were given up or VMs restarted {when}"));
        }
        Ok(())
    }

    fn management_cut(&mut self) -> Result<(), String> {
        let since = self.world.now;
        let (hosts, lapses) = (self.hosts(), self.world.lapses);
        for _ in 0..self.rng.usize(1..4) {
            let kind = self.rng.u8(0..4);
            let apart = self.any_host();
            for from in 0..hosts {
                for to in 0..hosts {
                    let cut = match kind {
                        0 => true,
                        1 => from == apart || to == apart,
                        2 => from == apart,
                        _ => self.rng.bool(),
                    };
                    self.world.link(from, to).cut = cut;
                }
            }
            let duration = self.rng.u64(100 * MS..8 * SECOND);
            self.pass(duration);
        }
        self.nothing_restarted(since, "while only the management network was cut")?;
        if self.world.lapses > lapses {
            return Err("guests stood still while only the management network was cut".into());
        }
        self.repair();
        self.pass(2 * SECOND);
        self.nothing_restarted(since, "when the management network was back")
    }

    fn outage(&mut self) -> Result<(), String> {
        let since = self.world.now;
        let lapses = self.world.lapses;
        self.world.storage_outage(true);
        let duration = self.rng.u64(SECOND..20 * SECOND);
        self.pass(duration);
        if duration < 9 * SECOND && self.world.lapses > lapses {
            return Err("guests stood still while hosts vouched for each other".into());
        }
        self.world.storage_outage(false);
        self.pass(2 * SECOND);
        self.nothing_restarted(since, "while the storage failed for all")?;
        self.await_all(5 * SECOND, "after an outage of the storage")
    }

    fn storage_cut(&mut self) -> Result<(), String> {
        let since = self.world.now;
        let victim = self.world.executing(VmIndex(0))[0];
        self.world.cut_storage(victim, true);
        self.pass(6 * SECOND);
        let fenced = self.world.told.iter().any(|told| {
            told.at >= since
                && told.host == victim
                && matches!(
                    told.event,
                    Event::SelfFenced(FenceCause::StorageLost { .. })
                )
        });
        if !fenced {
            return Err("a host without storage did not fence itself".into());
        }
        let others = self
            .world
            .count(since, |event| matches!(event, Event::SelfFenced(_)));
        if others > 1 {
            return Err("hosts with storage fenced themselves".into());
        }
        self.await_all(BOUND, "after one host lost the storage")?;
        self.world.cut_storage(victim, false);
        self.pass(3 * SECOND);
        self.await_all(SECOND, "when the host had storage again")
    }

    fn busy(&mut self) -> Result<(), String> {
        let since = self.world.now;
        self.world.lateness = 150 * MS;
        self.world.storage_delay = 150 * MS;
        let end = self.world.now + self.rng.u64(4..12) * SECOND;
        while self.world.now < end {
            let host = self.any_host();
            let duration = self.rng.u64(50 * MS..700 * MS);
            // Two standstills in one go would be a longer one.
            if self.world.hosts[host].frozen_until + 200 * MS < self.world.now {
                self.world.freeze(host, duration);
            }
            let pause = self.rng.u64(0..SECOND);
            self.pass(pause);
        }
        self.nothing_restarted(since, "while hosts were only slow")
    }

    fn freeze(&mut self) -> Result<(), String> {
        let victim = self.world.executing(VmIndex(0))[0];
        self.world.storage_delay = self.rng.u64(5 * MS..150 * MS);
        for _ in 0..self.rng.usize(1..3) {
            // Often just as long as it takes to be given up.
            let longest = if self.rng.bool() {
                1700 * MS
            } else {
                6 * SECOND
            };
            let duration = self.rng.u64(SECOND..longest);
            self.world.freeze(victim, duration);
            let pause = self.rng.u64(0..2 * SECOND);
            self.pass(duration + pause);
        }
        self.await_all(BOUND, "after a host stood still")
    }

    fn cut_all_links(&mut self) {
        for from in 0..self.hosts() {
            for to in 0..self.hosts() {
                self.world.link(from, to).cut = true;
            }
        }
    }

    fn hostile(&mut self) -> Result<(), String> {
        self.world.overheard = Some(Vec::new());
        let victim = self.world.executing(VmIndex(0))[0];
        self.pass(2 * SECOND);
        let pulled = self.world.now;
        self.world.pull(victim);
        let end = pulled + 4 * SECOND;
        while self.world.now < end {
            let to = self.any_host();
            let overheard = self.world.overheard.as_deref().unwrap_or_default();
            let frame: Rc<[u8]> = overheard[self.rng.usize(0..overheard.len())].clone();
            match self.rng.u8(0..8) {
                // Again, as often as it takes.
                0..=4 => self.world.inject(to, frame),
                5 => {
                    let mut forged = frame.to_vec();
                    let at = self.rng.usize(20..forged.len());
                    forged[at] ^= 1 << self.rng.u8(0..8);
                    self.world.inject(to, forged.into());
                }
                6 => {
                    let mut foreign = frame.to_vec();
                    foreign[7] ^= 1;
                    self.world.inject(to, foreign.into());
                }
                _ => self.world.corrupt_slot(to),
            }
            if self.rng.u8(0..20) == 0 {
                let host = self.any_host();
                let by = self.rng.i64(-3000..3000);
                self.world.jump_clock(host, by);
            }
            self.pass(20 * MS);
        }
        let dead = self.world.count(pulled, |event| {
            *event
                == Event::DeclaredDead {
                    host: HostId(victim as u16),
                    silent_ms: 0,
                }
                || matches!(event, Event::DeclaredDead { host, .. } if host.index() == victim)
        });
        if dead == 0 && self.world.violation.is_none() {
            return Err("repeated heartbeats kept a dead host alive".into());
        }
        let told = self
            .world
            .count(pulled, |event| matches!(event, Event::Ignored { .. }));
        if told == 0 {
            return Err("nobody was told of forged heartbeats".into());
        }
        self.world.overheard = None;
        self.await_all(BOUND, "after a pull among forged heartbeats")
    }

    fn clocks(&mut self) -> Result<(), String> {
        let since = self.world.now;
        for _ in 0..self.rng.usize(1..6) {
            let host = self.any_host();
            let by = self.rng.i64(-10_000..10_000);
            self.world.jump_clock(host, by);
            let pause = self.rng.u64(100 * MS..2 * SECOND);
            self.pass(pause);
        }
        self.nothing_restarted(since, "when clocks were set")?;
        self.await_all(SECOND, "after clocks were set")
    }

    fn repair(&mut self) {
        for from in 0..self.hosts() {
            for to in 0..self.hosts() {
                let link = self.world.link(from, to);
                link.cut = false;
                link.delay = MS;
                link.loss_percent = 0;
            }
            self.world.cut_storage(from, false);
        }
        self.world.storage_outage(false);
        self.world.storage_delay = 10 * MS;
        self.world.lateness = 3 * MS;
    }

    fn chaos(&mut self, migrations: bool) -> Result<(), String> {
        let faults = self.rng.usize(2..10);
        for _ in 0..faults {
            let host = self.any_host();
            let other = self.any_host();
            match self.rng.u8(0..16) {
                0 | 1 => self.world.pull(host),
                2 | 3 => self.world.boot(host),
                4 | 5 => {
                    let duration = self.rng.u64(100 * MS..5 * SECOND);
                    self.world.freeze(host, duration);
                }
                6 => self.world.cut_storage(host, true),
                7 => self.world.cut_storage(host, false),
                8 => self.world.link(host, other).cut = true,
                9 => {
                    for to in 0..self.hosts() {
                        self.world.link(host, to).cut = true;
                        self.world.link(to, host).cut = true;
                    }
                }
                10 => {
                    for to in 0..self.hosts() {
                        let (delay, loss) = (self.rng.u64(MS..400 * MS), self.rng.u8(0..60));
                        let link = self.world.link(host, to);
                        (link.delay, link.loss_percent) = (delay, loss);
                    }
                }
                11 => {
                    let out = self.rng.bool();
                    self.world.storage_outage(out);
                }
                12 => self.world.storage_delay = self.rng.u64(MS..800 * MS),
                13 => self.world.corrupt_slot(host),
                14 => self.world.failing_starts = self.rng.u32(0..2),
                _ => {
                    let by = self.rng.i64(-2000..2000);
                    self.world.jump_clock(host, by);
                }
            }
            if migrations {
                let vm = VmIndex(self.rng.u16(0..self.world.config.vms.len() as u16));
                let from = self.world.executing(vm).first().copied();
                let to = self.any_host();
                if let Some(from) = from.filter(|from| *from != to) {
                    self.world.migrate(from, to, vm);
                    if self.rng.bool() {
                        let pause = self.rng.u64(0..40 * MS);
                        self.pass(pause);
                        let victim = if self.rng.bool() { from } else { to };
                        if self.rng.bool() {
                            self.world.pull(victim);
                        } else {
                            let duration = self.rng.u64(100 * MS..4 * SECOND);
                            self.world.freeze(victim, duration);
                        }
                    }
                }
            }
            let pause = self.rng.u64(0..3 * SECOND);
            self.pass(pause);
        }
        self.repair();
        for host in 0..self.hosts() {
            self.world.boot(host);
        }
        self.await_all(BOUND, "after all was repaired")
    }
}
