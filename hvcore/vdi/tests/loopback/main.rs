//! Against the real server, over TCP on the loopback interface; `qemu-img` judges the disks.

mod real;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nfs_sr::sr::{
    chain,
    check::{Problem, Survey},
    store::Directory,
    vdi as vdi_tools,
};
use real::{RealServer, TcpHost};
use support::guest::Guest;
use vdi::{Access, Completion, DiskId, DiskInfo, IoError, Op};
use vhd::{DiskKind, Extent, NewDisk, Uuid};

const PATH: &str = "sr/disk.vhd";
const SIZE: u64 = 64 << 20;
/// The guest uses so many sectors at the start of the disk: two blocks and a half.
const SECTORS: usize = 10_000;

fn new_disk(dir: &Path) {
    let new = NewDisk {
        size: SIZE,
        uuid: Uuid([1; 16]),
        timestamp: 0,
    };
    let (_, extents) = new.dynamic().expect("a valid size");
    write_file(&dir.join(PATH), &extents);
}

fn write_file(path: &Path, extents: &[Extent]) {
    let end = extents
        .iter()
        .map(|extent| extent.at as usize + extent.bytes.len())
        .max();
    let mut content = vec![0; end.unwrap_or(0)];
    for extent in extents {
        content[extent.at as usize..][..extent.bytes.len()].copy_from_slice(&extent.bytes);
    }
    fs::create_dir_all(path.parent().expect("it has one")).expect("a writable directory");
    fs::write(path, content).expect("a writable directory");
}

fn open(host: &mut TcpHost, access: Access) -> Result<(DiskId, DiskInfo), vdi::StorageError> {
    host.storage.open_disk(PATH, access, host.now_ns());
    opened(host)
}

fn opened(host: &mut TcpHost) -> Result<(DiskId, DiskInfo), vdi::StorageError> {
    match host.wait() {
        Completion::Opened { result, .. } => result,
        other => panic!("unexpected {other:?}"),
    }
}

fn io(host: &mut TcpHost, disk: DiskId, op: Op) -> Result<Vec<u8>, IoError> {
    host.storage.submit(disk, 1, op, host.now_ns());
    match host.wait() {
        Completion::Io { id: 1, result, .. } => result,
        other => panic!("unexpected {other:?}"),
    }
}

fn close(host: &mut TcpHost, disk: DiskId) {
    host.storage.close_disk(disk, host.now_ns());
    match host.wait() {
        Completion::Closed { result, .. } => result.expect("it closes"),
        other => panic!("unexpected {other:?}"),
    }
}

/// The disk's content as qemu-img reads it.
fn judge(dir: &Path) -> Vec<u8> {
    let raw = dir.join("disk.raw");
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .args([dir.join(PATH), raw.clone()])
        .status()
        .expect("qemu-img is installed");
    assert!(status.success(), "qemu-img cannot read the disk");
    fs::read(raw).expect("qemu-img wrote it")
}

fn run_guest(
    guest: &mut Guest,
    rng: &mut Rng,
    host: &mut TcpHost,
    disk: DiskId,
    ops: usize,
    mut at: impl FnMut(usize),
) {
    let mut left = ops;
    while left > 0 || guest.in_flight() > 0 {
        while left > 0 && guest.in_flight() < 16 {
            at(left);
            let (id, op) = guest.random_op(rng);
            host.storage.submit(disk, id, op, host.now_ns());
            left -= 1;
        }
        match host.wait() {
            Completion::Io { id, result, .. } => guest.on_end(id, result).expect("right data"),
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn a_guest_works_through_restarts_and_qemu_img_agrees() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    new_disk(dir.path());
    let mut server = Some(RealServer::start(dir.path(), "127.0.0.1:0"));
    let address = server.as_ref().expect("just started").address;
    let mut host = TcpHost::new("h1", address);
    let (disk, info) = open(&mut host, Access::ReadWrite).expect("it opens");
    assert_eq!(info.bytes, SIZE);

    let mut guest = Guest::new(vec![0; SECTORS]);
    let mut rng = Rng::with_seed(1);
    run_guest(&mut guest, &mut rng, &mut host, disk, 2000, |left| {
        if left % 300 == 0 {
            drop(server.take());
            server = Some(RealServer::start(dir.path(), &address.to_string()));
        }
    });
    assert_eq!(guest.errors, 0);

    let len = (SECTORS * 512) as u32;
    let seen = io(&mut host, disk, Op::Read { offset: 0, len }).expect("it reads");
    guest.check_current(&seen).expect("right data");
    close(&mut host, disk);
    let judged = judge(dir.path());
    assert_eq!(judged.len() as u64, SIZE);
    assert!(
        judged[..seen.len()] == seen,
        "qemu-img reads something else"
    );
    guest
        .check_survivors(&judged[..seen.len()])
        .expect("nothing is lost");
    assert!(judged[seen.len()..].iter().all(|byte| *byte == 0));
    let file = fs::read(dir.path().join(PATH)).expect("it is there");
    assert_eq!(
        file[file.len() - 512..],
        file[..512],
        "the file ends with its footer"
    );
}

#[test]
fn a_disk_moves_between_hosts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    new_disk(dir.path());
    let server = RealServer::start(dir.path(), "127.0.0.1:0");
    let mut hosts = [
        TcpHost::new("h1", server.address),
        TcpHost::new("h2", server.address),
    ];
    let mut guest = Guest::new(vec![0; SECTORS]);
    let mut rng = Rng::with_seed(2);
    let (mut disk, _) = open(&mut hosts[0], Access::ReadWrite).expect("it opens");
    let refused = open(&mut hosts[1], Access::ReadWrite).expect_err("it is in use");
    assert!(refused.to_string().contains("in use by h1"), "{refused}");
    for _ in 0..6 {
        let [source, destination] = &mut hosts;
        run_guest(&mut guest, &mut rng, source, disk, 100, |_| {});
        let now = destination.now_ns();
        destination.storage.prepare_disk(PATH, now);
        let (prepared, _) = opened(destination).expect("it can be prepared");
        run_guest(&mut guest, &mut rng, source, disk, 100, |_| {});

        source.storage.commit_early(disk, source.now_ns());
        let begun = Instant::now();
        source.storage.drain(disk, source.now_ns());
        while !source.storage.is_drained(disk) {
            source.turn();
        }
        let drained = begun.elapsed();
        let state = source.storage.save_disk(disk).expect("it is drained");
        let now = destination.now_ns();
        destination
            .storage
            .restore_disk(prepared, &state)
            .expect("it fits");
        let begun = Instant::now();
        destination.storage.take_lease(prepared, state.epoch, now);
        let taken = match destination.wait() {
            Completion::Taken { result, .. } => result.expect("the lease moves"),
            other => panic!("unexpected {other:?}"),
        };
        println!("drain {drained:?}, hand-over {:?}", begun.elapsed());
        assert_eq!(taken, state.epoch + 1);
        let data = vec![0xee; 512];
        let late = io_or_lost(source, disk, Op::Write { offset: 0, data });
        assert_eq!(late, Err(IoError::LeaseLost));
        source.storage.forget_disk(disk);
        disk = prepared;
        hosts.swap(0, 1);
    }
    let len = (SECTORS * 512) as u32;
    let seen = io(&mut hosts[0], disk, Op::Read { offset: 0, len }).expect("it reads");
    guest.check_current(&seen).expect("right data");
    close(&mut hosts[0], disk);
    assert!(
        judge(dir.path())[..seen.len()] == seen,
        "qemu-img reads something else"
    );
}

fn io_or_lost(host: &mut TcpHost, disk: DiskId, op: Op) -> Result<Vec<u8>, IoError> {
    host.storage.submit(disk, 1 << 50, op, host.now_ns());
    let result = loop {
        if let Completion::Io { result, .. } = host.wait() {
            break result;
        }
    };
    while host.storage.next_completion().is_some() {}
    result
}

/// The repository's own tools judge a snapshot's differencing disk; `qemu-img` ignores parents.
#[test]
fn a_snapshot_is_written_over_its_base_copy() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let repository = dir.path().join("sr");
    fs::create_dir_all(&repository).expect("a writable directory");
    let leaf = Uuid(*b"the leaf's uuid.");
    let store = Directory::new(&repository);
    vdi_tools::create(&store, leaf, SIZE, DiskKind::Dynamic).expect("a new disk");
    let path = format!("sr/{}", vdi_tools::file_name(leaf));
    let mut guest = Guest::new(vec![0; SECTORS]);
    let mut rng = Rng::with_seed(3);
    let mut seen = Vec::new();
    for generation in 0..3 {
        if generation > 0 {
            let store = Directory::new(&repository);
            let snapshot = Uuid([generation; 16]);
            chain::snapshot(&store, leaf, snapshot).expect("a snapshot");
        }
        let server = RealServer::start(dir.path(), "127.0.0.1:0");
        let mut host = TcpHost::new("h1", server.address);
        let now = host.now_ns();
        host.storage.open_disk(&path, Access::ReadWrite, now);
        let (disk, _) = opened(&mut host).expect("it opens");
        run_guest(&mut guest, &mut rng, &mut host, disk, 300, |_| {});
        let len = (SECTORS * 512) as u32;
        seen = io(&mut host, disk, Op::Read { offset: 0, len }).expect("it reads");
        guest.check_current(&seen).expect("right data");
        close(&mut host, disk);
    }
    let store = Directory::new(&repository);
    let raw = dir.path().join("disk.raw");
    vdi_tools::export(&store, &vdi_tools::file_name(leaf), &raw).expect("it can be read");
    assert!(fs::read(raw).expect("just written")[..seen.len()] == seen);
    let problems = Survey::take(&store).expect("a repository").problems;
    assert!(problems.iter().all(Problem::is_harmless), "{problems:?}");
}

#[test]
fn readers_share_a_disk_and_keep_writers_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    new_disk(dir.path());
    let server = RealServer::start(dir.path(), "127.0.0.1:0");
    let ttl = Duration::from_millis(1500);
    let mut one = TcpHost::with_ttl("h1", server.address, ttl);
    let mut two = TcpHost::with_ttl("h2", server.address, ttl);
    let mut writer = TcpHost::new("h3", server.address);
    let (first, info) = open(&mut one, Access::ReadOnly).expect("it opens");
    assert!(info.read_only);
    let (second, _) = open(&mut two, Access::ReadOnly).expect("it opens again");
    open(&mut writer, Access::ReadWrite).expect_err("it is being read");
    let data = vec![1; 512];
    assert_eq!(
        io(&mut one, first, Op::Write { offset: 0, data }),
        Err(IoError::ReadOnly)
    );
    let read = Op::Read {
        offset: 4096,
        len: 512,
    };
    assert_eq!(io(&mut two, second, read.clone()), Ok(vec![0; 512]));
    close(&mut one, first);
    assert_eq!(
        io(&mut two, second, read),
        Ok(vec![0; 512]),
        "the other reads on"
    );
    close(&mut two, second);
    let closed = Instant::now();
    while open(&mut writer, Access::ReadWrite).is_err() {
        assert!(closed.elapsed() < 4 * ttl, "nobody reads any more");
    }
}

#[test]
fn a_lease_is_kept_while_its_owner_lives_and_no_longer() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    new_disk(dir.path());
    let server = RealServer::start(dir.path(), "127.0.0.1:0");
    let ttl = Duration::from_millis(1500);
    let mut owner = TcpHost::with_ttl("h1", server.address, ttl);
    let mut heir = TcpHost::new("h2", server.address);
    let (disk, _) = open(&mut owner, Access::ReadWrite).expect("it opens");
    let begun = Instant::now();
    while begun.elapsed() < 3 * ttl {
        owner.turn();
        assert!(owner.storage.next_completion().is_none());
    }
    open(&mut heir, Access::ReadWrite).expect_err("the owner lives");
    let asked = Instant::now();
    while open(&mut heir, Access::ReadWrite).is_err() {
        assert!(
            asked.elapsed() < 4 * ttl,
            "a dead owner's lease does not expire"
        );
    }
    let data = vec![1; 512];
    let late = io_or_lost(&mut owner, disk, Op::Write { offset: 0, data });
    assert_eq!(late, Err(IoError::LeaseLost));
}

#[test]
fn files_are_read_whole() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir_all(dir.path().join("boot/debian")).expect("a writable directory");
    let content: Vec<u8> = (0..5_000_001u32).map(|n| (n * 7 / 3) as u8).collect();
    fs::write(dir.path().join("boot/debian/vmlinuz"), &content).expect("a writable directory");
    let server = RealServer::start(dir.path(), "127.0.0.1:0");
    let mut host = TcpHost::new("h1", server.address);
    for (path, expected) in [
        ("boot/debian/vmlinuz", Ok(())),
        ("boot/debian/nothing", Err("no such file")),
        ("boot/../../etc/passwd", Err("not a plain path")),
    ] {
        host.storage.read_file(path, host.now_ns());
        match (host.wait(), expected) {
            (
                Completion::File {
                    result: Ok(bytes), ..
                },
                Ok(()),
            ) => assert!(bytes == content),
            (
                Completion::File {
                    result: Err(why), ..
                },
                Err(part),
            ) => {
                assert!(why.to_string().contains(part), "{why}");
            }
            (other, _) => panic!("unexpected {other:?}"),
        }
    }
}

/// Deep queues of large and small operations; prints what client and server achieve together.
#[test]
fn deep_queues_keep_their_data() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    new_disk(dir.path());
    let server = RealServer::start(dir.path(), "127.0.0.1:0");
    let mut host = TcpHost::new("h1", server.address);
    let (disk, _) = open(&mut host, Access::ReadWrite).expect("it opens");
    for (name, size, depth, count, write) in [
        ("128K write", 128 << 10, 8, 480, true),
        ("128K read", 128 << 10, 8, 480, false),
        ("4K write", 4 << 10, 32, 10_000, true),
        ("4K read", 4 << 10, 32, 10_000, false),
        ("4K read qd1", 4 << 10, 1, 2_000, false),
    ] {
        let content = |number: u64| number as u8 | 1;
        let begun = Instant::now();
        let (mut started, mut ended) = (0, 0);
        while ended < count {
            while started < count && started - ended < depth && host.storage.has_room(disk) {
                let offset = started * size % SIZE;
                let op = match write {
                    true => Op::Write {
                        offset,
                        data: vec![content(started); size as usize],
                    },
                    false => Op::Read {
                        offset,
                        len: size as u32,
                    },
                };
                host.storage.submit(disk, started, op, host.now_ns());
                started += 1;
            }
            host.turn();
            while let Some(completion) = host.storage.next_completion() {
                let Completion::Io { id, result, .. } = completion else {
                    panic!("unexpected {completion:?}");
                };
                let data = result.expect("it works");
                let right = vec![content(id); if write { 0 } else { size as usize }];
                assert!(data == right, "{name}: wrong data in operation {id}");
                ended += 1;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let mib = (count * size) as f64 / (1 << 20) as f64;
        println!(
            "{name}: {:.0}/s, {:.0} MiB/s",
            count as f64 / seconds,
            mib / seconds
        );
        io(&mut host, disk, Op::Flush).expect("it flushes");
    }
}
