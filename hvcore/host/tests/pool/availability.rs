//! A pool of whole hosts: what becomes of the guest when its host loses power, or only the network.

use host_protocol::{
    Command, HostEvent, Reply,
    pool::{PoolMark, PoolSetup},
};

use crate::{
    MS,
    world::{VM, World},
};

/// A pool whose first host runs the guest.
pub fn protected(seed: u64, work: &str) -> World {
    let mut world = connected(seed);
    form_pool(&mut world, work);
    start_guest(&mut world, work);
    world
}

/// Two hosts that can be told something.
fn connected(seed: u64) -> World {
    let mut world = World::new(seed);
    world
        .run_until(5_000 * MS, |world| {
            world.clients.iter().all(|client| client.proved)
        })
        .unwrap();
    world
}

fn form_pool(world: &mut World, work: &str) {
    form(world, &World::pool(work));
}

pub fn tell_all(world: &mut World, setup: &PoolSetup) {
    for host in 0..2 {
        ask(world, host, Command::Protect(setup.clone())).unwrap();
    }
}

fn form(world: &mut World, setup: &PoolSetup) {
    tell_all(world, setup);
    let members = |world: &mut World, host| match ask(world, host, Command::PoolStatus) {
        Ok(Reply::Pool(status)) if status.permitted => {
            status.hosts.iter().filter(|host| host.1).count()
        }
        Ok(_) => 0,
        Err(why) => panic!("{why}"),
    };
    let formed = |world: &mut World| members(world, 0) == 2 && members(world, 1) == 2;
    for _ in 0..50 {
        if formed(world) {
            return;
        }
        world.run_for(100 * MS).unwrap();
    }
    panic!("the pool did not form");
}

fn start_guest(world: &mut World, work: &str) {
    ask(world, 0, Command::Start(World::vm(work))).unwrap();
    world.run_for(20 * MS).unwrap();
    world.probe.next_at = world.now.get();
    world
        .run_until(1_000 * MS, |world| world.running() == [0])
        .unwrap();
    world.run_for(500 * MS).unwrap();
}

pub fn ask(world: &mut World, host: usize, command: Command) -> Result<Reply, String> {
    let number = world.clients[host].command(command);
    world.run_until(5_000 * MS, |world| {
        world.clients[host].answers.contains_key(&number)
    })?;
    world.clients[host].answers[&number].clone()
}

pub fn marks(world: &World, host: usize) -> Vec<PoolMark> {
    let events = world.events(host).iter();
    events
        .filter_map(|event| match event {
            HostEvent::Pool { mark, .. } => Some(*mark),
            _ => None,
        })
        .collect()
}

#[test]
fn a_pulled_hosts_guest_restarts_on_the_other() {
    for seed in 0..5 {
        let mut world = protected(seed, "w");
        let pause = world.rng.u64(..500 * MS);
        world.run_for(pause).unwrap();
        let before = marks(&world, 1).len();
        let pulled = world.now.get();
        world.kill(0);
        if let Err(why) = world.run_until(5_000 * MS, |world| world.running() == [1]) {
            panic!("{why}: {:#?}", world.events(1));
        }
        let outage = world.now.get() - pulled;
        println!(
            "seed {seed}: the guest answers {} ms after the pull",
            outage / MS
        );
        assert!(outage < 2_000 * MS, "{} ms", outage / MS);
        world.run_for(200 * MS).unwrap();
        let told: Vec<_> = marks(&world, 1)[before..]
            .iter()
            .filter(|mark| !matches!(mark, PoolMark::Note | PoolMark::Protection))
            .copied()
            .collect();
        assert_eq!(
            told,
            [
                PoolMark::Suspected,
                PoolMark::DeclaredDead,
                PoolMark::Liveset,
                PoolMark::Fenced,
                PoolMark::Restart,
                PoolMark::Restarted,
            ]
        );
        world.check_guest(1).unwrap();
    }
}

#[test]
fn a_guest_that_ran_before_the_pool_was_told_goes_on_and_is_protected() {
    for seed in 0..5 {
        let mut world = connected(seed);
        start_guest(&mut world, "w");
        form_pool(&mut world, "w");
        world.run_for(500 * MS).unwrap();
        assert_eq!(world.running(), [0]);
        let stopped = |event: &HostEvent| matches!(event, HostEvent::Stopped { .. });
        assert!(!world.events(0).iter().any(stopped), "seed {seed}");
        match ask(&mut world, 1, Command::PoolStatus) {
            Ok(Reply::Pool(status)) => assert_eq!(status.vms[0].1, "running on h0"),
            other => panic!("{other:?}"),
        }
        world.kill(0);
        world
            .run_until(5_000 * MS, |world| world.running() == [1])
            .unwrap();
    }
}

#[test]
fn a_client_that_was_away_hears_what_the_pool_did_meanwhile() {
    let mut world = protected(1, "w");
    world.clients[1].away = true;
    world.kill(0);
    world
        .run_until(5_000 * MS, |world| world.running() == [1])
        .unwrap();
    world.run_for(200 * MS).unwrap();
    let count = |world: &World, wanted| {
        let marks = marks(world, 1).into_iter();
        marks.filter(|mark| *mark == wanted).count()
    };
    assert_eq!(count(&world, PoolMark::Restarted), 0);
    let joined = count(&world, PoolMark::PermitBack);
    world.clients[1].away = false;
    world
        .run_until(5_000 * MS, |world| world.clients[1].proved)
        .unwrap();
    world.run_for(100 * MS).unwrap();
    for wanted in [
        PoolMark::DeclaredDead,
        PoolMark::Liveset,
        PoolMark::Fenced,
        PoolMark::Restarted,
    ] {
        assert_eq!(count(&world, wanted), 1, "{wanted:?}");
    }
    assert_eq!(count(&world, PoolMark::PermitBack), joined, "told twice");
}

#[test]
fn a_vm_that_comes_later_is_protected_from_then_on() {
    let mut world = connected(1);
    let full = World::pool("w");
    let empty = PoolSetup {
        vms: Vec::new(),
        ..full.clone()
    };
    form(&mut world, &empty);
    start_guest(&mut world, "w");
    tell_all(&mut world, &full);
    let mut changed = full.clone();
    changed.vms[0].order = 3;
    changed.vms[0].best_effort = true;
    tell_all(&mut world, &changed);
    world.run_for(500 * MS).unwrap();
    match ask(&mut world, 1, Command::PoolStatus) {
        Ok(Reply::Pool(status)) => assert_eq!(status.vms[0].2, "best effort"),
        other => panic!("{other:?}"),
    }
    // Its place is its own as long as the pool lasts.
    let mut other = full.clone();
    other.vms[0].config.id = [8; 16];
    for wrong in [other, empty] {
        let why = ask(&mut world, 1, Command::Protect(wrong)).unwrap_err();
        assert!(why.contains("in a pool already"), "{why}");
    }
    world.kill(0);
    world
        .run_until(5_000 * MS, |world| world.running() == [1])
        .unwrap();
}

#[test]
fn a_guest_that_has_arrived_by_half_is_restarted_as_soon_as_any() {
    for seed in 0..8 {
        let mut world = protected(seed, "w");
        world.migrate(0, 1, Default::default());
        let pause = world.rng.u64(..60 * MS);
        world.run_for(pause).unwrap();
        let pulled = world.now.get();
        world.kill(0);
        if let Err(why) = world.run_until(10_000 * MS, |world| world.running() == [1]) {
            panic!("seed {seed}: {why}: {:#?}", world.events(1));
        }
        let outage = world.now.get() - pulled;
        println!(
            "seed {seed}: the guest answers {} ms after the pull",
            outage / MS
        );
        assert!(outage < 2_500 * MS, "seed {seed}: {} ms", outage / MS);
        world.check_guest(1).unwrap();
    }
}

#[test]
fn a_cut_of_the_network_between_the_hosts_moves_nothing() {
    let mut world = protected(1, "w");
    let before = [marks(&world, 0).len(), marks(&world, 1).len()];
    world.wire.migration_cut = true;
    world.run_for(4_000 * MS).unwrap();
    assert_eq!(world.running(), [0]);
    world.wire.migration_cut = false;
    world.run_for(1_000 * MS).unwrap();
    assert_eq!(world.running(), [0]);
    for (host, before) in before.into_iter().enumerate() {
        let told = &marks(&world, host)[before..];
        assert!(told.iter().all(|mark| *mark == PoolMark::Note), "{told:?}");
    }
    world.check_guest(0).unwrap();
}

#[test]
fn a_protected_guest_moves_without_a_restart() {
    let mut world = protected(1, "w");
    let number = world.migrate(0, 1, Default::default());
    world
        .run_until(10_000 * MS, |world| {
            world.clients[0].answers.contains_key(&number)
        })
        .unwrap();
    world.clients[0].answers[&number].clone().unwrap();
    world.run_for(4_000 * MS).unwrap();
    assert_eq!(world.running(), [1]);
    let restart = |mark: &PoolMark| matches!(mark, PoolMark::Restart | PoolMark::DeclaredDead);
    assert!(!marks(&world, 0).iter().any(restart));
    match ask(&mut world, 0, Command::PoolStatus) {
        Ok(Reply::Pool(status)) => {
            let (id, place, protection) = &status.vms[0];
            assert_eq!(*id, VM);
            assert_eq!(place, "running on h1");
            assert_eq!(protection, "restart");
            assert_eq!(status.plan[1], "if h1 fails: guest to h0");
        }
        other => panic!("{other:?}"),
    }
}
