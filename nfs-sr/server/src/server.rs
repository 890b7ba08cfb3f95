//! From an RPC record to its reply: which program, as whom, now or on a thread that may wait.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::Path,
    sync::Arc,
    time::Instant,
};

use nfs3::{
    lease, mount, nfs, portmap,
    rpc::{self, AuthError, Call, Credentials, NotACall, Procedure, Refusal, VersionRange},
    xdr::Malformed,
};

use crate::{
    drc::{self, ReplyTo, Verdict},
    durability::{Durability, sync_now},
    events::{Event, Events},
    export::Export,
    file_io::{Cover, Disk},
    handles::{Handles, KEY},
    lease::{JournalError, Leases},
    metrics::Metrics,
    node::{Nodes, PRIVATE},
    pool::Pool,
};

/// Threads that may wait for the disk.
const POOL: usize = 8;
/// File in the private directory that the server, or a tool, locks for as long as it runs. In it is where tools reach the server;
/// nothing while a tool has it.
pub(crate) const LOCK: &str = "lock";

/// What a server is made of.
pub struct Config {
    /// What is exported.
    pub export: Export,
    /// Off only as a negative control of tests: COMMIT and stable writes are answered without a sync.
    pub commit_sync: bool,
    /// Off only as a negative control of tests: leases are granted, but no call is refused for them.
    pub lease_enforcement: bool,
    /// Ports on which the transports listen, as the port mapper tells them.
    pub port: u16,
    /// The disk below.
    pub disk: Arc<dyn Disk>,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory cannot be used.
    #[error("cannot export {path}: {error}")]
    Directory {
        /// What was to be exported.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// Another server has it.
    #[error("{0} is served by another process already; stop that one first")]
    Busy(String),
    /// The leases cannot be read or written.
    #[error(transparent)]
    Leases(#[from] JournalError),
}

/// The server of one export; any number of transports bring it calls.
pub struct Server {
    pub(crate) export: Export,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    pub(crate) leases: Leases,
    pub(crate) durability: Arc<Durability>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Metrics,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) port: u16,
    duplicates: drc::Cache,
    pub(crate) pool: Pool,
    /// Locked for as long as the server lives, so no second one serves the same directory.
    lock: std::fs::File,
}

/// A call whose reply is still to be made.
pub struct Pending {
    server: Arc<Server>,
    to: ReplyTo,
    xid: u32,
    program: u32,
    procedure: u32,
    begun: Instant,
    duplicate: Option<drc::Key>,
}

impl Server {
    /// Opens the export. Creates the server's private directory in it, with the key of the handles and the journal of leases.
    pub fn open(config: Config, events: Arc<Events>) -> Result<Arc<Self>, StartError> {
        let directory = config.export.directory.clone();
        let failed = |error| StartError::Directory {
            path: directory.display().to_string(),
            error,
        };
        let private = directory.join(PRIVATE);
        // Whoever reads the key in it can make handles of every file.
        match std::fs::DirBuilder::new().mode(0o700).create(&private) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let lock = open_lock(&private.join(LOCK)).map_err(failed)?;
        if lock.try_lock().is_err() {
            return Err(StartError::Busy(directory.display().to_string()));
        }
        lock.set_len(0).map_err(failed)?;
        let key = load_key(&private).map_err(failed)?;
        let (disk, now) = (config.disk.clone(), Instant::now());
        let leases = Leases::open(
            &private,
            disk,
            config.commit_sync,
            config.lease_enforcement,
            now,
        )?;
        let nodes = Nodes::open(&directory).map_err(failed)?;
        let disk = &*config.disk;
        let durability = Durability::new(config.commit_sync, &private, disk).map_err(failed)?;
        // A disk that has failed takes no new times either; the marks stay for when it was replaced.
        if !config.export.read_only && !durability.failed() {
            durability.times().renew(&nodes, disk).map_err(failed)?;
        }
        Ok(Arc::new(Self {
            nodes,
            handles: Handles::new(&key),
            leases,
            durability: Arc::new(durability),
            events,
            metrics: Metrics::default(),
            disk: config.disk,
            port: config.port,
            duplicates: drc::Cache::default(),
            pool: Pool::new(POOL),
            export: config.export,
            lock,
        }))
    }

    /// Puts on disk what is not there yet and no client waits for. To be called when nothing is served any more.
    pub fn settle(&self) {
        for id in self.durability.times().marked() {
            // One that was closed meanwhile is opened: a sync of what is not open covers nothing, and its mark stays.
            if let Ok(node) = self.nodes.get(id)
                && node.io(&*self.disk).is_ok()
                && let Err(failed) = sync_now(&*node, Cover::All, &self.durability)
            {
                self.report_failure(&node.path(), &failed);
            }
        }
    }

    /// Takes writes again after a failed sync. For when the disk was replaced, or only seemed to fail.
    pub fn trust_disk_again(&self) -> io::Result<()> {
        self.durability.clear_failure()
    }

    /// Reports something to whoever has started the server.
    pub fn report(&self, event: &Event) {
        self.events.report(event);
    }

    /// Tells the tools where they reach this server; they do not if it does not listen on TCP.
    pub fn announce(&self, tcp: Option<SocketAddr>) -> io::Result<()> {
        let reached = tcp.map(|address| match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                (Ipv4Addr::LOCALHOST, v4.port()).into()
            }
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                (Ipv6Addr::LOCALHOST, v6.port()).into()
            }
            address => address,
        });
        let text = reached.map_or("-".into(), |address| address.to_string());
        self.lock.write_all_at(text.as_bytes(), 0)
    }

    /// Reports whose every lease is, for listeners who cannot know what an instance that was killed did last.
    pub fn report_leases(&self) {
        self.leases.report_all(Instant::now(), &self.events);
    }

    /// Takes a call. Its reply, exactly one, goes to `to`, perhaps before this returns. A record that is no call at
    /// all is an error: the connection is to be closed.
    pub fn submit(
        self: &Arc<Self>,
        record: Vec<u8>,
        from: IpAddr,
        to: ReplyTo,
    ) -> Result<(), Malformed> {
        let call = match Call::parse(&record) {
            Ok(call) => call,
            Err(NotACall::Garbage(why)) => return Err(why),
            Err(NotACall::RpcVersion { xid, .. }) => {
                to.send(rpc::denied_version(xid));
                return Ok(());
            }
            Err(NotACall::Credentials { xid, .. }) => {
                to.send(rpc::denied_credentials(xid, AuthError::BadCredentials));
                return Ok(());
            }
        };
        let mut pending = Pending {
            server: self.clone(),
            to,
            xid: call.xid,
            program: call.program,
            procedure: call.procedure,
            begun: Instant::now(),
            duplicate: None,
        };
        let version = match call.program {
            nfs::PROGRAM => nfs::VERSION,
            mount::PROGRAM => mount::VERSION,
            portmap::PROGRAM => portmap::VERSION,
            lease::PROGRAM => lease::VERSION,
            _ => {
                pending.refuse(Refusal::ProgramUnavailable);
                return Ok(());
            }
        };
        if call.version != version {
            pending.refuse_version(VersionRange {
                low: version,
                high: version,
            });
            return Ok(());
        }
        if !self.export.admits(from) || matches!(call.credentials, Credentials::Other { .. }) {
            pending.deny(AuthError::TooWeak);
            return Ok(());
        }
        if must_not_repeat(&call) {
            let key = drc::Key::new(from, &call);
            match self.duplicates.begin(key, &pending.to) {
                Verdict::Run => pending.duplicate = Some(key),
                Verdict::Answered(reply) => {
                    pending.to.send(reply);
                    return Ok(());
                }
                Verdict::Running => return Ok(()),
            }
        }
        if is_quick(&call) {
            self.run(call, pending);
        } else {
            let server = self.clone();
            self.pool.spawn(move || {
                let call = Call::parse(&record).expect("it was parsed before");
                server.run(call, pending);
            });
        }
        Ok(())
    }

    fn run(self: &Arc<Self>, call: Call<'_>, pending: Pending) {
        let user = self.export.user(&call.credentials);
        match call.program {
            nfs::PROGRAM => crate::nfs::serve(self, call, &user, pending),
            mount::PROGRAM => crate::mount::serve(self, call, pending),
            portmap::PROGRAM => crate::portmap::serve(self, call, pending),
            _ => crate::lease::serve(self, call, &user, pending),
        }
    }

    /// Syncs done so far, and requests that were answered by them.
    pub fn sync_counts(&self) -> (u64, u64) {
        self.durability.counts()
    }

    /// Reports that nothing is written any more.
    pub(crate) fn report_failure(&self, path: &Path, error: &dyn std::fmt::Display) {
        let (path, error) = (path.display().to_string(), error.to_string());
        self.events.report(&Event::StorageFailed { path, error });
    }
}

/// Bytes that the reply to a call may have, guessed from the record without decoding it: only a READ or a listing can make a long
/// one.
pub fn reply_bound(record: &[u8]) -> usize {
    let word = |at: usize| {
        record
            .get(at..at + 4)
            .map(|w| u32::from_be_bytes(w.try_into().expect("four bytes")))
    };
    match (word(12), word(20)) {
        // The count is the last argument.
        (Some(nfs::PROGRAM), Some(nfs::Read::NUMBER)) => {
            let count = word(record.len() - 4).unwrap_or(0) as usize;
            count.min(nfs3::MAX_DATA) + 256
        }
        (Some(nfs::PROGRAM), Some(nfs::ReadDir::NUMBER | nfs::ReadDirPlus::NUMBER)) => 256 * 1024,
        _ => 512,
    }
}

/// Calls that end without waiting for the disk, and are run by the event loop itself. READ is among them: if the data is not in
/// memory it is handed on.
fn is_quick(call: &Call<'_>) -> bool {
    use nfs::*;
    match call.program {
        nfs::PROGRAM => matches!(
            call.procedure,
            Null::NUMBER
                | GetAttr::NUMBER
                | Lookup::NUMBER
                | Access::NUMBER
                | Read::NUMBER
                | Write::NUMBER
                | FsStat::NUMBER
                | FsInfo::NUMBER
                | PathConf::NUMBER
                | Commit::NUMBER
        ),
        lease::PROGRAM => matches!(
            call.procedure,
            lease::Null::NUMBER
                | lease::Renew::NUMBER
                | lease::Get::NUMBER
                | lease::ListAll::NUMBER
        ),
        _ => true,
    }
}

/// Calls that give another result when they run twice.
fn must_not_repeat(call: &Call<'_>) -> bool {
    use nfs::*;
    match call.program {
        nfs::PROGRAM => matches!(
            call.procedure,
            SetAttr::NUMBER
                | Create::NUMBER
                | MkDir::NUMBER
                | SymLink::NUMBER
                | MkNod::NUMBER
                | Remove::NUMBER
                | RmDir::NUMBER
                | Rename::NUMBER
                | Link::NUMBER
        ),
        lease::PROGRAM => matches!(
            call.procedure,
            lease::Acquire::NUMBER
                | lease::Take::NUMBER
                | lease::Release::NUMBER
                | lease::Break::NUMBER
        ),
        _ => false,
    }
}

/// Opens the lock without changing what whoever holds it has written.
pub(crate) fn open_lock(path: &Path) -> io::Result<std::fs::File> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// The key of the handles, made when the export is served for the first time.
fn load_key(private: &Path) -> io::Result<[u8; KEY]> {
    let path = private.join("key");
    match std::fs::read(&path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| io::Error::other(format!("{} does not hold {KEY} bytes", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; KEY];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
            let new = private.join("key.new");
            crate::sr::write_durably(&new, &key)?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(private)?.sync_all()?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

impl Pending {
    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Starts a successful reply; the results are to be appended, then [`Self::send`].
    pub fn accepted(&self, capacity: usize) -> Vec<u8> {
        rpc::accepted(self.xid, capacity)
    }

    /// Sends a complete record.
    pub fn send(self, mut record: Vec<u8>) {
        nfs3::record::finish(&mut record);
        self.server
            .metrics
            .answered(self.program, self.procedure, self.begun.elapsed());
        let to = match self.duplicate {
            Some(key) => self
                .server
                .duplicates
                .finish(key, &record)
                .unwrap_or(self.to),
            None => self.to,
        };
        to.send(record);
    }

    /// Sends the results of `P`.
    pub fn reply<P: Procedure>(self, results: &P::Reply<'_>) {
        let mut record = self.accepted(256);
        nfs3::Encode::encode(results, &mut record);
        self.send(record);
    }

    /// Does not run the call.
    pub fn refuse(self, refusal: Refusal) {
        let record = rpc::refused(self.xid, refusal, VersionRange { low: 0, high: 0 });
        self.send(record);
    }

    fn refuse_version(self, versions: VersionRange) {
        let record = rpc::refused(self.xid, Refusal::ProgramMismatch, versions);
        self.send(record);
    }

    fn deny(self, why: AuthError) {
        let record = rpc::denied_credentials(self.xid, why);
        self.send(record);
    }
}

/// Decodes the arguments of `P`, all of them; `None` if the call was refused for them.
pub(crate) fn arguments<'a, P: Procedure>(call: &Call<'a>) -> Option<P::Args<'a>> {
    let mut input = call.arguments.clone();
    let args = input.get().ok()?;
    input.finish().ok()?;
    Some(args)
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, sync::Mutex};

    use super::*;
    use crate::{
        export::Squash,
        file_io::{FileIo, Wait},
    };

    /// Tells which files were synced with their times.
    #[derive(Clone, Default)]
    struct Watched(Arc<Mutex<Vec<String>>>);

    struct WatchedFile {
        file: std::fs::File,
        name: String,
        disk: Watched,
    }

    impl Disk for Watched {
        fn file(&self, fd: OwnedFd, path: &Path) -> Box<dyn FileIo> {
            Box::new(WatchedFile {
                file: fd.into(),
                name: path.display().to_string(),
                disk: self.clone(),
            })
        }
    }

    impl FileIo for WatchedFile {
        fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
            FileIo::read_at(&self.file, buffer, offset, wait)
        }
        fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
            FileIo::write_at(&self.file, data, offset)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            FileIo::set_len(&self.file, length)
        }
        fn sync(&self, cover: Cover) -> io::Result<()> {
            if cover == Cover::All {
                self.disk
                    .0
                    .lock()
                    .expect("no panic")
                    .push(self.name.clone());
            }
            FileIo::sync(&self.file, cover)
        }
    }

    #[test]
    fn at_its_end_the_times_of_a_file_that_is_no_longer_open_are_synced_before_its_mark_goes() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("file"), "data").expect("written");
        let disk = Watched::default();
        let config = Config {
            export: Export {
                name: "/export".into(),
                directory: directory.path().into(),
                clients: Vec::new(),
                read_only: false,
                squash: Squash::None,
            },
            commit_sync: true,
            lease_enforcement: true,
            port: 2049,
            disk: Arc::new(disk.clone()),
        };
        let server = Server::open(config, Arc::new(Events::discard())).expect("a server");
        let file = server
            .nodes
            .resolve(Path::new("file"))
            .expect("it is there");
        assert!(server.durability.times().mark(file.id).expect("marked"));
        server.settle();
        let synced = disk.0.lock().expect("no panic").clone();
        assert!(synced.contains(&"file".into()), "{synced:?}");
        assert_eq!(server.durability.times().marked(), []);
    }
}
