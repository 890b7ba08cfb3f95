//! The port mapper: all programs are on one port, and nobody else may register here.

use nfs3::{
    lease, mount, nfs,
    portmap::{self, Dump, GetPort, Mapping, Set, TCP, Unset},
    rpc::{Call, Procedure, Refusal},
    xdr::List,
};

use crate::server::{Pending, Server, arguments};

const PROGRAMS: [(u32, u32); 4] = [
    (portmap::PROGRAM, portmap::VERSION),
    (nfs::PROGRAM, nfs::VERSION),
    (mount::PROGRAM, mount::VERSION),
    (lease::PROGRAM, lease::VERSION),
];

/// Answers a call of the port mapper.
pub fn serve(server: &Server, call: Call<'_>, pending: Pending) {
    let port = u32::from(server.port);
    match call.procedure {
        portmap::Null::NUMBER => pending.reply::<portmap::Null>(&()),
        Set::NUMBER => pending.reply::<Set>(&false),
        Unset::NUMBER => pending.reply::<Unset>(&false),
        GetPort::NUMBER => match arguments::<GetPort>(&call) {
            Some(asked) => {
                let known =
                    PROGRAMS.contains(&(asked.program, asked.version)) && asked.protocol == TCP;
                pending.reply::<GetPort>(&if known { port } else { 0 });
            }
            None => pending.refuse(Refusal::GarbageArguments),
        },
        Dump::NUMBER => {
            let mapping = |(program, version)| Mapping {
                program,
                version,
                protocol: TCP,
                port,
            };
            pending.reply::<Dump>(&List(PROGRAMS.map(mapping).to_vec()));
        }
        _ => pending.refuse(Refusal::ProcedureUnavailable),
    }
}
