//! Branching the disks of a guest at one moment.
//!
//! The children are opened while the guest runs, so that only what cannot be done before is left for its pause: what
//! it has in flight, a flush, and one call for each disk. Whoever pauses the guest owns this, and lets it run on.

use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec::Vec,
};

use vdi::{DiskId, DiskInfo, StorageError, Token};

use super::{Parent, Restoration};
use crate::{Host, platform::Platform};

/// What the name of a disk's child ends with.
const CHILD: &str = ".new";

/// A disk that is opened in order to take the place of another, or to tell of its ancestors.
#[derive(Debug)]
pub(super) enum Child {
    Opening(Token),
    Open(DiskId),
}

impl Child {
    pub fn awaits(&self, token: Token) -> bool {
        matches!(self, Self::Opening(of) if *of == token)
    }
}

/// Disks that are being branched.
#[derive(Debug)]
pub(super) struct Branching {
    /// Those that are not branched yet.
    left: VecDeque<(DiskId, Child)>,
    done: Vec<DiskId>,
    settling: bool,
    failure: Option<String>,
}

impl Branching {
    /// Begins to open a child of each writable disk of a VM, and has what is written so far committed.
    pub fn begin<P: Platform>(host: &mut Host<P>, index: usize) -> Self {
        let now = host.platform.now_ns();
        let vm = &host.vms[index];
        let storage = host.storage.storage();
        let disks = vm.disks.iter().zip(&vm.config.disks);
        let left = disks.filter_map(|(open, config)| {
            let (disk, info) = (*open)?;
            if info.read_only {
                return None;
            }
            let token = storage.prepare_disk(&format!("{}{CHILD}", config.path), now);
            storage.commit_early(disk, now);
            Some((disk, Child::Opening(token)))
        });
        Self {
            left: left.collect(),
            done: Vec::new(),
            settling: false,
            failure: None,
        }
    }

    /// Whether the guest should be stopped now.
    pub fn is_ready<P: Platform>(&self, host: &Host<P>) -> bool {
        let storage = host.storage.peek();
        self.left
            .iter()
            .all(|(disk, child)| matches!(child, Child::Open(_)) && !storage.is_committing(*disk))
    }

    /// What has failed, if something has: the guest runs on with the disks it has.
    pub fn failure(&self) -> Option<&String> {
        self.failure.as_ref()
    }

    /// Takes an opened child; false if it is not one of these.
    fn on_opened(
        &mut self,
        token: Token,
        result: &Result<(DiskId, DiskInfo), StorageError>,
    ) -> bool {
        let Some((_, child)) = self.left.iter_mut().find(|(_, child)| child.awaits(token)) else {
            return false;
        };
        match result {
            Ok((disk, _)) => *child = Child::Open(*disk),
            Err(why) => {
                self.failure.get_or_insert(why.to_string());
            }
        }
        true
    }

    /// The guest stands still: moves on. True when all are branched.
    pub fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let now = host.platform.now_ns();
        let storage = host.storage.storage();
        let Some((disk, child)) = self.left.front() else {
            return true;
        };
        if !self.settling {
            self.settling = true;
            for (disk, _) in &self.left {
                storage.settle(*disk, now);
            }
        }
        let settled = self.left.iter().all(|(disk, _)| storage.is_settled(*disk));
        if let (Child::Open(child), true, true) = (child, settled, self.done.last() != Some(disk)) {
            self.done.push(*disk);
            storage.branch_disk(*disk, *child, now);
        }
        false
    }

    /// Whether the server was asked to branch a disk and has not answered.
    pub fn is_asked(&self) -> bool {
        let first = self.left.front().map(|(disk, _)| disk);
        first.is_some() && first == self.done.last()
    }

    /// The answer about one of the disks; false if it is not one of these.
    fn on_branched(&mut self, disk: DiskId, result: &Result<u64, StorageError>) -> bool {
        if self.left.front().is_none_or(|(first, _)| *first != disk) {
            return false;
        }
        match result {
            // Its id is the disk's now.
            Ok(_) => drop(self.left.pop_front()),
            Err(why) => {
                self.done.pop();
                self.failure.get_or_insert(why.to_string());
            }
        }
        true
    }

    /// The parents of all that were branched, in the order of the disks.
    pub fn parents<P: Platform>(&self, host: &Host<P>) -> Vec<Parent> {
        let storage = host.storage.peek();
        let parents = self.done.iter().map(|disk| storage.parent_of(*disk));
        parents.collect()
    }

    /// Lets go of children that were not needed. One that is still being opened is closed by whoever finds that nobody
    /// waits for it.
    pub fn discard<P: Platform>(&mut self, host: &mut Host<P>) {
        for (_, child) in self.left.drain(..) {
            if let Child::Open(child) = child {
                host.storage.storage().forget_disk(child);
            }
        }
    }
}

impl<P: Platform> Host<P> {
    fn branchings(&mut self) -> impl Iterator<Item = &mut Branching> {
        let snapshot = self.snapshot.as_mut().map(|one| &mut one.branching);
        let suspension = self.suspension.as_mut();
        snapshot
            .into_iter()
            .chain(suspension.and_then(|one| one.branching.as_mut()))
    }

    pub(super) fn on_child_opened(
        &mut self,
        token: Token,
        result: &Result<(DiskId, DiskInfo), StorageError>,
    ) -> bool {
        if self.branchings().any(|one| one.on_opened(token, result)) {
            return true;
        }
        let reopening = self.reopening.as_mut();
        reopening.is_some_and(|one| one.on_opened(token, result))
    }

    /// A disk was branched, or not.
    pub(crate) fn on_branched(&mut self, disk: DiskId, result: &Result<u64, StorageError>) {
        let recall = self.restoration.as_mut().and_then(Restoration::recall);
        if recall.is_some_and(|recall| recall.on_replaced(disk, result)) {
            return;
        }
        // If the VM has ended meanwhile, nobody asks.
        let _ = self.branchings().any(|one| one.on_branched(disk, result));
    }
}
