//! Suspending a VM into a disk of the storage repository, and going on from there.
//!
//! What is written is a checkpoint of [`migration`]; where it is written is a virtual disk, since that has what such a
//! file needs: an owner, order, flushes that reach the server's disk, and room that is only taken where something was written.
//!
//! | bytes | what |
//! |---|---|
//! | 0-7 | magic `ELABCKPT` |
//! | 8-15 | length of the checkpoint in bytes, little-endian |
//! | 16-23 | its complement |
//! | 24-31 | how many parents, little-endian; none if the guest did not run on |
//! | 32- | identity of each, 16 bytes, in the order of the disks |
//! | 4096- | the checkpoint |
//!
//! The header of what was there before is wiped first, and the new one is written when all behind it is on stable storage:
//! so whatever fails, a disk has a whole checkpoint or none. The guest stands still from its first page to the last. Then
//! either its host lets go of its disks, or the guest runs on: then its disks were branched at that moment
//! ([`snapshot`]), and the checkpoint fits new disks made from the same parents. Memory of one moment with a disk of
//! another is a damaged guest; so the header names the parents, and the epoch in the checkpoint is that of a disk that nobody
//! has ever opened.
//!
//! One operation on the disk is under way at a time: a suspended guest is in nobody's way.

mod branching;
mod recalling;
mod reopening;
mod restoring;
mod saving;
mod snapshot;

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use vdi::{DiskId, DiskInfo, IoError, Op, Storage, StorageError, Token};

use crate::{Host, platform::Platform};

pub(crate) use reopening::Reopening;
pub(crate) use restoring::Restoration;
pub(crate) use saving::Suspension;
pub(crate) use snapshot::Snapshotting;

const MAGIC: [u8; 8] = *b"ELABCKPT";
/// Bytes before the checkpoint.
const HEADER: usize = 4096;
/// Where the parents are named.
const PARENTS: usize = 32;
/// Bytes of one read or write.
const CHUNK: usize = 256 << 10;
/// Pages looked at between two looks at the clock.
const STRIDE: usize = 16;

/// Identity of a disk's parent.
type Parent = [u8; 16];

fn header(length: u64, parents: &[Parent]) -> Vec<u8> {
    let mut header = alloc::vec![0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&length.to_le_bytes());
    header[16..24].copy_from_slice(&(!length).to_le_bytes());
    header[24..32].copy_from_slice(&(parents.len() as u64).to_le_bytes());
    for (place, parent) in header[PARENTS..].chunks_exact_mut(16).zip(parents) {
        place.copy_from_slice(parent);
    }
    header
}

/// The parents that a whole header tells.
fn parents_in(header: &[u8]) -> Vec<Parent> {
    let count = header.get(24..32).and_then(|bytes| bytes.try_into().ok());
    let count = count.map_or(0, u64::from_le_bytes);
    let parents = header
        .get(PARENTS..)
        .unwrap_or_default()
        .as_chunks::<16>()
        .0;
    let count = usize::try_from(count).map_or(0, |count| count.min(parents.len()));
    parents[..count].to_vec()
}

/// The length that a header tells.
fn length_in(header: &[u8], disk_bytes: u64) -> Result<u64, String> {
    let word = |at: usize| {
        let bytes = header.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let length = word(8).filter(|length| {
        header.starts_with(&MAGIC)
            && word(16) == Some(!length)
            && *length <= disk_bytes.saturating_sub(HEADER as u64)
    });
    length.ok_or_else(|| "no whole checkpoint is on it".to_string())
}

/// The disk that a checkpoint is written to or read from.
pub(crate) struct Medium {
    path: String,
    state: MediumState,
}

enum MediumState {
    Opening(Token),
    Open(DiskId, DiskInfo),
    Closing(DiskId),
    Closed,
}

impl Medium {
    fn new(path: String, token: Token) -> Self {
        let state = MediumState::Opening(token);
        Self { path, state }
    }

    fn is(&self, disk: DiskId) -> bool {
        matches!(self.state, MediumState::Open(open, _) | MediumState::Closing(open) if open == disk)
    }

    fn awaits(&self, token: Token) -> bool {
        matches!(self.state, MediumState::Opening(awaited) if awaited == token)
    }

    fn bytes(&self) -> u64 {
        match self.state {
            MediumState::Open(_, info) => info.bytes,
            _ => 0,
        }
    }

    fn submit(&self, storage: &mut Storage, op: Op, now_ns: u64) {
        if let MediumState::Open(disk, _) = self.state {
            storage.submit(disk, 0, op, now_ns);
        }
    }

    /// Lets go of it, whatever it is at.
    fn close(&mut self, storage: &mut Storage, now_ns: u64) {
        self.state = match self.state {
            MediumState::Open(disk, _) => {
                storage.close_disk(disk, now_ns);
                MediumState::Closing(disk)
            }
            // It is closed when it has been opened, since nobody waits for it any more.
            MediumState::Opening(_) => MediumState::Closed,
            MediumState::Closing(disk) => MediumState::Closing(disk),
            MediumState::Closed => MediumState::Closed,
        };
    }

    fn is_closed(&self) -> bool {
        matches!(self.state, MediumState::Closed)
    }
}

impl<P: Platform> Host<P> {
    /// Whether an opened disk was awaited here.
    pub(crate) fn on_medium_opened(
        &mut self,
        token: Token,
        result: &Result<(DiskId, DiskInfo), StorageError>,
    ) -> bool {
        let opened = |medium: &mut Medium| match result {
            Ok((disk, info)) => {
                medium.state = MediumState::Open(*disk, *info);
                Ok(())
            }
            Err(error) => {
                medium.state = MediumState::Closed;
                Err(error.to_string())
            }
        };
        if self.on_child_opened(token, result) {
            return true;
        }
        let recall = self.restoration.as_mut().and_then(Restoration::recall);
        if recall.is_some_and(|recall| recall.on_opened(token, result)) {
            return true;
        }
        if let Some(suspension) = &mut self.suspension
            && suspension.medium.awaits(token)
        {
            let result = opened(&mut suspension.medium);
            self.with_suspension(|suspension, host| suspension.on_opened(host, result));
            return true;
        }
        if let Some(restoration) = &mut self.restoration
            && restoration.medium.awaits(token)
        {
            let result = opened(&mut restoration.medium);
            self.with_restoration(|restoration, host| restoration.on_opened(host, result));
            return true;
        }
        false
    }

    /// Routes the answer about a lease to what asked for it.
    pub(crate) fn on_suspension_taken(&mut self, vm: u32, result: &Result<u64, StorageError>) {
        self.with_restoration(|one, host| !one.is_of(vm) || one.on_taken(host, result));
    }

    /// Whether an operation that has ended was of such a disk.
    pub(crate) fn on_medium_io(&mut self, disk: DiskId, result: &Result<Vec<u8>, IoError>) -> bool {
        let of = |medium: &Medium| medium.is(disk);
        let result = || result.clone().map_err(|error| error.to_string());
        if self.suspension.as_ref().is_some_and(|one| of(&one.medium)) {
            let result = result().map(|_| ());
            self.with_suspension(|suspension, host| suspension.on_io(host, result));
            return true;
        }
        if self.restoration.as_ref().is_some_and(|one| of(&one.medium)) {
            let result = result();
            self.with_restoration(|restoration, host| restoration.on_io(host, result));
            return true;
        }
        false
    }

    /// Whether a disk that is closed was such a disk.
    pub(crate) fn on_medium_closed(&mut self, disk: DiskId) -> bool {
        let suspension = self.suspension.as_mut().map(|one| &mut one.medium);
        let restoration = self.restoration.as_mut().map(|one| &mut one.medium);
        let mut media = suspension.into_iter().chain(restoration);
        let Some(medium) = media.find(|medium| medium.is(disk)) else {
            return false;
        };
        medium.state = MediumState::Closed;
        true
    }

    /// Moves both on, as far as they wait for nothing.
    pub(crate) fn advance_suspensions(&mut self) {
        self.with_suspension(Suspension::advance);
        self.with_restoration(Restoration::advance);
        self.with_snapshot(Snapshotting::advance);
        self.with_reopening(Reopening::advance);
    }

    /// Does what needs CPU time. False when there is nothing.
    pub(crate) fn run_suspensions(&mut self, until_ns: u64) -> bool {
        let mut worked = false;
        self.with_suspension(|suspension, host| {
            worked |= suspension.work(host, until_ns);
            true
        });
        self.with_restoration(|restoration, host| {
            worked |= restoration.work(host, until_ns);
            true
        });
        worked
    }

    /// Has it act on its host; it is over when that gives false.
    fn with_suspension(&mut self, act: impl FnOnce(&mut Suspension, &mut Self) -> bool) {
        if let Some(mut suspension) = self.suspension.take()
            && act(&mut suspension, self)
        {
            self.suspension = Some(suspension);
        }
    }

    fn with_restoration(&mut self, act: impl FnOnce(&mut Restoration, &mut Self) -> bool) {
        if let Some(mut restoration) = self.restoration.take()
            && act(&mut restoration, self)
        {
            self.restoration = Some(restoration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_header_tells_a_length() {
        let good = header(1000, &[]);
        assert_eq!(length_in(&good, 8192), Ok(1000));
        assert!(length_in(&good, 4096 + 999).is_err(), "beyond the disk");
        assert!(length_in(&[0; HEADER], 8192).is_err());
        assert!(length_in(&good[..20], 8192).is_err());
        assert_eq!(parents_in(&good), [[0; 16]; 0]);
        assert_eq!(
            parents_in(&header(1, &[[1; 16], [2; 16]])),
            [[1; 16], [2; 16]]
        );
        assert_eq!(parents_in(&[0xff; 64]).len(), 2, "as many as there can be");
        for byte in 0..24 {
            let mut damaged = good.clone();
            damaged[byte] ^= 1;
            assert!(length_in(&damaged, 8192).is_err(), "byte {byte}");
        }
    }
}
