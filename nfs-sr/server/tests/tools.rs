//! The program's tools beside a running server: they and the hosts keep out of each other's way.

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use ::statefile::{BLOCK, SIZE, Slot, slot_offset};
use nfs_sr::client::Client;
use nfs3::{FileHandle, Stability, Status, lease::Acquire};
use support::{Calls, acquire_args, program::Program};
use vhd::Uuid;

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nfs-sr"))
        .args(arguments)
        .output()
        .expect("start")
}

/// What a tool that succeeds prints.
fn printed(arguments: &[&str]) -> String {
    let output = tool(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().expect("a path")
}

/// A repository with a disk.
fn repository(export: &Path) -> (PathBuf, String) {
    let sr = PathBuf::from(printed(&["sr", "create", text(export)]));
    let disk = printed(&["vdi", "create", text(&sr), "--size", "8MiB"]);
    (sr, disk)
}

fn lease(
    client: &mut Client<std::net::TcpStream>,
    dir: FileHandle,
    disk: &str,
    ttl_ms: u32,
) -> FileHandle {
    let args = nfs3::lease::AcquireArgs {
        ttl_ms,
        ..acquire_args(dir, name(disk), "h1")
    };
    let record = client.call::<Acquire>(&args).expect("connected");
    record
        .results::<Acquire>()
        .expect("a reply")
        .0
        .expect("free")
        .object
}

#[test]
fn what_a_host_has_open_is_left_alone_until_its_lease_expires() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sr, disk) = repository(dir.path());
    let program = Program::start(dir.path(), &[]);
    let clone = printed(&["vdi", "snapshot", &disk]);
    printed(&["vdi", "delete", &clone]);
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    let sr_dir = client.look_up(root, name(text(&sr))).expect("there");
    let handle = lease(&mut client, sr_dir, &disk, 700);
    let refused = tool(&["vdi", "resize", &disk, "--size", "16MiB"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && why.contains("is open at h1"),
        "{why}"
    );
    assert_eq!(
        printed(&["sr", "gc", text(&sr)]),
        "",
        "the host has it open"
    );
    client
        .write(handle, 8 << 10, b"x", Stability::Unstable)
        .expect("the host goes on");
    thread::sleep(Duration::from_millis(800));
    let done = printed(&["sr", "gc", text(&sr)]);
    assert!(done.starts_with("merged"), "{done}");
    assert_eq!(
        client
            .write(handle, 8 << 10, b"x", Stability::Unstable)
            .map(drop),
        Err(Status::Stale),
        "the host was slow, and what it writes now would be lost"
    );
    printed(&["sr", "check", text(&sr)]);
    lease(&mut client, sr_dir, &disk, 700);
}

#[test]
fn without_a_server_the_journal_decides_and_no_server_is_started_meanwhile() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sr, disk) = repository(dir.path());
    let program = Program::start(dir.path(), &[]);
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    let sr_dir = client.look_up(root, name(text(&sr))).expect("there");
    lease(&mut client, sr_dir, &disk, 1);
    drop(program);
    let refused = tool(&["vdi", "delete", &disk]);
    assert!(!refused.status.success(), "renewals are not in the journal");
    let other = printed(&["vdi", "create", text(&sr), "--size", "8MiB"]);
    printed(&["vdi", "delete", &other]);
    let lock = std::fs::File::open(dir.path().join(".nfs-sr/lock")).expect("the server made it");
    lock.lock().expect("no server runs");
    let refused = tool(&["vdi", "delete", &disk]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("another nfs-sr tool"), "{why}");
}

#[test]
fn a_repository_has_a_statefile() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (sr, _) = repository(dir.path());
    let path = sr.join(::statefile::NAME);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("there");
    assert_eq!(file.metadata().expect("there").len(), SIZE);
    let host = Uuid::from_random([9; 16]);
    let slot = Slot {
        index: 63,
        host,
        sequence: 5,
        payload: b"alive",
    };
    let at = slot_offset(63).expect("there is room");
    file.write_all_at(&slot.encode().expect("fits"), at)
        .expect("write");
    printed(&["sr", "check", text(&sr)]);
    let shown = printed(&["sr", "statefile", text(&sr)]);
    assert!(
        shown.contains(&host.to_string()) && shown.lines().count() == 2,
        "{shown}"
    );
    // A heartbeat that was cut short is news for people, and nothing to repair.
    file.write_all_at(&[7; 512], at + 512).expect("write");
    let found = printed(&["sr", "check", text(&sr)]);
    assert!(found.contains("slot of host 63"), "{found}");
    file.write_all_at(&[0; BLOCK], 0).expect("write");
    assert_eq!(tool(&["sr", "check", text(&sr)]).status.code(), Some(1));
    std::fs::remove_file(&path).expect("remove");
    printed(&["sr", "statefile", text(&sr), "--create"]);
    printed(&["sr", "check", text(&sr)]);
}
