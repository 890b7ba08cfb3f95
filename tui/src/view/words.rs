//! What an event says, in words that fit behind its time, source and kind; figures in the units that reports print.

use lab_protocol::{Event, Role};
use scenarios::evidence::cast;

use crate::model::probe_name;

pub(super) fn in_words(event: &Event) -> String {
    match event {
        Event::LabStarted {
            name,
            version,
            accelerator,
            ..
        } => format!("{name}: version {version}, {accelerator}"),
        Event::LabStopped { reason } => reason.clone(),
        Event::HostPower { host, state } => format!("{host}: {state}"),
        Event::HostBooted { host, version } => format!("{host}: version {version}"),
        Event::HostStatus {
            host,
            memory_total,
            memory_free,
            storage_up,
        } => format!(
            "{host}: {} of {} MiB free, {} its storage",
            memory_free >> 20,
            memory_total >> 20,
            if *storage_up {
                "reaches"
            } else {
                "does not reach"
            }
        ),
        Event::Pool { text, .. } | Event::Mark { text } | Event::Message { text, .. } => {
            text.clone()
        }
        Event::LinkFault { link, fault } => format!("{link} {fault}"),
        Event::MacMoved { mac, from, to } => format!("{mac}: {from} to {to}"),
        Event::PortStatistics { ports } => {
            let names = ports
                .iter()
                .map(|port| format!("{}:{}", port.port, port.network));
            format!("busy: {}", names.collect::<Vec<_>>().join(" "))
        }
        Event::Step {
            name,
            state,
            detail,
            ..
        } => with_detail(format!("{name}: {state}"), detail),
        Event::VmState { .. }
        | Event::VmStatus { .. }
        | Event::VmStopped { .. }
        | Event::VmRebooted { .. }
        | Event::FirstInstruction { .. }
        | Event::FirstFrame { .. }
        | Event::CaughtUp { .. }
        | Event::Health { .. } => of_vm(event),
        Event::MigrationRequested { .. }
        | Event::MigrationPhase { .. }
        | Event::MigrationRound { .. }
        | Event::MemoryHash { .. }
        | Event::MigrationEnded { .. } => of_migration(event),
        Event::StorageState { .. }
        | Event::StorageStatistics { .. }
        | Event::RepositoryUse { .. }
        | Event::Lease { .. } => of_storage(event),
        Event::SessionOpen { .. }
        | Event::SessionLost { .. }
        | Event::Key { .. }
        | Event::ProbeSamples { .. }
        | Event::DocumentChecked { .. }
        | Event::GuestClock { .. }
        | Event::DiskRecord { .. }
        | Event::DiskChecked { .. } => of_session(event),
    }
}

fn with_detail(words: String, detail: &str) -> String {
    if detail.is_empty() {
        words
    } else {
        format!("{words}, {detail}")
    }
}

fn of_vm(event: &Event) -> String {
    match event {
        Event::VmState { vm, host, state } => format!("{vm}: {state} on {host}"),
        Event::VmStatus {
            vm, cpu_ns, exits, ..
        } => format!(
            "{vm}: {:.1} s of CPU, {exits} exits so far",
            *cpu_ns as f64 / 1e9
        ),
        Event::VmStopped { vm, host, reason } => format!("{vm}: {reason}, no longer on {host}"),
        Event::VmRebooted { vm, host, cause } => format!("{vm}: {cause}, on {host}"),
        Event::FirstInstruction { vm, host }
        | Event::FirstFrame { vm, host }
        | Event::CaughtUp { vm, host } => format!("{vm} on {host}"),
        Event::Health {
            vm,
            healthy,
            detail,
        } => {
            let word = if *healthy {
                "answers"
            } else {
                "does not answer"
            };
            with_detail(format!("{vm} {word}"), detail)
        }
        _ => String::new(),
    }
}

fn of_migration(event: &Event) -> String {
    let side = |role: Role| match role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    match event {
        Event::MigrationRequested { vm, from, to, .. } => format!("{vm}: {from} to {to}"),
        Event::MigrationPhase {
            vm,
            role,
            phase,
            detail,
            ..
        } => {
            let words = format!("{vm}: {} at the {}", cast::name(*phase), side(*role));
            with_detail(words, detail)
        }
        Event::MigrationRound {
            vm,
            round,
            pages,
            bytes,
            duration_ns,
            dirty_after,
            ..
        } => format!(
            "{vm}: round {round}, {pages} pages, {} MB in {} ms; {dirty_after} dirty after it",
            super::megabytes(*bytes),
            super::ms(*duration_ns)
        ),
        Event::MemoryHash { vm, role, hash, .. } => {
            format!("{vm}: {hash} at the {}", side(*role))
        }
        Event::MigrationEnded { vm, error, .. } if error.is_empty() => format!("{vm}: done"),
        Event::MigrationEnded { vm, error, .. } => format!("{vm}: {error}"),
        _ => String::new(),
    }
}

fn of_storage(event: &Event) -> String {
    match event {
        Event::StorageState { state } => state.clone(),
        Event::StorageStatistics {
            operations,
            read_bytes,
            written_bytes,
        } => format!(
            "{} calls so far, {} MB read, {} MB written",
            operations.iter().map(|one| one.calls).sum::<u64>(),
            super::megabytes(*read_bytes),
            super::megabytes(*written_bytes)
        ),
        Event::RepositoryUse {
            repository, disks, ..
        } => {
            let short: String = repository.chars().take(8).collect();
            let used = disks.iter().map(|disk| disk.used_bytes).sum();
            format!("{short}: {} files take {}", disks.len(), super::size(used))
        }
        Event::Lease {
            path,
            epoch,
            owner,
            change,
        } => {
            let disk = path.rsplit('/').next().unwrap_or(path);
            format!("{change}: {owner}, epoch {epoch}, {disk}")
        }
        _ => String::new(),
    }
}

fn of_session(event: &Event) -> String {
    let equal = |equal: bool| if equal { "equal" } else { "differs" };
    match event {
        Event::SessionOpen { vm } => format!("{vm}: open"),
        Event::SessionLost {
            vm,
            reason,
            unsaved,
        } => format!("{vm}: {reason}; {unsaved} keys had not been saved"),
        Event::Key {
            text,
            due_ns,
            echo_ns,
            ..
        } => match echo_ns {
            Some(echo_ns) => format!(
                "{text:?} echoed after {} ms",
                super::ms(echo_ns.saturating_sub(*due_ns))
            ),
            None => format!("{text:?} not echoed"),
        },
        Event::ProbeSamples {
            probe, answers_ns, ..
        } => {
            let answers = answers_ns.iter().flatten();
            let lost = answers_ns.len() - answers.clone().count();
            let worst = answers
                .max()
                .map_or_else(|| "-".into(), |ns| super::ms(*ns));
            format!(
                "{}: {} asked, {lost} lost, worst {worst} ms",
                probe_name(*probe),
                answers_ns.len()
            )
        }
        Event::DocumentChecked {
            equal: same,
            bytes,
            detail,
        } => with_detail(format!("{}, {bytes} bytes", equal(*same)), detail),
        Event::GuestClock { vm, number, .. } => format!("{vm}: reading {number}"),
        Event::DiskRecord { vm, number } => format!("{vm}: record {number} is on its disk"),
        Event::DiskChecked {
            vm,
            equal: same,
            records,
            detail,
        } => with_detail(format!("{vm}: {}, {records} records", equal(*same)), detail),
        _ => String::new(),
    }
}
