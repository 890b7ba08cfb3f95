//! A guest is written to a disk and goes on from there, here or elsewhere, once.

use host_protocol::{Command, HostEvent, MigrationConfig, Reply, StopReason};
use vhd::{Bat, Disk, DiskKind, Footer, Header, SECTOR, Tables, Uuid};

use crate::{
    MS,
    program::slot,
    running,
    world::{VM, World},
};

pub const PATH: &str = "sr/suspend.vhd";
/// Small, so that a short run fills several.
const BLOCK: u32 = 4096;

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

/// Makes an empty child of the file that is called `parent` now, under the name `file`.
pub fn make_child(world: &mut World, parent: &str, file: &str, of: &str) {
    let server = &mut world.storage.server;
    let content = server.content(parent);
    let end = Footer::parse(&content[content.len() - 512..]);
    let parent = end.or_else(|_| Footer::parse(content)).unwrap();
    let mut uuid = [0; 16];
    world.rng.fill(&mut uuid);
    let mut footer = Footer::new(DiskKind::Differencing, parent.size, Uuid(uuid), 0);
    footer.header_offset = Some(SECTOR);
    let header = Header {
        bat_offset: 1536,
        bat_entries: u32::try_from(parent.size.div_ceil(BLOCK.into())).unwrap(),
        block_size: BLOCK,
        parent: parent.uuid,
        parent_timestamp: 0,
        parent_name: of.into(),
        locators: Vec::new(),
    };
    let bat = Bat::empty(header.bat_entries);
    let tables = Tables {
        bat: bat.clone(),
        batmap: None,
    };
    let disk = Disk::sparse(footer.clone(), header.clone(), tables).unwrap();
    let mut content = vec![0; usize::try_from(disk.footer_at()).unwrap()];
    content[..512].copy_from_slice(&footer.encode());
    content[512..1536].copy_from_slice(&header.encode());
    let bat = bat.encode();
    content[1536..1536 + bat.len()].copy_from_slice(&bat);
    content.extend_from_slice(&footer.encode());
    server.put(file, content);
}

/// What a pool does before a snapshot: an empty child of the guest's disk, and the name that its data is to keep.
pub fn prepare(world: &mut World, kept: &str) {
    let file = format!("child of {kept}");
    make_child(world, "disk.vhd", &file, kept);
    let names = &mut world.storage.server.names;
    let disk = names.get("disk.vhd").map_or("disk.vhd", String::as_str);
    let disk = disk.to_owned();
    names.insert(kept.into(), disk);
    names.insert("disk.vhd.new".into(), file);
}

/// Gives the guest's disk the content of that moment.
fn revert(world: &mut World, kept: &str) {
    let file = format!("revert to {kept}");
    make_child(world, kept, &file, kept);
    world.storage.server.names.insert("disk.vhd".into(), file);
}

fn snapshot(world: &mut World) -> Result<u64, String> {
    match ask(world, 0, Command::Snapshot(VM))? {
        Reply::Snapshot { pause_ns } => Ok(pause_ns),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_keeps_what_the_disk_held_and_the_guest_goes_on_with_a_child() {
    for seed in 0..6 {
        let mut world = running(seed, "dw");
        let mut kept = Vec::new();
        for name in ["first.vhd", "second.vhd"] {
            prepare(&mut world, name);
            let pause_ns = snapshot(&mut world).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            assert!(pause_ns < 20 * MS, "seed {seed}: {pause_ns} ns");
            kept.push((name, world.storage.server.content(name).to_vec()));
            let done = world.word(0, slot::DISK_DONE);
            assert_goes_on(&mut world, 0, done);
        }
        for (name, content) in kept {
            assert!(
                world.storage.server.content(name) == content,
                "{name} changed"
            );
        }
        // Its disk can be given away like any other, by its name.
        let moved = world.migrate(0, 1, MigrationConfig::default());
        world
            .run_until(20_000 * MS, |world| {
                world.clients[0].answers.contains_key(&moved)
            })
            .unwrap();
        assert_eq!(world.clients[0].answers[&moved], Ok(Reply::Ok));
        assert_goes_on(&mut world, 1, 0);
    }
}

#[test]
fn a_snapshot_without_a_child_or_with_a_wrong_one_changes_nothing() {
    let mut world = running(1, "dw");
    let why = snapshot(&mut world).unwrap_err();
    assert!(why.contains("no snapshot was taken"), "{why}");
    assert_goes_on(&mut world, 0, 0);
    // A child of another disk.
    make_child(&mut world, "suspend.vhd", "other", "kept.vhd");
    let names = &mut world.storage.server.names;
    names.insert("disk.vhd.new".into(), "other".into());
    names.insert("kept.vhd".into(), "disk.vhd".into());
    let why = snapshot(&mut world).unwrap_err();
    assert!(why.contains("was not made from it"), "{why}");
    let done = world.word(0, slot::DISK_DONE);
    assert_goes_on(&mut world, 0, done);
}

#[test]
fn a_snapshot_during_which_the_server_crashes_was_taken_or_not_and_the_guest_goes_on() {
    let mut taken = 0;
    for seed in 0..12 {
        let mut world = running(seed, "dw");
        prepare(&mut world, "kept.vhd");
        let number = world.clients[0].command(Command::Snapshot(VM));
        let moment = world.rng.u64(..8 * MS);
        world.run_for(moment).unwrap();
        world.crash_server();
        let answered = |world: &mut World| world.clients[0].answers.contains_key(&number);
        world.run_until(30_000 * MS, answered).unwrap();
        taken += u32::from(world.clients[0].answers[&number].is_ok());
        world.run_for(2_000 * MS).unwrap();
        let done = world.word(0, slot::DISK_DONE);
        assert_goes_on(&mut world, 0, done);
        // What the guest knows is on the disk: another host finds it there.
        ask(&mut world, 0, Command::Destroy(VM)).unwrap();
        ask(&mut world, 1, Command::Start(World::vm("dw"))).unwrap();
        world.run_for(100 * MS).unwrap();
        world
            .check_guest(1)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(taken > 0, "no crash came late enough to be of interest");
}

#[test]
fn a_checkpoint_goes_on_with_the_disk_of_its_moment_and_with_no_other() {
    for seed in 0..4 {
        let mut world = running(seed, "dw");
        prepare(&mut world, "kept.vhd");
        suspend(&mut world, true).unwrap();
        let done = world.word(0, slot::DISK_DONE);
        assert_goes_on(&mut world, 0, done);
        // Another snapshot, whose disk is of a later moment.
        prepare(&mut world, "later.vhd");
        snapshot(&mut world).unwrap();
        let why = resume(&mut world, 1).unwrap_err();
        assert!(why.contains("not made from what they were"), "{why}");
        world.run_for(100 * MS).unwrap();
        ask(&mut world, 0, Command::Destroy(VM)).unwrap();
        revert(&mut world, "later.vhd");
        let why = resume(&mut world, 1).unwrap_err();
        assert!(why.contains("not made from what they were"), "{why}");
        // As often as its disk is made anew.
        for _ in 0..2 {
            revert(&mut world, "kept.vhd");
            resume(&mut world, 1).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            let done = world.word(1, slot::DISK_DONE);
            assert_goes_on(&mut world, 1, done);
            ask(&mut world, 1, Command::Destroy(VM)).unwrap();
            let why = resume(&mut world, 1).unwrap_err();
            assert!(why.contains("does not fit"), "{why}");
        }
    }
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

#[test]
fn the_chains_of_a_guest_that_runs_are_opened_anew() {
    for seed in 0..4 {
        let mut world = running(seed, "dw");
        prepare(&mut world, "kept.vhd");
        snapshot(&mut world).unwrap();
        let content = world.storage.server.content("kept.vhd").to_vec();
        let server = &mut world.storage.server;
        server.put("merged", content.clone());
        server.names.insert("kept.vhd".into(), "merged".into());
        assert_eq!(ask(&mut world, 0, Command::Reopen(VM)), Ok(Reply::Ok));
        // The old file is nobody's any more.
        world
            .storage
            .server
            .put("disk.vhd", vec![0xee; content.len()]);
        let done = world.word(0, slot::DISK_DONE);
        assert_goes_on(&mut world, 0, done);
        let why = ask(&mut world, 1, Command::Reopen(VM)).unwrap_err();
        assert!(why.contains("no such VM"), "{why}");
    }
}

#[test]
fn a_chain_is_not_opened_anew_when_another_disk_has_the_name() {
    let mut world = running(1, "dw");
    prepare(&mut world, "kept.vhd");
    snapshot(&mut world).unwrap();
    make_child(&mut world, "kept.vhd", "other", "kept.vhd");
    let disk = world.storage.server.names["disk.vhd"].clone();
    let names = &mut world.storage.server.names;
    names.insert("disk.vhd".into(), "other".into());
    let why = ask(&mut world, 0, Command::Reopen(VM)).unwrap_err();
    assert!(why.contains("it is another disk by now"), "{why}");
    world.storage.server.names.insert("disk.vhd".into(), disk);
    let done = world.word(0, slot::DISK_DONE);
    assert_goes_on(&mut world, 0, done);
}
