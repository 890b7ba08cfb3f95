//! What tells NFS servers apart: names, attributes, directories, repeated requests and refusals.

mod support;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::symlink,
};

use nfs_sr::{client::Client, export::Squash};
use nfs3::{
    Attributes, DirEntry, FileHandle, FileType, Name, SetAttributes, SetTime, Stability, Status,
    Time,
    mount::{Mount, MountStatus},
    nfs::*,
    record,
    rpc::{self, CallFailed, Credentials, Procedure, Refusal},
};
use proptest::{
    prelude::any,
    test_runner::{Config, TestRunner},
};
use support::{Calls, Options, TestServer};

type Conn = Client<TcpStream>;

fn entry(dir: FileHandle, name: &str) -> DirEntry<'_> {
    DirEntry {
        dir,
        name: Name(name.as_bytes()),
    }
}

fn attributes(client: &mut Conn, file: FileHandle) -> Result<Attributes, Status> {
    let record = client.call::<GetAttr>(&file).expect("connected");
    record
        .results::<GetAttr>()
        .expect("a reply")
        .map_err(|f| f.status)
}

fn mkdir(client: &mut Conn, dir: FileHandle, name: &str) -> FileHandle {
    let args = MkDirArgs {
        place: entry(dir, name),
        attributes: SetAttributes::default(),
    };
    let record = client.call::<MkDir>(&args).expect("connected");
    record
        .results::<MkDir>()
        .expect("a reply")
        .expect("created")
        .object
        .expect("a handle")
}

fn remove(client: &mut Conn, dir: FileHandle, name: &str) -> Result<(), Status> {
    let record = client.call::<Remove>(&entry(dir, name)).expect("connected");
    record
        .results::<Remove>()
        .expect("a reply")
        .map(drop)
        .map_err(|f| f.status)
}

fn look_up(client: &mut Conn, dir: FileHandle, name: &str) -> Result<FileHandle, Status> {
    let record = client.call::<Lookup>(&entry(dir, name)).expect("connected");
    record
        .results::<Lookup>()
        .expect("a reply")
        .map(|ok| ok.object)
        .map_err(|f| f.status)
}

fn names(
    client: &mut Conn,
    dir: FileHandle,
    count: u32,
    mut between: impl FnMut(&mut Conn),
) -> Vec<String> {
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let args = ReadDirPlusArgs {
            dir,
            cookie,
            verifier: [0; 8],
            dir_count: count,
            max_count: count,
        };
        let record = client.call::<ReadDirPlus>(&args).expect("connected");
        let listed = record
            .results::<ReadDirPlus>()
            .expect("a reply")
            .expect("listed");
        for entry in &listed.entries.0 {
            cookie = entry.cookie;
            names.push(String::from_utf8_lossy(entry.name.0).into_owned());
        }
        if listed.eof {
            return names;
        }
        assert!(
            !listed.entries.0.is_empty(),
            "a reply that is not the last brings something"
        );
        between(client);
    }
}

#[test]
fn names_are_made_moved_linked_and_removed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let sub = mkdir(&mut client, root, "sub");
    let file = client.create(root, "a").expect("created");
    assert_eq!(client.create(root, "a"), Err(Status::Exist));
    let record = client
        .call::<Link>(&LinkArgs {
            file,
            link: entry(sub, "b"),
        })
        .expect("connected");
    record.results::<Link>().expect("a reply").expect("linked");
    assert_eq!(attributes(&mut client, file).expect("there").nlink, 2);
    let args = RenameArgs {
        from: entry(root, "a"),
        to: entry(sub, "c"),
    };
    let record = client.call::<Rename>(&args).expect("connected");
    let wcc = record
        .results::<Rename>()
        .expect("a reply")
        .expect("renamed");
    assert!(wcc.from_dir.before.is_some() && wcc.to_dir.after.is_some());
    assert_eq!(look_up(&mut client, root, "a"), Err(Status::NoEnt));
    assert_eq!(look_up(&mut client, sub, "c"), Ok(file));
    let target = SymLinkArgs {
        place: entry(root, "link"),
        attributes: SetAttributes::default(),
        target: nfs3::Path(b"sub/../sub/c"),
    };
    let record = client.call::<SymLink>(&target).expect("connected");
    let link = record
        .results::<SymLink>()
        .expect("a reply")
        .expect("made")
        .object
        .expect("a handle");
    let record = client.call::<ReadLink>(&link).expect("connected");
    let read = record
        .results::<ReadLink>()
        .expect("a reply")
        .expect("a link");
    assert_eq!(read.target.0, b"sub/../sub/c");
    let fifo = MkNodArgs {
        place: entry(root, "fifo"),
        what: SpecialFile::Fifo(SetAttributes::default()),
    };
    let record = client.call::<MkNod>(&fifo).expect("connected");
    let fifo = record
        .results::<MkNod>()
        .expect("a reply")
        .expect("made")
        .object
        .expect("a handle");
    assert_eq!(
        attributes(&mut client, fifo).expect("there").kind,
        FileType::Fifo
    );
    let record = client
        .call::<RmDir>(&entry(root, "sub"))
        .expect("connected");
    let status = record
        .results::<RmDir>()
        .expect("a reply")
        .map_err(|f| f.status);
    assert_eq!(status.err(), Some(Status::NotEmpty));
    remove(&mut client, sub, "b").expect("removed");
    remove(&mut client, sub, "c").expect("removed");
    assert_eq!(attributes(&mut client, file), Err(Status::Stale));
    let record = client
        .call::<RmDir>(&entry(root, "sub"))
        .expect("connected");
    record
        .results::<RmDir>()
        .expect("a reply")
        .expect("empty now");
    assert_eq!(attributes(&mut client, sub), Err(Status::Stale));
}

#[test]
fn attributes_are_set_and_guarded() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    let time = Time {
        seconds: 1_000_000_000,
        nanoseconds: 5,
    };
    let set = SetAttributes {
        mode: Some(0o640),
        size: Some(10_000),
        atime: SetTime::Now,
        mtime: SetTime::To(time),
        ..SetAttributes::default()
    };
    let before = attributes(&mut client, file).expect("there");
    let args = SetAttrArgs {
        object: file,
        attributes: set,
        guard: Some(before.ctime),
    };
    let record = client.call::<SetAttr>(&args).expect("connected");
    let wcc = record.results::<SetAttr>().expect("a reply").expect("set");
    let after = wcc.after.expect("attributes");
    assert_eq!((after.mode, after.size, after.mtime), (0o640, 10_000, time));
    let late = SetAttrArgs {
        guard: Some(Time {
            seconds: 1,
            nanoseconds: 1,
        }),
        ..args
    };
    let record = client.call::<SetAttr>(&late).expect("connected");
    let status = record
        .results::<SetAttr>()
        .expect("a reply")
        .map_err(|f| f.status);
    assert_eq!(status.err(), Some(Status::NotSync));
    // Sparse: what was never written is zeros and takes no space.
    assert_eq!(client.read(file, 9_000, 2_000), Ok(vec![0; 1_000]));
    client
        .write(file, 1 << 40, b"far", Stability::Unstable)
        .expect("sparse");
    let far = attributes(&mut client, file).expect("there");
    assert!(far.size == (1 << 40) + 3 && far.used < 1 << 20);
}

#[test]
fn an_exclusive_create_can_be_repeated_but_not_stolen() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let mut create = |verifier| {
        let args = CreateArgs {
            place: entry(root, "x"),
            how: CreateHow::Exclusive(verifier),
        };
        let record = client.call::<Create>(&args).expect("connected");
        record
            .results::<Create>()
            .expect("a reply")
            .map(|ok| ok.object)
            .map_err(|f| f.status)
    };
    let first = create([1, 2, 3, 4, 5, 6, 7, 8]).expect("created");
    assert_eq!(create([1, 2, 3, 4, 5, 6, 7, 8]), Ok(first));
    assert_eq!(create([1, 2, 3, 4, 5, 6, 7, 9]), Err(Status::Exist));
}

#[test]
fn a_listing_is_complete_while_the_directory_changes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for i in 0..500 {
        std::fs::write(dir.path().join(format!("stays-{i}")), "").expect("write");
        std::fs::write(dir.path().join(format!("goes-{i}")), "").expect("write");
    }
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let mut i = 0;
    let listed = names(&mut client, root, 4096, |client| {
        for _ in 0..5 {
            remove(client, root, &format!("goes-{i}")).expect("removed");
            client.create(root, &format!("comes-{i}")).expect("created");
            i += 1;
        }
    });
    assert!(i > 50, "several pages");
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "nothing twice");
    assert!(
        (0..500).all(|i| unique.contains(&format!("stays-{i}"))),
        "nothing missing"
    );
    assert!(
        !listed.iter().any(|name| name == ".nfs-sr"),
        "the server's own directory is not seen"
    );
}

/// The same call again over another connection, as a client does that lost the first one before the reply.
#[test]
fn a_repeated_call_gets_the_first_reply() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut first = server.client();
    let root = first.root();
    first.create(root, "a").expect("created");
    first.set_next_xid(77);
    remove(&mut first, root, "a").expect("removed");
    drop(first);
    let mut second = server.client();
    second.set_next_xid(77);
    assert_eq!(remove(&mut second, root, "a"), Ok(()), "not: no such file");
    second.set_next_xid(78);
    assert_eq!(
        remove(&mut second, root, "a"),
        Err(Status::NoEnt),
        "a call of its own"
    );
}

#[test]
fn handles_and_names_survive_a_restart_and_renames_behind_the_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let sub = mkdir(&mut client, root, "sub");
    let file = client.create(sub, "a").expect("created");
    client
        .write(file, 0, b"kept", Stability::FileSync)
        .expect("written");
    drop(server);
    std::fs::rename(dir.path().join("sub"), dir.path().join("moved")).expect("rename");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    assert_eq!(client.root(), root);
    assert_eq!(client.read(file, 0, 10), Ok(b"kept".to_vec()));
    assert_eq!(look_up(&mut client, root, "moved"), Ok(sub));
    // A file that was replaced is another one, even if the system gives it the same inode number.
    std::fs::remove_file(dir.path().join("moved/a")).expect("remove");
    drop(server);
    std::fs::write(dir.path().join("moved/a"), "new").expect("write");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    assert_eq!(client.read(file, 0, 10), Err(Status::Stale));
}

#[test]
fn nobody_gets_out_of_the_export() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let export = dir.path().join("export");
    std::fs::create_dir_all(export.join("sub")).expect("directories");
    std::fs::write(dir.path().join("secret"), "secret").expect("write");
    symlink("..", export.join("up")).expect("link");
    symlink("/etc", export.join("etc")).expect("link");
    let server = TestServer::start(&export);
    let mut client = server.client();
    let root = client.root();
    assert_eq!(look_up(&mut client, root, ".."), Ok(root));
    let sub = look_up(&mut client, root, "sub").expect("there");
    assert_eq!(look_up(&mut client, sub, ".."), Ok(root));
    for name in ["../secret", "/etc/passwd", "sub/../../secret", "a\0b", ""] {
        assert_eq!(
            look_up(&mut client, root, name),
            Err(Status::Inval),
            "{name:?}"
        );
        assert_eq!(client.create(root, name), Err(Status::Inval), "{name:?}");
    }
    let long = "x".repeat(256);
    assert_eq!(look_up(&mut client, root, &long), Err(Status::NameTooLong));
    for link in ["up", "etc"] {
        let link = look_up(&mut client, root, link).expect("a link is a file too");
        assert_eq!(look_up(&mut client, link, "secret"), Err(Status::NotDir));
        assert_eq!(client.read(link, 0, 1), Err(Status::Inval));
    }
    assert_eq!(look_up(&mut client, root, ".nfs-sr"), Err(Status::NoEnt));
    assert_eq!(client.create(root, ".nfs-sr"), Err(Status::Acces));
    for path in [
        "/export/../",
        "/export/up",
        "/export/etc",
        "/elsewhere",
        "/exportx",
    ] {
        let record = client
            .call::<Mount>(&nfs3::Path(path.as_bytes()))
            .expect("connected");
        let status = record
            .results::<Mount>()
            .expect("a reply")
            .0
            .expect_err(path);
        assert!(
            matches!(
                status,
                MountStatus::Acces | MountStatus::NoEnt | MountStatus::NotDir
            ),
            "{path}: {status:?}"
        );
    }
}

#[test]
fn users_have_the_rights_that_files_give_them() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::with(
        dir.path(),
        Options {
            squash: Squash::Root,
            ..Options::default()
        },
    );
    let mut squashed = server.client();
    let root = squashed.root();
    std::fs::write(dir.path().join("private"), "private").expect("write");
    let only_owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.path().join("private"), only_owner).expect("chmod");
    let file = look_up(&mut squashed, root, "private").expect("there");
    if !rustix::process::geteuid().is_root() {
        // Then all is done as who the test is, and there is nothing to tell apart.
        return;
    }
    assert_eq!(
        squashed.read(file, 0, 10),
        Err(Status::Acces),
        "the superuser of a client is nobody"
    );
    assert_eq!(squashed.create(root, "new"), Err(Status::Acces));
    assert_eq!(
        squashed.write(file, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::Acces)
    );
    let record = squashed
        .call::<Access>(&AccessArgs {
            object: file,
            access: 0x3f,
        })
        .expect("connected");
    assert_eq!(
        record
            .results::<Access>()
            .expect("a reply")
            .expect("there")
            .access,
        0
    );
}

/// To Linux the number means "no change", so whoever came with it would act as the server.
#[test]
fn the_number_that_is_no_user_is_nobody() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    let mut strange = server.client_as(u32::MAX, u32::MAX);
    assert_eq!(strange.create(root, "b"), Err(Status::Acces));
    let mut own = |uid| {
        let args = SetAttrArgs {
            object: file,
            attributes: SetAttributes {
                uid: Some(uid),
                ..SetAttributes::default()
            },
            guard: None,
        };
        let record = client.call::<SetAttr>(&args).expect("connected");
        let set = record.results::<SetAttr>().expect("a reply");
        set.map(drop).map_err(|failure| failure.status)
    };
    assert_eq!(own(u32::MAX), Err(Status::Inval));
    assert_eq!(own(7), Ok(()), "the server still serves");
}

#[test]
fn a_read_only_export_is_not_changed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("a"), "abc").expect("write");
    let server = TestServer::with(
        dir.path(),
        Options {
            read_only: true,
            ..Options::default()
        },
    );
    let mut client = server.client();
    let root = client.root();
    let file = look_up(&mut client, root, "a").expect("there");
    assert_eq!(client.read(file, 0, 10), Ok(b"abc".to_vec()));
    assert_eq!(
        client.write(file, 0, b"x", Stability::Unstable).map(drop),
        Err(Status::RoFs)
    );
    assert_eq!(client.create(root, "b"), Err(Status::RoFs));
    assert_eq!(remove(&mut client, root, "a"), Err(Status::RoFs));
}

/// NFS version 4, as a client without `vers=3` tries it first.
struct OtherVersion;

impl Procedure for OtherVersion {
    const PROGRAM: u32 = PROGRAM;
    const VERSION: u32 = 4;
    const NUMBER: u32 = 0;
    const NAME: &'static str = "Null";
    type Args<'a> = ();
    type Reply<'a> = ();
}

/// A procedure that NFS version 3 does not have.
struct NoProcedure;

impl Procedure for NoProcedure {
    const PROGRAM: u32 = PROGRAM;
    const VERSION: u32 = 3;
    const NUMBER: u32 = 22;
    const NAME: &'static str = "None";
    type Args<'a> = ();
    type Reply<'a> = ();
}

#[test]
fn other_versions_and_garbage_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let refusal = |record: Result<(), CallFailed>| match record {
        Err(CallFailed::Refused(refusal)) => Some(refusal),
        _ => None,
    };
    let record = client.call::<OtherVersion>(&()).expect("connected");
    assert_eq!(
        refusal(record.results::<OtherVersion>()),
        Some(Refusal::ProgramMismatch)
    );
    let record = client.call::<NoProcedure>(&()).expect("connected");
    assert_eq!(
        refusal(record.results::<NoProcedure>()),
        Some(Refusal::ProcedureUnavailable)
    );
    assert_eq!(
        attributes(&mut client, FileHandle::new(&[1; 32]).expect("fits")),
        Err(Status::BadHandle)
    );
    assert_eq!(
        attributes(&mut client, FileHandle::new(&[]).expect("fits")),
        Err(Status::BadHandle)
    );
    // What is no RPC at all ends the connection, and only that one.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0x80, 0, 0, 4, 1, 2, 3, 4],
    ] {
        let mut stream = TcpStream::connect(server.address).expect("the server listens");
        stream.write_all(garbage).expect("sent");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
    }
    client.root();
}

/// Any bytes behind a good envelope, for any procedure: a reply or a refusal, and the server lives.
#[test]
fn any_arguments_get_an_answer() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut runner = TestRunner::new(Config {
        cases: 500,
        ..Config::default()
    });
    let calls = (0u32..24, proptest::collection::vec(any::<u8>(), 0..300));
    let result = runner.run(&calls, |(procedure, args)| {
        let mut record = rpc::call::<Null>(1, &Credentials::None, &());
        record[4 + 20..4 + 24].copy_from_slice(&procedure.to_be_bytes());
        record.extend_from_slice(&args);
        record::finish(&mut record);
        let mut stream = TcpStream::connect(server.address).expect("the server listens");
        stream.write_all(&record).expect("sent");
        stream.read_exact(&mut [0; 4])?;
        Ok(())
    });
    result.expect("every call is answered");
}

/// Stable writes that wait at the same time share syncs.
#[test]
fn stable_writes_are_committed_in_groups() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let mut client = server.client();
    let root = client.root();
    let file = client.create(root, "a").expect("created");
    let calls: Vec<u32> = (0..128u64)
        .map(|i| {
            let data = nfs3::Data(&[7; 4096]);
            let args = WriteArgs {
                file,
                offset: i * 4096,
                count: 4096,
                stable: Stability::FileSync,
                data,
            };
            client.send::<Write>(&args).expect("sent")
        })
        .collect();
    for _ in &calls {
        let record = client.receive().expect("a reply");
        assert!(calls.contains(&record.xid()));
        let ok = record
            .results::<Write>()
            .expect("a reply")
            .expect("written");
        assert_eq!(ok.committed, Stability::FileSync);
    }
    let (syncs, waiters) = server.sync_counts();
    assert!(
        waiters >= 128 && syncs < 64,
        "{syncs} syncs for {waiters} writes"
    );
}
