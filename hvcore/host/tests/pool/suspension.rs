//! A guest is written to a disk and goes on from there, here or elsewhere, once.

use host_protocol::{Command, HostEvent, Reply, StopReason};

use crate::{
    MS,
    program::slot,
    running,
    world::{VM, World},
};

const PATH: &str = "sr/suspend.vhd";

fn ask(world: &mut World, host: usize, command: Command) -> Result<Reply, String> {
    let number = world.clients[host].command(command);
    world.run_until(20_000 * MS, |world| {
        world.clients[host].answers.contains_key(&number)
    })?;
    world.clients[host].answers[&number].clone()
}

fn suspend(world: &mut World, keep_running: bool) -> Result<Reply, String> {
    let command = Command::Suspend {
        vm: VM,
        path: PATH.into(),
        keep_running,
    };
    ask(world, 0, command)
}

fn resume(world: &mut World, host: usize) -> Result<Reply, String> {
    ask(world, host, Command::Resume { path: PATH.into() })
}

/// Its counters go on from where they were, and its disk and network work.
fn assert_goes_on(world: &mut World, host: usize, disk_done: u64) {
    world.run_for(100 * MS).unwrap();
    assert_eq!(world.running(), [host]);
    world.check_guest(host).unwrap();
    assert!(
        world.word(host, slot::DISK_DONE) > disk_done,
        "its disk works"
    );
}

#[test]
fn a_suspended_guest_goes_on_where_it_was_on_either_host() {
    for (seed, host) in [(1, 0), (2, 1), (3, 1)] {
        let mut world = running(seed, "dw");
        suspend(&mut world, false).unwrap();
        world.run_for(50 * MS).unwrap();
        assert_eq!(world.running(), []);
        let stopped = |event: &HostEvent| {
            matches!(
                event,
                HostEvent::Stopped {
                    reason: StopReason::Suspended,
                    ..
                }
            )
        };
        assert!(world.events(0).iter().any(stopped));
        let done = world.word(0, slot::DISK_DONE);
        assert!(done > 0);
        resume(&mut world, host).unwrap();
        assert_goes_on(&mut world, host, done);
    }
}

#[test]
fn a_guest_cannot_be_resumed_twice() {
    let mut world = running(1, "dw");
    suspend(&mut world, false).unwrap();
    resume(&mut world, 1).unwrap();
    world.run_for(50 * MS).unwrap();
    let why = resume(&mut world, 0).unwrap_err();
    assert!(why.contains("does not fit"), "{why}");
    assert_goes_on(&mut world, 1, 0);
    // Also not when it has ended meanwhile.
    ask(&mut world, 1, Command::Destroy(VM)).unwrap();
    let why = resume(&mut world, 0).unwrap_err();
    assert!(why.contains("does not fit"), "{why}");
    world.run_for(50 * MS).unwrap();
    assert_eq!(world.running(), []);
}

#[test]
fn a_checkpoint_leaves_the_guest_running_and_does_not_fit_its_disk_any_more() {
    let mut world = running(1, "dw");
    suspend(&mut world, true).unwrap();
    let done = world.word(0, slot::DISK_DONE);
    assert_goes_on(&mut world, 0, done);
    // The whole life of the guest goes on: it can be suspended again.
    ask(&mut world, 0, Command::Destroy(VM)).unwrap();
    let why = resume(&mut world, 1).unwrap_err();
    assert!(why.contains("does not fit"), "{why}");
}

#[test]
fn what_is_no_checkpoint_is_refused_and_a_disk_that_is_too_small_costs_nothing() {
    let mut world = running(1, "dw");
    let why = resume(&mut world, 1).unwrap_err();
    assert!(why.contains("no whole checkpoint"), "{why}");
    let command = Command::Suspend {
        vm: VM,
        path: "sr/small.vhd".into(),
        keep_running: false,
    };
    let why = ask(&mut world, 0, command).unwrap_err();
    assert!(why.contains("too small"), "{why}");
    assert_goes_on(&mut world, 0, 0);
}

#[test]
fn a_server_that_crashes_at_any_moment_leaves_the_guest_running_or_suspended() {
    for seed in 0..12 {
        let mut world = running(seed, "dw");
        let command = Command::Suspend {
            vm: VM,
            path: PATH.into(),
            keep_running: false,
        };
        let number = world.clients[0].command(command);
        let moment = world.rng.u64(..40 * MS);
        world.run_for(moment).unwrap();
        world.crash_server();
        world
            .run_until(30_000 * MS, |world| {
                world.clients[0].answers.contains_key(&number)
            })
            .unwrap();
        let answer = world.clients[0].answers[&number].clone();
        world.run_for(200 * MS).unwrap();
        match answer {
            Ok(_) => {
                let done = world.word(0, slot::DISK_DONE);
                resume(&mut world, 1).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
                assert_goes_on(&mut world, 1, done);
            }
            Err(_) => assert_goes_on(&mut world, 0, 0),
        }
    }
}
