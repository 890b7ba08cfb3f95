//! Writes that the server has acknowledged but would lose in a restart.
//!
//! They are kept until a COMMIT proves them stable. Meanwhile reads of them are answered from here: after a
//! restart of the server, and before we have noticed, the file may hold what it held before them.
//!
//! Kept are disjoint ranges of the file with the newest data. (A log of all writes would have to be
//! repeated in order, one overlapping write after the other, and would grow with each rewrite of a hot sector.)

use alloc::{collections::BTreeMap, vec::Vec};

use nfs_client::Payload;
use nfs3::WriteVerifier;

/// Position in the order of acknowledgements.
pub(crate) type Seq = u64;

#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub data: Payload,
    pub verifier: WriteVerifier,
    pub seq: Seq,
}

/// Uncommitted ranges of one file.
#[derive(Debug, Default)]
pub(crate) struct Uncommitted {
    /// By offset in the file; disjoint.
    extents: BTreeMap<u64, Extent>,
    bytes: usize,
}

impl Uncommitted {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.extents
            .iter()
            .map(|(offset, extent)| (*offset, extent))
    }

    /// Adds acknowledged data, which replaces older data in its range.
    pub fn insert(&mut self, offset: u64, data: Payload, verifier: WriteVerifier, seq: Seq) {
        if data.is_empty() {
            return;
        }
        self.remove(offset, data.len() as u64);
        self.put(
            offset,
            Extent {
                data,
                verifier,
                seq,
            },
        );
    }

    /// Forgets a range: it was written stably.
    pub fn remove(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let hit: Vec<u64> = self.overlapping(offset, len).map(|(at, _)| at).collect();
        for at in hit {
            let old = self.take(at);
            let old_end = at + old.data.len() as u64;
            if at < offset {
                let head = old.data.slice(0..(offset - at) as usize).compact();
                self.put(
                    at,
                    Extent {
                        data: head,
                        ..old.clone()
                    },
                );
            }
            if old_end > end {
                let tail = old
                    .data
                    .slice((end - at) as usize..old.data.len())
                    .compact();
                self.put(end, Extent { data: tail, ..old });
            }
        }
    }

    /// Ranges that touch the given one, cut to it.
    pub fn within(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, Payload)> {
        let end = offset + len;
        self.overlapping(offset, len).map(move |(at, extent)| {
            let from = offset.max(at);
            let to = end.min(at + extent.data.len() as u64);
            (
                from,
                extent.data.slice((from - at) as usize..(to - at) as usize),
            )
        })
    }

    /// A COMMIT sent after `upto` was acknowledged was answered with `verifier`: forgets what that proves stable, and
    /// returns what it proves lost.
    pub fn committed(&mut self, verifier: WriteVerifier, upto: Seq) -> Vec<(u64, Payload)> {
        let mut lost = Vec::new();
        let mut stable = Vec::new();
        for (at, extent) in &self.extents {
            if extent.verifier != verifier {
                lost.push((*at, extent.data.clone()));
            } else if extent.seq <= upto {
                stable.push(*at);
            }
        }
        for at in stable {
            self.take(at);
        }
        lost
    }

    fn overlapping(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, &Extent)> {
        let first = match self.extents.range(..offset).next_back() {
            Some((at, extent)) if at + extent.data.len() as u64 > offset => *at,
            _ => offset,
        };
        self.extents
            .range(first..offset + len)
            .map(|(at, extent)| (*at, extent))
    }

    fn put(&mut self, at: u64, extent: Extent) {
        self.bytes += extent.data.len();
        self.extents.insert(at, extent);
    }

    fn take(&mut self, at: u64) -> Extent {
        let extent = self
            .extents
            .remove(&at)
            .expect("the caller found it in the map");
        self.bytes -= extent.data.len();
        extent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const A: WriteVerifier = [1; 8];
    const B: WriteVerifier = [2; 8];

    fn content(uncommitted: &Uncommitted, len: usize) -> Vec<u8> {
        let mut file = vec![0; len];
        for (at, data) in uncommitted.within(0, len as u64) {
            file[at as usize..at as usize + data.len()].copy_from_slice(data.as_slice());
        }
        file
    }

    proptest! {
        #[test]
        fn the_newest_write_of_each_byte_is_kept(
            writes in proptest::collection::vec((0usize..90, 1usize..30), 1..40)
        ) {
            let mut uncommitted = Uncommitted::default();
            let mut model = vec![0u8; 128];
            for (n, (at, len)) in writes.iter().enumerate() {
                let byte = n as u8 + 1;
                model[*at..at + len].fill(byte);
                uncommitted.insert(*at as u64, vec![byte; *len].into(), A, n as u64);
            }
            prop_assert_eq!(content(&uncommitted, 128), model.clone());
            prop_assert_eq!(uncommitted.bytes(), model.iter().filter(|b| **b != 0).count());
            for (at, part) in uncommitted.within(20, 40) {
                let at = at as usize;
                prop_assert!(at >= 20 && at + part.len() <= 60);
                prop_assert_eq!(part.as_slice(), &model[at..at + part.len()]);
            }
        }
    }

    #[test]
    fn a_commit_covers_only_what_was_acknowledged_before_it_by_the_same_instance() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.insert(0, vec![1; 4].into(), A, 1);
        uncommitted.insert(10, vec![2; 4].into(), B, 2);
        uncommitted.insert(20, vec![3; 4].into(), B, 3);
        let lost = uncommitted.committed(B, 2);
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].0, 0);
        let left: Vec<u64> = uncommitted.iter().map(|(at, _)| at).collect();
        assert_eq!(left, [0, 20], "the lost one and the later one stay");
    }
}
