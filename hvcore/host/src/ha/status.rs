//! The pool in the words of the host protocol.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use host_protocol::pool::{PoolMark, PoolStatus};
use pool::{Case, Event, Place, PoolConfig, Protection, Standing};

use super::Marked;
use crate::{Host, platform::Platform};

/// What kind of thing an event is, and what it is about.
pub(super) fn marked(event: &Event) -> Marked {
    match event {
        Event::Suspected { host } => (PoolMark::Suspected, None, Some(*host)),
        Event::DeclaredDead { host, .. } => (PoolMark::DeclaredDead, None, Some(*host)),
        Event::Liveset { coordinator, .. } => (PoolMark::Liveset, None, Some(*coordinator)),
        Event::Fenced { vm } => (PoolMark::Fenced, Some(*vm), None),
        Event::Restart { vm, host, .. } => (PoolMark::Restart, Some(*vm), Some(*host)),
        Event::Restarted { vm, host } => (PoolMark::Restarted, Some(*vm), Some(*host)),
        Event::NotRestarted { vm, .. } => (PoolMark::NotRestarted, Some(*vm), None),
        Event::Protection { .. } => (PoolMark::Protection, None, None),
        Event::SelfFenced(_) => (PoolMark::SelfFenced, None, None),
        Event::PermitLapsed => (PoolMark::PermitLapsed, None, None),
        Event::PermitBack { .. } => (PoolMark::PermitBack, None, None),
        Event::Heard { host, .. } => (PoolMark::Note, None, Some(*host)),
        Event::Joined { .. }
        | Event::Storage { .. }
        | Event::Ignored { .. }
        | Event::ClockJumped { .. }
        | Event::NoPoolFile => (PoolMark::Note, None, None),
    }
}

/// What a VM's place is called.
fn place_words(config: &PoolConfig, place: Place) -> String {
    match place {
        Place::Off => String::from("off"),
        Place::Running(host) => format!("running on {}", config.host_name(host)),
        Place::Lost { .. } => String::from("lost, to be restarted"),
        Place::Starting { host, attempt } => {
            format!("starting on {}, attempt {attempt}", config.host_name(host))
        }
        Place::Failed => String::from("failed to start too often"),
        Place::Unknown => String::from("unknown until its leases are seen"),
    }
}

/// What happens in a case that was planned for.
fn case_words(config: &PoolConfig, case: &Case) -> String {
    let failing: Vec<_> = case
        .failing
        .iter()
        .map(|host| config.host_name(*host))
        .collect();
    let moves: Vec<_> = case
        .moves
        .iter()
        .map(|(vm, host)| match host {
            Some(host) => format!("{} to {}", config.vm_name(*vm), config.host_name(*host)),
            None => format!("{} nowhere, for want of room", config.vm_name(*vm)),
        })
        .collect();
    let moves = if moves.is_empty() {
        String::from("nothing has to move")
    } else {
        moves.join(", then ")
    };
    format!("if {} fails: {moves}", failing.join(" and "))
}

impl<P: Platform> Host<P> {
    /// The pool as seen from here.
    pub(crate) fn pool_status(&self) -> Result<PoolStatus, String> {
        let availability = self
            .availability
            .as_ref()
            .ok_or("this host was told of no pool")?;
        let status = availability.pool.status();
        let config = availability.pool.config();
        Ok(PoolStatus {
            standing: match status.standing {
                Standing::Joining => "joining",
                Standing::Member => "member",
                Standing::Fenced => "fenced",
            }
            .to_string(),
            permitted: status.permitted,
            statefile_up: status.storage_up,
            generation: status.generation,
            coordinator: status
                .coordinator
                .map(|host| config.host_name(host).to_string()),
            hosts: status
                .hosts
                .iter()
                .map(|of| {
                    let name = config.host_name(of.host).to_string();
                    (name, of.member, of.silent_ms)
                })
                .collect(),
            vms: status
                .vms
                .iter()
                .filter_map(|(vm, place, protection)| {
                    let id = availability.config(*vm)?.id;
                    let protection = match protection {
                        Protection::Restart => "restart",
                        Protection::BestEffort => "best effort",
                        Protection::None => "none",
                    };
                    Some((id, place_words(config, *place), protection.to_string()))
                })
                .collect(),
            tolerated: status.plan.tolerated,
            shortage: status
                .plan
                .shortage
                .as_ref()
                .map(|shortage| shortage.explain(config).to_string()),
            plan: status
                .plan
                .single
                .iter()
                .map(|case| case_words(config, case))
                .collect(),
        })
    }
}
