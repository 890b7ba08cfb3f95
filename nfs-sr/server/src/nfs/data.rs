//! READ, WRITE and COMMIT: the way of all data, and the place where leases are enforced.

use std::{io, sync::Arc, sync::atomic::Ordering};

use nfs3::{Attributes, Encode, FileType, MAX_DATA, Stability, Status, Wcc, nfs::*};

use super::Failed;
use crate::{
    durability::{Syncable, when_synced},
    events::Event,
    export::{User, may},
    file_io::{Cover, Wait},
    handles::Opened,
    lease::Access as LeaseAccess,
    node::Node,
    server::{Pending, Server},
};

impl Server {
    pub(super) fn read(self: &Arc<Self>, args: &ReadArgs, user: &User, pending: Pending) {
        let opened = self.open_handle(&args.file).and_then(|(node, opened)| {
            let attributes = self.attributes(&node)?;
            check_data(&attributes, user, may::READ)?;
            Ok((node, opened, attributes))
        });
        let (node, opened, attributes) = match opened {
            Ok(opened) => opened,
            Err(failed) => return pending.reply::<Read>(&Err(failed.with(None))),
        };
        let read = Reading {
            node,
            opened,
            attributes,
            offset: args.offset,
            count: args.count,
        };
        if let Some(pending) = self.try_read(&read, Wait::No, pending) {
            let server = self.clone();
            self.pool.spawn(move || {
                let left = server.try_read(&read, Wait::Yes, pending);
                debug_assert!(left.is_none(), "a read that may wait is answered");
            });
        }
    }

    /// Reads and replies; gives `pending` back if it would have had to wait.
    fn try_read(&self, read: &Reading, wait: Wait, pending: Pending) -> Option<Pending> {
        let left = read.attributes.size.saturating_sub(read.offset);
        let count = u64::from(read.count).min(MAX_DATA as u64).min(left) as usize;
        let mut record = pending.accepted(READ_HEADER + count + 4);
        0u32.encode(&mut record);
        Some(read.attributes).encode(&mut record);
        let counts = record.len();
        let data = counts + READ_COUNTS;
        record.resize(data + count, 0);
        let result = {
            let _fence = read
                .node
                .fence
                .read()
                .expect("nothing panics under the fence");
            self.check_lease(&read.node, read.opened.epoch, LeaseAccess::Read)
                .and_then(|()| {
                    let io = read.node.io(&*self.disk)?;
                    match io.read_at(&mut record[data..], read.offset, wait) {
                        // Less than the file should hold: the rest is not in memory.
                        Ok(n) if n < count && wait == Wait::No => Ok(None),
                        Ok(n) => Ok(Some(n)),
                        Err(error) if wait == Wait::No && would_wait(&error) => Ok(None),
                        Err(error) => Err(error.into()),
                    }
                })
        };
        match result {
            Ok(None) => return Some(pending),
            Ok(Some(n)) => {
                // The file may have become shorter since its attributes were read.
                record.truncate(data + n);
                record.resize(data + n.next_multiple_of(4), 0);
                let eof = read.offset.saturating_add(n as u64) >= read.attributes.size;
                let mut head = Vec::with_capacity(READ_COUNTS);
                (n as u32).encode(&mut head);
                eof.encode(&mut head);
                (n as u32).encode(&mut head);
                record[counts..data].copy_from_slice(&head);
                self.metrics
                    .read_bytes
                    .fetch_add(n as u64, Ordering::Relaxed);
                pending.send(record);
            }
            Err(failed) => pending.reply::<Read>(&Err(failed.with(Some(read.attributes)))),
        }
        None
    }

    pub(super) fn write(self: &Arc<Self>, args: &WriteArgs<'_>, user: &User, pending: Pending) {
        // Read first: if a sync fails while this write is under way, its verifier must be the old one.
        let verifier = self.durability.verifier();
        let opened = self.open_handle(&args.file).and_then(|(node, opened)| {
            let before = self.attributes(&node)?;
            Ok((node, opened, before))
        });
        let (node, opened, before) = match opened {
            Ok(opened) => opened,
            Err(failed) => return pending.reply::<Write>(&Err(failed.with(Wcc::default()))),
        };
        let written = self.write_data(&node, opened, &before, args, user);
        let wcc = Wcc {
            before: Some((&before).into()),
            after: self.post_op(&node),
        };
        if let Err(failed) = written {
            return pending.reply::<Write>(&Err(failed.with(wcc)));
        }
        let ok = WriteOk {
            wcc,
            count: args.count,
            committed: args.stable,
            verifier,
        };
        let cover = match args.stable {
            Stability::Unstable => return pending.reply::<Write>(&Ok(ok)),
            Stability::DataSync => Cover::Data,
            Stability::FileSync => Cover::Times,
        };
        let (server, file) = (self.clone(), node.clone());
        when_synced(&node, cover, &self.durability, &self.pool, move |result| {
            pending.reply::<Write>(&match result {
                Ok(()) => Ok(ok),
                Err(error) => {
                    server.report_failure(&file.path(), &error);
                    Err(Failed::from(error).with(ok.wcc))
                }
            });
        });
    }

    fn write_data(
        &self,
        node: &Node,
        opened: Opened,
        before: &Attributes,
        args: &WriteArgs<'_>,
        user: &User,
    ) -> Result<(), Failed> {
        self.writable()?;
        check_data(before, user, may::WRITE)?;
        if args.data.0.len() != args.count as usize {
            return Err(Failed(Status::Inval));
        }
        let end = args.offset.checked_add(args.count.into());
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(Failed(Status::FBig));
        }
        let _fence = node.fence.read().expect("nothing panics under the fence");
        self.check_lease(node, opened.epoch, LeaseAccess::Write)?;
        let result = node.io(&*self.disk)?.write_at(args.data.0, args.offset);
        // Also after an error: a part may have been written.
        node.group().wrote();
        self.metrics
            .written_bytes
            .fetch_add(args.count.into(), Ordering::Relaxed);
        Ok(result?)
    }

    pub(super) fn commit(self: &Arc<Self>, args: &CommitArgs, user: &User, pending: Pending) {
        let verifier = self.durability.verifier();
        let opened = self.open_handle(&args.file).and_then(|(node, opened)| {
            let before = self.attributes(&node)?;
            check_data(&before, user, may::WRITE)?;
            self.check_lease(&node, opened.epoch, LeaseAccess::Read)?;
            Ok((node, before))
        });
        let (node, before) = match opened {
            Ok(opened) => opened,
            Err(failed) => return pending.reply::<Commit>(&Err(failed.with(Wcc::default()))),
        };
        let wcc = Wcc {
            before: Some((&before).into()),
            after: Some(before),
        };
        if !node.group().is_dirty() && !self.durability.failed() {
            return pending.reply::<Commit>(&Ok(CommitOk { wcc, verifier }));
        }
        // After a restart the file may not be open although the instance before wrote to it; its verifier tells the client.
        let (server, file) = (self.clone(), node.clone());
        when_synced(
            &node,
            Cover::Data,
            &self.durability,
            &self.pool,
            move |result| {
                pending.reply::<Commit>(&match result {
                    Ok(()) => Ok(CommitOk { wcc, verifier }),
                    Err(error) => {
                        server.report_failure(&file.path(), &error);
                        Err(Failed::from(error).with(wcc))
                    }
                });
            },
        );
    }

    /// Tells the lab that a call was refused for its lease.
    pub(super) fn report_refusal(&self, node: &Node, epoch: u64) {
        let refusals = self.metrics.lease_refusals.fetch_add(1, Ordering::Relaxed);
        // A host that does not know yet that it lost its disk sends thousands: the first hundred say it all.
        if refusals < 100 {
            let view = self.leases.view(node.id, std::time::Instant::now());
            self.events.report(&Event::Lease {
                path: node.path().display().to_string(),
                epoch,
                owner: String::from_utf8_lossy(&view.owner).into_owned(),
                change: "refused",
                remaining_ms: None,
            });
        }
    }
}

/// Status and attributes in front of the data of a READ, and the count, end-of-file and length after them.
const READ_HEADER: usize = 4 + 4 + 84 + READ_COUNTS;
const READ_COUNTS: usize = 12;

struct Reading {
    node: Arc<Node>,
    opened: Opened,
    attributes: Attributes,
    offset: u64,
    count: u32,
}

fn would_wait(error: &io::Error) -> bool {
    // Some file systems cannot tell.
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP)
    )
}

fn check_data(attributes: &Attributes, user: &User, wanted: u32) -> Result<(), Failed> {
    match attributes.kind {
        FileType::Regular => {}
        FileType::Directory => return Err(Failed(Status::IsDir)),
        _ => return Err(Failed(Status::Inval)),
    }
    // The owner may always: it may have taken a right from itself after it opened the file. Who may execute a file
    // must be able to read it, since the client's kernel does that in its name.
    let granted = user.permissions(attributes.mode, attributes.uid, attributes.gid);
    let executes = wanted == may::READ && granted & may::EXECUTE != 0;
    if granted & wanted == wanted || executes || user.uid == attributes.uid {
        Ok(())
    } else {
        Err(Failed(Status::Acces))
    }
}
