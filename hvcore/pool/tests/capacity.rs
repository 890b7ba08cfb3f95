//! Planning for failures: what is promised holds, and what breaks a promise is named.

use host_protocol::auth::PoolKey;
use pool::{
    HostId, HostPolicy, Place, PoolConfig, Safeguards, Table, Timing, VmIndex, VmPolicy, capacity,
};

/// Hosts of 1000 MiB, and VMs of these sizes that run on these hosts.
fn pool(hosts: usize, failures: u8, vms: &[(u32, u16)]) -> (PoolConfig, Table) {
    let config = PoolConfig {
        pool: [0; 16],
        key: PoolKey::new([0; 32]),
        hosts: (1..=hosts)
            .map(|number| HostPolicy {
                name: format!("h{number}"),
                memory_mib: 1000,
            })
            .collect(),
        vms: (1..)
            .zip(vms)
            .map(|(number, (memory_mib, _))| VmPolicy {
                name: format!("vm{number}"),
                memory_mib: *memory_mib,
                disks: 1,
                priority: 0,
                order: 0,
                start_delay_ms: 0,
                best_effort: false,
            })
            .collect(),
        failures_to_tolerate: failures,
        timing: Timing::default(),
        safeguards: Safeguards::default(),
    };
    config.check(HostId(0)).unwrap();
    let mut table = Table::empty(hosts, vms.len());
    table.members.fill(1);
    for (place, (_, host)) in table.vms.iter_mut().zip(vms) {
        *place = Place::Running(HostId(*host));
    }
    (config, table)
}

#[test]
fn a_plan_says_where_each_vm_goes() {
    let (config, table) = pool(3, 1, &[(600, 0), (300, 0), (500, 1)]);
    let plan = capacity::plan(&config, &table);
    assert_eq!((plan.tolerated, plan.shortage), (1, None));
    let first = &plan.single[0];
    assert_eq!(first.failing, [HostId(0)]);
    // The large one to the empty host, the small one to where most is left.
    assert_eq!(
        first.moves,
        [(VmIndex(0), Some(HostId(2))), (VmIndex(1), Some(HostId(1)))]
    );
}

#[test]
fn the_set_of_failures_that_breaks_the_promise_is_named() {
    let (config, table) = pool(3, 2, &[(600, 0), (500, 1), (100, 2)]);
    let plan = capacity::plan(&config, &table);
    assert_eq!(plan.tolerated, 1);
    let shortage = plan.shortage.unwrap();
    assert_eq!(
        shortage.explain(&config).to_string(),
        "if h1 and h2 failed, VM vm2 could not restart: it needs 500 MiB, and no host would have more than 300 MiB free"
    );
}

#[test]
fn a_vm_that_would_break_the_promise_is_refused() {
    let (config, mut table) = pool(2, 1, &[(600, 0), (500, 1)]);
    table.vms[1] = Place::Off;
    assert!(capacity::admit(&config, &table, VmIndex(0), HostId(0)).is_ok());
    let refused = capacity::admit(&config, &table, VmIndex(1), HostId(1)).unwrap_err();
    assert_eq!(refused.failing, [HostId(0)]);
    assert_eq!(refused.vm, VmIndex(0));
}

#[test]
fn best_effort_vms_give_way() {
    let (mut config, table) = pool(3, 1, &[(600, 0), (300, 0), (500, 1), (500, 2)]);
    let strict = capacity::plan(&config, &table);
    assert_eq!(strict.shortage.map(|it| it.vm), Some(VmIndex(0)));
    // What happens is told of every host, of that too whose failure breaks the promise.
    assert_eq!((strict.tolerated, strict.single.len()), (0, 3));
    assert!(strict.single[0].moves.contains(&(VmIndex(0), None)));
    config.vms[0].best_effort = true;
    let plan = capacity::plan(&config, &table);
    assert_eq!((plan.tolerated, plan.shortage), (1, None));
    let moves = [(VmIndex(0), None), (VmIndex(1), Some(HostId(1)))];
    assert_eq!(plan.single[0].moves, moves);
}
