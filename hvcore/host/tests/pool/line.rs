//! A management network that carries little, and drops what would wait longer than its queue allows.

use host_protocol::{HostEvent, MigrationConfig, Phase, Role};

use crate::{MS, reached, running};

/// Bits a second; 250 KB wait at most, half of what a migration may have on its way.
const RATE: u64 = 10_000_000;

/// How the stop ends is not asked here: it takes a second on such a line, and may lose its patience with it.
#[test]
fn memory_goes_over_a_line_whose_queue_is_smaller_than_a_connections_window() {
    for seed in 0..3 {
        let mut world = running(seed, "i");
        world.wire.migration_rate = Some(RATE);
        world.migrate(0, 1, MigrationConfig::default());
        world
            .run_until(30_000 * MS, |world| {
                reached(world, &[0, 0], (Role::Source, Phase::Drain))
            })
            .unwrap_or_else(|why| panic!("{why}: seed {seed}"));
        let rounds = world.events(0).iter().filter_map(|event| match event {
            HostEvent::Round { round, .. } => Some((round.bytes, round.duration_ns)),
            _ => None,
        });
        let (bytes, ns) = rounds.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let line_ns = bytes * 8 * 1_000_000_000 / RATE;
        assert!(
            ns < line_ns * 4,
            "seed {seed}: {bytes} bytes took {ns} ns, {line_ns} of which they need"
        );
    }
}
