//! A disk's state that comes from another host is checked before it changes anything.

use vdi::{Access, DiskState, Op};

use crate::{PATH, World, image::Kind, server::Lies};

/// Breaks a good state.
type Break = fn(&mut DiskState);

const BREAKS: [(&str, Break); 11] = [
    ("a newer version", |state| state.version += 1),
    ("another disk", |state| state.path = "sr/other.vhd".into()),
    ("another size", |state| state.bytes += 512),
    ("a block too far", |state| {
        state.allocated.push((1 << 20, 8))
    }),
    ("a block marked absent", |state| {
        state.allocated[0].1 = u32::MAX
    }),
    ("a block in the header", |state| state.allocated[0].1 = 1),
    ("blocks on one another", |state| {
        state.allocated[0].1 = state.allocated[1].1;
    }),
    ("an entry for no block", |state| {
        state.not_entered.push(1 << 20)
    }),
    ("data outside of the file", |state| {
        state.uncommitted[0].offset = u64::MAX - 100;
    }),
    ("too much data", |state| {
        state.uncommitted[0].data = vec![0; DiskState::MAX_CARRIED + 1];
    }),
    ("data twice", |state| {
        let again = state.uncommitted[0].clone();
        state.uncommitted.push(again);
    }),
];

#[test]
fn a_bad_state_is_refused_and_a_good_one_then_taken() {
    let mut world = World::new(7, Kind::Dynamic, Lies::default());
    let (mut source, mut destination) = (world.host("h1"), world.host("h2"));
    let disk = world
        .open(&mut source, Access::ReadWrite)
        .expect("it opens");
    destination.storage.prepare_disk(PATH, world.now_ns);
    let prepared = world
        .opened(&mut [&mut source, &mut destination])
        .expect("it is prepared");
    for (id, offset) in [(1, 0), (2, 100 << 10)] {
        let data = vec![id as u8; 512];
        source
            .storage
            .submit(disk, id, Op::Write { offset, data }, world.now_ns);
    }
    source.storage.drain(disk, world.now_ns);
    while !source.storage.is_drained(disk) {
        world.step(&mut [&mut source]);
    }
    let good = source.storage.save_disk(disk).expect("it is drained");
    assert!(good.allocated.len() == 2 && good.not_entered.len() == 2);
    for (what, damage) in BREAKS {
        let mut bad = good.clone();
        damage(&mut bad);
        let refused = destination.storage.restore_disk(prepared, &bad);
        assert!(refused.is_err(), "{what} is accepted");
        destination
            .storage
            .take_lease(prepared, good.epoch, world.now_ns);
        let taken = destination.storage.next_completion();
        assert!(
            matches!(taken, Some(vdi::Completion::Taken { result: Err(_), .. })),
            "{what}: the lease can be taken"
        );
    }
    destination
        .storage
        .restore_disk(prepared, &good)
        .expect("the good one fits");
}
