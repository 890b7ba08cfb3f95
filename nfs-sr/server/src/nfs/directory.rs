//! READDIR and READDIRPLUS. Cookies are the file system's own positions, which stay valid whatever is created or removed
//! meanwhile, so the verifier need not change.

use std::{os::fd::OwnedFd, sync::Arc};

use nfs3::{FileType, Name, Status, nfs::*, xdr::List};
use rustix::{
    fs::{OFlags, RawDir, SeekFrom, seek},
    io::Errno,
};

use super::Failed;
use crate::{
    export::{User, may},
    node::{Node, PRIVATE, os_name},
    server::{Pending, Server},
};

/// Bytes of the longest listing that is made, whatever is asked for.
const MAX_LISTING: usize = 256 * 1024;
/// Bytes of a reply besides its entries: status, attributes, verifier, end of list, eof.
const FIXED: usize = 4 + 88 + 8 + 4 + 4;
/// Bytes of an entry besides its name: that there is one, fileid, length and padding of the name, cookie.
const ENTRY: usize = 4 + 8 + 8 + 8;
/// What READDIRPLUS adds: attributes and handle.
const PLUS: usize = 88 + 4 + 4 + 32;

struct Item {
    fileid: u64,
    name: Vec<u8>,
    cookie: u64,
}

impl Server {
    pub(super) fn read_directory(&self, args: &ReadDirArgs, user: &User, pending: Pending) {
        let dir = match self.open_handle(&args.dir) {
            Ok((dir, _)) => dir,
            Err(failed) => return pending.reply::<ReadDir>(&Err(failed.with(None))),
        };
        let limit = (args.count as usize).min(MAX_LISTING);
        let listed = self.list(&dir, user, args.cookie, limit, usize::MAX, ENTRY);
        let attributes = self.post_op(&dir);
        pending.reply::<ReadDir>(&match &listed {
            Ok((items, eof)) => Ok(ReadDirOk {
                attributes,
                verifier: [0; 8],
                entries: List(
                    items
                        .iter()
                        .map(|item| Entry {
                            fileid: item.fileid,
                            name: Name(&item.name),
                            cookie: item.cookie,
                        })
                        .collect(),
                ),
                eof: *eof,
            }),
            Err(failed) => Err(failed.with(attributes)),
        });
    }

    pub(super) fn read_directory_plus(
        &self,
        args: &ReadDirPlusArgs,
        user: &User,
        pending: Pending,
    ) {
        let dir = match self.open_handle(&args.dir) {
            Ok((dir, _)) => dir,
            Err(failed) => return pending.reply::<ReadDirPlus>(&Err(failed.with(None))),
        };
        let limit = (args.max_count as usize).min(MAX_LISTING);
        let names = (args.dir_count as usize).max(ENTRY + 256);
        let listed = self.list(&dir, user, args.cookie, limit, names, ENTRY + PLUS);
        let attributes = self.post_op(&dir);
        pending.reply::<ReadDirPlus>(&match &listed {
            Ok((items, eof)) => Ok(ReadDirPlusOk {
                attributes,
                verifier: [0; 8],
                entries: List(
                    items
                        .iter()
                        .map(|item| self.entry_plus(&dir, item, user))
                        .collect(),
                ),
                eof: *eof,
            }),
            Err(failed) => Err(failed.with(attributes)),
        });
    }

    fn entry_plus<'a>(&self, dir: &Node, item: &'a Item, user: &User) -> EntryPlus<'a> {
        let node = os_name(&item.name).ok().and_then(|name| {
            let _acting = user.act().ok()?;
            self.nodes.lookup(dir, name).ok()
        });
        EntryPlus {
            fileid: item.fileid,
            name: Name(&item.name),
            cookie: item.cookie,
            attributes: node.as_ref().and_then(|node| self.post_op(node)),
            handle: node.as_ref().map(|node| self.handles.make(node.id, 0)),
        }
    }

    /// Entries from `cookie` on whose reply stays below `limit` bytes, and names below `names_limit`.
    fn list(
        &self,
        dir: &Arc<Node>,
        user: &User,
        cookie: u64,
        limit: usize,
        names_limit: usize,
        overhead: usize,
    ) -> Result<(Vec<Item>, bool), Failed> {
        if dir.kind != FileType::Directory {
            return Err(Failed(Status::NotDir));
        }
        let attributes = self.attributes(dir)?;
        if user.permissions(attributes.mode, attributes.uid, attributes.gid) & may::READ == 0 {
            return Err(Failed(Status::Acces));
        }
        // A descriptor of its own: the position of a shared one would be everybody's.
        let fd: OwnedFd = dir.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?;
        if cookie != 0 {
            seek(&fd, SeekFrom::Start(cookie)).map_err(|error| match error {
                Errno::INVAL => Failed(Status::BadCookie),
                error => error.into(),
            })?;
        }
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        let (mut items, mut size, mut names) = (Vec::new(), FIXED, 0);
        let is_root = dir.id == self.nodes.root().id;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if is_root && name == PRIVATE.as_bytes() {
                continue;
            }
            size += overhead + name.len().next_multiple_of(4);
            names += ENTRY + name.len().next_multiple_of(4);
            if size > limit || names > names_limit {
                if items.is_empty() {
                    return Err(Failed(Status::TooSmall));
                }
                return Ok((items, false));
            }
            // The parent of the export's root is the root, whatever is above it here.
            let fileid = if is_root && name == b".." {
                dir.id.inode
            } else {
                entry.ino()
            };
            items.push(Item {
                fileid,
                name: name.to_vec(),
                cookie: entry.next_entry_cookie(),
            });
        }
        Ok((items, true))
    }
}
