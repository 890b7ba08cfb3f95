//! A host's failure and what came of it, from the pull of its plug to the first key on the screen of the restarted guest.
//!
//! Each step's end is an event of whoever did it; hosts' stamps are mapped to the lab's clock. What is not in the log is not
//! guessed: such a step has no time. Placing a VM is no step of its own: the coordinator does it in the same turn in which it
//! asks for the leases, so its time is part of fencing.

use lab_protocol::{Event, PoolMark, Record};

/// What became of one VM whose host failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// The host that failed.
    pub host: String,
    /// The VM.
    pub vm: String,
    /// When its plug was pulled, or when it was frozen.
    pub began_ns: u64,
    /// Another host declared it dead.
    pub detected_ns: Option<u64>,
    /// The new liveset was written.
    pub agreed_ns: Option<u64>,
    /// The VM's leases were taken for another host.
    pub fenced_ns: Option<u64>,
    /// It was decided who starts it.
    pub decided_ns: Option<u64>,
    /// Its first instruction on another host.
    pub started_ns: Option<u64>,
    /// Its service accepts connections again.
    pub service_ns: Option<u64>,
    /// A new session is open.
    pub opened_ns: Option<u64>,
    /// The echo of the first key of it.
    pub echo_ns: Option<u64>,
    /// The largest error of a stamp of a host among these.
    pub error_ns: u64,
    /// Keys typed into the lost session since its last saved document.
    pub keys_lost: u32,
}

impl Outage {
    /// The outages in a log, one for each VM that was restarted after its host had failed.
    #[must_use]
    pub fn all(records: &[Record]) -> Vec<Self> {
        let mut ordered: Vec<&Record> = records.iter().collect();
        ordered.sort_by_key(|record| record.t_ns);
        let mut found: Vec<Self> = Vec::new();
        for (index, record) in ordered.iter().enumerate() {
            let Event::HostPower { host, state } = &record.event else {
                continue;
            };
            if matches!(state.as_str(), "pulled" | "frozen" | "died") {
                let after = &ordered[index..];
                // What follows the next failure belongs to that one.
                let end = after[1..].iter().position(|later| {
                    matches!(&later.event, Event::HostPower { state, .. } if matches!(state.as_str(), "pulled" | "frozen" | "died"))
                });
                let after = &after[..end.map_or(after.len(), |end| end + 1)];
                for vm in restarted(after) {
                    found.push(Self::of(host, &vm, after));
                }
            }
        }
        found
    }

    fn of(failed: &str, vm: &str, records: &[&Record]) -> Self {
        let mut outage = Self {
            host: failed.into(),
            vm: vm.into(),
            began_ns: records.first().map_or(0, |record| record.t_ns),
            ..Self::default()
        };
        for record in records {
            let first = |place: &mut Option<u64>, after: Option<u64>, error: &mut u64| {
                if place.is_none()
                    && after.is_some_and(|after| record.t_ns + record.error_ns >= after)
                {
                    *place = Some(record.t_ns);
                    *error = (*error).max(record.error_ns);
                }
            };
            let began = Some(outage.began_ns);
            let error = &mut outage.error_ns;
            match &record.event {
                Event::Pool {
                    mark,
                    about,
                    vm: of,
                    ..
                } => {
                    let of_vm = of.as_deref() == Some(vm);
                    match mark {
                        PoolMark::DeclaredDead if about.as_deref() == Some(failed) => {
                            first(&mut outage.detected_ns, began, error);
                        }
                        PoolMark::Liveset => {
                            first(&mut outage.agreed_ns, outage.detected_ns, error);
                        }
                        PoolMark::Fenced if of_vm => first(&mut outage.fenced_ns, began, error),
                        PoolMark::Restart if of_vm => first(&mut outage.decided_ns, began, error),
                        _ => {}
                    }
                }
                Event::FirstInstruction { vm: of, host } if of == vm && host != failed => {
                    first(&mut outage.started_ns, began, error);
                }
                Event::Health {
                    vm: of,
                    healthy: true,
                    ..
                } if of == vm => {
                    first(&mut outage.service_ns, outage.started_ns, error);
                }
                Event::SessionOpen { vm: of } if of == vm => {
                    first(&mut outage.opened_ns, outage.started_ns, error);
                }
                Event::SessionLost {
                    vm: of, unsaved, ..
                } if of == vm => {
                    outage.keys_lost += unsaved;
                }
                _ => {}
            }
        }
        // Keys are recorded when their fate is known, so they are not in order.
        if let Some(open) = outage.opened_ns {
            outage.echo_ns = records
                .iter()
                .filter_map(|record| match record.event {
                    Event::Key {
                        sent_ns, echo_ns, ..
                    } if sent_ns >= open => echo_ns,
                    _ => None,
                })
                .min();
        }
        outage
    }

    /// From the pull to the declaration, in nanoseconds.
    #[must_use]
    pub fn detect_ns(&self) -> Option<u64> {
        Some(self.detected_ns? - self.began_ns)
    }

    /// From the declaration until the leases were taken; the placing is part of it.
    #[must_use]
    pub fn agree_and_fence_ns(&self) -> Option<u64> {
        Some(self.fenced_ns?.saturating_sub(self.detected_ns?))
    }

    /// From then until it was decided who starts the VM.
    #[must_use]
    pub fn decide_ns(&self) -> Option<u64> {
        Some(self.decided_ns?.saturating_sub(self.fenced_ns?))
    }

    /// From the decision to the first instruction.
    #[must_use]
    pub fn start_ns(&self) -> Option<u64> {
        Some(self.started_ns?.saturating_sub(self.decided_ns?))
    }

    /// From the first instruction until the service accepted connections.
    #[must_use]
    pub fn boot_ns(&self) -> Option<u64> {
        Some(self.service_ns?.saturating_sub(self.started_ns?))
    }

    /// From then until the first echo: the log-in, the program's start, the first key.
    #[must_use]
    pub fn session_ns(&self) -> Option<u64> {
        Some(self.echo_ns?.saturating_sub(self.service_ns?))
    }

    /// From the pull to the first echo.
    #[must_use]
    pub fn first_echo_ns(&self) -> Option<u64> {
        Some(self.echo_ns? - self.began_ns)
    }

    /// The same without the guest's boot.
    #[must_use]
    pub fn without_boot_ns(&self) -> Option<u64> {
        Some(self.first_echo_ns()?.saturating_sub(self.boot_ns()?))
    }
}

/// The VMs that the pool had restarted.
fn restarted(records: &[&Record]) -> Vec<String> {
    let mut vms: Vec<String> = Vec::new();
    for record in records {
        if let Event::Pool {
            mark: PoolMark::Restart,
            vm: Some(vm),
            ..
        } = &record.event
            && !vms.contains(vm)
        {
            vms.push(vm.clone());
        }
    }
    vms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(t_ms: u64, event: Event) -> Record {
        Record {
            schema: lab_protocol::SCHEMA,
            seq: t_ms,
            t_ns: t_ms * 1_000_000,
            error_ns: 0,
            source: String::new(),
            event,
        }
    }

    fn pool(t_ms: u64, mark: PoolMark, vm: Option<&str>, about: Option<&str>) -> Record {
        let (vm, about) = (vm.map(str::to_owned), about.map(str::to_owned));
        let host = "h2".into();
        record(
            t_ms,
            Event::Pool {
                host,
                mark,
                vm,
                about,
                text: String::new(),
            },
        )
    }

    fn power(t_ms: u64, host: &str, state: &str) -> Record {
        let (host, state) = (host.into(), state.into());
        record(t_ms, Event::HostPower { host, state })
    }

    #[test]
    fn each_step_is_the_time_between_two_events() {
        let vm = || "g".to_owned();
        let key = |index, sent: u64, echo: Option<u64>| Event::Key {
            index,
            text: String::new(),
            due_ns: sent * 1_000_000,
            sent_ns: sent * 1_000_000,
            echo_ns: echo.map(|ms| ms * 1_000_000),
        };
        let log = [
            record(10, Event::SessionOpen { vm: vm() }),
            record(900, key(0, 800, Some(850))),
            // Of an earlier failure.
            power(950, "h3", "pulled"),
            power(1000, "h1", "pulled"),
            pool(2300, PoolMark::DeclaredDead, None, Some("h1")),
            pool(2320, PoolMark::Liveset, None, Some("h2")),
            pool(2350, PoolMark::Fenced, Some("g"), None),
            pool(2351, PoolMark::Restart, Some("g"), Some("h2")),
            record(
                2500,
                Event::FirstInstruction {
                    vm: vm(),
                    host: "h2".into(),
                },
            ),
            record(
                3000,
                Event::SessionLost {
                    vm: vm(),
                    reason: String::new(),
                    unsaved: 7,
                },
            ),
            record(
                6500,
                Event::Health {
                    vm: vm(),
                    healthy: true,
                    detail: String::new(),
                },
            ),
            record(7200, Event::SessionOpen { vm: vm() }),
            record(7600, key(9, 7500, Some(7550))),
            record(7600, key(8, 7400, Some(7450))),
            power(8000, "h1", "power-on"),
        ];
        let all = Outage::all(&log);
        assert_eq!(all.len(), 1);
        let outage = &all[0];
        assert_eq!((outage.host.as_str(), outage.vm.as_str()), ("h1", "g"));
        let ms = |ns: Option<u64>| ns.map(|ns| ns / 1_000_000);
        assert_eq!(ms(outage.detect_ns()), Some(1300));
        assert_eq!(ms(outage.agree_and_fence_ns()), Some(50));
        assert_eq!(ms(outage.decide_ns()), Some(1));
        assert_eq!(ms(outage.start_ns()), Some(149));
        assert_eq!(ms(outage.boot_ns()), Some(4000));
        assert_eq!(ms(outage.session_ns()), Some(950));
        assert_eq!(ms(outage.first_echo_ns()), Some(6450));
        assert_eq!(ms(outage.without_boot_ns()), Some(2450));
        assert_eq!(outage.keys_lost, 7);
    }

    #[test]
    fn a_step_that_nobody_has_told_has_no_time() {
        let log = [
            power(0, "h1", "pulled"),
            pool(1300, PoolMark::Restart, Some("g"), Some("h2")),
        ];
        let outage = &Outage::all(&log)[0];
        assert_eq!(outage.detect_ns(), None);
        assert_eq!(outage.first_echo_ns(), None);
        assert_eq!(Outage::all(&log[..1]), []);
    }
}
