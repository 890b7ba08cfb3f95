//! A guest whose host has failed goes on from its last checkpoint on another: with the disk of that moment, and once.

use host_protocol::{
    Command, HostEvent,
    pool::{PoolSetup, RestartPoint},
};

use crate::{
    MS,
    availability::{ask, protected, tell_all},
    program::slot,
    suspension::{PATH, make_child, prepare},
    world::{VM, World},
};

const CHILD: &str = "disk.vhd.restart";
const KEPT: &str = "disk.vhd.kept";

/// A protected guest with a checkpoint. Gives how many disk requests it had made then.
fn with_checkpoint(seed: u64) -> (World, u64) {
    let mut world = protected(seed, "dw");
    prepare(&mut world, "base.vhd");
    let command = Command::Suspend {
        vm: VM,
        path: PATH.into(),
        keep_running: true,
    };
    ask(&mut world, 0, command).unwrap();
    let done = world.word(0, slot::DISK_DONE);
    (world, done)
}

/// What a lab does so that the guest can go on from there.
fn arm(world: &mut World) -> PoolSetup {
    make_child(world, "base.vhd", "child of that moment", "base.vhd");
    let names = &mut world.storage.server.names;
    let present = names["disk.vhd"].clone();
    names.insert(CHILD.into(), "child of that moment".into());
    names.insert(KEPT.into(), present);
    let mut setup = World::pool("dw");
    setup.vms[0].restart_point = Some(RestartPoint {
        memory: PATH.into(),
        disk: format!("sr/{CHILD}"),
        kept: KEPT.into(),
    });
    tell_all(world, &setup);
    setup
}

/// Pulls the guest's host and waits until the other has it.
fn pull(world: &mut World) {
    world.kill(0);
    if let Err(why) = world.run_until(10_000 * MS, |world| world.running() == [1]) {
        panic!("{why}: {:#?}", world.events(1));
    }
}

fn notes(world: &World) -> Vec<&str> {
    let events = world.events(1).iter();
    let notes = events.filter_map(|event| match event {
        HostEvent::Pool {
            vm: Some(_), text, ..
        } => Some(text.as_str()),
        _ => None,
    });
    notes.collect()
}

fn was_told(world: &World, words: &str) {
    let notes = notes(world);
    assert!(notes.iter().any(|note| note.contains(words)), "{notes:#?}");
}

#[test]
fn a_lost_guest_goes_on_from_its_checkpoint_and_what_it_wrote_since_is_kept() {
    for seed in 0..6 {
        let (mut world, then) = with_checkpoint(seed);
        arm(&mut world);
        world.run_for(300 * MS).unwrap();
        let lost = world.word(0, slot::DISK_DONE);
        assert!(lost > then + 10, "seed {seed}: it has written since");
        pull(&mut world);
        let now = world.word(1, slot::DISK_DONE);
        assert!(
            (then..lost).contains(&now),
            "seed {seed}: {then} {now} {lost}"
        );
        world.run_for(300 * MS).unwrap();
        assert_eq!(world.running(), [1], "seed {seed}");
        assert!(
            world.word(1, slot::DISK_DONE) > now,
            "seed {seed}: its disk works"
        );
        world
            .check_guest(1)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        was_told(&world, "goes on from its last checkpoint");
        let names = &world.storage.server.names;
        assert_ne!(names["disk.vhd"], names[KEPT], "seed {seed}");
        assert_eq!(names[CHILD], "", "seed {seed}: it is used up");
    }
}

#[test]
fn without_what_a_checkpoint_takes_the_guest_boots_from_its_disk_as_it_was() {
    type Spoil = fn(&mut World);
    let spoilt: [(&str, Spoil); 3] = [
        ("used up", |world| {
            world.storage.server.names.remove(CHILD);
        }),
        // A snapshot since: the name that was to keep the disk's file leads elsewhere.
        ("branched", |world| {
            prepare(world, "later.vhd");
            ask(world, 0, Command::Snapshot(VM)).unwrap();
        }),
        ("another's memory", |world| {
            let mut setup = World::pool("dw");
            setup.vms[0].restart_point = Some(RestartPoint {
                memory: "sr/small.vhd".into(),
                disk: format!("sr/{CHILD}"),
                kept: KEPT.into(),
            });
            tell_all(world, &setup);
        }),
    ];
    for (what, spoil) in spoilt {
        let (mut world, _) = with_checkpoint(1);
        arm(&mut world);
        spoil(&mut world);
        world.run_for(200 * MS).unwrap();
        let disk = world.storage.server.names["disk.vhd"].clone();
        pull(&mut world);
        was_told(&world, "boots instead");
        world.run_for(200 * MS).unwrap();
        assert_eq!(world.running(), [1], "{what}");
        world
            .check_guest(1)
            .unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(world.storage.server.names["disk.vhd"], disk, "{what}");
    }
}

#[test]
fn a_server_that_crashes_meanwhile_leaves_one_guest_that_goes_on_or_boots() {
    let mut resumed = 0;
    for seed in 0..12 {
        let (mut world, _) = with_checkpoint(seed);
        arm(&mut world);
        world.run_for(100 * MS).unwrap();
        world.kill(0);
        let moment = 1_200 * MS + world.rng.u64(..150 * MS);
        world.run_for(moment).unwrap();
        world.crash_server();
        if let Err(why) = world.run_until(60_000 * MS, |world| world.running() == [1]) {
            panic!("seed {seed}: {why}: {:#?}", world.events(1));
        }
        world.run_for(500 * MS).unwrap();
        assert_eq!(world.running(), [1], "seed {seed}");
        world
            .check_guest(1)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        resumed += u32::from(
            notes(&world)
                .iter()
                .any(|note| note.contains("goes on from")),
        );
    }
    assert!(resumed > 0, "all booted");
}
