//! The chains of a guest's disks, opened anew while it runs: an ancestor was merged with its parent, and its old file shall go.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use host_protocol::Reply;
use vdi::{DiskId, DiskInfo, StorageError, Token};

use super::branching::Child;
use crate::{Host, platform::Platform, vm::Asker};

/// The chains must be open, and each disk at rest for a moment, within this time.
const TIMEOUT_NS: u64 = 10_000_000_000;

/// A VM whose disks' chains are opened anew.
pub(crate) struct Reopening {
    vm: u32,
    asker: Asker,
    left: Vec<(DiskId, Child)>,
    deadline_ns: u64,
}

impl Reopening {
    /// Takes an opened chain; false if it is not one of these.
    pub(super) fn on_opened(
        &mut self,
        token: Token,
        result: &Result<(DiskId, DiskInfo), StorageError>,
    ) -> bool {
        let Some((_, new)) = self.left.iter_mut().find(|(_, new)| new.awaits(token)) else {
            return false;
        };
        // One that could not be opened is awaited until time is up.
        if let Ok((disk, _)) = result {
            *new = Child::Open(*disk);
        }
        true
    }

    /// False when it is over.
    pub(super) fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        if host.index_of(self.vm).is_none() {
            return self.end(host, Err("the VM was ended".to_string()));
        }
        let storage = host.storage.storage();
        let mut failure = None;
        self.left.retain(|(disk, new)| match new {
            Child::Opening(_) => true,
            Child::Open(new) => match storage.renew_ancestors(*disk, *new) {
                Ok(renewed) => !renewed,
                Err(why) => {
                    failure = Some(why);
                    false
                }
            },
        });
        if let Some(why) = failure {
            return self.end(host, Err(why.to_string()));
        }
        if self.left.is_empty() {
            return self.end(host, Ok(Reply::Ok));
        }
        let why = "they could not be opened in time, or were never at rest";
        self.deadline_ns > host.platform.now_ns() || self.end(host, Err(why.to_string()))
    }

    fn end<P: Platform>(&mut self, host: &mut Host<P>, result: Result<Reply, String>) -> bool {
        for (_, new) in self.left.drain(..) {
            if let Child::Open(new) = new {
                host.storage.storage().forget_disk(new);
            }
        }
        let result = result.map_err(|why| format!("the disks' chains are as they were: {why}"));
        host.answer(self.asker, result);
        false
    }
}

impl<P: Platform> Host<P> {
    /// Begins to open the chains of a VM's disks anew.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn reopen(&mut self, index: usize, asker: Asker) -> Result<(), String> {
        self.may_be_branched(index)?;
        if self.reopening.is_some() {
            return Err("this host is opening chains anew already; ask again".to_string());
        }
        let now = self.platform.now_ns();
        let vm = &self.vms[index];
        let storage = self.storage.storage();
        let disks = vm.disks.iter().zip(&vm.config.disks);
        let left = disks.filter_map(|(open, config)| {
            let (disk, info) = (*open)?;
            let token = (!info.read_only).then(|| storage.prepare_disk(&config.path, now))?;
            Some((disk, Child::Opening(token)))
        });
        self.reopening = Some(Reopening {
            vm: vm.number,
            asker,
            left: left.collect(),
            deadline_ns: now + TIMEOUT_NS,
        });
        Ok(())
    }

    pub(super) fn with_reopening(&mut self, act: impl FnOnce(&mut Reopening, &mut Self) -> bool) {
        if let Some(mut reopening) = self.reopening.take()
            && act(&mut reopening, self)
        {
            self.reopening = Some(reopening);
        }
    }
}
