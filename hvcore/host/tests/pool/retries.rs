//! A migration that was given up is tried again at once: neither host makes its user wait for the end of the first.

use host_protocol::{Command, MigrationConfig, Phase, Reply, Role};

use crate::{
    MS, reached, running,
    world::{VM, World},
};

/// Moments at which it will be long before the destination is asked to commit.
const BEFORE_THE_STOP: [(Role, Phase); 3] = [
    (Role::Source, Phase::SetUp),
    (Role::Destination, Phase::SetUp),
    (Role::Source, Phase::PreCopy),
];

fn cancel(world: &mut World) -> u32 {
    world.clients[0].command(Command::CancelMigration(VM))
}

fn answer(world: &mut World, command: u32, limit_ms: u64) -> Result<Reply, String> {
    world
        .run_until(limit_ms * MS, |world| {
            world.clients[0].answers.contains_key(&command)
        })
        .unwrap();
    world.clients[0].answers[&command].clone()
}

fn assert_moved(world: &mut World) {
    world.run_for(50 * MS).unwrap();
    assert_eq!(world.running(), [1]);
    assert_eq!(world.moves, 1);
    world.check_guest(1).unwrap();
}

#[test]
fn a_guest_whose_arrival_was_cut_off_can_come_again_at_once_and_again() {
    for (seed, at) in (0..).zip(BEFORE_THE_STOP) {
        let mut world = running(seed, "dw");
        // More often than there are places to arrive at.
        for _ in 0..4 {
            let events = world.clients.iter().map(|client| client.events.len());
            let before: Vec<_> = events.collect();
            let first = world.migrate(0, 1, MigrationConfig::default());
            world
                .run_until(10_000 * MS, |world| reached(world, &before, at))
                .unwrap_or_else(|why| panic!("{why}: {at:?}"));
            // The destination does not hear that it was given up.
            world.wire.migration_cut = true;
            cancel(&mut world);
            let why = answer(&mut world, first, 1_000).unwrap_err();
            assert!(why.contains("cancelled"), "{at:?}: {why}");
            world.wire.migration_cut = false;
        }
        let again = world.migrate(0, 1, MigrationConfig::default());
        answer(&mut world, again, 3_000).unwrap_or_else(|why| panic!("{at:?}: {why}"));
        assert_moved(&mut world);
    }
}

#[test]
fn a_migration_that_was_cancelled_is_no_obstacle_to_the_next() {
    let moments = [
        (Role::Source, Phase::Drain),
        (Role::Source, Phase::LastPages),
        (Role::Source, Phase::DeviceState),
        (Role::Destination, Phase::DeviceState),
    ];
    let moments = BEFORE_THE_STOP.into_iter().chain(moments);
    for (seed, at) in (0..).zip(moments) {
        let mut world = running(seed, "dw");
        let first = world.migrate(0, 1, MigrationConfig::default());
        world
            .run_until(10_000 * MS, |world| reached(world, &[0, 0], at))
            .unwrap();
        // In one breath.
        cancel(&mut world);
        let next = world.migrate(0, 1, MigrationConfig::default());
        let third = world.migrate(0, 1, MigrationConfig::default());
        match answer(&mut world, first, 5_000) {
            Err(why) => {
                assert!(why.contains("cancelled"), "{at:?}: {why}");
                answer(&mut world, next, 3_000).unwrap_or_else(|why| panic!("{at:?}: {why}"));
            }
            // It came too late.
            Ok(_) => {
                let why = answer(&mut world, next, 3_000).unwrap_err();
                assert!(!why.contains("already"), "{at:?}: {why}");
            }
        }
        let why = answer(&mut world, third, 3_000).unwrap_err();
        assert!(why.contains("already"), "{at:?}: {why}");
        assert_moved(&mut world);
    }
}
