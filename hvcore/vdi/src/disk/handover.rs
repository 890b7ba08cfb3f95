//! Handing a disk from one host to another.

use alloc::vec::Vec;

use vhd::{Bat, SECTOR};

use super::{Context, Disk, Phase};
use crate::{
    error::StateError,
    state::{DiskState, Uncommitted},
};

/// Most pieces of uncommitted data that travel.
const MAX_PIECES: usize = 1024;

impl Disk {
    pub fn commit_early(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Open && !self.uncommitted.is_empty() && self.commit.is_idle() {
            self.commit.want();
            self.advance(cx);
        }
    }

    pub fn drain(&mut self, cx: &mut Context<'_>) {
        self.draining = true;
        self.advance(cx);
    }

    pub fn is_drained(&self) -> bool {
        self.phase == Phase::Open
            && self.in_flight() == 0
            && self.tables.can_travel()
            && self.commit.may_be_left()
            && self.uncommitted.bytes() <= DiskState::MAX_CARRIED
            && self.uncommitted.iter().count() <= MAX_PIECES
    }

    pub fn save(&self) -> Result<DiskState, StateError> {
        let Some(lease) = &self.lease else {
            return Err(StateError::NotReady("the disk has no lease"));
        };
        if !self.is_drained() {
            return Err(StateError::NotReady("the disk is not drained"));
        }
        let uncommitted = self.uncommitted.iter().map(|(offset, extent)| Uncommitted {
            offset,
            verifier: extent.verifier,
            data: extent.data.as_slice().to_vec(),
        });
        Ok(DiskState {
            version: DiskState::VERSION,
            path: self.path.clone(),
            epoch: lease.epoch,
            bytes: self.info().bytes,
            allocated: self.allocated.clone(),
            not_entered: self.tables.placed().collect(),
            uncommitted: uncommitted.collect(),
        })
    }

    pub fn restore(&mut self, state: &DiskState) -> Result<(), StateError> {
        if state.version != DiskState::VERSION {
            let (found, known) = (state.version, DiskState::VERSION);
            return Err(StateError::Version { found, known });
        }
        if !matches!(self.phase, Phase::Prepared { .. }) {
            return Err(StateError::NotReady("the disk is not prepared"));
        }
        let mismatch = |reason| StateError::Mismatch {
            path: self.path.clone(),
            reason,
        };
        if state.path != self.path {
            return Err(mismatch("it is of another disk"));
        }
        if state.bytes != self.info().bytes {
            return Err(mismatch("its size differs"));
        }
        let disk = merge(&self.layers[0].disk, &state.allocated).map_err(mismatch)?;
        if state
            .not_entered
            .iter()
            .any(|block| disk.bat().and_then(|bat| bat.get(*block)).is_none())
        {
            return Err(mismatch("it has a block without a place"));
        }
        check_uncommitted(&state.uncommitted, disk.footer_at() + SECTOR).map_err(mismatch)?;

        self.layers[0].disk = disk;
        // They may have changed since they were read.
        self.layers[0].bitmaps.clear();
        self.allocated.clone_from(&state.allocated);
        if !self.is_differencing() {
            state
                .allocated
                .iter()
                .for_each(|(block, _)| self.tables.on_full(*block));
        }
        state
            .not_entered
            .iter()
            .for_each(|block| self.tables.on_placed(*block));
        for piece in &state.uncommitted {
            self.seq += 1;
            self.uncommitted.insert(
                piece.offset,
                piece.data.clone().into(),
                piece.verifier,
                self.seq,
            );
        }
        self.phase = Phase::Prepared { restored: true };
        Ok(())
    }
}

/// The disk with the blocks that its owner allocated since its table was read.
fn merge(disk: &vhd::Disk, allocated: &[(u32, u32)]) -> Result<vhd::Disk, &'static str> {
    let Some(bat) = disk.bat() else {
        return match allocated {
            [] => Ok(disk.clone()),
            _ => Err("it has new blocks, but the disk has none"),
        };
    };
    let mut bat: Bat = bat.clone();
    for (block, sector) in allocated {
        if *block >= bat.len() || *sector == u32::MAX {
            return Err("it has a block that the disk cannot have");
        }
        if bat.get(*block).is_some_and(|known| known != *sector) {
            return Err("it has a block in two places");
        }
        bat.set(*block, Some(*sector));
    }
    disk.with(disk.footer().clone(), Some(bat))
        .map_err(|_| "its blocks overlap")
}

fn check_uncommitted(pieces: &[Uncommitted], file_end: u64) -> Result<(), &'static str> {
    let total: usize = pieces.iter().map(|piece| piece.data.len()).sum();
    if total > DiskState::MAX_CARRIED || pieces.len() > MAX_PIECES {
        return Err("it carries too much data");
    }
    let inside = |piece: &Uncommitted| {
        let end = piece.offset.checked_add(piece.data.len() as u64);
        end.is_some_and(|end| end <= file_end)
    };
    if !pieces.iter().all(inside) {
        return Err("it carries data outside of the file");
    }
    let mut ranges: Vec<(u64, u64)> = pieces
        .iter()
        .map(|piece| (piece.offset, piece.data.len() as u64))
        .collect();
    ranges.sort_unstable();
    if ranges
        .windows(2)
        .any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
    {
        return Err("it carries data twice");
    }
    Ok(())
}
