//! What people are told. Every event is a sentence; names are filled in where the configuration is known.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{
    capacity::Shortage,
    config::{HostId, PoolConfig, VmIndex},
};

/// Why something that came in was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not what it should be.
    #[error("it is not a heartbeat of this pool's version")]
    Malformed,
    /// Another pool's.
    #[error("it comes from another pool")]
    OtherPool,
    /// The seal is wrong.
    #[error("its seal was not made with the pool's key")]
    Forged,
    /// It has been heard before, or belongs to an earlier boot.
    #[error("it is older than what was heard before")]
    Replayed,
    /// A damaged slot.
    #[error("{0}")]
    Slot(statefile::Bad),
}

/// Why a host stopped its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceCause {
    /// The others have gone on without it.
    Excluded {
        /// Generation of the table that does not list it.
        generation: u64,
    },
    /// Its storage fails while another's works.
    StorageLost {
        /// For whom it works.
        works_for: HostId,
    },
    /// It sees neither the storage nor all the others.
    Alone,
}

/// Why a host is no longer in the liveset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// No sign of it on either path.
    Silent,
    /// It said that it has stopped its guests.
    FencedItself,
    /// It has booted anew.
    Rebooted,
}

/// Something that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host gives no sign on either path.
    Suspected {
        /// Which.
        host: HostId,
    },
    /// A suspected host is heard of again.
    Heard {
        /// Which.
        host: HostId,
        /// For how long it was silent.
        silent_ms: u64,
    },
    /// A host is declared dead: detection ends.
    DeclaredDead {
        /// Which.
        host: HostId,
        /// How long it had been silent.
        silent_ms: u64,
    },
    /// The hosts agree on who is there: agreement ends.
    Liveset {
        /// Generation.
        generation: u64,
        /// The coordinator.
        coordinator: HostId,
        /// All in it.
        members: Vec<HostId>,
        /// Who is no longer, and why.
        departed: Vec<(HostId, Departure)>,
    },
    /// A VM's leases are taken: nothing its old host does reaches its disks.
    Fenced {
        /// Which VM.
        vm: VmIndex,
    },
    /// A VM is to start anew: the decision ends.
    Restart {
        /// Which VM.
        vm: VmIndex,
        /// Where.
        host: HostId,
        /// Which attempt.
        attempt: u16,
        /// Why.
        cause: RestartCause,
    },
    /// A VM runs again.
    Restarted {
        /// Which VM.
        vm: VmIndex,
        /// Where.
        host: HostId,
    },
    /// A VM is not restarted, for now or for good.
    NotRestarted {
        /// Which VM.
        vm: VmIndex,
        /// Why.
        why: NotRestarted,
    },
    /// The pool can bear so many failures; or why not.
    Protection {
        /// Failures that can be borne.
        tolerated: u8,
        /// What breaks one more.
        shortage: Option<Shortage>,
    },
    /// Guests stand still: others may not know that this host lives.
    PermitLapsed,
    /// Guests may run again.
    PermitBack {
        /// For how long they stood still.
        lapsed_ms: u64,
    },
    /// This host stops its guests.
    SelfFenced(FenceCause),
    /// This host is in the liveset.
    Joined {
        /// Generation.
        generation: u64,
    },
    /// The statefile no longer answers, or does again.
    Storage {
        /// Whether it does.
        up: bool,
    },
    /// Something that came in was ignored; so many of its kind since the last such event.
    Ignored {
        /// Whose it claims to be, as far as it can be told.
        host: Option<HostId>,
        /// Why.
        fault: Fault,
        /// How many.
        count: u32,
    },
    /// The host's clock has jumped, or the host stood still.
    ClockJumped {
        /// Milliseconds ahead; back if negative.
        ms: i64,
    },
    /// The pool's lease file is missing, so nothing can be decided.
    NoPoolFile,
}

/// Why a VM is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestartCause {
    /// Its host has left the liveset.
    #[error("its host is gone")]
    HostGone,
    /// Its host lives, and has not reported it for a while; neither has another.
    #[error("no host has it any more")]
    Vanished,
    /// It was not in reach when its pool was: its leases had an owner when all hosts had lost their power.
    #[error("its leases say that it ran when the pool lost its memory")]
    LeaseHeld,
    /// The attempt before this one.
    #[error("the attempt before has failed")]
    StartFailed,
}

/// Why a VM is not restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRestarted {
    /// No host has room.
    NoRoom {
        /// MiB it needs.
        needed_mib: u32,
        /// MiB of the host with the most free.
        largest_free_mib: u32,
    },
    /// It failed to start too often.
    TooManyAttempts(u16),
    /// Its leases belong to a host that lives.
    HeldBy(HostId),
}

impl Event {
    /// The sentence.
    #[must_use]
    pub fn explain<'a>(&'a self, config: &'a PoolConfig) -> Explained<'a> {
        Explained {
            event: self,
            config,
        }
    }
}

/// An event as a sentence with names.
#[derive(Clone, Copy, Debug)]
pub struct Explained<'a> {
    event: &'a Event,
    config: &'a PoolConfig,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |id: &HostId| self.config.host_name(*id);
        let vm = |id: &VmIndex| self.config.vm_name(*id);
        match self.event {
            Event::Suspected { host: id } => {
                write!(f, "host {} gives no sign on network or storage", host(id))
            }
            Event::Heard {
                host: id,
                silent_ms,
            } => {
                write!(f, "host {} is heard again after {silent_ms} ms", host(id))
            }
            Event::DeclaredDead {
                host: id,
                silent_ms,
            } => {
                write!(f, "host {} is dead: silent for {silent_ms} ms", host(id))
            }
            Event::Liveset {
                generation,
                coordinator,
                members,
                departed,
            } => {
                let members: Vec<_> = members.iter().map(host).collect();
                write!(
                    f,
                    "generation {generation}: {} of {} hosts, {} decides",
                    members.join(", "),
                    self.config.hosts.len(),
                    host(coordinator)
                )?;
                for (id, why) in departed {
                    let why = match why {
                        Departure::Silent => "is dead",
                        Departure::FencedItself => "has fenced itself",
                        Departure::Rebooted => "has booted anew",
                    };
                    write!(f, "; {} {why}", host(id))?;
                }
                Ok(())
            }
            Event::Fenced { vm: id } => write!(f, "VM {}: its disks are fenced", vm(id)),
            Event::Restart {
                vm: id,
                host: target,
                attempt,
                cause,
            } => write!(
                f,
                "VM {} shall start on {}, which has the most memory free: {cause}; attempt {attempt}",
                vm(id),
                host(target)
            ),
            Event::Restarted { vm: id, host: at } => {
                write!(f, "VM {} runs again, on {}", vm(id), host(at))
            }
            Event::NotRestarted { vm: id, why } => {
                write!(f, "VM {} is not restarted: ", vm(id))?;
                match why {
                    NotRestarted::NoRoom {
                        needed_mib,
                        largest_free_mib,
                    } => write!(
                        f,
                        "it needs {needed_mib} MiB, and no host has more than {largest_free_mib} MiB free"
                    ),
                    NotRestarted::TooManyAttempts(count) => {
                        write!(f, "it failed to start {count} times; start it by hand")
                    }
                    NotRestarted::HeldBy(id) => {
                        write!(f, "host {} lives and holds its disks", host(id))
                    }
                }
            }
            Event::Protection {
                tolerated,
                shortage,
            } => {
                let plural = if *tolerated == 1 { "" } else { "s" };
                write!(f, "the pool can bear {tolerated} host failure{plural}")?;
                match shortage {
                    Some(shortage) => write!(f, "; {}", shortage.explain(self.config)),
                    None => Ok(()),
                }
            }
            Event::PermitLapsed => {
                f.write_str("guests stand still: others may not know that this host lives")
            }
            Event::PermitBack { lapsed_ms } => {
                write!(f, "guests may run again after {lapsed_ms} ms")
            }
            Event::SelfFenced(cause) => {
                f.write_str("this host stops its guests: ")?;
                match cause {
                    FenceCause::Excluded { generation } => write!(
                        f,
                        "the others have gone on without it in generation {generation}"
                    ),
                    FenceCause::StorageLost { works_for } => write!(
                        f,
                        "the storage fails here, and works for {}",
                        host(works_for)
                    ),
                    FenceCause::Alone => {
                        f.write_str("it sees neither the storage nor all other hosts")
                    }
                }
            }
            Event::Joined { generation } => {
                write!(f, "this host is in the pool, generation {generation}")
            }
            Event::Storage { up: true } => f.write_str("the statefile answers"),
            Event::Storage { up: false } => f.write_str("the statefile does not answer"),
            Event::Ignored {
                host: whose,
                fault,
                count,
            } => {
                let plural = if *count == 1 { "" } else { "s" };
                write!(f, "{count} heartbeat{plural} or slot{plural} ignored")?;
                if let Some(id) = whose {
                    write!(f, ", said to be of {}", host(id))?;
                }
                write!(f, ": {fault}")
            }
            Event::ClockJumped { ms } => {
                write!(f, "the clock jumped by {ms} ms, or this host stood still")
            }
            Event::NoPoolFile => f.write_str(
                "the pool's file is missing in the repository: create it to have VMs protected",
            ),
        }
    }
}

/// An event with a sentence of its own, for logs.
pub(crate) fn names(config: &PoolConfig, hosts: &[HostId]) -> String {
    let names: Vec<_> = hosts.iter().map(|host| config.host_name(*host)).collect();
    names.join(" and ")
}
