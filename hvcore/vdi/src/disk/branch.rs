//! Branching: a snapshot of a disk that is in use.
//!
//! While the guest stands still and everything is on stable storage, the server puts an empty child, made before, in the place of
//! the disk's file, and gives us its lease (REPLACE). That is one step at the server, which is repeated until it is answered. Before it
//! nothing has changed; after it the file that was the disk is a parent, and nobody writes to it any more. A host that dies
//! on the way leaves the one or the other.

use alloc::borrow::ToOwned;

use nfs_client::{Call, CallError, LeaseRefusal, Reply};
use nfs3::lease::LeaseStatus;

use super::{Context, Disk, Phase, commit::Commit, lease::Lease, tables::Tables};
use crate::{
    error::StorageError,
    opening::lease_error,
    request::{Completion, DiskId},
    tag::{DiskJob, Tag},
};

impl Disk {
    pub fn settle(&mut self, cx: &mut Context<'_>) {
        self.draining = true;
        self.settling = true;
        self.advance(cx);
    }

    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Open
            && self.in_flight() == 0
            && self.commit.is_idle()
            && self.is_stable()
    }

    pub fn is_committing(&self) -> bool {
        !self.commit.is_idle()
    }

    /// Identity of the parent, nil without one.
    pub fn parent(&self) -> [u8; 16] {
        let header = self.layers[0].disk.header();
        header.map_or([0; 16], |header| header.parent.0)
    }

    fn is_stable(&self) -> bool {
        self.uncommitted.is_empty() && self.tables.is_written()
    }

    pub(super) fn advance_settling(&mut self, cx: &mut Context<'_>) {
        if self.settling
            && self.phase == Phase::Open
            && self.in_flight() == 0
            && self.commit.is_idle()
            && !self.is_stable()
        {
            self.commit.want();
            self.advance_commit(cx);
        }
    }

    /// The call that puts an empty child of this disk in its place.
    pub fn ask_to_branch(&self, id: DiskId, child: &Self) -> Result<Call, &'static str> {
        let Some(parent) = child.layers[0].disk.header() else {
            return Err("what is to take its place has no parent");
        };
        if child.layers.len() < 2 || parent.parent != self.layers[0].disk.footer().uuid {
            return Err("what is to take its place was not made from it");
        }
        let kept = parent.parent_name.rsplit(['/', '\\']).next();
        self.ask_to_replace(id, child, kept.unwrap_or_default())
    }

    /// The call that puts an empty disk, such as a child of another disk, in this disk's place. The file that has it
    /// now has the name `kept` too.
    pub fn ask_to_replace(
        &self,
        id: DiskId,
        child: &Self,
        kept: &str,
    ) -> Result<Call, &'static str> {
        let empty = child.layers[0]
            .disk
            .bat()
            .is_some_and(|bat| bat.allocated().next().is_none());
        if id == self.id || !matches!(child.phase, Phase::Prepared { .. }) || !empty {
            return Err("what is to take its place is in use");
        }
        if child.info().bytes != self.info().bytes || child.dir != self.dir {
            return Err("what is to take its place was not made from it");
        }
        if self.read_only || !self.is_settled() {
            return Err("it is not settled");
        }
        Ok(Call::Replace {
            object: self.layers[0].file,
            dir: self.dir,
            name: self.name.clone(),
            successor: child.name.clone(),
            kept: kept.to_owned(),
            owner: self.owner.clone(),
            ttl_ms: self.ttl_ms,
        })
    }

    pub fn branch(&mut self, child: DiskId, call: Call, cx: &mut Context<'_>) {
        self.stop_renewing(cx);
        let sent_ns = cx.now_ns;
        self.call(DiskJob::Replace { child, sent_ns }, call, cx);
    }

    pub fn on_replaced(
        &mut self,
        child: Option<Self>,
        sent_ns: u64,
        answer: Result<Reply, CallError>,
        cx: &mut Context<'_>,
    ) {
        if self.phase == Phase::Lost {
            return;
        }
        let disk = self.id;
        let why = match (answer, child) {
            (Ok(Reply::Granted { epoch, object }), Some(child)) => {
                self.become_child(child);
                let parent = core::mem::replace(&mut self.layers[0].file, object);
                self.lease = Some(Lease::new(epoch, sent_ns, self.ttl_ms));
                let give_back = Call::Release { object: parent };
                cx.client.call(Tag::Nobody, give_back, None);
                let result = Ok(epoch);
                cx.done.push_back(Completion::Branched { disk, result });
                return;
            }
            // It has happened, and what it is about was thrown away: nothing is known of the disk any more.
            (Ok(_), _) => StorageError::Unusable {
                path: self.path.clone(),
                reason: "its child was closed while it was branched",
            },
            (Err(why), _) => {
                let known = matches!(&why, CallError::Lease(LeaseRefusal { status, .. }) if *status != LeaseStatus::Io);
                let why = lease_error(&self.path, &why);
                if known {
                    if let Some(lease) = &mut self.lease {
                        lease.renew_soon(cx.now_ns);
                    }
                    let result = Err(why);
                    cx.done.push_back(Completion::Branched { disk, result });
                    return;
                }
                // Nobody knows which of the two has the name.
                why
            }
        };
        let result = Err(why.clone());
        cx.done.push_back(Completion::Branched { disk, result });
        self.lose(&alloc::string::ToString::to_string(&why), cx);
    }

    /// Reads through the child from now on. Its leaf has this disk's handle until it is given its own. If this disk is its
    /// parent, it is read by the handle that the child had for it: that needs no lease. The rest of the chain is what the
    /// child has found.
    fn become_child(&mut self, child: Self) {
        let mut chain = child.layers;
        let own = self.layers[0].disk.footer().uuid;
        let parent = chain[0].disk.header().map(|header| header.parent);
        if parent == Some(own) && chain.len() > 1 {
            let ancestors = chain.split_off(2);
            self.adopt(ancestors);
            chain[0].file = core::mem::replace(&mut self.layers[0].file, chain[1].file);
            chain.truncate(1);
            chain.append(&mut self.layers);
        } else {
            chain[0].file = self.layers[0].file;
        }
        self.layers = chain;
        self.tables = Tables::new(false);
        self.commit = Commit::default();
        self.allocated.clear();
        self.settling = false;
        self.draining = false;
    }
}
