//! A parent's file gives way to another one that holds the same, while the guest is at work.

use vdi::{Access, Completion};

use crate::{PATH, World, image::Kind, server::Lies};

/// What the guest has found wrong in the end.
fn run(seed: u64, renew: bool) -> Result<(), String> {
    let mut world = World::new(seed, Kind::Differencing, Lies::default());
    let mut host = world.host("h1");
    let disk = world.open(&mut host, Access::ReadWrite)?;
    world.run_guest(&mut host, disk, 30)?;
    let content = world.server.content("base.vhd").to_vec();
    world.server.put("merged", content.clone());
    let names = &mut world.server.names;
    names.insert("base.vhd".into(), "merged".into());
    if renew {
        host.storage.prepare_disk(PATH, world.now_ns);
        let fresh = world.opened(&mut [&mut host])?;
        // Not while something is being read.
        let (id, op) = world.guest.random_op(&mut world.rng);
        host.storage.submit(disk, id, op, world.now_ns);
        while !host.storage.renew_ancestors(disk, fresh)? {
            world.step(&mut [&mut host]);
        }
        world.collect(&mut host)?;
        assert!(host.storage.renew_ancestors(disk, fresh).is_err(), "gone");
    }
    // Under its own name it is nobody's any more.
    world.server.files.remove("base.vhd");
    world.server.put("base.vhd", vec![0xee; content.len()]);
    world.run_guest(&mut host, disk, 100)?;
    let all = world.read_all(&mut host, disk)?;
    world.guest.check_survivors(&all)
}

#[test]
fn a_guest_reads_what_it_did_from_another_file_of_its_parent() {
    for seed in 0..20 {
        run(seed, true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    let found_out = (0..20).filter(|seed| run(*seed, false).is_err()).count();
    assert_eq!(found_out, 20, "the old file is worth nothing");
}

#[test]
fn another_disk_of_the_same_name_is_refused() {
    let mut world = World::new(1, Kind::Differencing, Lies::default());
    let mut host = world.host("h1");
    let disk = world.open(&mut host, Access::ReadWrite).expect("it opens");
    let mut other = world.server.content("disk.vhd").to_vec();
    let end = other.len() - 512;
    for footer in [0, end] {
        other[footer + 68] ^= 1;
        let footer = &mut other[footer..footer + 512];
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    world.server.put("other", other);
    let names = &mut world.server.names;
    names.insert("disk.vhd".into(), "other".into());
    host.storage.prepare_disk(PATH, world.now_ns);
    let fresh = world.opened(&mut [&mut host]).expect("it is a good disk");
    let why = host.storage.renew_ancestors(disk, fresh).unwrap_err();
    assert!(why.contains("another disk"), "{why}");
    assert!(
        !matches!(
            host.storage.next_completion(),
            Some(Completion::LeaseLost { .. })
        ),
        "the disk is as it was"
    );
}
