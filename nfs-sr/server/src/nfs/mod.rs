//! The NFS program: each of its 22 procedures on top of the export's files.

#![expect(
    clippy::result_large_err,
    reason = "failures of NFS carry attributes; they are replies, not rarities"
)]

mod attributes;
mod data;
mod directory;
mod names;

use std::{io, sync::Arc};

use nfs3::{
    Attributes, Failure, FileHandle, PostOp, Status, Wcc,
    nfs::*,
    rpc::{Call, Procedure, Refusal},
};
use rustix::io::Errno;

use crate::{
    durability::SyncFailed,
    export::User,
    handles::Opened,
    lease::{Access as LeaseAccess, Denied},
    node::{self, Node},
    server::{Pending, Server, arguments},
};

/// Why an operation failed; becomes the status of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed(Status);

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        Self(match error {
            Errno::PERM => Status::Perm,
            Errno::NOENT => Status::NoEnt,
            Errno::NXIO => Status::NxIo,
            Errno::ACCESS => Status::Acces,
            Errno::EXIST => Status::Exist,
            Errno::XDEV => Status::XDev,
            Errno::NODEV => Status::NoDev,
            Errno::NOTDIR => Status::NotDir,
            Errno::ISDIR => Status::IsDir,
            Errno::INVAL => Status::Inval,
            Errno::FBIG => Status::FBig,
            Errno::NOSPC => Status::NoSpc,
            Errno::ROFS => Status::RoFs,
            Errno::MLINK => Status::MLink,
            Errno::NAMETOOLONG => Status::NameTooLong,
            Errno::NOTEMPTY => Status::NotEmpty,
            Errno::DQUOT => Status::DQuot,
            Errno::STALE => Status::Stale,
            Errno::LOOP => Status::Acces,
            Errno::OPNOTSUPP => Status::NotSupp,
            // The caller comes again rather than take an error to its user.
            Errno::NFILE | Errno::MFILE | Errno::NOMEM => Status::Jukebox,
            _ => Status::Io,
        })
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None if error.kind() == io::ErrorKind::PermissionDenied => Self(Status::Acces),
            None => Self(Status::Io),
        }
    }
}

impl From<SyncFailed> for Failed {
    fn from(_: SyncFailed) -> Self {
        Self(Status::Io)
    }
}

impl From<Denied> for Failed {
    fn from(denied: Denied) -> Self {
        Self(match denied {
            Denied::Stale => Status::Stale,
            Denied::NotHolder => Status::Acces,
        })
    }
}

impl Failed {
    fn with<F>(self, body: F) -> Failure<F> {
        Failure {
            status: self.0,
            body,
        }
    }
}

/// Answers a call of the NFS program.
pub fn serve(server: &Arc<Server>, call: Call<'_>, user: &User, pending: Pending) {
    /// Decodes the arguments of one procedure and sends the reply that the expression gives.
    macro_rules! answer {
        ($procedure:ty, |$args:ident| $reply:expr) => {
            match arguments::<$procedure>(&call) {
                Some($args) => pending.reply::<$procedure>(&$reply),
                None => pending.refuse(Refusal::GarbageArguments),
            }
        };
    }
    /// The same for a procedure that sends its reply itself.
    macro_rules! run {
        ($procedure:ty, |$args:ident| $run:expr) => {
            match arguments::<$procedure>(&call) {
                Some($args) => $run,
                None => pending.refuse(Refusal::GarbageArguments),
            }
        };
    }
    match call.procedure {
        Null::NUMBER => answer!(Null, |_args| ()),
        GetAttr::NUMBER => answer!(GetAttr, |file| server
            .get_attributes(&file)
            .map_err(|f| f.with(()))),
        SetAttr::NUMBER => answer!(SetAttr, |args| server.set_attributes(&args, user)),
        Lookup::NUMBER => answer!(Lookup, |args| server.look_up(&args, user)),
        Access::NUMBER => answer!(Access, |args| server.access(&args, user)),
        ReadLink::NUMBER => run!(ReadLink, |link| server.read_link(&link, pending)),
        Read::NUMBER => run!(Read, |args| server.read(&args, user, pending)),
        Write::NUMBER => run!(Write, |args| server.write(&args, user, pending)),
        Create::NUMBER => answer!(Create, |args| server.create(&args, user)),
        MkDir::NUMBER => answer!(MkDir, |args| server.make_directory(&args, user)),
        SymLink::NUMBER => answer!(SymLink, |args| server.make_symlink(&args, user)),
        MkNod::NUMBER => answer!(MkNod, |args| server.make_special(&args, user)),
        Remove::NUMBER => answer!(Remove, |args| server.remove(&args, user, false)),
        RmDir::NUMBER => answer!(RmDir, |args| server.remove(&args, user, true)),
        Rename::NUMBER => answer!(Rename, |args| server.rename(&args, user)),
        Link::NUMBER => answer!(Link, |args| server.link(&args, user)),
        ReadDir::NUMBER => run!(ReadDir, |args| server.read_directory(&args, user, pending)),
        ReadDirPlus::NUMBER => run!(ReadDirPlus, |args| server
            .read_directory_plus(&args, user, pending)),
        FsStat::NUMBER => answer!(FsStat, |file| server.file_system_state(&file)),
        FsInfo::NUMBER => answer!(FsInfo, |file| server.file_system_info(&file)),
        PathConf::NUMBER => answer!(PathConf, |file| server.path_limits(&file)),
        Commit::NUMBER => run!(Commit, |args| server.commit(&args, user, pending)),
        _ => pending.refuse(Refusal::ProcedureUnavailable),
    }
}

impl Server {
    /// The file of a handle.
    fn open_handle(&self, handle: &FileHandle) -> Result<(Arc<Node>, Opened), Failed> {
        let opened = self.handles.open(handle).ok_or(Failed(Status::BadHandle))?;
        let node = self.nodes.get(opened.id)?;
        Ok((node, opened))
    }

    fn attributes(&self, node: &Node) -> Result<Attributes, Failed> {
        Ok(node::attributes(&node.stat()?, self.handles.file_system()))
    }

    fn post_op(&self, node: &Node) -> PostOp {
        self.attributes(node).ok()
    }

    /// Refuses what the export or a failed disk forbids to change.
    fn writable(&self) -> Result<(), Failed> {
        match () {
            () if self.export.read_only => Err(Failed(Status::RoFs)),
            () if self.durability.failed() => Err(Failed(Status::Io)),
            () => Ok(()),
        }
    }

    /// Checks the lease of a file for a call that came with a handle of `epoch`.
    fn check_lease(&self, node: &Node, epoch: u64, access: LeaseAccess) -> Result<(), Failed> {
        self.leases.check(node.id, epoch, access).map_err(|denied| {
            self.report_refusal(node, epoch);
            denied.into()
        })
    }

    /// Runs a change of a directory between the two looks at its attributes that the client wants.
    fn changing<T>(
        &self,
        dir: &FileHandle,
        user: &User,
        change: impl FnOnce(&Arc<Node>) -> Result<T, Failed>,
    ) -> (Result<T, Failed>, Wcc) {
        let dir = match self.open_handle(dir) {
            Ok((dir, _)) => dir,
            Err(failed) => return (Err(failed), Wcc::default()),
        };
        let before = self.post_op(&dir).map(|attributes| (&attributes).into());
        let result = self.writable().and_then(|()| {
            let _acting = user.act()?;
            change(&dir)
        });
        (
            result,
            Wcc {
                before,
                after: self.post_op(&dir),
            },
        )
    }
}
