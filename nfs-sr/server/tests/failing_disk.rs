//! Disks that are full, broken or read-only: clear errors, and nothing that was acknowledged is lost silently.

mod support;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::fd::OwnedFd,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
        mpsc,
    },
    time::Duration,
};

use nfs_sr::{
    client::Client,
    file_io::{Cover, Disk, FileIo, HostDisk, Wait},
};
use nfs3::{
    DirEntry, Name, SetAttributes, Stability, Status,
    nfs::{MkDir, MkDirArgs, Remove, SetAttr, SetAttrArgs},
};
use rustix::io::Errno;
use support::{Calls, Options, TestServer, program::Program};

/// A disk that fails when told to, with the error it is told.
#[derive(Clone, Default)]
struct FailingDisk {
    write: Arc<AtomicI32>,
    sync: Arc<AtomicI32>,
}

struct FailingFile {
    file: Box<dyn FileIo>,
    disk: FailingDisk,
}

fn fail(how: &AtomicI32) -> io::Result<()> {
    match how.load(Ordering::SeqCst) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl Disk for FailingDisk {
    fn file(&self, fd: OwnedFd, path: &Path) -> Box<dyn FileIo> {
        Box::new(FailingFile {
            file: HostDisk.file(fd, path),
            disk: self.clone(),
        })
    }
}

impl FileIo for FailingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        self.file.read_at(buffer, offset, wait)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        fail(&self.disk.write)?;
        self.file.write_at(data, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        fail(&self.disk.write)?;
        self.file.set_len(length)
    }

    fn sync(&self, cover: Cover) -> io::Result<()> {
        fail(&self.disk.sync)?;
        self.file.sync(cover)
    }
}

fn failing(directory: &Path) -> (FailingDisk, TestServer) {
    let disk = FailingDisk::default();
    let options = Options {
        disk: Arc::new(disk.clone()),
        ..Options::default()
    };
    (disk, TestServer::with(directory, options))
}

#[test]
fn errors_of_the_disk_are_told_and_pass_when_it_is_well() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (disk, server) = failing(dir.path());
    let mut client = server.client();
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    client
        .write(file, 0, b"abc", Stability::FileSync)
        .expect("written");
    let errors = [
        (Errno::NOSPC, Status::NoSpc),
        (Errno::DQUOT, Status::DQuot),
        (Errno::IO, Status::Io),
        (Errno::ROFS, Status::RoFs),
    ];
    for (error, status) in errors {
        disk.write.store(error.raw_os_error(), Ordering::SeqCst);
        let written = client.write(file, 0, b"xyz", Stability::Unstable);
        assert_eq!(written.map(drop), Err(status));
        let args = SetAttrArgs {
            object: file,
            attributes: SetAttributes {
                size: Some(1),
                ..SetAttributes::default()
            },
            guard: None,
        };
        let record = client.call::<SetAttr>(&args).expect("connected");
        let set = record.results::<SetAttr>().expect("a reply");
        assert_eq!(set.map(drop).map_err(|failure| failure.status), Err(status));
        assert_eq!(client.read(file, 0, 9).as_deref(), Ok(&b"abc"[..]));
    }
    disk.write.store(0, Ordering::SeqCst);
    client
        .write(file, 0, b"xyz", Stability::FileSync)
        .expect("it is well again");
}

#[test]
fn a_failed_sync_is_never_forgotten() {
    for stable in [Stability::Unstable, Stability::FileSync] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, server) = failing(dir.path());
        let mut client = server.client();
        let root = client.root();
        let file = client.create(root, "a").expect("created");
        let written = client.write(file, 0, b"abc", Stability::Unstable);
        let verifier = written.expect("written").verifier;
        assert_eq!(client.commit(file), Ok(verifier));
        disk.sync.store(Errno::IO.raw_os_error(), Ordering::SeqCst);
        match client.write(file, 0, b"abd", stable) {
            Ok(_) => assert_eq!(client.commit(file), Err(Status::Io)),
            Err(status) => assert_eq!(status, Status::Io),
        }
        // The kernel would now report success: it has dropped the pages.
        disk.sync.store(0, Ordering::SeqCst);
        assert_eq!(client.commit(file), Err(Status::Io));
        let again = client.write(file, 0, b"abf", Stability::Unstable);
        assert_eq!(again.map(drop), Err(Status::Io));
        assert_eq!(client.create(root, "b"), Err(Status::Io));
        client.read(file, 0, 3).expect("reading goes on");
        drop((client, server));
        // Nor by a restart: only an operator can know that the disk is well.
        let server = TestServer::start(dir.path());
        let mut client = server.client();
        let again = client.write(file, 0, b"abf", Stability::Unstable);
        assert_eq!(again.map(drop), Err(Status::Io));
        drop((client, server));
        let program = Program::start(dir.path(), &["--clear-failure"]);
        let mut client = Client::new(support::connect(program.address));
        let written = client.write(file, 0, b"abg", Stability::FileSync);
        let now = written.expect("the operator says that it is well").verifier;
        assert_ne!(
            now, verifier,
            "clients must send their unstable writes again"
        );
    }
}

#[test]
fn a_served_disk_fails_as_it_is_told_and_is_well_when_it_was_replaced() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let command = Command::new("env");
    let (mut program, reports) = Program::heard(command, dir.path(), "127.0.0.1:0", &["--faults"]);
    let address = program.address;
    let mut told = reports.filter_map(|report| Some(report["fault"].as_str()?.to_owned()));
    let mut tell = |word: &str| {
        program.tell(word);
        assert_eq!(told.next().as_deref(), Some(word));
    };
    let mut client = Client::new(support::connect(address));
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    let written = client.write(file, 0, &[1; 8192], Stability::FileSync);
    let verifier = written.expect("written").verifier;

    tell("eio-read");
    assert_eq!(client.read(file, 0, 3), Err(Status::Io));
    tell("clear");
    assert_eq!(client.read(file, 0, 3), Ok(vec![1; 3]));

    tell("eio-write");
    let written = client.write(file, 0, b"abc", Stability::Unstable);
    assert_eq!(written.map(drop), Err(Status::Io));
    tell("clear");

    // What a full disk has is still there, and can be overwritten.
    tell("full");
    for (offset, status) in [
        (0, Ok(())),
        (4096, Err(Status::NoSpc)),
        (1 << 20, Err(Status::NoSpc)),
    ] {
        let written = client.write(file, offset, &[2; 8192], Stability::FileSync);
        assert_eq!(written.map(drop), status, "at {offset}");
    }
    tell("clear");

    tell("eio-fsync");
    let written = client.write(file, 0, b"abc", Stability::FileSync);
    assert_eq!(written.map(drop), Err(Status::Io));
    let written = client.write(file, 0, b"abc", Stability::Unstable);
    assert_eq!(
        written.map(drop),
        Err(Status::Io),
        "nothing is written any more"
    );
    tell("clear");
    let written = client.write(file, 0, b"abc", Stability::FileSync);
    assert_ne!(written.expect("the disk is well").verifier, verifier);
}

/// Runs the server in a namespace of its own in which `mount` has been run, which needs no privilege.
fn in_namespace(mount: &str, directory: &Path) -> Program {
    let shell = format!("{mount} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &shell,
        "sh",
    ]);
    Program::spawn(command, directory, "127.0.0.1:0", &[])
}

#[test]
fn on_a_full_disk_what_was_acknowledged_stays() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mount = format!("mount -t tmpfs -o size=4m none '{}'", dir.path().display());
    let program = in_namespace(&mount, dir.path());
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    let file = client.create(root, "disk").expect("created");
    client.create(root, "leased").expect("created");
    let piece = |i: u64| vec![i as u8 + 1; 64 << 10];
    let mut acknowledged = 0;
    let full = loop {
        match client.write(
            file,
            acknowledged << 16,
            &piece(acknowledged),
            Stability::FileSync,
        ) {
            Ok(ok) => assert_eq!((ok.count, ok.committed), (64 << 10, Stability::FileSync)),
            Err(status) => break status,
        }
        acknowledged += 1;
        assert!(acknowledged < 64, "the disk has 4 MiB");
    };
    assert_eq!(full, Status::NoSpc);
    assert!(acknowledged > 16);
    let name = DirEntry {
        dir: root,
        name: Name(b"dir"),
    };
    let made = |client: &mut Client<_>| {
        let args = MkDirArgs {
            place: name,
            attributes: SetAttributes::default(),
        };
        let record = client.call::<MkDir>(&args).expect("connected");
        let made = record.results::<MkDir>().expect("a reply");
        made.map(drop).map_err(|failure| failure.status)
    };
    // Room for leases was made before.
    client.acquire(root, "leased", "h1");
    assert!(matches!(made(&mut client), Ok(()) | Err(Status::NoSpc)));
    for i in 0..acknowledged {
        assert_eq!(
            client.read(file, i << 16, 64 << 10),
            Ok(piece(i)),
            "piece {i}"
        );
    }
    let record = client
        .call::<Remove>(&DirEntry {
            dir: root,
            name: Name(b"disk"),
        })
        .expect("connected");
    record
        .results::<Remove>()
        .expect("a reply")
        .expect("removed");
    let file = client.create(root, "next").expect("there is room again");
    client
        .write(file, 0, &piece(0), Stability::FileSync)
        .expect("there is room again");
}

#[test]
fn a_read_only_disk_is_not_served_and_why_is_said() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().display();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(format!(
            "mount --bind '{path}' '{path}' && mount -o remount,bind,ro '{path}' && exec '{}' serve '{path}' --listen 127.0.0.1:0",
            env!("CARGO_BIN_EXE_nfs-sr")
        ))
        .output()
        .expect("unshare is needed: install the package util-linux");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("Read-only file system"), "{why}");
}

/// A disk that turns out in the background not to have taken what was written. As the kernel does, it tells that once to each open
/// file description; what a description was told is kept in its offset, so that duplicates of a descriptor share it.
#[derive(Clone)]
struct LateDisk {
    /// Negative control: all descriptors of the file are duplicates of one.
    shared: Option<Arc<Mutex<Option<File>>>>,
    /// It has failed by now.
    failed: Arc<AtomicBool>,
    /// Told when a sync has begun.
    begun: mpsc::Sender<()>,
    /// Syncs wait for it.
    fails: Arc<Mutex<()>>,
    telling: Arc<Mutex<()>>,
    /// The sync that is told first waits for it.
    first: Arc<Mutex<()>>,
    told: Arc<AtomicBool>,
}

struct LateFile {
    file: File,
    disk: LateDisk,
}

impl Disk for LateDisk {
    fn file(&self, fd: OwnedFd, path: &Path) -> Box<dyn FileIo> {
        if path != Path::new("a") {
            return HostDisk.file(fd, path);
        }
        let mut file = File::from(fd);
        if let Some(shared) = &self.shared {
            let mut shared = shared.lock().expect("no panic");
            file = shared
                .get_or_insert(file)
                .try_clone()
                .expect("a descriptor");
        }
        let disk = self.clone();
        Box::new(LateFile { file, disk })
    }
}

impl FileIo for LateFile {
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
        if !self.disk.failed.load(Ordering::SeqCst) {
            return FileIo::sync(&self.file, cover);
        }
        let _ = self.disk.begun.send(());
        drop(self.disk.fails.lock().expect("no panic"));
        let telling = self.disk.telling.lock().expect("no panic");
        let mut description = &self.file;
        if description.stream_position()? == 1 {
            return Ok(());
        }
        description.seek(SeekFrom::Start(1))?;
        drop(telling);
        if !self.disk.told.swap(true, Ordering::SeqCst) {
            drop(self.disk.first.lock().expect("no panic"));
        }
        Err(Errno::IO.into())
    }
}

/// The answers to two stable writes whose syncs run side by side when writing back fails, the one that is told last first.
fn answers_when_both_fail(shared: bool) -> [Result<(), Status>; 2] {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (begun, begins) = mpsc::channel();
    let disk = LateDisk {
        shared: shared.then(Arc::default),
        failed: Arc::default(),
        begun,
        fails: Arc::default(),
        telling: Arc::default(),
        first: Arc::default(),
        told: Arc::default(),
    };
    let options = Options {
        disk: Arc::new(disk.clone()),
        ..Options::default()
    };
    let server = TestServer::with(dir.path(), options);
    let mut client = server.client();
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    disk.failed.store(true, Ordering::SeqCst);
    let (fails, first) = (disk.fails.lock(), disk.first.lock());
    let (answered, answers) = mpsc::channel();
    let soon = Duration::from_secs(20);
    for offset in [0, 4096] {
        let (mut client, answered) = (server.client(), answered.clone());
        std::thread::spawn(move || {
            let written = client.write(file, offset, &[1; 4096], Stability::FileSync);
            answered.send(written.map(drop)).expect("the test waits");
        });
        begins.recv_timeout(soon).expect("syncs run side by side");
    }
    drop(fails);
    let last = answers.recv_timeout(soon).expect("an answer");
    drop(first);
    [last, answers.recv_timeout(soon).expect("an answer")]
}

#[test]
fn each_of_two_syncs_side_by_side_is_told_of_a_failure() {
    assert_eq!(answers_when_both_fail(false), [Err(Status::Io); 2]);
}

#[test]
fn negative_control_on_one_description_a_sync_takes_the_failure_from_the_other() {
    assert_eq!(answers_when_both_fail(true), [Ok(()), Err(Status::Io)]);
}
