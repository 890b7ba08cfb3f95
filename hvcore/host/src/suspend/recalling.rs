//! Giving a VM's disk back what it held at a checkpoint, for a VM whose host has failed.
//!
//! All was prepared while the VM ran: an empty child of what the disk held then, and a second name for the disk's own file. So the
//! host that is to restart the VM needs nobody but the storage server. The disk's lease is this host's already: whoever
//! decided where the VM goes took it first. REPLACE is what uses the preparation up: before it the VM can boot from its disk
//! as it was, and after it nobody goes back to that checkpoint a second time with a disk that has been written to since.
//!
//! Resuming from the child under its own name was rejected: the VM's lease is that of its disk's name, and with two names
//! two hosts could each have one.

use alloc::string::{String, ToString};

use host_protocol::pool::RestartPoint;
use vdi::{Access, DiskId, DiskInfo, StorageError, Token};

use crate::{Host, platform::Platform};

#[derive(Clone, Copy, Debug)]
enum Side {
    Opening(Token),
    Open(DiskId),
    Failed,
}

/// A disk that is given back what it held.
#[derive(Debug)]
pub(super) struct Recall {
    disk: Side,
    child: Side,
    kept: String,
    asked: bool,
    result: Option<Result<u64, String>>,
}

impl Recall {
    /// Begins to open the disk and what is to take its place.
    pub fn begin<P: Platform>(host: &mut Host<P>, path: &str, point: &RestartPoint) -> Self {
        let now = host.platform.now_ns();
        let storage = host.storage.storage();
        Self {
            disk: Side::Opening(storage.open_disk(path, Access::ReadWrite, now)),
            child: Side::Opening(storage.prepare_disk(&point.disk, now)),
            kept: point.kept.clone(),
            asked: false,
            result: None,
        }
    }

    /// Takes an opened disk; false if it is not one of these.
    pub fn on_opened(
        &mut self,
        token: Token,
        result: &Result<(DiskId, DiskInfo), StorageError>,
    ) -> bool {
        let sides = [&mut self.disk, &mut self.child].into_iter();
        let mut awaited =
            sides.filter(|side| matches!(side, Side::Opening(awaited) if *awaited == token));
        let Some(side) = awaited.next() else {
            return false;
        };
        match result {
            Ok((disk, _)) => *side = Side::Open(*disk),
            Err(why) => {
                *side = Side::Failed;
                self.result.get_or_insert(Err(why.to_string()));
            }
        }
        true
    }

    /// The server's answer; false if it is about another disk.
    pub fn on_replaced(&mut self, disk: DiskId, result: &Result<u64, StorageError>) -> bool {
        let ours = matches!(self.disk, Side::Open(open) if open == disk);
        if ours {
            self.result = Some(result.clone().map_err(|why| why.to_string()));
        }
        ours
    }

    /// Moves on. Gives the epoch of the disk's lease when it holds what it held then, or why it does not.
    pub fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> Option<Result<u64, String>> {
        let now = host.platform.now_ns();
        let storage = host.storage.storage();
        if let (Side::Open(disk), Side::Open(child), None, false) =
            (self.disk, self.child, &self.result, self.asked)
        {
            storage.settle(disk, now);
            if storage.is_settled(disk) {
                self.asked = true;
                storage.replace_disk(disk, child, &self.kept, now);
            }
        }
        // What is still being opened could not be opened for the boot that follows a failure.
        let opening = |side: &Side| matches!(side, Side::Opening(_));
        if [self.disk, self.child].iter().any(opening) {
            return None;
        }
        let result = self.result.clone()?;
        self.let_go(host);
        Some(result)
    }

    /// Lets go of both without a word to the server: the lease stays this host's until it is taken by the VM, or expires.
    pub fn let_go<P: Platform>(&mut self, host: &mut Host<P>) {
        for side in [self.disk, self.child] {
            // One that is still being opened is closed by whoever finds that nobody waits for it.
            if let Side::Open(disk) = side {
                host.storage.storage().forget_disk(disk);
            }
        }
    }
}
