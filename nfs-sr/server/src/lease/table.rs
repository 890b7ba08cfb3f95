//! The table of leases and the rules by which they change hands.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use nfs3::lease::{LeaseStatus, MAX_TTL_MS, Mode};

use super::journal::{Change, Journal, JournalError, Record};
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

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows with every change of holder.
    pub epoch: u64,
    /// What it allows.
    pub mode: Mode,
    /// Who holds it; of several readers, the last that came.
    pub owner: Option<Vec<u8>>,
    /// Until when.
    pub expires: Instant,
    /// Time that was asked for.
    pub ttl_ms: u32,
    /// Where the file was found when the lease last changed.
    pub path: PathBuf,
}

/// State of a lease for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Epoch; 0 if there never was a lease.
    pub epoch: u64,
    /// What it allows.
    pub mode: Mode,
    /// Who holds it, empty if nobody; of several readers, the last that came.
    pub owner: Vec<u8>,
    /// Time left.
    pub remaining_ms: u32,
}

/// A refusal, with the state that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub status: LeaseStatus,
    /// State.
    pub view: View,
}

impl Lease {
    fn is_held(&self, now: Instant) -> bool {
        self.owner.is_some() && self.expires > now
    }

    fn view(&self, now: Instant) -> View {
        let remaining = self.expires.saturating_duration_since(now).as_millis() as u32;
        View {
            epoch: self.epoch,
            mode: self.mode,
            owner: self.owner.clone().unwrap_or_default(),
            remaining_ms: if self.owner.is_some() { remaining } else { 0 },
        }
    }
}

/// No lease was ever granted.
const NEVER: View = View {
    epoch: 0,
    mode: Mode::Exclusive,
    owner: Vec::new(),
    remaining_ms: 0,
};

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
        let held = lease.owner.is_some();
        match (epoch, access) {
            (0, Access::Read) => Ok(()),
            (0, Access::Write) if held => self.deny(Denied::NotHolder),
            (0, Access::Write) => Ok(()),
            (epoch, _) if epoch != lease.epoch || !held => self.deny(Denied::Stale),
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

    /// All leases that have a holder, expired or not.
    pub fn list(&self, now: Instant) -> Vec<(PathBuf, View)> {
        let table = self.read();
        let mut list: Vec<_> = table
            .values()
            .filter(|lease| lease.owner.is_some())
            .map(|lease| (lease.path.clone(), lease.view(now)))
            .collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
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
                let view = lease.map_or(NEVER, |lease| lease.view(now));
                let held = lease.is_some_and(|lease| lease.is_held(now));
                let own = view.owner == owner;
                let change = match mode {
                    Mode::Exclusive => Change::Exclusive,
                    Mode::Shared => Change::Shared,
                };
                if expected_epoch != 0 {
                    return match (view.epoch == expected_epoch, own || !held) {
                        (true, true) => Ok((view.epoch + 1, change, "acquired")),
                        (true, false) => Err(LeaseStatus::Held),
                        (false, _) => Err(LeaseStatus::Stale),
                    };
                }
                let joins = mode == Mode::Shared && held && view.mode == Mode::Shared;
                match (held, joins) {
                    (false, _) => Ok((view.epoch + 1, change, "acquired")),
                    (true, true) => Ok((view.epoch, change, "acquired")),
                    (true, false) => Err(LeaseStatus::Held),
                }
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
                Ok((epoch + 1, Change::Exclusive, "transferred"))
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
        let Some(lease) = lease else {
            return refuse(LeaseStatus::Stale);
        };
        if ttl_ms == 0 || ttl_ms > MAX_TTL_MS {
            return refuse(LeaseStatus::Inval);
        }
        if lease.epoch != epoch || lease.owner.is_none() {
            return refuse(LeaseStatus::Stale);
        }
        lease.expires = now + Duration::from_millis(ttl_ms.into());
        lease.ttl_ms = ttl_ms;
        Ok(lease.view(now))
    }

    /// RELEASE by the handle of `epoch`. A shared lease stays until its time is over: others may read under the same epoch.
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
                Some(lease) if lease.epoch == epoch && lease.owner.is_some() => {
                    Ok((epoch, Change::Free, "released"))
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
                Ok((
                    lease.map_or(0, |lease| lease.epoch) + 1,
                    Change::Free,
                    "broken",
                ))
            },
            &[],
            0,
        )
    }

    /// Decides a change, makes it durable, and only then lets it take effect, with no I/O on the file under way.
    fn change(
        &self,
        node: &Node,
        now: Instant,
        events: &Events,
        decide: impl FnOnce(Option<&Lease>) -> Result<(u64, Change, &'static str), LeaseStatus>,
        owner: &[u8],
        ttl_ms: u32,
    ) -> Result<View, Refusal> {
        let mut journal = self.journal.lock().expect("nothing panics under the lock");
        let (decision, before) = {
            let table = self.read();
            let lease = table.get(&node.id);
            (decide(lease), lease.map_or(NEVER, |lease| lease.view(now)))
        };
        let refused = |status| Refusal {
            status,
            view: before.clone(),
        };
        let (epoch, change, name) = decision.map_err(refused)?;
        let record = Record {
            id: node.id,
            epoch,
            ttl_ms,
            change,
            owner: owner.to_vec(),
            path: node.path(),
        };
        let durable = match journal.is_full() {
            true => journal.compact(&snapshot(&self.read())),
            false => Ok(()),
        }
        .and_then(|()| journal.append(&record));
        if let Err(error) = durable {
            events.report(&Event::StorageFailed {
                path: node.path().display().to_string(),
                error: error.to_string(),
            });
            return Err(refused(LeaseStatus::Io));
        }
        let view = {
            let _fence = node.fence.write().expect("nothing panics under the fence");
            let mut table = self.table.write().expect("nothing panics under the lock");
            apply(&mut table, &record, now);
            table.get(&node.id).map_or(NEVER, |lease| lease.view(now))
        };
        if record.change != Change::Free && !before.owner.is_empty() && before.remaining_ms == 0 {
            events.report(&Event::Lease {
                path: record.path.display().to_string(),
                epoch: before.epoch,
                owner: String::from_utf8_lossy(&before.owner).into_owned(),
                change: "expired",
            });
        }
        let reported = if owner.is_empty() {
            &before.owner
        } else {
            &record.owner
        };
        events.report(&Event::Lease {
            path: record.path.display().to_string(),
            epoch,
            owner: String::from_utf8_lossy(reported).into_owned(),
            change: name,
        });
        Ok(view)
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
    Ok(table
        .into_iter()
        .filter_map(|(id, lease)| Some((id, lease.owner?)))
        .collect())
}

fn check_ttl(ttl_ms: u32) -> Result<(), LeaseStatus> {
    if (1..=MAX_TTL_MS).contains(&ttl_ms) {
        Ok(())
    } else {
        Err(LeaseStatus::Inval)
    }
}

fn apply(table: &mut HashMap<FileId, Lease>, record: &Record, now: Instant) {
    let mode = match record.change {
        Change::Exclusive | Change::Free => Mode::Exclusive,
        Change::Shared => Mode::Shared,
    };
    let mut expires = now + Duration::from_millis(record.ttl_ms.into());
    if let Some(before) = table.get(&record.id)
        && before.epoch == record.epoch
        && mode == Mode::Shared
    {
        expires = expires.max(before.expires);
    }
    let lease = Lease {
        epoch: record.epoch,
        mode,
        owner: (record.change != Change::Free).then(|| record.owner.clone()),
        expires,
        ttl_ms: record.ttl_ms,
        path: record.path.clone(),
    };
    table.insert(record.id, lease);
}

/// The records that give this table when applied to an empty one. Leases that nobody holds stay: their epoch must not
/// begin anew.
fn snapshot(table: &HashMap<FileId, Lease>) -> Vec<Record> {
    table
        .iter()
        .map(|(id, lease)| Record {
            id: *id,
            epoch: lease.epoch,
            ttl_ms: lease.ttl_ms,
            change: match (&lease.owner, lease.mode) {
                (None, _) => Change::Free,
                (Some(_), Mode::Exclusive) => Change::Exclusive,
                (Some(_), Mode::Shared) => Change::Shared,
            },
            owner: lease.owner.clone().unwrap_or_default(),
            path: lease.path.clone(),
        })
        .collect()
}
