//! A guest that writes, reads and flushes at random, and knows which content each sector may have.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use vdi::Op;

pub const SECTOR: usize = 512;

/// A value of a sector: number of the write that put it there; 0 is the content before the first.
pub type Stamp = u64;

#[derive(Debug, Clone, Default)]
struct SectorState {
    /// What a read may find.
    current: BTreeSet<Stamp>,
    /// What may be found after the host and the server have crashed.
    survivors: BTreeSet<Stamp>,
    /// Writes in flight.
    in_flight: BTreeSet<Stamp>,
}

#[derive(Debug)]
enum Active {
    Read {
        first: usize,
        allowed: Vec<BTreeSet<Stamp>>,
    },
    Write {
        first: usize,
        count: usize,
        stamp: Stamp,
        concurrent: Vec<BTreeSet<Stamp>>,
    },
    /// What each sector could hold when the flush began, and the last stamp then.
    Flush {
        possible: Vec<BTreeSet<Stamp>>,
        last: Stamp,
    },
}

pub struct Guest {
    sectors: Vec<SectorState>,
    active: BTreeMap<u64, Active>,
    next_id: u64,
    next_stamp: Stamp,
    pub flushes: u64,
    pub reads: u64,
    pub writes: u64,
    pub errors: u64,
}

/// Content of a sector written by a stamp; that of 0 is zeros.
pub fn pattern(stamp: Stamp, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp != 0 {
        for (n, word) in bytes.chunks_exact_mut(16).enumerate() {
            word[..8].copy_from_slice(&stamp.to_be_bytes());
            word[8..].copy_from_slice(&((sector * 32 + n) as u64).to_be_bytes());
        }
    }
    bytes
}

impl Guest {
    /// A guest whose disk's sectors hold these.
    pub fn new(initial: Vec<Stamp>) -> Self {
        let sectors = initial.into_iter().map(|stamp| SectorState {
            current: BTreeSet::from([stamp]),
            survivors: BTreeSet::from([stamp]),
            in_flight: BTreeSet::new(),
        });
        Self {
            sectors: sectors.collect(),
            active: BTreeMap::new(),
            next_id: 1,
            next_stamp: 1 << 32,
            flushes: 0,
            reads: 0,
            writes: 0,
            errors: 0,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.active.len()
    }

    pub fn random_op(&mut self, rng: &mut Rng) -> (u64, Op) {
        let id = self.next_id;
        self.next_id += 1;
        let all = self.sectors.len();
        // A few hot places, so that operations meet.
        let first = if rng.bool() {
            rng.usize(..all)
        } else {
            (rng.usize(..8) * 37) % all
        };
        let longest = if rng.u8(..8) == 0 { 80 } else { 9 };
        let count = rng.usize(1..longest).min(all - first);
        let offset = (first * SECTOR) as u64;
        match rng.u8(..10) {
            0 => {
                let possible = self
                    .sectors
                    .iter()
                    .map(|s| &s.current | &s.in_flight)
                    .collect();
                self.active.insert(
                    id,
                    Active::Flush {
                        possible,
                        last: self.next_stamp,
                    },
                );
                (id, Op::Flush)
            }
            1..=4 => {
                let range = &self.sectors[first..first + count];
                let allowed = range.iter().map(|s| &s.current | &s.in_flight).collect();
                self.active.insert(id, Active::Read { first, allowed });
                (
                    id,
                    Op::Read {
                        offset,
                        len: (count * SECTOR) as u32,
                    },
                )
            }
            _ => {
                self.next_stamp += 1;
                let stamp = self.next_stamp;
                let data = (first..first + count)
                    .flat_map(|sector| pattern(stamp, sector))
                    .collect();
                self.begin_write(id, first, count, stamp);
                (id, Op::Write { offset, data })
            }
        }
    }

    fn begin_write(&mut self, id: u64, first: usize, count: usize, stamp: Stamp) {
        for active in self.active.values_mut() {
            match active {
                Active::Read { first: at, allowed } => {
                    for (n, allowed) in allowed.iter_mut().enumerate() {
                        if (first..first + count).contains(&(*at + n)) {
                            allowed.insert(stamp);
                        }
                    }
                }
                Active::Write {
                    first: at,
                    concurrent,
                    ..
                } => {
                    for (n, concurrent) in concurrent.iter_mut().enumerate() {
                        if (first..first + count).contains(&(*at + n)) {
                            concurrent.insert(stamp);
                        }
                    }
                }
                Active::Flush { .. } => {}
            }
        }
        let range = &mut self.sectors[first..first + count];
        let concurrent = range.iter().map(|s| s.in_flight.clone()).collect();
        for sector in range {
            sector.in_flight.insert(stamp);
            sector.survivors.insert(stamp);
        }
        self.active.insert(
            id,
            Active::Write {
                first,
                count,
                stamp,
                concurrent,
            },
        );
    }

    /// An operation has ended; says what is wrong with its result.
    pub fn on_end(&mut self, id: u64, result: Result<Vec<u8>, vdi::IoError>) -> Result<(), String> {
        let active = self
            .active
            .remove(&id)
            .ok_or(format!("operation {id} ended twice"))?;
        match (active, result) {
            (Active::Read { first, allowed }, Ok(data)) => {
                self.reads += 1;
                check(&data, first, &allowed)
            }
            (
                Active::Write {
                    first,
                    count,
                    stamp,
                    concurrent,
                },
                Ok(_),
            ) => {
                self.writes += 1;
                for (sector, keep) in self.sectors[first..first + count]
                    .iter_mut()
                    .zip(concurrent)
                {
                    sector.in_flight.remove(&stamp);
                    // Older content is gone, unless its write was under way at the same time.
                    sector.current.retain(|value| keep.contains(value));
                    sector.current.insert(stamp);
                }
                Ok(())
            }
            (Active::Flush { possible, last }, Ok(_)) => {
                self.flushes += 1;
                for (sector, possible) in self.sectors.iter_mut().zip(possible) {
                    sector
                        .survivors
                        .retain(|value| *value > last || possible.contains(value));
                }
                Ok(())
            }
            // A failed write may or may not have happened, in each sector.
            (
                Active::Write {
                    first,
                    count,
                    stamp,
                    ..
                },
                Err(_),
            ) => {
                self.errors += 1;
                for sector in &mut self.sectors[first..first + count] {
                    sector.in_flight.remove(&stamp);
                    sector.current.insert(stamp);
                }
                Ok(())
            }
            (_, Err(_)) => {
                self.errors += 1;
                Ok(())
            }
        }
    }

    /// Checks the whole disk as the living guest sees it.
    pub fn check_current(&self, data: &[u8]) -> Result<(), String> {
        let allowed: Vec<_> = self
            .sectors
            .iter()
            .map(|s| &s.current | &s.in_flight)
            .collect();
        check(data, 0, &allowed)
    }

    /// Checks the whole disk after a crash of everything.
    pub fn check_survivors(&self, data: &[u8]) -> Result<(), String> {
        let allowed: Vec<_> = self.sectors.iter().map(|s| s.survivors.clone()).collect();
        check(data, 0, &allowed)
    }
}

fn check(data: &[u8], first: usize, allowed: &[BTreeSet<Stamp>]) -> Result<(), String> {
    if data.len() != allowed.len() * SECTOR {
        return Err(format!(
            "{} bytes instead of {}",
            data.len(),
            allowed.len() * SECTOR
        ));
    }
    for (n, (found, allowed)) in data.chunks_exact(SECTOR).zip(allowed).enumerate() {
        let sector = first + n;
        if !allowed.iter().any(|stamp| pattern(*stamp, sector) == found) {
            let stamp = u64::from_be_bytes(found[..8].try_into().expect("eight bytes"));
            return Err(format!(
                "sector {sector} holds write {stamp:#x}, allowed are {allowed:x?}"
            ));
        }
    }
    Ok(())
}
