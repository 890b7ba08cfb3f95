//! The two rules that no fault may break: a VM runs at most once, and a disk has one writer.

use std::collections::BTreeMap;

use lab_protocol::{Event, Phase, PoolMark, Record, Role};

use super::{Check, Evidence, at};

/// A host that goes on after a freeze says within this time that its guests have to stand still.
const SOON_NS: u64 = 1_000_000_000;

/// A stretch of time in which a copy of a VM certainly ran on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    host: String,
    start_ns: u64,
    end_ns: u64,
}

/// The stretches of one VM. Where stamps are uncertain a stretch is taken as short as it can be: what is reported has happened.
fn stretches(records: &[Record], vm: &str) -> Vec<Stretch> {
    let mut ordered: Vec<&Record> = records.iter().collect();
    ordered.sort_by_key(|record| record.t_ns);
    let mut running: BTreeMap<String, u64> = BTreeMap::new();
    let mut paused: Vec<String> = Vec::new();
    let mut found = Vec::new();
    let mut end = |running: &mut BTreeMap<String, u64>, host: &str, t_ns: u64| -> bool {
        let Some(start_ns) = running.remove(host) else {
            return false;
        };
        found.push(Stretch {
            host: host.to_owned(),
            start_ns,
            end_ns: t_ns,
        });
        true
    };
    for record in ordered {
        let (early, late) = (
            record.t_ns.saturating_sub(record.error_ns),
            record.t_ns.saturating_add(record.error_ns),
        );
        match &record.event {
            Event::FirstInstruction { vm: one, host } if one == vm => {
                running.entry(host.clone()).or_insert(late);
            }
            Event::MigrationPhase {
                vm: one,
                host,
                role: Role::Source,
                phase,
                ..
            } if one == vm => match phase {
                Phase::Drain if end(&mut running, host, early) => paused.push(host.clone()),
                // It goes on where it was stopped.
                Phase::Aborted if paused.contains(host) => {
                    paused.retain(|other| other != host);
                    running.entry(host.clone()).or_insert(late);
                }
                Phase::Finished => paused.retain(|other| other != host),
                _ => {}
            },
            Event::Pool { host, mark, .. } => match mark {
                PoolMark::PermitLapsed if end(&mut running, host, early) => {
                    paused.push(host.clone());
                }
                PoolMark::PermitBack if paused.contains(host) => {
                    paused.retain(|other| other != host);
                    running.entry(host.clone()).or_insert(late);
                }
                _ => {}
            },
            Event::VmStopped { vm: one, host, .. } if one == vm => {
                end(&mut running, host, early);
                paused.retain(|other| other != host);
            }
            Event::HostPower { host, state } => match state.as_str() {
                "pulled" | "died" | "power-off" => {
                    end(&mut running, host, early);
                    paused.retain(|other| other != host);
                }
                "frozen" if end(&mut running, host, early) => paused.push(host.clone()),
                // In a pool its guests may have to stand still from its first look at the clock on, and it says so.
                "thawed"
                    if paused.contains(host)
                        && !stands_still(records, host, record.t_ns)
                        && !is_gone(records, vm, host, record.t_ns) =>
                {
                    paused.retain(|other| other != host);
                    running.entry(host.clone()).or_insert(late);
                }
                _ => {}
            },
            _ => {}
        }
    }
    let last = records.iter().map(|record| record.t_ns).max().unwrap_or(0);
    let hosts: Vec<String> = running.keys().cloned().collect();
    for host in hosts {
        end(&mut running, &host, last);
    }
    found
}

/// Whether the first that a host says of its permit to run guests, from this moment on, is that it has none.
fn stands_still(records: &[Record], host: &str, since_ns: u64) -> bool {
    let of_host = records.iter().filter_map(|record| match &record.event {
        Event::Pool {
            host: who, mark, ..
        } if who == host && record.t_ns >= since_ns => Some((record.t_ns, *mark)),
        _ => None,
    });
    let first = of_host
        .filter(|(_, mark)| {
            matches!(
                mark,
                PoolMark::PermitLapsed | PoolMark::PermitBack | PoolMark::SelfFenced
            )
        })
        .min_by_key(|(t_ns, _)| *t_ns);
    first.is_some_and(|(t_ns, mark)| mark != PoolMark::PermitBack && t_ns < since_ns + SOON_NS)
}

/// Whether the first status of a host after this moment knows nothing of a VM: what it did before could not be heard.
fn is_gone(records: &[Record], vm: &str, host: &str, since_ns: u64) -> bool {
    let mut later = records.iter().filter(|record| record.t_ns >= since_ns);
    let of_host =
        |record: &Record| matches!(&record.event, Event::HostStatus { host: of, .. } if of == host);
    if !later.by_ref().any(of_host) {
        return false;
    }
    // The status of each VM follows its host's.
    !later
        .take_while(|record| !of_host(record))
        .any(|record| matches!(&record.event, Event::VmStatus { vm: one, host: of, .. } if one == vm && of == host))
}

/// At most one copy of each VM runs at any time.
pub(super) fn one_copy(evidence: &Evidence<'_>) -> Option<Check> {
    let mut wrong = None;
    let mut seen = 0;
    for guest in evidence.scenario.guests.get_ref() {
        let vm = guest.name.get_ref();
        let all = stretches(evidence.records, vm);
        seen += all.len();
        for (index, one) in all.iter().enumerate() {
            for other in &all[index + 1..] {
                let (from, to) = (
                    one.start_ns.max(other.start_ns),
                    one.end_ns.min(other.end_ns),
                );
                if one.host != other.host && from < to {
                    wrong.get_or_insert_with(|| {
                        format!(
                            "{vm} ran on {} and on {} from {} to {}",
                            one.host,
                            other.host,
                            at(from),
                            at(to)
                        )
                    });
                }
            }
        }
    }
    (seen > 0).then(|| {
        Check::new(
            "one-copy",
            wrong,
            format!("{seen} stretches of running, none overlap"),
        )
    })
}

/// A disk has one owner in each epoch of its lease, and epochs only rise.
pub(super) fn one_writer(evidence: &Evidence<'_>) -> Option<Check> {
    let mut owners: BTreeMap<(&str, u64), &str> = BTreeMap::new();
    let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong = None;
    for record in evidence.records {
        let Event::Lease {
            path,
            epoch,
            owner,
            change,
        } = &record.event
        else {
            continue;
        };
        // Of readers that a server found at its start each has an epoch of its own, in no order.
        let rises = match change.as_str() {
            "acquired" | "transferred" | "held" => true,
            "shared" => false,
            _ => continue,
        };
        let before = owners.insert((path, *epoch), owner);
        if before.is_some_and(|before| before != owner) {
            wrong.get_or_insert_with(|| {
                format!(
                    "epoch {epoch} of {path} had two owners: {} and {owner}",
                    before.unwrap_or_default()
                )
            });
        }
        let last = latest.entry(path).or_insert(0);
        if rises && *epoch < *last {
            wrong.get_or_insert_with(|| {
                format!(
                    "{path} went back from epoch {last} to {epoch} at {}",
                    at(record.t_ns)
                )
            });
        }
        *last = (*last).max(*epoch);
    }
    (!owners.is_empty()).then(|| {
        Check::new(
            "one-writer",
            wrong,
            format!(
                "{} epochs of {} disks, one owner each",
                owners.len(),
                latest.len()
            ),
        )
    })
}
