//! Ancestors that have changed their files while the disk is in use.
//!
//! A tool may merge an ancestor with its parent: the chain that is found by names becomes shorter, and holds the same. Who has the old
//! one open reads rightly, from files that would otherwise be gone, until it has taken over the new one.

use alloc::vec::Vec;

use super::{Disk, Phase};
use crate::layer::Layer;

impl Disk {
    /// Reads through the ancestors that `fresh`, the same disk opened just now, has found. False: not at this moment, since something
    /// is being read.
    ///
    /// # Errors
    /// When it is not the same disk, or not the disk that it was.
    pub fn take_ancestors(&mut self, fresh: &mut Self) -> Result<bool, &'static str> {
        let identity = |disk: &Self| {
            let leaf = &disk.layers[0].disk;
            (
                leaf.footer().uuid,
                leaf.header().map(|header| header.parent),
            )
        };
        if self.dir != fresh.dir || identity(self) != identity(fresh) {
            return Err("it is another disk by now");
        }
        if self.phase != Phase::Open || self.in_flight() > 0 || self.tables.is_loading() {
            return Ok(false);
        }
        self.adopt(fresh.layers.drain(1..).collect());
        Ok(true)
    }

    /// What is known of ancestors that are the same is kept.
    pub(super) fn adopt(&mut self, ancestors: Vec<Layer>) {
        let same = self.layers.len() == ancestors.len() + 1
            && (self.layers[1..].iter().zip(&ancestors)).all(|(old, new)| old.file == new.file);
        if !same {
            self.layers.truncate(1);
            self.layers.extend(ancestors);
        }
    }
}
