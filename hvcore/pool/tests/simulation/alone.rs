//! A host that is alone in the liveset has nobody who vouches for it.

use fastrand::Rng;
use pool::{Safeguards, VmIndex};

use crate::world::{SECOND, Shape, World};

#[test]
fn a_host_that_is_alone_goes_on_without_the_storage_but_not_after_it_stood_still() {
    let vm = VmIndex(0);
    let shape = Shape {
        hosts: 2,
        vms: 1,
        safeguards: Safeguards::default(),
    };
    for seed in 0..20 {
        let mut world = World::new(&shape, Rng::with_seed(seed));
        let pass = |world: &mut World, time: u64| world.run_until(world.now + time);
        world.boot(0);
        pass(&mut world, 5 * SECOND);
        world.start_by_hand(0, vm);
        pass(&mut world, 2 * SECOND);
        world.storage_outage(true);
        pass(&mut world, 3 * SECOND);
        assert_eq!(world.executing(vm), [0], "seed {seed}");
        // Meanwhile the other might have booted, and taken what runs here: only the storage server knows.
        world.freeze(0, 2 * SECOND);
        pass(&mut world, 2 * SECOND + SECOND / 10);
        assert_eq!(world.executing(vm), [0; 0], "seed {seed}");
        world.storage_outage(false);
        pass(&mut world, SECOND);
        assert_eq!(world.executing(vm), [0], "seed {seed}");
    }
}
