//! Servers and clients for tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod ethernet;
pub mod memory_store;
pub mod power;
pub mod program;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use nfs_sr::{
    client::Client,
    events::Events,
    export::{Export, Squash},
    file_io::{Disk, HostDisk},
    server::{Config, Server},
    transport::{mailbox::Mailbox, tcp::TcpTransport},
};
use nfs3::{
    Data, DirEntry, FileHandle, Name, SetAttributes, Stability, Status, WriteVerifier,
    lease::{Acquire, AcquireArgs, Mode, Owner, Refused},
    nfs::{
        Commit, CommitArgs, Create, CreateArgs, CreateHow, Read, ReadArgs, Write, WriteArgs,
        WriteOk,
    },
};

/// What a test wants different from the usual.
pub struct Options {
    pub disk: Arc<dyn Disk>,
    pub commit_sync: bool,
    pub lease_enforcement: bool,
    pub read_only: bool,
    pub squash: Squash,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disk: Arc::new(HostDisk),
            commit_sync: true,
            lease_enforcement: true,
            read_only: false,
            squash: Squash::None,
        }
    }
}

pub fn open(directory: &Path, options: Options) -> Arc<Server> {
    let config = Config {
        export: Export {
            name: "/export".into(),
            directory: directory.into(),
            clients: Vec::new(),
            read_only: options.read_only,
            squash: options.squash,
        },
        commit_sync: options.commit_sync,
        lease_enforcement: options.lease_enforcement,
        port: 2049,
        disk: options.disk,
    };
    Server::open(config, Arc::new(Events::discard())).expect("a server of a temporary directory")
}

/// A server in this process, on a port of its own. Stops when dropped.
pub struct TestServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
    directory: PathBuf,
    server: Weak<Server>,
}

impl TestServer {
    pub fn start(directory: &Path) -> Self {
        Self::with(directory, Options::default())
    }

    pub fn with(directory: &Path, options: Options) -> Self {
        let server = open(directory, options);
        let weak = Arc::downgrade(&server);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let (started, is_started) = mpsc::channel();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let transport = TcpTransport::new(server, listener).expect("epoll");
            started.send(transport.mailbox()).expect("the test waits");
            transport.run(&stopped).expect("serves");
        });
        let mailbox = is_started.recv().expect("started");
        Self {
            address,
            stop,
            mailbox,
            thread: Some(thread),
            directory: directory.into(),
            server: weak,
        }
    }

    pub fn client(&self) -> Client<TcpStream> {
        Client::new(connect(self.address))
    }

    /// Syncs done, and requests answered by them.
    pub fn sync_counts(&self) -> (u64, u64) {
        self.server.upgrade().expect("it runs").sync_counts()
    }

    pub fn client_as(&self, uid: u32, gid: u32) -> Client<TcpStream> {
        Client::as_user(connect(self.address), uid, gid)
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.mailbox.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
        // The last call may still be on its way through the pool: the server holds its lock until all is done.
        let lock =
            std::fs::File::open(self.directory.join(".nfs-sr/lock")).expect("the server made it");
        lock.lock().expect("the server lets go of it");
    }
}

/// Shorthand for the calls that tests make all the time.
pub trait Calls {
    fn root(&mut self) -> FileHandle;
    fn create(&mut self, dir: FileHandle, name: &str) -> Result<FileHandle, Status>;
    fn read(&mut self, file: FileHandle, offset: u64, count: u32) -> Result<Vec<u8>, Status>;
    fn write(
        &mut self,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        stable: Stability,
    ) -> Result<WriteOk, Status>;
    fn commit(&mut self, file: FileHandle) -> Result<WriteVerifier, Status>;
    fn acquire(&mut self, dir: FileHandle, name: &str, owner: &str) -> (FileHandle, u64);
}

impl<S: std::io::Read + std::io::Write> Calls for Client<S> {
    fn root(&mut self) -> FileHandle {
        self.mount("/export").expect("exported")
    }

    fn create(&mut self, dir: FileHandle, name: &str) -> Result<FileHandle, Status> {
        let how = CreateHow::Guarded(SetAttributes {
            mode: Some(0o644),
            ..SetAttributes::default()
        });
        let args = CreateArgs {
            place: DirEntry {
                dir,
                name: Name(name.as_bytes()),
            },
            how,
        };
        let record = self.call::<Create>(&args).expect("connected");
        let created = record
            .results::<Create>()
            .expect("a reply")
            .map_err(|f| f.status)?;
        Ok(created.object.expect("the server gives handles"))
    }

    fn read(&mut self, file: FileHandle, offset: u64, count: u32) -> Result<Vec<u8>, Status> {
        let record = self
            .call::<Read>(&ReadArgs {
                file,
                offset,
                count,
            })
            .expect("connected");
        let read = record
            .results::<Read>()
            .expect("a reply")
            .map_err(|f| f.status)?;
        assert_eq!(read.count as usize, read.data.0.len());
        Ok(read.data.0.to_vec())
    }

    fn write(
        &mut self,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        stable: Stability,
    ) -> Result<WriteOk, Status> {
        let args = WriteArgs {
            file,
            offset,
            count: data.len() as u32,
            stable,
            data: Data(data),
        };
        let record = self.call::<Write>(&args).expect("connected");
        record
            .results::<Write>()
            .expect("a reply")
            .map_err(|f| f.status)
    }

    fn commit(&mut self, file: FileHandle) -> Result<WriteVerifier, Status> {
        let record = self
            .call::<Commit>(&CommitArgs {
                file,
                offset: 0,
                count: 0,
            })
            .expect("connected");
        Ok(record
            .results::<Commit>()
            .expect("a reply")
            .map_err(|f| f.status)?
            .verifier)
    }

    fn acquire(&mut self, dir: FileHandle, name: &str, owner: &str) -> (FileHandle, u64) {
        let args = acquire_args(dir, name, owner);
        let record = self.call::<Acquire>(&args).expect("connected");
        let grant = record.results::<Acquire>().expect("a reply").0;
        let grant = grant
            .map_err(|Refused { status, .. }| status)
            .expect("the lease is free");
        (grant.object, grant.holding.epoch)
    }
}

pub fn acquire_args<'a>(dir: FileHandle, name: &'a str, owner: &'a str) -> AcquireArgs<'a> {
    AcquireArgs {
        file: DirEntry {
            dir,
            name: Name(name.as_bytes()),
        },
        owner: Owner(owner.as_bytes()),
        mode: Mode::Exclusive,
        expected_epoch: 0,
        ttl_ms: 60_000,
    }
}
