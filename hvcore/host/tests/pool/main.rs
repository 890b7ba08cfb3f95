//! Whole hosts in a simulated pool: real drivers in the guest, real TCP between the hosts, a model of the storage server,
//! one virtual clock. A seed reproduces a run.

mod availability;
mod cpu;
mod lab;
mod line;
mod platform;
mod program;
mod resumed;
mod retries;
#[path = "../../../vdi/tests/simulation/server.rs"]
#[allow(
    dead_code,
    reason = "the model serves several crates, each of which uses a part"
)]
mod server;
mod strangers;
mod suspension;
mod wire;
mod world;

use host_protocol::{
    Command, HostEvent, MigrationConfig, NegativeControls, Phase, Role, StopReason, VERSION,
};
use program::slot;
use world::{VM, World};

/// Where the simulated guest's kernel is loaded.
const KERNEL_AT: u64 = 0x10_0000;

const MS: u64 = 1_000_000;

/// A pool whose first host runs a guest that does this work and answers the probe.
fn running(seed: u64, work: &str) -> World {
    let mut world = World::new(seed);
    world
        .run_until(5_000 * MS, |world| {
            world.clients.iter().all(|client| client.proved)
        })
        .unwrap();
    let start = world.clients[0].command(Command::Start(World::vm(work)));
    world
        .run_until(5_000 * MS, |world| {
            world.clients[0].answers.contains_key(&start)
        })
        .unwrap();
    assert_eq!(
        world.clients[0].answers[&start],
        Ok(host_protocol::Reply::Ok)
    );
    // Where the probe's beat falls is left to chance.
    let pause = 20 * MS + world.rng.u64(..MS);
    world.run_for(pause).unwrap();
    world.probe.next_at = world.now.get();
    world
        .run_until(1_000 * MS, |world| world.probe.echoes.len() > 5)
        .unwrap();
    world
}

#[test]
fn a_guest_boots_and_answers() {
    let mut world = running(1, "w");
    world.run_for(200 * MS).unwrap();
    world.check_guest(0).unwrap();
    assert!(
        world.word(0, slot::DISK_DONE) > 10,
        "{}",
        world.word(0, slot::DISK_DONE)
    );
}

/// Moves the guest and checks that nobody noticed.
fn moves(seed: u64, work: &str, config: &MigrationConfig) -> Result<u64, String> {
    let mut world = running(seed, work);
    for (from, to) in [(0, 1), (1, 0)] {
        let done = world.migrate(from, to, config.clone());
        world.run_until(20_000 * MS, |world| {
            world.clients[from].answers.contains_key(&done)
        })?;
        world.clients[from].answers[&done].clone()?;
        world.run_for(30 * MS)?;
        if world.running() != [to] {
            return Err(format!("the guest runs on {:?}", world.running()));
        }
        world.check_guest(to)?;
    }
    world.probe.next_at = u64::MAX;
    world.run_for(50 * MS)?;
    let numbers: Vec<_> = world
        .probe
        .echoes
        .iter()
        .map(|(number, _)| *number)
        .collect();
    if numbers != (0..world.probe.sent).collect::<Vec<_>>() {
        return Err(format!("{} probes, echoes: {numbers:?}", world.probe.sent));
    }
    if world.moves != 2 {
        return Err(format!("the guest moved {} times", world.moves));
    }
    if config.verify {
        let mut hashes = Vec::new();
        for host in 0..2 {
            for event in world.events(host) {
                if let HostEvent::MemoryHash { role, hash, .. } = event {
                    hashes.push((host, *role, *hash));
                }
            }
        }
        let of = |host, role| {
            hashes
                .iter()
                .find(|(h, r, _)| (*h, *r) == (host, role))
                .map(|(.., hash)| *hash)
        };
        if of(0, Role::Source).is_none() || of(0, Role::Source) != of(1, Role::Destination) {
            return Err(format!("hashes: {hashes:?}"));
        }
    }
    Ok(world.probe.longest_ns())
}

#[test]
fn guests_of_every_kind_move_back_and_forth_unnoticed() {
    for seed in 0..2 {
        for work in ["i", "d", "w", "dw", "bw"] {
            let mut config = MigrationConfig {
                verify: seed % 2 == 0,
                ..MigrationConfig::default()
            };
            if work.contains('b') {
                config.max_rounds = 5;
            }
            let longest = moves(seed, work, &config)
                .unwrap_or_else(|why| panic!("{why}\nseed {seed}, work {work:?}"));
            assert!(longest < 30 * MS, "an echo took {longest} ns");
        }
    }
}

#[test]
fn a_host_takes_one_guest_after_another_however_fast_they_come() {
    let mut world = running(1, "i");
    for turn in 0..8 {
        let (from, to) = if turn % 2 == 0 { (0, 1) } else { (1, 0) };
        let done = world.migrate(from, to, MigrationConfig::default());
        world
            .run_until(20_000 * MS, |world| {
                world.clients[from].answers.contains_key(&done)
            })
            .unwrap();
        let answer = world.clients[from].answers[&done].clone();
        answer.unwrap_or_else(|why| panic!("move {turn}: {why}"));
    }
}

#[test]
fn what_reaches_the_source_in_one_batch_with_the_announcement_is_forwarded() {
    for seed in 0..5 {
        let mut world = running(seed, "i");
        world.probe_before_announcements = true;
        let done = world.migrate(0, 1, MigrationConfig::default());
        world
            .run_until(20_000 * MS, |world| {
                world.clients[0].answers.contains_key(&done)
            })
            .unwrap();
        world.probe.next_at = u64::MAX;
        world.run_for(50 * MS).unwrap();
        let answered = world.probe.echoes.len() as u64;
        assert_eq!(answered, world.probe.sent, "seed {seed}");
    }
}

#[test]
fn a_guest_that_stands_still_when_its_link_is_cut_runs_on_within_half_a_second() {
    for seed in 0..5 {
        for at in [Phase::Drain, Phase::LastPages, Phase::DeviceState] {
            let mut world = running(seed, "dw");
            let done = world.migrate(0, 1, MigrationConfig::default());
            world
                .run_until(10_000 * MS, |world| {
                    reached(world, &[0, 0], (Role::Source, at))
                })
                .unwrap();
            world.wire.migration_cut = true;
            world
                .run_until(2_000 * MS, |world| {
                    world.clients[0].answers.contains_key(&done)
                })
                .unwrap_or_else(|why| panic!("{why}: seed {seed}, {at:?}"));
            world.run_for(50 * MS).unwrap();
            assert_eq!(world.running().len(), 1, "seed {seed}, {at:?}");
            let longest = world.probe.longest_ns();
            assert!(
                longest < 500 * MS,
                "seed {seed}, {at:?}: an echo took {longest} ns"
            );
        }
    }
}

#[test]
fn a_client_of_another_version_is_told_so_and_gets_nothing() {
    let mut world = World::new(1);
    let client = world.connect(0, VERSION + 1);
    world
        .run_until(1_000 * MS, |world| {
            world.clients[client].refused_by.is_some()
        })
        .unwrap();
    assert_eq!(world.clients[client].refused_by, Some(VERSION));
    world.clients[client].command(Command::Status);
    world.run_for(1_000 * MS).unwrap();
    assert!(world.clients[client].answers.is_empty());
    let log = world.outside[0].log.borrow();
    let told = format!("version {} of the control protocol", VERSION + 1);
    assert!(log.iter().any(|line| line.contains(&told)), "{log:?}");
}

/// What happens to the pool at some moment of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillDestination,
    CutLink,
    CrashServer,
    Cancel,
}

const FAULTS: [Fault; 5] = [
    Fault::KillSource,
    Fault::KillDestination,
    Fault::CutLink,
    Fault::CrashServer,
    Fault::Cancel,
];

const PHASES: [(Role, Phase); 12] = [
    (Role::Source, Phase::SetUp),
    (Role::Destination, Phase::SetUp),
    (Role::Source, Phase::PreCopy),
    (Role::Source, Phase::Drain),
    (Role::Source, Phase::LastPages),
    (Role::Source, Phase::DeviceState),
    (Role::Destination, Phase::DeviceState),
    (Role::Destination, Phase::LeaseHandOver),
    (Role::Destination, Phase::Resume),
    (Role::Source, Phase::Forward),
    (Role::Destination, Phase::Finished),
    (Role::Source, Phase::Finished),
];

/// Whether a host has reported that a phase has begun, after so many other events of each host.
fn reached(world: &World, before: &[usize], (role, phase): (Role, Phase)) -> bool {
    let host = usize::from(role == Role::Destination);
    world.events(host)[before[host]..].iter().any(|event| {
        matches!(event, HostEvent::Migration { role: r, phase: p, .. } if (*r, *p) == (role, phase))
    })
}

fn survives(seed: u64, fault: Fault, at: (Role, Phase)) -> Result<&'static str, String> {
    let mut world = running(seed, "dw");
    let done = world.migrate(0, 1, MigrationConfig::default());
    world.run_until(10_000 * MS, |world| reached(world, &[0, 0], at))?;
    // Somewhere in the phase, not only at its mark.
    let later = world.rng.u64(..300_000);
    world.run_for(later)?;
    match fault {
        Fault::KillSource => world.kill(0),
        Fault::KillDestination => world.kill(1),
        Fault::CutLink => world.wire.migration_cut = true,
        Fault::CrashServer => world.crash_server(),
        Fault::Cancel => {
            world.clients[0].command(Command::CancelMigration(VM));
        }
    }
    // The link's and the engines' time-outs, and a retransmission.
    let settled = |world: &World| match fault {
        Fault::KillSource => !world.running().is_empty(),
        _ => world.clients[0].answers.contains_key(&done),
    };
    let wait = world.run_until(20_000 * MS, |world| settled(world));
    if fault != Fault::KillSource {
        wait?;
    }
    // A server that crashed is back by then.
    let recovery_ms = if fault == Fault::CrashServer {
        1_500
    } else {
        500
    };
    world.run_for(recovery_ms * MS)?;
    let running = world.running();
    let has_run_there = world.spoke_at[1].is_some();
    let answer = world.clients[0].answers.get(&done).cloned();
    let verdict = match running[..] {
        [0] => "stayed",
        [1] => "moved",
        // The only host that could go on is the dead one: the lease is its, and nobody else may run the guest.
        [] if fault == Fault::KillSource && !has_run_there => "lost with its host",
        [] if fault == Fault::KillDestination => "lost with its host",
        _ => return Err(format!("the guest runs on {running:?}")),
    };
    if world.moves > 1 || verdict == "stayed" && world.moves > 0 {
        return Err(format!(
            "the guest went back and forth: {} moves",
            world.moves
        ));
    }
    if let [host] = running[..] {
        world.check_guest(host)?;
        let before = world.word(host, slot::DISK_DONE);
        let echoes = world.probe.echoes.len();
        world.run_for(100 * MS)?;
        if world.word(host, slot::DISK_DONE) == before {
            return Err(String::from("the guest's disk has stopped"));
        }
        if world.probe.echoes.len() < echoes + 150 {
            return Err(String::from("the guest does not answer"));
        }
    }
    match (fault, verdict, answer) {
        (Fault::KillSource, ..) | (_, "moved", Some(Ok(_))) | (_, "stayed", Some(Err(_))) => {}
        (_, "lost with its host", _) => {}
        (_, _, answer) => return Err(format!("{verdict}, and the command was told {answer:?}")),
    }
    let ended_by_lease = world.events(0).iter().any(|event| {
        matches!(
            event,
            HostEvent::Stopped {
                reason: StopReason::LeaseLost(_),
                ..
            }
        )
    });
    if ended_by_lease {
        return Err(String::from(
            "the source took the hand-over for a lost lease",
        ));
    }
    Ok(verdict)
}

#[test]
fn any_single_failure_in_any_phase_leaves_at_most_one_guest_and_the_right_one() {
    // Each case with a seed of its own: as many moments and interleavings for the same time.
    let cases = PHASES
        .iter()
        .flat_map(|at| FAULTS.map(|fault| (*at, fault)));
    for (seed, (at, fault)) in (0..).zip(cases) {
        let verdict = survives(seed, fault, at)
            .unwrap_or_else(|why| panic!("{why}\nseed {seed}, {fault:?} at {at:?}"));
        let before_stop = matches!(at.1, Phase::SetUp | Phase::PreCopy);
        match fault {
            // Before the guest stops, whatever happens elsewhere leaves it where it is; pre-copy
            // may be over before the fault strikes.
            Fault::KillDestination | Fault::CutLink | Fault::Cancel
                if before_stop && at.1 == Phase::SetUp =>
            {
                assert_eq!(verdict, "stayed", "{fault:?} at {at:?}, seed {seed}");
            }
            Fault::CrashServer => {
                assert_ne!(verdict, "lost with its host", "{fault:?} at {at:?}");
            }
            _ => {}
        }
    }
}

#[test]
fn without_marks_of_device_writes_the_guest_is_damaged() {
    let damaged = (0..5)
        .filter(|seed| {
            let config = MigrationConfig {
                controls: NegativeControls {
                    no_device_marks: true,
                    ..NegativeControls::default()
                },
                ..MigrationConfig::default()
            };
            moves(*seed, "w", &config).is_err()
        })
        .count();
    assert!(damaged > 0, "nobody noticed");
}

#[test]
fn without_announcement_and_forwarding_probes_are_lost() {
    let config = MigrationConfig {
        controls: NegativeControls {
            no_announce: true,
            no_forward: true,
            no_device_marks: false,
        },
        ..MigrationConfig::default()
    };
    // The pause is shorter than the probe's interval, so some runs go unnoticed.
    let noticed = (0..20).filter(|seed| moves(*seed, "i", &config).is_err());
    assert!(noticed.count() > 0, "nobody noticed");
}
