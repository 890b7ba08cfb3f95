//! What migrations came to.

use lab_protocol::Event;

use super::{Check, Evidence, migrations_of};

/// Steps were done as the scenario says, and every migration ended.
pub(super) fn outcomes(evidence: &Evidence<'_>) -> Option<Check> {
    let mut done = 0;
    let mut wrong = None;
    for record in evidence.records {
        if let Event::Step {
            name,
            state,
            detail,
            ..
        } = &record.event
        {
            match state.as_str() {
                "done" => done += 1,
                "failed" => {
                    wrong.get_or_insert_with(|| format!("{name}: {detail}"));
                }
                _ => {}
            }
        }
    }
    let unended = migrations_of(evidence.records)
        .iter()
        .find(|one| one.ended_ns.is_none())
        .map(|one| format!("migration {} never ended", one.number));
    let missed = super::any(
        evidence.records,
        |event| matches!(event, Event::Step { state, .. } if state == "missed"),
    );
    let steps = evidence.scenario.steps.get_ref().len();
    // What stopped at a missed event is inconclusive, not wrong.
    let short = (done < steps && !missed && wrong.is_none())
        .then(|| format!("{done} of {steps} steps were done"));
    let wrong = wrong.or(unended).or(short);
    Some(Check::new("outcomes", wrong, format!("{done} steps done")))
}

/// Memory was the same on both sides, where it was compared.
pub(super) fn memory(evidence: &Evidence<'_>) -> Option<Check> {
    let asked = evidence
        .scenario
        .steps
        .get_ref()
        .iter()
        .any(|step| step.migrate.as_ref().is_some_and(|migrate| migrate.verify));
    if !asked {
        return None;
    }
    let mut compared = 0;
    let mut wrong = None;
    for one in migrations_of(evidence.records) {
        let [source, destination] = &one.hashes;
        match (source, destination) {
            (Some(source), Some(destination)) if source == destination => compared += 1,
            (Some(_), Some(_)) => {
                wrong.get_or_insert_with(|| format!("migration {}: memory differs", one.number));
            }
            _ => {}
        }
    }
    if compared == 0 {
        wrong.get_or_insert_with(|| "it was compared in no migration".to_owned());
    }
    Some(Check::new(
        "memory",
        wrong,
        format!("the same on both sides in {compared} migrations"),
    ))
}
