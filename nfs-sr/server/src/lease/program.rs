//! The LEASE program on top of the table.

use std::{ffi::OsStr, io, sync::Arc, time::Instant};

use nfs3::{
    DirEntry, FileHandle, FileType, Name, Path,
    lease::{
        self, Acquire, Break, Get, Grant, Holding, LeaseResult, LeaseStatus, ListAll, Listed,
        Listing, Mode, Owner, Refused, Release, Renew, Replace, ReplaceArgs, Take,
    },
    rpc::{Call, Procedure, Refusal as RpcRefusal},
    xdr::List,
};
use rustix::io::Errno;

use super::{
    state::{NEVER, View},
    table::Refusal,
};
use crate::{
    durability::sync_now,
    export::User,
    file_io::Cover,
    handles::Opened,
    node::{Node, os_name},
    server::{Pending, Server, arguments},
};

/// Answers a call of the LEASE program.
pub fn serve(server: &Server, call: Call<'_>, user: &User, pending: Pending) {
    let now = Instant::now();
    let events = &server.events;
    let found = |file: &DirEntry<'_>| find(server, file);
    match call.procedure {
        lease::Null::NUMBER => pending.reply::<lease::Null>(&()),
        // Leases are between hosts and the server, so only the superuser of a host has a say.
        _ if !user.is_superuser() => pending.refuse(RpcRefusal::SystemError),
        Acquire::NUMBER => with::<Acquire>(call, pending, |pending, args| {
            let result = found(&args.file).and_then(|node| {
                let (mode, epoch) = (args.mode, args.expected_epoch);
                let view = server.leases.acquire(
                    &node,
                    args.owner.0,
                    mode,
                    epoch,
                    args.ttl_ms,
                    now,
                    events,
                )?;
                still_there(server, &args.file, node, view, now)
            });
            grant::<Acquire>(server, pending, result);
        }),
        Take::NUMBER => with::<Take>(call, pending, |pending, args| {
            let result = found(&args.file).and_then(|node| {
                let epoch = args.expected_epoch;
                let view =
                    server
                        .leases
                        .take(&node, args.owner.0, epoch, args.ttl_ms, now, events)?;
                still_there(server, &args.file, node, view, now)
            });
            grant::<Take>(server, pending, result);
        }),
        Renew::NUMBER => with::<Renew>(call, pending, |pending, args| {
            let result = open(server, &args.object).and_then(|(_, opened)| {
                server
                    .leases
                    .renew(opened.id, opened.epoch, args.ttl_ms, now)
            });
            state::<Renew>(pending, result);
        }),
        Release::NUMBER => with::<Release>(call, pending, |pending, handle| {
            let result = open(server, &handle)
                .and_then(|(node, opened)| server.leases.release(&node, opened.epoch, now, events));
            state::<Release>(pending, result);
        }),
        Get::NUMBER => with::<Get>(call, pending, |pending, file| {
            state::<Get>(
                pending,
                found(&file).map(|node| server.leases.view(node.id, now)),
            );
        }),
        Break::NUMBER => with::<Break>(call, pending, |pending, file| {
            let result =
                found(&file).and_then(|node| server.leases.break_lease(&node, now, events));
            state::<Break>(pending, result);
        }),
        Replace::NUMBER => with::<Replace>(call, pending, |pending, args| {
            grant::<Replace>(server, pending, replace(server, &args, now));
        }),
        ListAll::NUMBER => {
            let leases = server.leases.list(now);
            let leases = leases.iter().map(|(path, view)| Listed {
                path: Path(path.as_os_str().as_encoded_bytes()),
                holding: holding(view),
            });
            pending.reply::<ListAll>(&Listing {
                leases: List(leases.collect()),
            });
        }
        _ => pending.refuse(RpcRefusal::ProcedureUnavailable),
    }
}

fn with<'a, P: Procedure>(
    call: Call<'a>,
    pending: Pending,
    run: impl FnOnce(Pending, P::Args<'a>),
) {
    match arguments::<P>(&call) {
        Some(args) => run(pending, args),
        None => pending.refuse(RpcRefusal::GarbageArguments),
    }
}

fn grant<P>(server: &Server, pending: Pending, result: Result<(Arc<Node>, View), Refusal>)
where
    P: for<'a> Procedure<Reply<'a> = LeaseResult<'a, Grant<'a>>>,
{
    pending.reply::<P>(&LeaseResult(match &result {
        Ok((node, view)) => Ok(Grant {
            holding: holding(view),
            object: server.handles.make(node.id, view.epoch),
        }),
        Err(refusal) => Err(refused(refusal)),
    }));
}

fn state<P>(pending: Pending, result: Result<View, Refusal>)
where
    P: for<'a> Procedure<Reply<'a> = LeaseResult<'a, Holding<'a>>>,
{
    pending.reply::<P>(&LeaseResult(match &result {
        Ok(view) => Ok(holding(view)),
        Err(refusal) => Err(refused(refusal)),
    }));
}

fn holding(view: &View) -> Holding<'_> {
    Holding {
        epoch: view.epoch,
        mode: view.mode,
        owner: Owner(&view.owner),
        remaining_ms: view.remaining_ms,
    }
}

fn refused(refusal: &Refusal) -> Refused<'_> {
    Refused {
        status: refusal.status,
        holding: holding(&refusal.view),
    }
}

fn refuse(status: LeaseStatus) -> Refusal {
    Refusal {
        status,
        view: NEVER,
    }
}

fn open(server: &Server, handle: &FileHandle) -> Result<(Arc<Node>, Opened), Refusal> {
    let opened = server
        .handles
        .open(handle)
        .ok_or_else(|| refuse(LeaseStatus::Inval))?;
    let node = server
        .nodes
        .get(opened.id)
        .map_err(|_| refuse(LeaseStatus::NoEnt))?;
    Ok((node, opened))
}

/// The file of a lease that was granted, if it still has the name by which it was found. A REPLACE may have come between the
/// two, and whoever means the name means its successor.
fn still_there(
    server: &Server,
    file: &DirEntry<'_>,
    node: Arc<Node>,
    view: View,
    now: Instant,
) -> Result<(Arc<Node>, View), Refusal> {
    if find(server, file).is_ok_and(|found| found.id == node.id) {
        return Ok((node, view));
    }
    server
        .leases
        .release(&node, view.epoch, now, &server.events)?;
    Err(refuse(LeaseStatus::Stale))
}

fn replace(
    server: &Server,
    args: &ReplaceArgs<'_>,
    now: Instant,
) -> Result<(Arc<Node>, View), Refusal> {
    let (node, opened) = open(server, &args.object)?;
    let beside = |name| DirEntry {
        dir: args.file.dir,
        name,
    };
    let current = find(server, &args.file)?;
    if current.id != node.id {
        // Done already, and the answer was lost; or it is no longer the caller's affair.
        let view = server.leases.view(current.id, now);
        let gone = matches!(find(server, &beside(args.successor)), Err(refusal) if refusal.status == LeaseStatus::NoEnt);
        let done = gone
            && view.epoch > opened.epoch
            && view.mode == Mode::Exclusive
            && view.owner == args.owner.0;
        return match done {
            true => Ok((current, view)),
            false => Err(Refusal {
                status: LeaseStatus::Stale,
                view,
            }),
        };
    }
    let successor = find(server, &beside(args.successor))?;
    if successor.id == node.id || find(server, &beside(args.kept))?.id != node.id {
        return Err(refuse(LeaseStatus::Inval));
    }
    let (dir, _) = open(server, &args.file.dir)?;
    let name = |name: Name<'_>| os_name(name.0).map(OsStr::to_owned);
    let invalid = |_| refuse(LeaseStatus::Inval);
    let to = name(args.file.name).map_err(invalid)?;
    let from = name(args.successor).map_err(invalid)?;
    let kept = name(args.kept).map_err(invalid)?;
    let path = dir.path().join(&to);
    let rename = || {
        rustix::fs::renameat(dir.anchor(), &from, dir.anchor(), &to)?;
        successor.set_path(path.clone());
        node.set_path(dir.path().join(&kept));
        dir.io(&*server.disk)?;
        sync_now(&*dir, Cover::All, &server.durability)
            .map_err(|error| io::Error::other(error.to_string()))
    };
    let held = (&*node, opened.epoch);
    let as_whom = (args.owner.0, args.ttl_ms);
    let view = server.leases.replace(
        held,
        (&successor, &path),
        as_whom,
        now,
        &server.events,
        rename,
    )?;
    Ok((successor, view))
}

/// Only regular files have leases.
fn find(server: &Server, file: &DirEntry<'_>) -> Result<Arc<Node>, Refusal> {
    let (dir, _) = open(server, &file.dir)?;
    let name = os_name(file.name.0).map_err(|_| refuse(LeaseStatus::Inval))?;
    let node =
        server
            .nodes
            .lookup(&dir, name)
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => refuse(LeaseStatus::NoEnt),
                _ => refuse(LeaseStatus::Io),
            })?;
    match node.kind {
        FileType::Regular => Ok(node),
        _ => Err(refuse(LeaseStatus::Inval)),
    }
}
