//! LOOKUP, READLINK, and what makes, moves and removes names. Each change is on disk, directory included, before it
//! is answered.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc, time::Instant};

use nfs3::{
    Attributes, Device, DirEntry, Failure, FileHandle, FileType, Path, PostOp, SetAttributes,
    SetTime, Status, Time, Wcc, nfs::*,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, makedev, mkdirat, mknodat, openat, renameat, symlinkat, unlinkat},
    io::Errno,
};

use super::Failed;
use crate::{
    durability::sync_now,
    export::User,
    file_io::Cover,
    node::{Node, PRIVATE, os_name},
    server::{Pending, Server},
};

impl Server {
    pub(super) fn look_up(
        &self,
        args: &DirEntry<'_>,
        user: &User,
    ) -> Result<LookupOk, Failure<PostOp>> {
        let (dir, _) = self.open_handle(&args.dir).map_err(|f| f.with(None))?;
        let found = (|| {
            if dir.kind != FileType::Directory {
                return Err(Failed(Status::NotDir));
            }
            let _acting = user.act()?;
            Ok(self.nodes.lookup(&dir, os_name(args.name.0)?)?)
        })();
        let dir_attributes = self.post_op(&dir);
        let node = found.map_err(|f: Failed| f.with(dir_attributes))?;
        Ok(LookupOk {
            object: self.handles.make(node.id, 0),
            attributes: self.post_op(&node),
            dir_attributes,
        })
    }

    pub(super) fn read_link(&self, link: &FileHandle, pending: Pending) {
        let result = self
            .open_handle(link)
            .map_err(|f| f.with(None))
            .and_then(|(node, _)| {
                let attributes = self.post_op(&node);
                if node.kind != FileType::Symlink {
                    return Err(Failed(Status::Inval).with(attributes));
                }
                match rustix::fs::readlinkat(node.anchor(), c"", Vec::new()) {
                    Ok(target) => Ok((attributes, target)),
                    Err(error) => Err(Failed::from(error).with(attributes)),
                }
            });
        pending.reply::<ReadLink>(&match &result {
            Ok((attributes, target)) => Ok(ReadLinkOk {
                attributes: *attributes,
                target: Path(target.as_bytes()),
            }),
            Err(failure) => Err(*failure),
        });
    }

    pub(super) fn create(
        &self,
        args: &CreateArgs<'_>,
        user: &User,
    ) -> Result<Created, Failure<Wcc>> {
        let (exclusive, set) = match args.how {
            CreateHow::Unchecked(set) => (false, set),
            CreateHow::Guarded(set) => (true, set),
            CreateHow::Exclusive(verifier) => (true, verifier_times(verifier)),
        };
        self.make(&args.place, user, |dir, name| {
            let mode = Mode::from_raw_mode(set.mode.unwrap_or(0o600) & 0o7777);
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(dir.anchor(), name, flags, mode) {
                Ok(_) => Ok(Made::New(set)),
                Err(Errno::EXIST) => {
                    let existing = self.nodes.lookup(dir, name)?;
                    let attributes = self.attributes(&existing)?;
                    let repeated = matches!(args.how, CreateHow::Exclusive(_))
                        && (SetTime::To(attributes.atime), SetTime::To(attributes.mtime))
                            == (set.atime, set.mtime);
                    match () {
                        () if repeated => Ok(Made::Existing(SetAttributes::default())),
                        () if exclusive => Err(Failed(Status::Exist)),
                        () if existing.kind != FileType::Regular => Err(Failed(Status::Exist)),
                        // Of the attributes only the size has an effect on a file that exists (O_TRUNC).
                        () => Ok(Made::Existing(SetAttributes {
                            size: set.size,
                            ..SetAttributes::default()
                        })),
                    }
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    pub(super) fn make_directory(
        &self,
        args: &MkDirArgs<'_>,
        user: &User,
    ) -> Result<Created, Failure<Wcc>> {
        self.make(&args.place, user, |dir, name| {
            let mode = Mode::from_raw_mode(args.attributes.mode.unwrap_or(0o700) & 0o7777);
            mkdirat(dir.anchor(), name, mode)?;
            Ok(Made::New(args.attributes))
        })
    }

    pub(super) fn make_symlink(
        &self,
        args: &SymLinkArgs<'_>,
        user: &User,
    ) -> Result<Created, Failure<Wcc>> {
        self.make(&args.place, user, |dir, name| {
            symlinkat(OsStr::from_bytes(args.target.0), dir.anchor(), name)?;
            Ok(Made::New(SetAttributes {
                mode: None,
                size: None,
                ..args.attributes
            }))
        })
    }

    pub(super) fn make_special(
        &self,
        args: &MkNodArgs<'_>,
        user: &User,
    ) -> Result<Created, Failure<Wcc>> {
        use rustix::fs::FileType as Kind;
        self.make(&args.place, user, |dir, name| {
            let (kind, set, device) = match args.what {
                SpecialFile::Character(set, device) => (Kind::CharacterDevice, set, device),
                SpecialFile::Block(set, device) => (Kind::BlockDevice, set, device),
                SpecialFile::Socket(set) => (Kind::Socket, set, Device::default()),
                SpecialFile::Fifo(set) => (Kind::Fifo, set, Device::default()),
                SpecialFile::NotSpecial(_) => return Err(Failed(Status::BadType)),
            };
            let mode = Mode::from_raw_mode(set.mode.unwrap_or(0o600) & 0o7777);
            mknodat(
                dir.anchor(),
                name,
                kind,
                mode,
                makedev(device.major, device.minor),
            )?;
            Ok(Made::New(set))
        })
    }

    /// What CREATE, MKDIR, SYMLINK and MKNOD have in common. `make` runs as the user.
    fn make(
        &self,
        place: &DirEntry<'_>,
        user: &User,
        make: impl FnOnce(&Node, &OsStr) -> Result<Made, Failed>,
    ) -> Result<Created, Failure<Wcc>> {
        let mut synced_dir = None;
        let (made, mut dir_wcc) = self.changing(&place.dir, user, |dir| {
            let name = self.changeable(dir, place)?;
            let made = make(dir, name)?;
            synced_dir = Some(dir.clone());
            Ok((self.nodes.lookup(dir, name)?, made))
        });
        let result = made.and_then(|(node, made)| {
            let attributes = self.attributes(&node)?;
            let set = match made {
                // The mode was given at birth, less the umask, which the server has cleared.
                Made::New(set) => SetAttributes {
                    mode: special_bits(set.mode, &attributes),
                    ..set
                },
                Made::Existing(set) => set,
            };
            if set != SetAttributes::default() {
                let set = keep_owner(set, &attributes);
                self.apply(&node, &set, &attributes, user)?;
            }
            self.sync_attributes(&node)?;
            if let Some(dir) = &synced_dir {
                self.sync_directory(dir)?;
            }
            Ok(node)
        });
        if let Some(dir) = &synced_dir {
            dir_wcc.after = self.post_op(dir);
        }
        match result {
            Ok(node) => Ok(Created {
                object: Some(self.handles.make(node.id, 0)),
                attributes: self.post_op(&node),
                dir_wcc,
            }),
            Err(failed) => Err(failed.with(dir_wcc)),
        }
    }

    pub(super) fn remove(
        &self,
        args: &DirEntry<'_>,
        user: &User,
        directory: bool,
    ) -> Result<Wcc, Failure<Wcc>> {
        let mut changed = None;
        let (removed, mut wcc) = self.changing(&args.dir, user, |dir| {
            let name = self.changeable(dir, args)?;
            let node = self.nodes.lookup(dir, name)?;
            self.not_leased(&node)?;
            let flags = if directory {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            unlinkat(dir.anchor(), name, flags)?;
            self.forget_if_gone(&node);
            changed = Some(dir.clone());
            Ok(())
        });
        let result = removed.and_then(|()| {
            changed
                .as_ref()
                .map_or(Ok(()), |dir| self.sync_directory(dir))
        });
        if let Some(dir) = &changed {
            wcc.after = self.post_op(dir);
        }
        match result {
            Ok(()) => Ok(wcc),
            Err(failed) => Err(failed.with(wcc)),
        }
    }

    pub(super) fn rename(
        &self,
        args: &RenameArgs<'_>,
        user: &User,
    ) -> Result<RenameWcc, Failure<RenameWcc>> {
        let mut wcc = RenameWcc::default();
        let target = match self.open_handle(&args.to.dir) {
            Ok((target, _)) => target,
            Err(failed) => return Err(failed.with(wcc)),
        };
        wcc.to_dir.before = self.post_op(&target).map(|attributes| (&attributes).into());
        let mut source = None;
        let (renamed, from_wcc) = self.changing(&args.from.dir, user, |dir| {
            source = Some(dir.clone());
            let (from, to) = (
                self.changeable(dir, &args.from)?,
                self.changeable(&target, &args.to)?,
            );
            let node = self.nodes.lookup(dir, from)?;
            self.not_leased(&node)?;
            let replaced = self.nodes.lookup(&target, to).ok();
            if let Some(replaced) = &replaced {
                self.not_leased(replaced)?;
            }
            renameat(dir.anchor(), from, target.anchor(), to)?;
            node.set_path(target.path().join(to));
            if let Some(replaced) = replaced.filter(|replaced| replaced.id != node.id) {
                self.forget_if_gone(&replaced);
            }
            Ok(())
        });
        wcc.from_dir = from_wcc;
        // The new name first: a crash between the two must not lose the file.
        let result = renamed.and_then(|()| {
            self.sync_directory(&target)?;
            source
                .as_ref()
                .filter(|dir| dir.id != target.id)
                .map_or(Ok(()), |dir| self.sync_directory(dir))
        });
        wcc.to_dir.after = self.post_op(&target);
        match result {
            Ok(()) => Ok(wcc),
            Err(failed) => Err(failed.with(wcc)),
        }
    }

    pub(super) fn link(
        &self,
        args: &LinkArgs<'_>,
        user: &User,
    ) -> Result<LinkBody, Failure<LinkBody>> {
        let node = match self.open_handle(&args.file) {
            Ok((node, _)) => node,
            Err(failed) => return Err(failed.with(LinkBody::default())),
        };
        let mut changed = None;
        let (linked, mut dir_wcc) = self.changing(&args.link.dir, user, |dir| {
            let name = self.changeable(dir, &args.link)?;
            if node.kind == FileType::Directory {
                return Err(Failed(Status::Perm));
            }
            // By path: linking a descriptor needs a capability that the user does not have.
            let path = node.path();
            let (parent, file) = (
                path.parent(),
                path.file_name().ok_or(Failed(Status::Stale))?,
            );
            let parent = self
                .nodes
                .resolve(parent.unwrap_or(std::path::Path::new("")))?;
            if self.nodes.lookup(&parent, file)?.id != node.id {
                return Err(Failed(Status::Stale));
            }
            rustix::fs::linkat(parent.anchor(), file, dir.anchor(), name, AtFlags::empty())?;
            changed = Some(dir.clone());
            Ok(())
        });
        let result = linked.and_then(|()| {
            self.sync_attributes(&node)?;
            changed
                .as_ref()
                .map_or(Ok(()), |dir| self.sync_directory(dir))
        });
        if let Some(dir) = &changed {
            dir_wcc.after = self.post_op(dir);
        }
        let body = LinkBody {
            attributes: self.post_op(&node),
            dir_wcc,
        };
        match result {
            Ok(()) => Ok(body),
            Err(failed) => Err(failed.with(body)),
        }
    }

    /// The name, if it is one that may be made, moved or removed.
    fn changeable<'a>(&self, dir: &Node, place: &DirEntry<'a>) -> Result<&'a OsStr, Failed> {
        if dir.kind != FileType::Directory {
            return Err(Failed(Status::NotDir));
        }
        let name = os_name(place.name.0)?;
        match () {
            () if name == "." || name == ".." => Err(Failed(Status::Inval)),
            () if name == PRIVATE && dir.id == self.nodes.root().id => Err(Failed(Status::Acces)),
            () => Ok(name),
        }
    }

    fn not_leased(&self, node: &Node) -> Result<(), Failed> {
        match self.leases.is_held(node.id, Instant::now()) {
            true => {
                self.report_refusal(node, 0);
                Err(Failed(Status::Acces))
            }
            false => Ok(()),
        }
    }

    fn forget_if_gone(&self, node: &Arc<Node>) {
        let links = node.stat().map_or(0, |stat| stat.stx_nlink);
        if links == 0 || node.kind == FileType::Directory {
            self.nodes.forget(node.id);
            self.durability.times().forget(node.id);
        }
    }

    fn sync_directory(&self, dir: &Node) -> Result<(), Failed> {
        dir.io(&*self.disk)?;
        sync_now(dir, Cover::All, &self.durability).map_err(|error| {
            self.report_failure(&dir.path(), &error);
            error.into()
        })
    }
}

/// What a CREATE or the like found or made, and what is to be set.
enum Made {
    New(SetAttributes),
    Existing(SetAttributes),
}

/// RFC 1813 section 3.3.8 leaves it to the server where an exclusive CREATE keeps its verifier. The times are free until the
/// client sets them, and they are durable with the file.
fn verifier_times(verifier: [u8; 8]) -> SetAttributes {
    let half = |at: usize| Time {
        seconds: u32::from_be_bytes(verifier[at..at + 4].try_into().expect("four bytes"))
            & 0x7fff_ffff,
        nanoseconds: 0,
    };
    SetAttributes {
        atime: SetTime::To(half(0)),
        mtime: SetTime::To(half(4)),
        ..SetAttributes::default()
    }
}

/// The mode to set after birth: only if the system has not taken all of it.
fn special_bits(mode: Option<u32>, attributes: &Attributes) -> Option<u32> {
    mode.map(|mode| mode & 0o7777)
        .filter(|mode| *mode != attributes.mode)
}

/// Leaves an owner alone that is as it shall be: only the superuser may set one.
fn keep_owner(set: SetAttributes, attributes: &Attributes) -> SetAttributes {
    SetAttributes {
        uid: set.uid.filter(|uid| *uid != attributes.uid),
        gid: set.gid.filter(|gid| *gid != attributes.gid),
        ..set
    }
}
