//! A blocking client, for the tools that talk to a running server, for benchmarks and for tests. The hypervisor has its own,
//! which never blocks.

use std::io::{self, Read, Write};

use nfs3::{
    Decoder, DirEntry, FileHandle, MAX_RECORD, Name, NfsResult, Path, Status,
    mount::{Mount, MountStatus},
    nfs::{Lookup, LookupOk},
    record::Assembler,
    rpc::{self, CallFailed, Credentials, MachineName, Procedure, Reply, UnixUser},
};

/// Why a call gave no results.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("the connection to the server failed: {0}")]
    Connection(#[from] io::Error),
    /// The server did not run the call.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// A mount was refused.
    #[error("the server does not let us mount '{path}': {status:?}")]
    Mount {
        /// What.
        path: String,
        /// Why.
        status: MountStatus,
    },
    /// An NFS procedure failed.
    #[error("'{name}': {status:?}")]
    File {
        /// What it was about.
        name: String,
        /// Why.
        status: Status,
    },
}

/// A connection to a server.
pub struct Client<S> {
    stream: S,
    xid: u32,
    credentials: Credentials<'static>,
    records: Assembler,
    chunk: Vec<u8>,
    unread: std::ops::Range<usize>,
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Record(Vec<u8>);

impl Record {
    /// Of the call that is answered; 0 if the record is no reply.
    pub fn xid(&self) -> u32 {
        Decoder::new(&self.0).get().unwrap_or(0)
    }

    /// The results of `P`.
    pub fn results<P: Procedure>(&self) -> Result<P::Reply<'_>, CallFailed> {
        Reply::parse(&self.0)?.results::<P>()
    }
}

impl<S: Read + Write> Client<S> {
    /// A client that calls as the superuser of this host.
    pub fn new(stream: S) -> Self {
        Self::as_user(stream, 0, 0)
    }

    /// A client that calls as this user.
    pub fn as_user(stream: S, uid: u32, gid: u32) -> Self {
        let user = UnixUser {
            stamp: 0,
            machine: MachineName(b"nfs-sr"),
            uid,
            gid,
            groups: Vec::new(),
        };
        let mut seed = [0; 4];
        // Not secret, but not the same as that of the client before on this address either.
        let random = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        random.expect("the system has random numbers");
        Self {
            stream,
            xid: u32::from_ne_bytes(seed),
            credentials: Credentials::Unix(user),
            records: Assembler::new(MAX_RECORD),
            chunk: vec![0; 256 * 1024],
            unread: 0..0,
        }
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The identifier that the next call will have.
    pub fn set_next_xid(&mut self, xid: u32) {
        self.xid = xid.wrapping_sub(1);
    }

    /// Sends a call without waiting for its reply, and gives its identifier.
    pub fn send<P: Procedure>(&mut self, args: &P::Args<'_>) -> io::Result<u32> {
        self.xid = self.xid.wrapping_add(1);
        self.stream
            .write_all(&rpc::call::<P>(self.xid, &self.credentials, args))?;
        Ok(self.xid)
    }

    /// Waits for the next reply, to whichever call.
    pub fn receive(&mut self) -> io::Result<Record> {
        loop {
            let mut input = &self.chunk[self.unread.clone()];
            let before = input.len();
            let record = self.records.next(&mut input).map_err(io::Error::other)?;
            self.unread.start += before - input.len();
            if let Some(record) = record {
                return Ok(Record(record));
            }
            match self.stream.read(&mut self.chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.unread = 0..n,
            }
        }
    }

    /// Calls and waits for the reply. No other call may be under way.
    pub fn call<P: Procedure>(&mut self, args: &P::Args<'_>) -> io::Result<Record> {
        let xid = self.send::<P>(args)?;
        let record = self.receive()?;
        if record.xid() != xid {
            return Err(io::Error::other("the server answered another call"));
        }
        Ok(record)
    }

    /// Root handle of an export.
    pub fn mount(&mut self, path: &str) -> Result<FileHandle, ClientError> {
        let record = self.call::<Mount>(&Path(path.as_bytes()))?;
        let mounted = record.results::<Mount>()?.0;
        Ok(mounted
            .map_err(|status| ClientError::Mount {
                path: path.to_owned(),
                status,
            })?
            .root)
    }

    /// Follows a path of names from a directory.
    pub fn look_up(&mut self, from: FileHandle, path: &str) -> Result<FileHandle, ClientError> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(from, |dir, name| {
                let record = self.call::<Lookup>(&DirEntry {
                    dir,
                    name: Name(name.as_bytes()),
                })?;
                let found: NfsResult<LookupOk, _> = record.results::<Lookup>()?;
                let found = found.map_err(|failure| ClientError::File {
                    name: path.into(),
                    status: failure.status,
                })?;
                Ok(found.object)
            })
    }
}
