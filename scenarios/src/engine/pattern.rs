//! Which records of the event log a scenario means.

use lab_protocol::{Event, Record};

use crate::scenario::file::Pattern;

/// The fields that patterns can ask for.
#[derive(Default)]
struct Fields<'a> {
    kind: &'static str,
    guest: Option<&'a str>,
    host: Option<&'a str>,
    state: Option<&'a str>,
    change: Option<&'a str>,
    text: Option<&'a str>,
    migration: Option<u32>,
    round: Option<u32>,
    healthy: Option<bool>,
    phase: Option<lab_protocol::Phase>,
    role: Option<lab_protocol::Role>,
    mark: Option<lab_protocol::PoolMark>,
}

fn fields(event: &Event) -> Option<Fields<'_>> {
    let of = |kind| Fields {
        kind,
        ..Fields::default()
    };
    let vm = |kind, vm, host| Fields {
        kind,
        guest: Some(vm),
        host: Some(host),
        ..Fields::default()
    };
    Some(match event {
        Event::HostPower { host, state } => Fields {
            host: Some(host),
            state: Some(state),
            ..of("host-power")
        },
        Event::HostBooted { host, .. } => Fields {
            host: Some(host),
            ..of("host-booted")
        },
        Event::VmState {
            vm: guest,
            host,
            state,
        } => Fields {
            state: Some(state),
            ..vm("vm-state", guest, host)
        },
        Event::VmStopped {
            vm: guest, host, ..
        } => vm("vm-stopped", guest, host),
        Event::VmRebooted {
            vm: guest, host, ..
        } => vm("vm-rebooted", guest, host),
        Event::FirstInstruction { vm: guest, host } => vm("first-instruction", guest, host),
        Event::FirstFrame { vm: guest, host } => vm("first-frame", guest, host),
        Event::CaughtUp { vm: guest, host } => vm("caught-up", guest, host),
        Event::MigrationRequested {
            vm: guest,
            migration,
            from,
            ..
        } => Fields {
            migration: Some(*migration),
            ..vm("migration-requested", guest, from)
        },
        Event::MigrationPhase {
            vm: guest,
            migration,
            host,
            role,
            phase,
            ..
        } => Fields {
            migration: Some(*migration),
            role: Some(*role),
            phase: Some(*phase),
            ..vm("migration-phase", guest, host)
        },
        Event::MigrationRound {
            vm: guest,
            migration,
            round,
            ..
        } => Fields {
            guest: Some(guest),
            migration: Some(*migration),
            round: Some(*round),
            ..of("migration-round")
        },
        Event::MigrationEnded {
            vm: guest,
            migration,
            ..
        } => Fields {
            guest: Some(guest),
            migration: Some(*migration),
            ..of("migration-ended")
        },
        Event::Pool {
            host,
            mark,
            vm,
            about,
            ..
        } => Fields {
            guest: vm.as_deref(),
            host: Some(about.as_ref().unwrap_or(host)),
            mark: Some(*mark),
            ..of("pool")
        },
        Event::StorageState { state } => Fields {
            state: Some(state),
            ..of("storage-state")
        },
        Event::Lease { owner, change, .. } => Fields {
            host: Some(owner),
            change: Some(change),
            ..of("lease")
        },
        Event::LinkFault { .. } => of("link-fault"),
        Event::SessionOpen { vm } => Fields {
            guest: Some(vm),
            ..of("session-open")
        },
        Event::SessionLost { vm, .. } => Fields {
            guest: Some(vm),
            ..of("session-lost")
        },
        Event::Health { vm, healthy, .. } => Fields {
            guest: Some(vm),
            healthy: Some(*healthy),
            ..of("health")
        },
        Event::Mark { text } => Fields {
            text: Some(text),
            ..of("mark")
        },
        _ => return None,
    })
}

/// Whether a record is what a pattern asks for.
#[must_use]
pub fn matches(pattern: &Pattern, record: &Record) -> bool {
    fn wanted<T: PartialEq>(asked: Option<T>, found: Option<T>) -> bool {
        asked.is_none() || asked == found
    }
    let Some(found) = fields(&record.event) else {
        return false;
    };
    let text = |spanned: &Option<toml::Spanned<String>>| {
        spanned.as_ref().map(|spanned| spanned.get_ref().clone())
    };
    let owned = |text: Option<&str>| text.map(str::to_owned);
    pattern.event.get_ref() == found.kind
        && wanted(text(&pattern.guest), owned(found.guest))
        && wanted(text(&pattern.host), owned(found.host))
        && wanted(pattern.state.as_deref(), found.state)
        && wanted(pattern.change.as_deref(), found.change)
        && wanted(pattern.text.as_deref(), found.text)
        && wanted(pattern.migration, found.migration)
        && wanted(pattern.round, found.round)
        && wanted(pattern.healthy, found.healthy)
        && wanted(pattern.phase, found.phase)
        && wanted(pattern.role, found.role)
        && wanted(pattern.mark, found.mark)
}
