//! What is fuzzed: each target takes any bytes and panics if a promise is broken. They are driven by the tests beside this file and
//! by the fuzzers in `nfs-sr/fuzz`, which have this file in common.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nfs_sr::{
    client::Client,
    events::Events,
    export::{Export, Squash},
    file_io::HostDisk,
    server::{Config, Server},
    sr::{check, image::Image, journal, store::Directory, store::Store},
    transport::{mailbox::Mailbox, session::Session},
};
use nfs3::{
    Decode, Encode, MAX_DATA, lease, mount, nfs, portmap,
    record::{self, Assembler},
    rpc::{Call, Procedure, Reply},
    xdr::decode_all,
};
use rustix::event::{PollFd, PollFlags, poll};
use tempfile::TempDir;
use vhd::{Bitmap, Disk, Footer, Header, Tables};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 7] = [
    ("rpc", rpc),
    ("messages", messages),
    ("server", server),
    ("vhd", vhd),
    ("repository", repository),
    ("journals", journals),
    ("heartbeats", heartbeats),
];

/// A stream of records: however it is cut, the same records come out, and no more is held than was received.
pub fn rpc(input: &[u8]) {
    const LIMIT: usize = 1 << 16;
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let records = |cut: usize| {
        let (mut assembler, mut records) = (Assembler::new(LIMIT), Vec::new());
        for mut piece in stream.chunks(cut.max(1)) {
            loop {
                match assembler.next(&mut piece) {
                    Ok(Some(record)) => records.push(record),
                    Ok(None) => break,
                    Err(_) => return records,
                }
            }
            assert!(
                assembler.held() <= 2 * stream.len() + 8192,
                "memory is earned"
            );
        }
        records
    };
    let whole = records(stream.len());
    assert_eq!(whole, records((*cut).into()));
    for record in whole {
        // Either may be refused; neither may panic.
        let _ = (Call::parse(&record), Reply::parse(&record));
    }
}

/// Bytes that decode to a message encode to bytes that decode to the same: what the server understood is what it would say.
fn round_trip<'a, T: Decode<'a> + Encode>(bytes: &'a [u8]) {
    let Ok(value) = decode_all::<T>(bytes) else {
        return;
    };
    let mut encoded = Vec::new();
    value.encode(&mut encoded);
    // Padding need not be zeros where it is received, but is where it is sent.
    assert_eq!(encoded.len(), bytes.len());
}

/// Arguments and results of every procedure; the first byte chooses.
pub fn messages(input: &[u8]) {
    let Some((choice, body)) = input.split_first() else {
        return;
    };
    macro_rules! each {
        ($($procedure:ty),* $(,)?) => {{
            let decoders: &[fn(&[u8])] = &[$(
                |bytes| round_trip::<<$procedure as Procedure>::Args<'_>>(bytes),
                |bytes| round_trip::<<$procedure as Procedure>::Reply<'_>>(bytes),
            )*];
            decoders[usize::from(*choice) % decoders.len()](body);
        }};
    }
    each!(
        nfs::GetAttr,
        nfs::SetAttr,
        nfs::Lookup,
        nfs::Access,
        nfs::ReadLink,
        nfs::Read,
        nfs::Write,
        nfs::Create,
        nfs::MkDir,
        nfs::SymLink,
        nfs::MkNod,
        nfs::Remove,
        nfs::Rename,
        nfs::Link,
        nfs::ReadDir,
        nfs::ReadDirPlus,
        nfs::FsStat,
        nfs::FsInfo,
        nfs::PathConf,
        nfs::Commit,
        mount::Mount,
        mount::Dump,
        mount::Unmount,
        mount::Export,
        portmap::Set,
        portmap::GetPort,
        portmap::Dump,
        lease::Acquire,
        lease::Renew,
        lease::Take,
        lease::Release,
        lease::Get,
        lease::ListAll,
        lease::Break,
    );
}

/// Stands for a handle in the input of [`server`]: this, the handle's number, and padding to 32 bytes.
pub const HANDLE: &[u8; 7] = b"\xffHANDLE";
/// Files that have such a number: the root, a directory, a disk, a leased disk, and the disk by its lease.
pub const HANDLES: u8 = 5;
/// The server is made anew after so many inputs, so that its directory does not grow for ever.
const INPUTS: u32 = 20_000;
/// Longer than any call takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, and what it serves.
struct Served {
    server: Arc<Server>,
    mailbox: Arc<Mailbox>,
    handles: Vec<nfs3::FileHandle>,
    outside: std::path::PathBuf,
    inputs: u32,
    sessions: AtomicU64,
    _dir: TempDir,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let export = dir.path().join("export");
        let outside = dir.path().join("outside");
        std::fs::write(&outside, b"untouched").expect("write");
        std::fs::create_dir_all(export.join("dir")).expect("directory");
        for name in ["disk", "leased"] {
            std::fs::write(export.join(name), b"data").expect("write");
        }
        std::os::unix::fs::symlink("../outside", export.join("escape")).expect("link");
        let config = Config {
            export: Export {
                name: "/export".into(),
                directory: export,
                clients: Vec::new(),
                read_only: false,
                squash: Squash::None,
            },
            commit_sync: false,
            lease_enforcement: true,
            port: 2049,
            disk: Arc::new(HostDisk),
        };
        let server = Server::open(config, Arc::new(Events::discard())).expect("a server");
        let mailbox = Mailbox::new().expect("descriptors");
        let mut served = Self {
            server,
            mailbox,
            handles: Vec::new(),
            outside,
            inputs: 0,
            sessions: AtomicU64::new(0),
            _dir: dir,
        };
        served.handles = served.find_handles();
        served
    }

    /// By the calls that clients make.
    fn find_handles(&self) -> Vec<nfs3::FileHandle> {
        let mut client = Client::new(Wire {
            served: self,
            session: self.session(),
            replies: Vec::new(),
        });
        let root = client.mount("/").expect("exported");
        let mut handles = vec![root];
        for name in ["dir", "disk", "leased"] {
            handles.push(client.look_up(root, name).expect("there"));
        }
        let args = lease::AcquireArgs {
            file: nfs3::DirEntry {
                dir: root,
                name: nfs3::Name(b"leased"),
            },
            owner: lease::Owner(b"h1"),
            mode: lease::Mode::Exclusive,
            expected_epoch: 0,
            ttl_ms: lease::MAX_TTL_MS,
        };
        let record = client.call::<lease::Acquire>(&args).expect("answered");
        handles.push(
            record
                .results::<lease::Acquire>()
                .expect("a reply")
                .0
                .expect("free")
                .object,
        );
        handles
    }

    fn session(&self) -> Session {
        let id = self.sessions.fetch_add(1, Ordering::Relaxed);
        Session::new(id, IpAddr::from([127, 0, 0, 1]), self.mailbox.clone())
    }

    /// Gives what was received to the server and takes its replies; false if it closes the connection.
    fn exchange(&self, session: &mut Session, input: &[u8], replies: &mut Vec<u8>) -> bool {
        if session.receive(&self.server, input).is_err() {
            return false;
        }
        let begun = Instant::now();
        loop {
            for delivery in self.mailbox.take() {
                // Others are of connections that are closed.
                if delivery.connection == session.id() {
                    session.deliver(delivery);
                }
            }
            let output: Vec<u8> = session.output().flatten().copied().collect();
            session.sent(output.len());
            replies.extend(output);
            if session.resume(&self.server).is_err() {
                return false;
            }
            if !session.is_busy() {
                return true;
            }
            assert!(begun.elapsed() < PATIENCE, "every call is answered");
            let timeout = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            // A fuzzer's alarm may interrupt it, and then the loop goes round once more.
            let _ = poll(
                &mut [PollFd::new(&*self.mailbox, PollFlags::IN)],
                Some(&timeout),
            );
            self.mailbox.clear();
        }
    }
}

/// A connection to the server in this process.
struct Wire<'a> {
    served: &'a Served,
    session: Session,
    replies: Vec<u8>,
}

impl std::io::Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.served
            .exchange(&mut self.session, bytes, &mut self.replies);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.replies.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.replies[..n]);
        self.replies.drain(..n);
        Ok(n)
    }
}

/// Calls to a real server: every one is answered by a reply to it, and nothing outside the export is touched.
pub fn server(input: &[u8]) {
    static SERVED: Mutex<Option<Served>> = Mutex::new(None);
    let mut slot = SERVED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if slot.as_ref().is_none_or(|served| served.inputs >= INPUTS) {
        *slot = None;
        *slot = Some(Served::new());
    }
    let served = slot.as_mut().expect("made above");
    served.inputs += 1;
    let mut stream = input.to_vec();
    for at in 0..stream.len().saturating_sub(31) {
        if stream[at..].starts_with(HANDLE) {
            let handle = served.handles[usize::from(stream[at + HANDLE.len()] % HANDLES)];
            stream[at..at + 32].copy_from_slice(handle.as_bytes());
        }
    }
    let mut replies = Vec::new();
    served.exchange(&mut served.session(), &stream, &mut replies);
    let mut rest = &replies[..];
    let mut records = Assembler::new(MAX_DATA + 8192);
    while let Some(reply) = records.next(&mut rest).expect("replies are records") {
        Reply::parse(&reply).expect("replies are replies");
    }
    assert_eq!(records.held(), 0, "replies are whole");
    assert_eq!(std::fs::read(&served.outside).expect("there"), b"untouched");
}

/// Has the checksum of a structure fit, so that what is behind it is reached.
fn mend(bytes: &mut [u8], range: std::ops::Range<usize>, checksum_at: usize) {
    if let Some(structure) = bytes.get_mut(range)
        && structure.len() >= checksum_at + 4
    {
        structure[checksum_at..checksum_at + 4].fill(0);
        let sum = structure
            .iter()
            .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        structure[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// Structures of a disk. What is read is written the same way, and no place is outside the disk's blocks.
pub fn vhd(input: &[u8]) {
    let mut file = input.to_vec();
    mend(&mut file, 0..512, 64);
    mend(&mut file, 512..1536, 36);
    let Ok(footer) = Footer::parse(&file) else {
        return;
    };
    assert_eq!(Footer::parse(&footer.encode()), Ok(footer.clone()));
    let Some(Ok(header)) = file.get(512..).map(Header::parse) else {
        return;
    };
    assert_eq!(Header::parse(&header.encode()).as_ref(), Ok(&header));
    let Some(table) = file.get(header.bat_offset as usize..) else {
        return;
    };
    let Ok(tables) = Tables::parse(table, &header) else {
        return;
    };
    let bitmap = Bitmap::from_bytes(table[..table.len().min(512)].to_vec());
    let sectors: u32 = bitmap.runs(0, 4096).map(|run| run.count).sum();
    assert_eq!(sectors, 4096);
    let Ok(disk) = Disk::sparse(footer, header, tables) else {
        return;
    };
    let mut covered = 0;
    for segment in disk.locate(0, disk.size()).expect("within the disk") {
        covered += segment.length;
        if let vhd::Place::Present { at } | vhd::Place::Masked { at, .. } = segment.place {
            assert!(
                at + segment.length <= disk.footer_at(),
                "data ends before the footer"
            );
        }
    }
    assert_eq!(covered, disk.size());
}

/// A repository whose only disk is the input: it is refused or read, and checked, without a change.
pub fn repository(input: &[u8]) {
    const NAME: &str = "00000000-0000-4000-8000-000000000000.vhd";
    let dir = tempfile::tempdir_in(memory()).expect("temporary directory");
    let mut file = input.to_vec();
    mend(&mut file, 0..512, 64);
    mend(&mut file, 512..1536, 36);
    let end = file.len();
    mend(&mut file, end.saturating_sub(512)..end, 64);
    std::fs::write(dir.path().join(NAME), &file).expect("write");
    std::fs::write(dir.path().join(::statefile::NAME), input).expect("write");
    let store = Directory::new(dir.path());
    if let Ok(mut image) = Image::open(&store, NAME) {
        let mut buffer = vec![0; 8192];
        for offset in [0, image.size() / 2, image.size().saturating_sub(8192)] {
            let offset = offset / 512 * 512;
            let length = (image.size() - offset).min(8192) as usize;
            let _ = image.read(offset, &mut buffer[..length]);
        }
    }
    check::Survey::take(&store).expect("readable, whatever it is");
    assert_eq!(std::fs::read(dir.path().join(NAME)).expect("there"), file);
}

/// The journals of leases and of changes: replayed as far as they are whole.
pub fn journals(input: &[u8]) {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let dir = tempfile::tempdir_in(memory()).expect("temporary directory");
    let mut leases = input.to_vec();
    for (record, sequence) in leases.chunks_exact_mut(256).zip(1u64..) {
        record[4..12].copy_from_slice(&sequence.to_le_bytes());
        let sum = CRC.checksum(&record[4..]);
        record[..4].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(dir.path().join("leases"), &leases).expect("write");
    nfs_sr::lease::holders(dir.path()).expect("readable, whatever it is");
    let mut changes = input.to_vec();
    if let Some((sum, body)) = changes.split_first_chunk_mut::<4>() {
        *sum = CRC.checksum(body).to_be_bytes();
    }
    std::fs::write(dir.path().join(".journal-disk"), &changes).expect("write");
    std::fs::write(dir.path().join("disk"), b"").expect("write");
    let store = Directory::new(dir.path());
    // An offset may be too large for a file; that is an error and no panic.
    let _ = journal::redo_all(&store);
    let _ = store.list();
}

/// Blocks of a statefile: what is read is written the same way.
pub fn heartbeats(input: &[u8]) {
    use ::statefile::{BLOCK, Header, Slot};
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let mut block = input.to_vec();
    for crc_at in [32, 44] {
        if block.len() >= BLOCK {
            block[crc_at..crc_at + 4].fill(0);
            let sum = CRC.checksum(&block[..BLOCK]);
            block[crc_at..crc_at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(header) = Header::parse(&block) {
            assert_eq!(Header::parse(&header.encode()), Ok(header));
        }
        let index = block.get(12).copied().unwrap_or_default().into();
        if let Ok(Some(slot)) = Slot::parse(index, &block)
            && let Ok(again) = slot.encode()
        {
            assert_eq!(Slot::parse(index, &again), Ok(Some(slot)));
        }
    }
}

/// Where a thousand small files a second do no harm.
fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    }
}

/// Inputs to begin with, for each target by its name.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "rpc" => calls()
            .into_iter()
            .map(|call| [&[5], &call[..]].concat())
            .collect(),
        "server" => calls(),
        "messages" => {
            let bodies = calls()
                .into_iter()
                .map(|call| call[record::MARK + 40..].to_vec());
            let choices = (0u8..68).cycle();
            bodies
                .cycle()
                .take(136)
                .zip(choices)
                .map(|(body, choice)| [&[choice], &body[..]].concat())
                .collect()
        }
        "vhd" | "repository" => disks(),
        "journals" => vec![lease_journal(), change_journal()],
        _ => {
            let header = ::statefile::Header {
                repository: ::vhd::Uuid([1; 16]),
            };
            let slot = ::statefile::Slot {
                index: 3,
                host: ::vhd::Uuid([2; 16]),
                sequence: 9,
                payload: b"alive",
            };
            vec![header.encode().into(), slot.encode().expect("fits").into()]
        }
    }
}

/// A call of every procedure, as a record, with placeholders for handles.
fn calls() -> Vec<Vec<u8>> {
    use nfs3::*;
    let handle = |number: u8| {
        let mut bytes = [0; 32];
        bytes[..7].copy_from_slice(HANDLE);
        bytes[7] = number;
        FileHandle::new(&bytes).expect("32 bytes fit")
    };
    let credentials = rpc::Credentials::Unix(rpc::UnixUser {
        stamp: 0,
        machine: rpc::MachineName(b"host"),
        uid: 0,
        gid: 0,
        groups: vec![1],
    });
    let place = DirEntry {
        dir: handle(0),
        name: Name(b"new"),
    };
    let set = SetAttributes {
        mode: Some(0o644),
        size: Some(9),
        ..SetAttributes::default()
    };
    let mut all = Vec::new();
    macro_rules! add {
        ($($procedure:ty: $args:expr),* $(,)?) => {
            $(all.push(rpc::call::<$procedure>(all.len() as u32, &credentials, &$args));)*
        };
    }
    add!(
        nfs::Null: (),
        nfs::GetAttr: handle(2),
        nfs::SetAttr: nfs::SetAttrArgs { object: handle(4), attributes: set, guard: None },
        nfs::Lookup: DirEntry { dir: handle(0), name: Name(b"escape") },
        nfs::Lookup: DirEntry { dir: handle(1), name: Name(b"..") },
        nfs::Access: nfs::AccessArgs { object: handle(0), access: 63 },
        nfs::ReadLink: handle(0),
        nfs::Read: nfs::ReadArgs { file: handle(2), offset: 0, count: 100 },
        nfs::Write: nfs::WriteArgs { file: handle(4), offset: 5, count: 3, stable: Stability::FileSync, data: Data(b"abc") },
        nfs::Create: nfs::CreateArgs { place, how: nfs::CreateHow::Unchecked(set) },
        nfs::Create: nfs::CreateArgs { place, how: nfs::CreateHow::Exclusive([3; 8]) },
        nfs::MkDir: nfs::MkDirArgs { place, attributes: set },
        nfs::SymLink: nfs::SymLinkArgs { place, attributes: set, target: Path(b"../outside") },
        nfs::Remove: place,
        nfs::RmDir: place,
        nfs::Rename: nfs::RenameArgs { from: place, to: DirEntry { dir: handle(1), name: Name(b"to") } },
        nfs::Link: nfs::LinkArgs { file: handle(2), link: place },
        nfs::ReadDir: nfs::ReadDirArgs { dir: handle(0), cookie: 0, verifier: [0; 8], count: 4096 },
        nfs::ReadDirPlus: nfs::ReadDirPlusArgs { dir: handle(0), cookie: 0, verifier: [0; 8], dir_count: 512, max_count: 8192 },
        nfs::FsStat: handle(0),
        nfs::FsInfo: handle(0),
        nfs::PathConf: handle(0),
        nfs::Commit: nfs::CommitArgs { file: handle(2), offset: 0, count: 0 },
        mount::Mount: Path(b"/export/dir"),
        mount::Dump: (),
        mount::Export: (),
        portmap::GetPort: portmap::Mapping { program: 100_003, version: 3, protocol: 6, port: 0 },
        portmap::Dump: (),
        lease::Acquire: lease::AcquireArgs {
            file: DirEntry { dir: handle(0), name: Name(b"disk") }, owner: lease::Owner(b"h2"), mode: lease::Mode::Shared,
            expected_epoch: 0, ttl_ms: 1000,
        },
        lease::Renew: lease::RenewArgs { object: handle(4), ttl_ms: 1000 },
        lease::Take: lease::TakeArgs {
            file: DirEntry { dir: handle(0), name: Name(b"leased") }, owner: lease::Owner(b"h3"), expected_epoch: 1, ttl_ms: 1000,
        },
        lease::Release: handle(3),
        lease::Get: DirEntry { dir: handle(0), name: Name(b"leased") },
        lease::ListAll: (),
    );
    all
}

/// Disks of every kind, small enough for a fuzzer.
fn disks() -> Vec<Vec<u8>> {
    use ::vhd::{NewDisk, Parent, Uuid};
    let new = NewDisk {
        size: 8 << 20,
        uuid: Uuid([3; 16]),
        timestamp: 7,
    };
    let parent = Parent {
        uuid: Uuid([4; 16]),
        timestamp: 5,
        name: "00000000-0000-4000-8000-000000000001.vhd".into(),
    };
    let made = [new.dynamic(), new.differencing(&parent)];
    let bytes = made.into_iter().map(|made| {
        let (mut disk, extents) = made.expect("a good size");
        let mut file = Vec::new();
        let mut put = |at: u64, bytes: &[u8]| {
            let end = at as usize + bytes.len();
            file.resize(file.len().max(end), 0);
            file[at as usize..end].copy_from_slice(bytes);
        };
        extents
            .iter()
            .for_each(|extent| put(extent.at, &extent.bytes));
        let block = disk.allocate(1);
        put(block.bitmap_at, disk.new_bitmap(0, 9).as_bytes());
        put(block.bat_entry.at, &block.bat_entry.bytes);
        file
    });
    bytes.collect()
}

/// The journal of a server that granted some leases.
fn lease_journal() -> Vec<u8> {
    let mut records = vec![0; 4 * 256];
    for (record, change) in records.chunks_exact_mut(256).zip([0u8, 1, 1, 3]) {
        record[12] = 7;
        record[24] = change + 1;
        record[32] = 200;
        record[36] = change;
        record[37..40].copy_from_slice(b"\x02h1");
        record[102..107].copy_from_slice(b"\x04disk");
    }
    records
}

fn change_journal() -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(2u32.to_be_bytes());
    for offset in [0u64, 600] {
        bytes.extend(offset.to_be_bytes());
        bytes.extend(3u32.to_be_bytes());
        bytes.extend(b"abc");
    }
    bytes
}
