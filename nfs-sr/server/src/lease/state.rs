//! One lease: who holds it, and what the records of the journal make of it.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use nfs3::lease::Mode;

use super::journal::{Change, Record};
use crate::handles::FileId;

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The last epoch that was granted; grows with every grant.
    pub epoch: u64,
    /// What it allows.
    pub mode: Mode,
    /// Who holds it: nobody, one, or several readers.
    pub holders: Vec<Holder>,
    /// Where the file was found when the lease last changed.
    pub path: PathBuf,
}

/// One who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The epoch in the holder's handle. Every reader has its own, by which it renews and gives back.
    pub epoch: u64,
    /// Name.
    pub owner: Vec<u8>,
    /// Until when.
    pub expires: Instant,
    /// Time that was asked for.
    pub ttl_ms: u32,
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
    /// Time left; of several readers, the longest.
    pub remaining_ms: u32,
}

/// No lease was ever granted.
pub const NEVER: View = View {
    epoch: 0,
    mode: Mode::Exclusive,
    owner: Vec::new(),
    remaining_ms: 0,
};

impl Holder {
    /// Milliseconds left, rounded up: none are left only if the time is over.
    pub fn remaining_ms(&self, now: Instant) -> u32 {
        let left = self.expires.saturating_duration_since(now);
        left.as_nanos().div_ceil(1_000_000) as u32
    }
}

impl Lease {
    /// Somebody holds it and has time left.
    pub fn is_held(&self, now: Instant) -> bool {
        self.holders.iter().any(|holder| holder.expires > now)
    }

    /// Who holds it by this epoch.
    pub fn holder(&self, epoch: u64) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.epoch == epoch)
    }

    /// State for a reply.
    pub fn view(&self, now: Instant) -> View {
        let left = self.holders.iter().map(|holder| holder.remaining_ms(now));
        View {
            epoch: self.epoch,
            mode: self.mode,
            owner: self
                .holders
                .last()
                .map_or_else(Vec::new, |holder| holder.owner.clone()),
            remaining_ms: left.max().unwrap_or(0),
        }
    }
}

/// Lets a change take effect. A reader whose time is over leaves when the next one comes.
pub fn apply(table: &mut HashMap<FileId, Lease>, record: &Record, now: Instant) {
    let lease = table.entry(record.id).or_insert_with(|| Lease {
        epoch: 0,
        mode: Mode::Exclusive,
        holders: Vec::new(),
        path: PathBuf::new(),
    });
    let holder = || Holder {
        epoch: record.epoch,
        owner: record.owner.clone(),
        expires: now + Duration::from_millis(record.ttl_ms.into()),
        ttl_ms: record.ttl_ms,
    };
    match record.change {
        Change::Exclusive => {
            lease.mode = Mode::Exclusive;
            lease.holders = vec![holder()];
        }
        Change::Shared if lease.mode == Mode::Shared => {
            lease.holders.retain(|other| other.expires > now);
            lease.holders.push(holder());
        }
        Change::Shared => {
            lease.mode = Mode::Shared;
            lease.holders = vec![holder()];
        }
        Change::Left => lease.holders.retain(|other| other.epoch != record.epoch),
        Change::Free => lease.holders.clear(),
    }
    if lease.holders.is_empty() {
        lease.mode = Mode::Exclusive;
    }
    lease.epoch = lease.epoch.max(record.epoch);
    lease.path = record.path.clone();
}

/// The records that give this table when applied to an empty one. Leases that nobody holds stay: their epoch must not
/// begin anew.
pub fn snapshot(table: &HashMap<FileId, Lease>) -> Vec<Record> {
    let mut records = Vec::new();
    for (id, lease) in table {
        let free = Record {
            id: *id,
            epoch: lease.epoch,
            ttl_ms: 0,
            change: Change::Free,
            owner: Vec::new(),
            path: lease.path.clone(),
        };
        let held = lease.holders.iter().map(|holder| Record {
            epoch: holder.epoch,
            ttl_ms: holder.ttl_ms,
            change: match lease.mode {
                Mode::Exclusive => Change::Exclusive,
                Mode::Shared => Change::Shared,
            },
            owner: holder.owner.clone(),
            ..free.clone()
        });
        let held: Vec<Record> = held.collect();
        // A reader with the last epoch may have left: the epoch is then known by this record only.
        if lease.holder(lease.epoch).is_none() {
            records.push(free);
        }
        records.extend(held);
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_is_held_off_is_told_that_time_is_left() {
        let now = Instant::now();
        for left in [1, 999_999, 1_000_000, 1_000_001].map(Duration::from_nanos) {
            let holder = Holder {
                epoch: 1,
                owner: Vec::new(),
                expires: now + left,
                ttl_ms: 2,
            };
            assert_eq!(
                holder.remaining_ms(now),
                if left.as_nanos() > 1_000_000 { 2 } else { 1 }
            );
            assert_eq!(holder.remaining_ms(now + left), 0);
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_gives_the_same_table(changes in proptest::collection::vec((0u64..3, 0u8..4, 0u64..6), 0..40)) {
            let now = Instant::now();
            let mut table = HashMap::new();
            for (inode, change, back) in changes {
                let id = FileId { inode, generation: 1 };
                let epoch = table.get(&id).map_or(0, |lease: &Lease| lease.epoch);
                let (change, epoch) = match change {
                    0 => (Change::Exclusive, epoch + 1),
                    1 => (Change::Shared, epoch + 1),
                    2 => (Change::Left, epoch.saturating_sub(back)),
                    _ => (Change::Free, epoch),
                };
                let owner = vec![inode as u8, epoch as u8];
                apply(&mut table, &Record { id, epoch, ttl_ms: 1000, change, owner, path: "disk".into() }, now);
            }
            let mut again = HashMap::new();
            for record in snapshot(&table) {
                apply(&mut again, &record, now);
            }
            prop_assert_eq!(table, again);
        }
    }
}
