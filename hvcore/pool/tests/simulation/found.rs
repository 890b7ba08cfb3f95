//! What seeds have found, each as small as it could be made, with a name instead of a number.

use fastrand::Rng;
use pool::{Event, HostId, LeaseFile, Safeguards, Timing, VmIndex};

use crate::world::{MS, SECOND, Shape, World};

const VM: VmIndex = VmIndex(0);

fn pass(world: &mut World, time: u64) {
    world.run_until(world.now + time);
}

/// A pool of so many hosts that has met, with a VM on the first one that was made.
fn pool_with(seed: u64, hosts: usize, at: usize, safeguards: Safeguards) -> World {
    let shape = Shape {
        hosts,
        vms: 1,
        safeguards,
        timing: Timing::default(),
    };
    let mut world = World::new(&shape, Rng::with_seed(seed));
    for host in 0..hosts {
        world.boot(host);
        pass(&mut world, 20 * MS);
    }
    pass(&mut world, 5 * SECOND);
    world.start_by_hand(at, VM);
    pass(&mut world, 2 * SECOND);
    assert_eq!(world.executing(VM), [at], "seed {seed}");
    world
}

fn cut_apart(world: &mut World, one: usize, other: usize, cut: bool) {
    world.link(one, other).cut = cut;
    world.link(other, one).cut = cut;
}

/// What must hold in a scenario below.
fn must(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// A host that is alone in the liveset goes on without the storage, but not after it stood still: meanwhile the other might have booted,
/// and taken what runs here. Only the storage server knows.
pub fn alone_without_storage(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let shape = Shape {
        hosts: 2,
        vms: 1,
        safeguards,
        timing: Timing::default(),
    };
    let mut world = World::new(&shape, Rng::with_seed(seed));
    world.boot(0);
    pass(&mut world, 5 * SECOND);
    world.start_by_hand(0, VM);
    pass(&mut world, 2 * SECOND);
    world.storage_outage(true);
    pass(&mut world, 3 * SECOND);
    must(
        world.executing(VM) == [0],
        "the guest stands still with its host alone",
    )?;
    world.freeze(0, 2 * SECOND);
    pass(&mut world, 2 * SECOND + SECOND / 10);
    must(world.executing(VM).is_empty(), "the guest runs on unasked")?;
    world.storage_outage(false);
    pass(&mut world, SECOND);
    must(
        world.executing(VM) == [0],
        "the guest stands still for good",
    )
}

/// The coordinator has announced a liveset without the other host, alone; its slot is damaged since, and it runs on without storage, as
/// one may that is alone. The other must not take its silence for death before the leases are over.
pub fn excluded_by_a_damaged_table(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let mut world = pool_with(seed, 2, 0, safeguards);
    cut_apart(&mut world, 0, 1, true);
    world.freeze(1, 1700 * MS);
    pass(&mut world, 1650 * MS);
    world.cut_storage(0, true);
    world.storage.slots[0][100] ^= 1;
    pass(&mut world, 20 * SECOND);
    must(world.violation.is_none(), "the VM ran twice")?;
    must(world.executing(VM) == [1], "the VM is not restarted")
}

/// Somebody has moved the generation and died before it wrote a table, and whose turn it is has no reason to look. A member that was told,
/// as its guests stood still, moves on by itself.
pub fn generation_without_a_table(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let mut world = pool_with(seed, 2, 1, safeguards);
    let lease = world.storage.leases.get_mut(&LeaseFile::Pool);
    lease.expect("the pool has met").epoch += 1;
    // Over the network it would be told that the others know of it, and not look at the lease.
    cut_apart(&mut world, 0, 1, true);
    world.freeze(1, SECOND);
    pass(&mut world, SECOND + SECOND / 2);
    must(world.executing(VM).is_empty(), "nothing stood still")?;
    cut_apart(&mut world, 0, 1, false);
    pass(&mut world, 5 * SECOND);
    let restarts = world.count(0, |event| matches!(event, Event::Restart { .. }));
    must(restarts == 0, "the VM was restarted")?;
    must(
        world.executing(VM) == [1],
        "the guest stands still for good",
    )
}

/// A host stands still twice for less time than its guests may run on a sign, without the network. Its last write but one is seen by the
/// other as the last; the last comes after the other has given it up, and is answered just before it goes on: as a sign it is young enough,
/// but it came after the one before had been over.
pub fn sign_after_the_end(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let mut world = pool_with(seed, 2, 0, safeguards);
    cut_apart(&mut world, 0, 1, true);
    world.longest_boot = 2 * MS;
    pass(&mut world, seed * 7 % 1000 * MS);
    world.freeze(0, 500 * MS);
    pass(&mut world, 490 * MS);
    world.cut_storage(0, true);
    pass(&mut world, 70 * MS);
    world.freeze(0, 800 * MS);
    pass(&mut world, 730 * MS);
    world.cut_storage(0, false);
    pass(&mut world, 2 * SECOND);
    must(world.violation.is_none(), "the VM ran twice")
}

/// The destination of a migration dies when it has taken the lease: the source has nothing any more, and nobody knew yet that the VM was
/// elsewhere. It is restarted as soon as the destination is found dead.
pub fn destination_dies_in_the_hand_over(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let mut world = pool_with(seed, 3, 1, safeguards);
    world.longest_boot = 20 * MS;
    let disk = LeaseFile::Disk(VM, 0);
    // Now and then the last pages do not arrive, and the source goes on.
    while world.storage.leases[&disk].owner != Some(HostId(2)) {
        world.migrate(1, 2, VM);
        pass(&mut world, MS / 4);
    }
    world.pull(2);
    let mut known = world.now + 1500 * MS;
    let end = world.now + 20 * SECOND;
    while world.executing(VM).is_empty() && world.now < end {
        if world.hosts[1].copies.contains_key(&VM) {
            known = known.max(world.now);
        }
        pass(&mut world, 10 * MS);
    }
    must(world.violation.is_none(), "the VM ran twice")?;
    must(world.now < known + SECOND / 2, "it took long")
}

/// A host that was excluded asks to be let in while the storage fails for all, so its slot does not tell of that; then it loses power. Its next
/// life is another one to all who have heard of the last.
pub fn boots_anew_after_an_unwritten_life(seed: u64, safeguards: Safeguards) -> Result<(), String> {
    let mut world = pool_with(seed, 2, 0, safeguards);
    world.freeze(1, 2 * SECOND);
    pass(&mut world, 1900 * MS);
    world.storage_outage(true);
    pass(&mut world, 8 * SECOND);
    world.pull(1);
    world.storage_outage(false);
    pass(&mut world, SECOND);
    world.boot(1);
    pass(&mut world, 2 * SECOND);
    let pool = world.hosts[0].pool.as_ref().expect("it has power");
    let members = pool.status().hosts;
    must(members.iter().all(|host| host.member), "it is not let in")
}

#[test]
fn what_each_safeguard_is_for_does_not_happen_with_all_of_them() {
    for seed in 0..20 {
        for scenario in [
            alone_without_storage,
            excluded_by_a_damaged_table,
            generation_without_a_table,
            sign_after_the_end,
            destination_dies_in_the_hand_over,
            boots_anew_after_an_unwritten_life,
        ] {
            let result = scenario(seed, Safeguards::default());
            assert_eq!(result, Ok(()), "seed {seed}");
        }
    }
}

#[test]
fn a_clock_that_is_set_back_while_its_host_stands_still_shows_it() {
    for seed in 0..20 {
        let mut world = pool_with(seed, 2, 0, Safeguards::default());
        world.freeze(0, 1845 * MS);
        pass(&mut world, 364 * MS);
        world.jump_clock(0, -1703);
        pass(&mut world, 10 * SECOND);
        assert_eq!(world.violation, None, "seed {seed}");
        assert_eq!(world.executing(VM), [1], "seed {seed}");
    }
}

/// A host whose clock stood still with it cannot know that others have gone on; but it writes nothing, and the first word of anybody
/// stops it: over the management network with the next heartbeats, else with the next look into the statefile or the first write of a guest.
#[test]
fn a_host_whose_clock_stood_still_with_it_writes_nothing_and_stops_at_the_first_word() {
    for (apart, longest) in [(false, 250 * MS), (true, SECOND)] {
        for seed in 0..20 {
            let mut world = pool_with(seed, 2, 0, Safeguards::default());
            if apart {
                cut_apart(&mut world, 0, 1, true);
            }
            world.overlaps = Some(Vec::new());
            let thaws = world.now + 3 * SECOND;
            world.freeze(0, 3 * SECOND);
            pass(&mut world, SECOND);
            world.set_clock(0, -2950);
            pass(&mut world, 10 * SECOND);
            assert_eq!(world.violation, None, "seed {seed}");
            assert_eq!(world.executing(VM), [1], "seed {seed}");
            let overlaps = world.overlaps.unwrap_or_default();
            let last = overlaps.last().expect("no host can see this");
            assert!(
                *last < thaws + longest,
                "seed {seed}: {} ms",
                (last - thaws) / MS
            );
        }
    }
}

/// A VM that came here a moment ago leaves again, comes back since its destination does not answer, and leaves once more. What is asked
/// and answered about the first time is nothing to the last.
#[test]
fn a_vm_that_leaves_again_and_again_is_had_by_one_host() {
    for seed in 0..20 {
        let mut world = pool_with(seed, 3, 0, Safeguards::default());
        world.storage_delay = 800 * MS;
        world.migrate(0, 1, VM);
        pass(&mut world, 1900 * MS);
        world.cut_storage(0, true);
        world.migrate(1, 0, VM);
        let end = world.now + 4 * SECOND;
        while world.now < end && world.executing(VM).is_empty() {
            pass(&mut world, MS);
        }
        world.migrate(1, 2, VM);
        world.cut_storage(0, false);
        pass(&mut world, 10 * SECOND);
        assert_eq!(world.violation, None, "seed {seed}");
    }
}

/// A VM was on its way to here when its source lost power, is started here, and leaves as soon as it runs. Neither what was left of its
/// arrival nor what was left of its start wakes it here.
#[test]
fn nothing_wakes_a_vm_that_has_left_since() {
    for seed in 0..20 {
        let mut world = pool_with(seed, 3, 0, Safeguards::default());
        world.longest_boot = 2500 * MS;
        world.migrate(0, 1, VM);
        world.pull(0);
        let end = world.now + 10 * SECOND;
        while world.now < end && world.violation.is_none() {
            if let [from] = world.executing(VM)[..] {
                world.migrate(from, 3 - from, VM);
            }
            pass(&mut world, 10 * MS);
        }
        assert_eq!(world.violation, None, "seed {seed}");
    }
}
