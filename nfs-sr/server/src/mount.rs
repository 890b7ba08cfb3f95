//! The MOUNT program. Which client has mounted what is not recorded: RFC 1813 calls that list advisory, and nothing
//! here depends on it.

use std::{os::unix::ffi::OsStrExt, path::Path};

use nfs3::{
    FileType,
    mount::{self, Export, ExportEntry, HostName, Mount, MountResult, MountStatus, Mounted},
    rpc::{Call, Procedure, Refusal},
    xdr::List,
};
use rustix::io::Errno;

use crate::server::{Pending, Server, arguments};

/// AUTH_SYS and AUTH_NONE.
const FLAVORS: [u32; 2] = [1, 0];

/// Answers a call of the MOUNT program.
pub fn serve(server: &Server, call: Call<'_>, pending: Pending) {
    match call.procedure {
        mount::Null::NUMBER => pending.reply::<mount::Null>(&()),
        Mount::NUMBER => match arguments::<Mount>(&call) {
            Some(path) => pending.reply::<Mount>(&MountResult(mount(server, path.0))),
            None => pending.refuse(Refusal::GarbageArguments),
        },
        mount::Dump::NUMBER => pending.reply::<mount::Dump>(&List(Vec::new())),
        mount::Unmount::NUMBER => pending.reply::<mount::Unmount>(&()),
        mount::UnmountAll::NUMBER => pending.reply::<mount::UnmountAll>(&()),
        Export::NUMBER => {
            let clients: Vec<String> = server
                .export
                .clients
                .iter()
                .map(ToString::to_string)
                .collect();
            let clients = clients
                .iter()
                .map(|client| HostName(client.as_bytes()))
                .collect();
            let path = nfs3::Path(server.export.name.as_bytes());
            pending.reply::<Export>(&List(vec![ExportEntry {
                path,
                clients: List(clients),
            }]));
        }
        _ => pending.refuse(Refusal::ProcedureUnavailable),
    }
}

/// The export by its name, a directory below it, or the only export there is by `/` and the empty path.
fn mount(server: &Server, path: &[u8]) -> Result<Mounted, MountStatus> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let below = match path.strip_prefix(&server.export.name) {
        Ok(below) => below,
        Err(_) if path.as_os_str().is_empty() || path == Path::new("/") => Path::new(""),
        Err(_) => return Err(MountStatus::NoEnt),
    };
    let node = server
        .nodes
        .resolve(below)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::STALE) => MountStatus::NoEnt,
            Some(Errno::ACCESS | Errno::PERM | Errno::LOOP) => MountStatus::Acces,
            Some(Errno::NOTDIR) => MountStatus::NotDir,
            Some(Errno::NAMETOOLONG) => MountStatus::NameTooLong,
            _ => MountStatus::Io,
        })?;
    if node.kind != FileType::Directory {
        return Err(MountStatus::NotDir);
    }
    Ok(Mounted {
        root: server.handles.make(node.id, 0),
        flavors: FLAVORS.to_vec(),
    })
}
