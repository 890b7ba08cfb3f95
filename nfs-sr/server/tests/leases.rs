//! Leases: who may write, and that the server holds everybody to it.

mod support;

use std::{net::TcpStream, path::Path, thread, time::Duration};

use nfs_sr::client::Client;
use nfs3::{
    DirEntry, FileHandle, Name, SetAttributes, Stability, Status,
    lease::{
        Acquire, AcquireArgs, Break, Get, Grant, Holding, LeaseStatus, ListAll, Mode, Owner,
        Release, Renew, RenewArgs, Take, TakeArgs,
    },
    nfs::{Remove, Rename, RenameArgs, SetAttr, SetAttrArgs},
};
use support::{Calls, Options, TestServer, acquire_args};

type Conn = Client<TcpStream>;

/// What a test wants to know of an answer.
#[derive(Debug, PartialEq, Eq)]
struct State {
    epoch: u64,
    owner: String,
    held: bool,
}

impl From<&Holding<'_>> for State {
    fn from(holding: &Holding<'_>) -> Self {
        let owner = String::from_utf8_lossy(holding.owner.0).into_owned();
        Self {
            epoch: holding.epoch,
            owner,
            held: holding.remaining_ms > 0,
        }
    }
}

fn state(epoch: u64, owner: &str, held: bool) -> State {
    State {
        epoch,
        owner: owner.into(),
        held,
    }
}

fn acquire(
    client: &mut Conn,
    args: &AcquireArgs<'_>,
) -> Result<(FileHandle, State), (LeaseStatus, State)> {
    let record = client.call::<Acquire>(args).expect("connected");
    match record.results::<Acquire>().expect("a reply").0 {
        Ok(Grant { holding, object }) => Ok((object, (&holding).into())),
        Err(refused) => Err((refused.status, (&refused.holding).into())),
    }
}

fn release(client: &mut Conn, handle: FileHandle) -> Result<(), LeaseStatus> {
    let record = client.call::<Release>(&handle).expect("connected");
    let released = record.results::<Release>().expect("a reply").0;
    released.map(drop).map_err(|refused| refused.status)
}

fn take(
    client: &mut Conn,
    root: FileHandle,
    owner: &str,
    epoch: u64,
) -> Result<(FileHandle, State), (LeaseStatus, State)> {
    let file = DirEntry {
        dir: root,
        name: Name(b"disk"),
    };
    let args = TakeArgs {
        file,
        owner: Owner(owner.as_bytes()),
        expected_epoch: epoch,
        ttl_ms: 60_000,
    };
    let record = client.call::<Take>(&args).expect("connected");
    match record.results::<Take>().expect("a reply").0 {
        Ok(Grant { holding, object }) => Ok((object, (&holding).into())),
        Err(refused) => Err((refused.status, (&refused.holding).into())),
    }
}

fn get(client: &mut Conn, root: FileHandle) -> State {
    let record = client
        .call::<Get>(&DirEntry {
            dir: root,
            name: Name(b"disk"),
        })
        .expect("connected");
    let holding = record
        .results::<Get>()
        .expect("a reply")
        .0
        .expect("the file exists");
    (&holding).into()
}

fn disk(client: &mut Conn) -> (FileHandle, FileHandle) {
    let root = client.root();
    let file = client.create(root, "disk").expect("created");
    (root, file)
}

fn truncate(client: &mut Conn, file: FileHandle) -> Result<(), Status> {
    let attributes = SetAttributes {
        size: Some(0),
        ..SetAttributes::default()
    };
    let record = client
        .call::<SetAttr>(&SetAttrArgs {
            object: file,
            attributes,
            guard: None,
        })
        .expect("connected");
    record
        .results::<SetAttr>()
        .expect("a reply")
        .map(drop)
        .map_err(|f| f.status)
}

/// What two hosts do that both believe the disk is theirs: the source of a migration writes on after the destination has
/// taken the disk. Gives what the disk holds in the end.
fn double_writer(directory: &Path, lease_enforcement: bool) -> Vec<u8> {
    let server = TestServer::with(
        directory,
        Options {
            lease_enforcement,
            ..Options::default()
        },
    );
    let (mut source, mut destination) = (server.client(), server.client());
    let (root, file) = disk(&mut source);
    let (old, epoch) = source.acquire(root, "disk", "h1");
    source
        .write(old, 0, b"from h1", Stability::FileSync)
        .expect("the holder writes");
    let (new, _) = take(&mut destination, root, "h2", epoch).expect("the epoch is right");
    destination
        .write(new, 0, b"from h2", Stability::FileSync)
        .expect("the new holder writes");
    // The source does not know; nor does a tool that never had a lease.
    let late = source
        .write(old, 0, b"from h1", Stability::FileSync)
        .map(drop);
    let tool = destination
        .write(file, 0, b"garbage", Stability::FileSync)
        .map(drop);
    if lease_enforcement {
        assert_eq!((late, tool), (Err(Status::Stale), Err(Status::Acces)));
        assert_eq!(source.read(old, 0, 7), Err(Status::Stale));
        assert_eq!(source.commit(old), Err(Status::Stale));
        assert_eq!(truncate(&mut source, old), Err(Status::Stale));
        assert_eq!(truncate(&mut source, file), Err(Status::Acces));
        assert_eq!(
            destination.read(file, 0, 7),
            Ok(b"from h2".to_vec()),
            "anybody may read"
        );
    }
    destination.read(new, 0, 7).expect("the new holder reads")
}

#[test]
fn after_a_hand_over_the_source_cannot_write() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert_eq!(double_writer(dir.path(), true), b"from h2");
}

#[test]
fn negative_control_without_enforcement_the_disk_is_overwritten() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert_ne!(double_writer(dir.path(), false), b"from h2");
}

#[test]
fn a_lease_has_one_owner() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    assert_eq!(get(&mut client, root), state(0, "", false));
    let first = acquire_args(root, "disk", "h1");
    let (handle, granted) = acquire(&mut client, &first).expect("free");
    assert_eq!(granted, state(1, "h1", true));
    let second = acquire_args(root, "disk", "h2");
    assert_eq!(
        acquire(&mut client, &second),
        Err((LeaseStatus::Held, state(1, "h1", true)))
    );
    // Not even with the right epoch: that is what TAKE is for.
    let second = AcquireArgs {
        expected_epoch: 1,
        ..second
    };
    assert_eq!(
        acquire(&mut client, &second).map_err(|e| e.0),
        Err(LeaseStatus::Held)
    );
    // A host that was restarted gets its own lease anew; handles of its former life are stale.
    let again = AcquireArgs {
        expected_epoch: 1,
        ..first
    };
    let (newer, granted) = acquire(&mut client, &again).expect("its own");
    assert_eq!(granted, state(2, "h1", true));
    assert_eq!(
        client.write(handle, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Stale)
    );
    client
        .write(newer, 0, b"x", Stability::Unstable)
        .expect("the holder writes");
    // Released, it is free, and the handle is worth nothing.
    let record = client.call::<Release>(&newer).expect("connected");
    record
        .results::<Release>()
        .expect("a reply")
        .0
        .expect("its own");
    assert_eq!(
        client.write(newer, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Stale)
    );
    assert_eq!(
        acquire(&mut client, &acquire_args(root, "disk", "h2"))
            .expect("free")
            .1,
        state(3, "h2", true)
    );
}

#[test]
fn of_two_takes_one_succeeds_and_repeating_it_changes_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    assert_eq!(
        take(&mut client, root, "h2", 0).map_err(|e| e.0),
        Err(LeaseStatus::Stale),
        "nothing to take"
    );
    let (_, epoch) = client.acquire(root, "disk", "h1");
    let (handle, taken) = take(&mut client, root, "h2", epoch).expect("the epoch is right");
    assert_eq!(taken, state(epoch + 1, "h2", true));
    assert_eq!(
        take(&mut client, root, "h3", epoch),
        Err((LeaseStatus::Stale, state(epoch + 1, "h2", true)))
    );
    assert_eq!(
        take(&mut client, root, "h2", epoch),
        Ok((handle, state(epoch + 1, "h2", true)))
    );
}

#[test]
fn an_expired_lease_can_be_acquired_but_still_fences() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, file) = disk(&mut client);
    let short = AcquireArgs {
        ttl_ms: 50,
        ..acquire_args(root, "disk", "h1")
    };
    let (old, _) = acquire(&mut client, &short).expect("free");
    let record = client
        .call::<Renew>(&RenewArgs {
            object: old,
            ttl_ms: 60,
        })
        .expect("connected");
    record
        .results::<Renew>()
        .expect("a reply")
        .0
        .expect("its own");
    while get(&mut client, root).held {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(
        client.write(file, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Acces)
    );
    client
        .write(old, 0, b"x", Stability::Unstable)
        .expect("nobody else has it yet");
    let (_, granted) = acquire(&mut client, &acquire_args(root, "disk", "h2")).expect("expired");
    assert_eq!(granted, state(2, "h2", true));
    assert_eq!(
        client.write(old, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Stale)
    );
    let record = client
        .call::<Renew>(&RenewArgs {
            object: old,
            ttl_ms: 60,
        })
        .expect("connected");
    assert_eq!(
        record
            .results::<Renew>()
            .expect("a reply")
            .0
            .map_err(|r| r.status)
            .err(),
        Some(LeaseStatus::Stale)
    );
}

#[test]
fn an_operator_can_break_a_lease() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, file) = disk(&mut client);
    let (handle, _) = client.acquire(root, "disk", "h1");
    let record = client.call::<ListAll>(&()).expect("connected");
    let leases = record.results::<ListAll>().expect("a reply").leases.0;
    assert_eq!(leases.len(), 1);
    assert_eq!(
        (leases[0].path.0, State::from(&leases[0].holding)),
        (&b"disk"[..], state(1, "h1", true))
    );
    let record = client
        .call::<Break>(&DirEntry {
            dir: root,
            name: Name(b"disk"),
        })
        .expect("connected");
    record
        .results::<Break>()
        .expect("a reply")
        .0
        .expect("broken");
    assert_eq!(get(&mut client, root), state(2, "", false));
    assert_eq!(
        client.write(handle, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Stale)
    );
    client
        .write(file, 0, b"x", Stability::Unstable)
        .expect("no lease, no fence");
}

#[test]
fn readers_share_and_do_not_write() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    let shared = |owner| AcquireArgs {
        mode: Mode::Shared,
        ..acquire_args(root, "disk", owner)
    };
    let (first, a) = acquire(&mut client, &shared("h1")).expect("free");
    let (second, b) = acquire(&mut client, &shared("h2")).expect("shared");
    assert_eq!((a.epoch, b.epoch), (1, 2));
    for handle in [first, second] {
        client.read(handle, 0, 1).expect("a reader reads");
        assert_eq!(
            client.write(handle, 0, b"x", Stability::Unstable).map(drop),
            Err(Status::Acces)
        );
    }
    let exclusive = |client: &mut Conn| {
        acquire(client, &acquire_args(root, "disk", "h3")).map_err(|refused| refused.0)
    };
    assert_eq!(exclusive(&mut client), Err(LeaseStatus::Held));
    release(&mut client, first).expect("h1 holds it");
    assert_eq!(client.read(first, 0, 1), Err(Status::Stale), "it is back");
    client.read(second, 0, 1).expect("h2 still reads");
    assert_eq!(release(&mut client, first), Err(LeaseStatus::Stale));
    assert_eq!(exclusive(&mut client), Err(LeaseStatus::Held), "for h2");
    release(&mut client, second).expect("h2 holds it");
    let (_, c) = exclusive(&mut client).expect("nobody reads any more");
    assert_eq!(c.epoch, 3);
}

#[test]
fn each_reader_has_its_own_time_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    let shared = |owner, epoch, ttl_ms| AcquireArgs {
        mode: Mode::Shared,
        expected_epoch: epoch,
        ttl_ms,
        ..acquire_args(root, "disk", owner)
    };
    let (short, _) = acquire(&mut client, &shared("h1", 0, 1)).expect("free");
    let (long, _) = acquire(&mut client, &shared("h2", 0, 60_000)).expect("shared");
    // A host that was restarted: its old handle is worth nothing.
    let (again, taken) = acquire(&mut client, &shared("h2", 2, 60_000)).expect("its own");
    assert_eq!(taken, state(3, "h2", true));
    assert_eq!(client.read(long, 0, 1), Err(Status::Stale));
    assert_eq!(
        acquire(&mut client, &shared("h4", 3, 60_000)).map_err(|refused| refused.0),
        Err(LeaseStatus::Held),
        "another's epoch"
    );
    drop((client, server));
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    client.read(again, 0, 1).expect("h2 still reads");
    thread::sleep(Duration::from_millis(20));
    let (third, _) = acquire(&mut client, &shared("h3", 0, 60_000)).expect("shared");
    assert_eq!(client.read(short, 0, 1), Err(Status::Stale), "time is over");
    for handle in [again, third] {
        release(&mut client, handle).expect("held");
    }
    acquire(&mut client, &acquire_args(root, "disk", "h5")).expect("nobody reads any more");
}

#[test]
fn a_leased_file_stays_where_it_is() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    client.create(root, "other").expect("created");
    client.acquire(root, "disk", "h1");
    let entry = |name: &'static [u8]| DirEntry {
        dir: root,
        name: Name(name),
    };
    let record = client.call::<Remove>(&entry(b"disk")).expect("connected");
    assert_eq!(
        record
            .results::<Remove>()
            .expect("a reply")
            .map_err(|f| f.status)
            .err(),
        Some(Status::Acces)
    );
    for (from, to) in [(&b"disk"[..], &b"gone"[..]), (b"other", b"disk")] {
        let args = RenameArgs {
            from: entry(from),
            to: entry(to),
        };
        let record = client.call::<Rename>(&args).expect("connected");
        let status = record
            .results::<Rename>()
            .expect("a reply")
            .map_err(|f| f.status);
        assert_eq!(status.err(), Some(Status::Acces), "{args:?}");
    }
}

#[test]
fn only_hosts_have_a_say() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, _) = disk(&mut client);
    let mut user = server.client_as(1000, 1000);
    let record = user
        .call::<Acquire>(&acquire_args(root, "disk", "mallory"))
        .expect("connected");
    record.results::<Acquire>().expect_err("not the superuser");
    assert_eq!(get(&mut client, root), state(0, "", false));
}

#[test]
fn leases_and_handles_survive_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let (root, file) = disk(&mut client);
    // More changes than the journal has room for, so that it is rewritten on the way.
    let mut last = client.acquire(root, "disk", "h0");
    for i in 1..2100u64 {
        let owner = format!("h{}", i % 7);
        let (handle, taken) = take(&mut client, root, &owner, i).expect("the epoch is right");
        last = (handle, taken.epoch);
    }
    drop(server);
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    assert_eq!(get(&mut client, root), state(2100, "h6", true));
    client
        .write(last.0, 0, b"x", Stability::Unstable)
        .expect("still the holder");
    assert_eq!(
        client.write(file, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Acces)
    );
    assert_eq!(
        take(&mut client, root, "h9", 2099).map_err(|e| e.0),
        Err(LeaseStatus::Stale)
    );
    take(&mut client, root, "h9", 2100).expect("the epoch is right");
}
