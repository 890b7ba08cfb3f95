//! GETATTR, SETATTR, ACCESS, FSSTAT, FSINFO and PATHCONF.

use std::os::fd::AsRawFd;

use nfs3::{
    Attributes, Failure, FileHandle, FileType, MAX_DATA, PostOp, SetAttributes, SetTime, Status,
    Time, Wcc, nfs::*,
};
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid},
    io::Errno,
};

use super::Failed;
use crate::{
    durability::sync_now,
    export::{NO_ID, User, may},
    file_io::Cover,
    lease::Access as LeaseAccess,
    node::Node,
    server::Server,
};

impl Server {
    pub(super) fn get_attributes(&self, file: &FileHandle) -> Result<Attributes, Failed> {
        let (node, _) = self.open_handle(file)?;
        self.attributes(&node)
    }

    pub(super) fn set_attributes(
        &self,
        args: &SetAttrArgs,
        user: &User,
    ) -> Result<Wcc, Failure<Wcc>> {
        let (node, opened) = self
            .open_handle(&args.object)
            .map_err(|f| f.with(Wcc::default()))?;
        let before = self.attributes(&node).map_err(|f| f.with(Wcc::default()))?;
        let result = self.writable().and_then(|()| {
            if args.guard.is_some_and(|guard| guard != before.ctime) {
                return Err(Failed(Status::NotSync));
            }
            let fence = node.fence.read().expect("nothing panics under the fence");
            self.check_lease(&node, opened.epoch, LeaseAccess::Write)?;
            self.apply(&node, &args.attributes, &before, user)?;
            drop(fence);
            self.sync_attributes(&node)
        });
        let wcc = Wcc {
            before: Some((&before).into()),
            after: self.post_op(&node),
        };
        match result {
            Ok(()) => Ok(wcc),
            Err(failed) => Err(failed.with(wcc)),
        }
    }

    /// Sets attributes, as this user may. The size comes first: it is the one that can fail half way.
    pub(super) fn apply(
        &self,
        node: &Node,
        set: &SetAttributes,
        before: &Attributes,
        user: &User,
    ) -> Result<(), Failed> {
        if [set.uid, set.gid].contains(&Some(NO_ID)) {
            return Err(Failed(Status::Inval));
        }
        if let Some(size) = set.size {
            self.set_size(node, size, before, user)?;
        }
        let _acting = user.act()?;
        let chown = |uid: Option<u32>, gid: Option<u32>| {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(node.anchor(), c"", uid, gid, flags)
        };
        if set.uid.is_some() || set.gid.is_some() {
            chown(set.uid, set.gid)?;
        }
        // The descriptor itself (O_PATH) takes neither; /proc leads to the file whatever it is called by now.
        let path = format!("/proc/self/fd/{}", node.anchor().as_raw_fd());
        if let Some(mode) = set.mode
            && node.kind != FileType::Symlink
        {
            rustix::fs::chmodat(
                CWD,
                &path,
                Mode::from_raw_mode(mode & 0o7777),
                AtFlags::empty(),
            )?;
        }
        if (set.atime, set.mtime) != (SetTime::Keep, SetTime::Keep) {
            let times = Timestamps {
                last_access: timespec(set.atime),
                last_modification: timespec(set.mtime),
            };
            match node.kind {
                FileType::Symlink => {
                    rustix::fs::utimensat(node.anchor(), c"", &times, AtFlags::EMPTY_PATH)?;
                }
                _ => rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?,
            }
        }
        Ok(())
    }

    fn set_size(
        &self,
        node: &Node,
        size: u64,
        before: &Attributes,
        user: &User,
    ) -> Result<(), Failed> {
        match node.kind {
            FileType::Regular => {}
            FileType::Directory => return Err(Failed(Status::IsDir)),
            _ => return Err(Failed(Status::Inval)),
        }
        // The owner may: it opened the file for writing before it took that right from itself.
        let permissions = user.permissions(before.mode, before.uid, before.gid);
        if permissions & may::WRITE == 0 && user.uid != before.uid {
            return Err(Failed(Status::Acces));
        }
        if size > i64::MAX as u64 {
            return Err(Failed(Status::FBig));
        }
        node.io(&*self.disk)?.set_len(size)?;
        crate::durability::Syncable::group(node).wrote();
        Ok(())
    }

    /// Waits until attributes of a file are on disk. Those of special files are synced with their directory.
    pub(super) fn sync_attributes(&self, node: &Node) -> Result<(), Failed> {
        if matches!(node.kind, FileType::Regular | FileType::Directory) {
            // Opened as the server, not as the user, who may have no right to read it.
            match node.io(&*self.disk) {
                Ok(_) => sync_now(node, Cover::All, &self.durability)?,
                // Read-only by mode does not stop the superuser; without privilege such a file cannot be synced by itself.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn access(
        &self,
        args: &AccessArgs,
        user: &User,
    ) -> Result<AccessOk, Failure<PostOp>> {
        let attributes = self
            .get_attributes(&args.object)
            .map_err(|f| f.with(None))?;
        let permissions = user.permissions(attributes.mode, attributes.uid, attributes.gid);
        let is_dir = attributes.kind == FileType::Directory;
        let mut granted = 0;
        if permissions & may::READ != 0 {
            granted |= access::READ;
        }
        if permissions & may::EXECUTE != 0 || (is_dir && user.is_superuser()) {
            granted |= if is_dir {
                access::LOOKUP
            } else {
                access::EXECUTE
            };
        }
        if permissions & may::WRITE != 0 && !self.export.read_only {
            granted |= access::MODIFY | access::EXTEND | if is_dir { access::DELETE } else { 0 };
        }
        Ok(AccessOk {
            attributes: Some(attributes),
            access: args.access & granted,
        })
    }

    pub(super) fn file_system_state(&self, file: &FileHandle) -> Result<FsStatOk, Failure<PostOp>> {
        let (node, _) = self.open_handle(file).map_err(|f| f.with(None))?;
        let attributes = self.post_op(&node);
        let state = rustix::fs::fstatvfs(self.nodes.root().anchor())
            .map_err(|error| Failed::from(error).with(attributes))?;
        Ok(FsStatOk {
            attributes,
            total_bytes: state.f_blocks * state.f_frsize,
            free_bytes: state.f_bfree * state.f_frsize,
            available_bytes: state.f_bavail * state.f_frsize,
            total_files: state.f_files,
            free_files: state.f_ffree,
            available_files: state.f_favail,
            invariant_seconds: 0,
        })
    }

    pub(super) fn file_system_info(&self, file: &FileHandle) -> Result<FsInfoOk, Failure<PostOp>> {
        let (node, _) = self.open_handle(file).map_err(|f| f.with(None))?;
        let most = MAX_DATA as u32;
        Ok(FsInfoOk {
            attributes: self.post_op(&node),
            read_max: most,
            read_preferred: most,
            read_multiple: 4096,
            write_max: most,
            write_preferred: most,
            write_multiple: 4096,
            readdir_preferred: 64 * 1024,
            max_file_size: i64::MAX as u64,
            time_delta: Time {
                seconds: 0,
                nanoseconds: 1,
            },
            properties: properties::LINK
                | properties::SYMLINK
                | properties::HOMOGENEOUS
                | properties::CAN_SET_TIME,
        })
    }

    pub(super) fn path_limits(&self, file: &FileHandle) -> Result<PathConfOk, Failure<PostOp>> {
        let (node, _) = self.open_handle(file).map_err(|f| f.with(None))?;
        Ok(PathConfOk {
            attributes: self.post_op(&node),
            // What ext4 has, the least of the usual file systems.
            link_max: 65000,
            name_max: 255,
            no_truncation: true,
            chown_restricted: true,
            case_insensitive: false,
            case_preserving: true,
        })
    }
}

fn timespec(time: SetTime) -> Timespec {
    match time {
        SetTime::Keep => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        SetTime::Now => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        SetTime::To(time) => Timespec {
            tv_sec: time.seconds.into(),
            tv_nsec: time.nanoseconds.into(),
        },
    }
}
