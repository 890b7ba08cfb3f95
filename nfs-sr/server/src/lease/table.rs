//! The table of leases and the rules by which they change hands.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use nfs3::lease::{LeaseStatus, MAX_TTL_MS, Mode};

use super::{
    journal::{Change, Journal, JournalError, Record},
    state::{Lease, NEVER, View, apply, snapshot},
};
use crate::{
    events::{Event, Events},
    file_io::Disk,
    handles::FileId,
    node::Node,
};

/// What a call wants to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read data.
    Read,
    /// Change data or attributes.
    Write,
}

/// Why a lease forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The handle's epoch is over.
    Stale,
    /// The file is leased to somebody else, or for reading only.
    NotHolder,
}

/// A refusal, with the state that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub status: LeaseStatus,
    /// State.
    pub view: View,
}

/// Most readers of one file.
const MAX_READERS: usize = 1024;

/// What becomes of a lease: records to be written, and the name of the event.
struct Decision {
    steps: Vec<(u64, Change)>,
    event: &'static str,
}

fn decided(event: &'static str, epoch: u64, change: Change) -> Result<Decision, LeaseStatus> {
    Ok(Decision {
        steps: vec![(epoch, change)],
        event,
    })
}

/// All leases of an export.
pub struct Leases {
    table: RwLock<HashMap<FileId, Lease>>,
    /// Taken for the whole of every change, so changes are in the journal in the order in which they happen.
    journal: Mutex<Journal>,
    /// Off only as a negative control of tests.
    enforced: bool,
}

impl Leases {
    /// The leases in the journal in `dir`.
    pub fn open(
        dir: &Path,
        disk: Arc<dyn Disk>,
        sync: bool,
        enforced: bool,
        now: Instant,
    ) -> Result<Self, JournalError> {
        let (records, sequence) = Journal::read(dir)?;
        let mut table = HashMap::new();
        for record in &records {
            apply(&mut table, record, now);
        }
        let journal = Journal::start(dir, &snapshot(&table), sequence, disk, sync)?;
        Ok(Self {
            table: RwLock::new(table),
            journal: Mutex::new(journal),
            enforced,
        })
    }

    /// Whether a call with a handle of `epoch` may do what it wants. The caller holds the node's fence.
    pub fn check(&self, id: FileId, epoch: u64, access: Access) -> Result<(), Denied> {
        let table = self.read();
        let Some(lease) = table.get(&id) else {
            return if epoch == 0 {
                Ok(())
            } else {
                self.deny(Denied::Stale)
            };
        };
        match (epoch, access) {
            (0, Access::Read) => Ok(()),
            (0, Access::Write) if !lease.holders.is_empty() => self.deny(Denied::NotHolder),
            (0, Access::Write) => Ok(()),
            (epoch, _) if lease.holder(epoch).is_none() => self.deny(Denied::Stale),
            (_, Access::Write) if lease.mode == Mode::Shared => self.deny(Denied::NotHolder),
            _ => Ok(()),
        }
    }

    fn deny(&self, denied: Denied) -> Result<(), Denied> {
        if self.enforced { Err(denied) } else { Ok(()) }
    }

    /// The file is leased, so it must not be removed or replaced.
    pub fn is_held(&self, id: FileId, now: Instant) -> bool {
        self.read().get(&id).is_some_and(|lease| lease.is_held(now))
    }

    /// State of a lease.
    pub fn view(&self, id: FileId, now: Instant) -> View {
        self.read().get(&id).map_or(NEVER, |lease| lease.view(now))
    }

    /// All leases that have a holder, expired or not; one that several readers share, once for each.
    pub fn list(&self, now: Instant) -> Vec<(PathBuf, View)> {
        let table = self.read();
        let holders = table.values().flat_map(|lease| {
            lease.holders.iter().map(|holder| {
                let view = View {
                    epoch: holder.epoch,
                    mode: lease.mode,
                    owner: holder.owner.clone(),
                    remaining_ms: holder.remaining_ms(now),
                };
                (lease.path.clone(), view)
            })
        });
        let mut list: Vec<_> = holders.collect();
        list.sort_by(|a, b| (&a.0, a.1.epoch).cmp(&(&b.0, b.1.epoch)));
        list
    }

    /// Reports whose every lease is. To be called before the first call is served: what is reported later are changes.
    pub fn report_all(&self, now: Instant, events: &Events) {
        let table = self.read();
        let mut leases: Vec<&Lease> = table.values().collect();
        leases.sort_by(|a, b| a.path.cmp(&b.path));
        for lease in leases {
            let report = |epoch, owner: &[u8], change, remaining_ms| {
                events.report(&Event::Lease {
                    path: lease.path.display().to_string(),
                    epoch,
                    owner: String::from_utf8_lossy(owner).into_owned(),
                    change,
                    remaining_ms,
                });
            };
            let change = match lease.mode {
                Mode::Exclusive => "held",
                Mode::Shared => "shared",
            };
            for holder in &lease.holders {
                let remaining_ms = Some(holder.remaining_ms(now));
                report(holder.epoch, &holder.owner, change, remaining_ms);
            }
            if lease.holders.is_empty() {
                report(lease.epoch, &[], "free", None);
            }
        }
    }

    /// ACQUIRE.
    #[allow(clippy::too_many_arguments)]
    pub fn acquire(
        &self,
        node: &Node,
        owner: &[u8],
        mode: Mode,
        expected_epoch: u64,
        ttl_ms: u32,
        now: Instant,
        events: &Events,
    ) -> Result<View, Refusal> {
        self.change(
            node,
            now,
            events,
            |lease| {
                check_ttl(ttl_ms)?;
                let epoch = lease.map_or(0, |lease| lease.epoch);
                let shares =
                    mode == Mode::Shared && lease.is_some_and(|lease| lease.mode == Mode::Shared);
                let holders = lease.map_or(&[][..], |lease| &lease.holders);
                let own = holders
                    .iter()
                    .find(|holder| holder.epoch == expected_epoch && holder.owner == owner);
                let others = holders
                    .iter()
                    .any(|holder| holder.expires > now && Some(holder) != own);
                if expected_epoch != 0 && own.is_none() && expected_epoch != epoch {
                    return Err(LeaseStatus::Stale);
                }
                // Who expects an epoch means its own lease, and joins nobody else's.
                let joins = shares && (expected_epoch == 0 || own.is_some());
                if others && !joins || joins && holders.len() >= MAX_READERS {
                    return Err(LeaseStatus::Held);
                }
                let leaves = own.filter(|_| shares).map(|own| (own.epoch, Change::Left));
                let change = match mode {
                    Mode::Exclusive => Change::Exclusive,
                    Mode::Shared => Change::Shared,
                };
                Ok(Decision {
                    steps: leaves.into_iter().chain([(epoch + 1, change)]).collect(),
                    event: "acquired",
                })
            },
            owner,
            ttl_ms,
        )
    }

    /// TAKE.
    pub fn take(
        &self,
        node: &Node,
        owner: &[u8],
        expected_epoch: u64,
        ttl_ms: u32,
        now: Instant,
        events: &Events,
    ) -> Result<View, Refusal> {
        let repeated = self.view(node.id, now);
        if repeated.epoch == expected_epoch + 1
            && repeated.owner == owner
            && repeated.mode == Mode::Exclusive
        {
            return Ok(repeated);
        }
        self.change(
            node,
            now,
            events,
            |lease| {
                check_ttl(ttl_ms)?;
                let epoch = lease.map_or(0, |lease| lease.epoch);
                if lease.is_some_and(|lease| lease.mode == Mode::Shared && lease.is_held(now)) {
                    return Err(LeaseStatus::Held);
                }
                if epoch != expected_epoch || epoch == 0 {
                    return Err(LeaseStatus::Stale);
                }
                decided("transferred", epoch + 1, Change::Exclusive)
            },
            owner,
            ttl_ms,
        )
    }

    /// RENEW: not journaled, see the module.
    pub fn renew(
        &self,
        id: FileId,
        epoch: u64,
        ttl_ms: u32,
        now: Instant,
    ) -> Result<View, Refusal> {
        let mut table = self.table.write().expect("nothing panics under the lock");
        let lease = table.get_mut(&id);
        let view = lease.as_ref().map_or(NEVER, |lease| lease.view(now));
        let refuse = |status| {
            Err(Refusal {
                status,
                view: view.clone(),
            })
        };
        if ttl_ms == 0 || ttl_ms > MAX_TTL_MS {
            return refuse(LeaseStatus::Inval);
        }
        let holder = lease.and_then(|lease| {
            let holder = lease
                .holders
                .iter_mut()
                .find(|holder| holder.epoch == epoch)?;
            Some((lease.mode, holder))
        });
        let Some((mode, holder)) = holder else {
            return refuse(LeaseStatus::Stale);
        };
        holder.expires = now + Duration::from_millis(ttl_ms.into());
        holder.ttl_ms = ttl_ms;
        Ok(View {
            epoch,
            mode,
            owner: holder.owner.clone(),
            remaining_ms: holder.remaining_ms(now),
        })
    }

    /// RELEASE by the handle of `epoch`. Other readers keep their lease.
    pub fn release(
        &self,
        node: &Node,
        epoch: u64,
        now: Instant,
        events: &Events,
    ) -> Result<View, Refusal> {
        self.change(
            node,
            now,
            events,
            |lease| match lease {
                Some(lease) if lease.holder(epoch).is_some() => {
                    decided("released", epoch, Change::Left)
                }
                _ => Err(LeaseStatus::Stale),
            },
            &[],
            0,
        )
    }

    /// BREAK.
    pub fn break_lease(&self, node: &Node, now: Instant, events: &Events) -> Result<View, Refusal> {
        self.change(
            node,
            now,
            events,
            |lease| {
                let epoch = lease.map_or(0, |lease| lease.epoch);
                decided("broken", epoch + 1, Change::Free)
            },
            &[],
            0,
        )
    }

    /// REPLACE: gives the holder of one file's lease that of its successor, then has `rename` put that in its place. No lease
    /// changes meanwhile, so nobody becomes the owner of a file whose name it has just lost.
    ///
    /// The epochs of the name go on rising.
    pub fn replace(
        &self,
        (node, epoch): (&Node, u64),
        (successor, path): (&Node, &Path),
        (owner, ttl_ms): (&[u8], u32),
        now: Instant,
        events: &Events,
        rename: impl FnOnce() -> io::Result<()>,
    ) -> Result<View, Refusal> {
        let mut journal = self.journal.lock().expect("nothing panics under the lock");
        let (holds, theirs, known, view) = {
            let table = self.read();
            let lease = table.get(&node.id);
            let next = table.get(&successor.id);
            let holds = lease.is_some_and(|lease| {
                lease.mode == Mode::Exclusive
                    && lease.holder(epoch).is_some_and(|one| one.owner == owner)
            });
            let theirs = next.is_some_and(|lease| {
                let mut holders = lease.holders.iter();
                holders.any(|one| one.expires > now && one.owner != owner)
            });
            let view = lease.map_or(NEVER, |lease| lease.view(now));
            (holds, theirs, next.map_or(0, |lease| lease.epoch), view)
        };
        let refused = |status| Refusal {
            status,
            view: view.clone(),
        };
        check_ttl(ttl_ms).map_err(refused)?;
        if !holds {
            return Err(refused(LeaseStatus::Stale));
        }
        if theirs {
            return Err(refused(LeaseStatus::Held));
        }
        let record = Record {
            id: successor.id,
            epoch: epoch.max(known) + 1,
            ttl_ms,
            change: Change::Exclusive,
            owner: owner.to_vec(),
            path: path.to_owned(),
        };
        let durable = match journal.has_room(1) {
            true => Ok(()),
            false => journal.compact(&snapshot(&self.read())),
        }
        .and_then(|()| journal.append(std::slice::from_ref(&record)));
        let failed = |error: String| {
            events.report(&Event::StorageFailed {
                path: path.display().to_string(),
                error,
            });
            refused(LeaseStatus::Io)
        };
        durable.map_err(|error| failed(error.to_string()))?;
        let after = {
            let _fence = successor
                .fence
                .write()
                .expect("nothing panics under the fence");
            let mut table = self.table.write().expect("nothing panics under the lock");
            apply(&mut table, &record, now);
            table
                .get(&successor.id)
                .map_or(NEVER, |lease| lease.view(now))
        };
        rename().map_err(|error| failed(error.to_string()))?;
        events.report(&Event::Lease {
            path: path.display().to_string(),
            epoch: record.epoch,
            owner: String::from_utf8_lossy(owner).into_owned(),
            change: "transferred",
            remaining_ms: None,
        });
        Ok(after)
    }

    /// Decides a change, makes it durable, and only then lets it take effect, with no I/O on the file under way.
    fn change(
        &self,
        node: &Node,
        now: Instant,
        events: &Events,
        decide: impl FnOnce(Option<&Lease>) -> Result<Decision, LeaseStatus>,
        owner: &[u8],
        ttl_ms: u32,
    ) -> Result<View, Refusal> {
        let mut journal = self.journal.lock().expect("nothing panics under the lock");
        let (decision, before) = {
            let table = self.read();
            let lease = table.get(&node.id);
            (decide(lease), lease.cloned())
        };
        let view = before.as_ref().map_or(NEVER, |lease| lease.view(now));
        let refused = |status| Refusal {
            status,
            view: view.clone(),
        };
        let Decision { steps, event } = decision.map_err(refused)?;
        let records: Vec<Record> = steps
            .into_iter()
            .map(|(epoch, change)| Record {
                id: node.id,
                epoch,
                ttl_ms,
                change,
                owner: owner.to_vec(),
                path: node.path(),
            })
            .collect();
        let durable = match journal.has_room(records.len()) {
            true => Ok(()),
            false => journal.compact(&snapshot(&self.read())),
        }
        .and_then(|()| journal.append(&records));
        if let Err(error) = durable {
            events.report(&Event::StorageFailed {
                path: node.path().display().to_string(),
                error: error.to_string(),
            });
            return Err(refused(LeaseStatus::Io));
        }
        let after = {
            let _fence = node.fence.write().expect("nothing panics under the fence");
            let mut table = self.table.write().expect("nothing panics under the lock");
            records
                .iter()
                .for_each(|record| apply(&mut table, record, now));
            table.get(&node.id).map_or(NEVER, |lease| lease.view(now))
        };
        let report = |epoch, owner: &[u8], change| {
            events.report(&Event::Lease {
                path: node.path().display().to_string(),
                epoch,
                owner: String::from_utf8_lossy(owner).into_owned(),
                change,
                remaining_ms: None,
            });
        };
        if !owner.is_empty() && !view.owner.is_empty() && view.remaining_ms == 0 {
            report(view.epoch, &view.owner, "expired");
        }
        let epoch = records.last().map_or(0, |record| record.epoch);
        let left = before.as_ref().and_then(|lease| lease.holder(epoch));
        let subject = match left {
            _ if !owner.is_empty() => owner,
            Some(holder) => &holder.owner,
            None => &view.owner,
        };
        report(epoch, subject, event);
        Ok(after)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<FileId, Lease>> {
        self.table.read().expect("nothing panics under the lock")
    }
}

/// Who holds which file by the journal in `dir`, for tools that look while the server may be running.
pub fn holders(dir: &Path) -> Result<Vec<(FileId, Vec<u8>)>, JournalError> {
    let (records, _) = Journal::read(dir)?;
    let mut table = HashMap::new();
    let now = Instant::now();
    records
        .iter()
        .for_each(|record| apply(&mut table, record, now));
    let holders = table.into_iter().flat_map(|(id, lease)| {
        lease
            .holders
            .into_iter()
            .map(move |holder| (id, holder.owner))
    });
    Ok(holders.collect())
}

fn check_ttl(ttl_ms: u32) -> Result<(), LeaseStatus> {
    if (1..=MAX_TTL_MS).contains(&ttl_ms) {
        Ok(())
    } else {
        Err(LeaseStatus::Inval)
    }
}
