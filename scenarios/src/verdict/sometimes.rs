//! Whether what a scenario is about has happened at all: a fault that never met what it should disturb proves nothing.

use lab_protocol::Event;

use super::{Evidence, migrations_of};
use crate::engine::matches;

/// What is missing, in sentences.
pub(super) fn unproven(evidence: &Evidence<'_>) -> Vec<String> {
    let mut missing: Vec<String> = evidence
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Step {
                name,
                state,
                detail,
                ..
            } if state == "missed" => Some(format!("{name}: {detail}")),
            _ => None,
        })
        .collect();
    let migrations = migrations_of(evidence.records);
    let under_way = |t_ns: u64| {
        migrations
            .iter()
            .any(|one| (one.requested_ns..one.ended_ns.unwrap_or(u64::MAX)).contains(&t_ns))
    };
    for one in &evidence.scenario.sometimes {
        let happened = evidence.records.iter().any(|record| {
            matches(&one.event, record) && (!one.during_migration || under_way(record.t_ns))
        });
        if !happened {
            missing.push(format!("it never happened that {}", one.what));
        }
    }
    missing
}
