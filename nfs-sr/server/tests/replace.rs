//! REPLACE: a file gives way to its successor, lease included, while somebody has it open.

mod support;

use std::net::TcpStream;

use nfs_sr::client::Client;
use nfs3::{
    DirEntry, FileHandle, Name, Stability, Status,
    lease::{LeaseStatus, Owner, Release, Replace, ReplaceArgs, Take, TakeArgs},
};
use support::{Calls, TestServer};

type Conn = Client<TcpStream>;

struct Files {
    client: Conn,
    root: FileHandle,
    /// The handle of the lease of `disk`, which `base` is another name of.
    held: FileHandle,
    epoch: u64,
    _server: TestServer,
    _directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("disk"), "before").unwrap();
        std::fs::write(at("disk.new"), "").unwrap();
        std::fs::write(at("other"), "other").unwrap();
        std::fs::hard_link(at("disk"), at("base")).unwrap();
        let server = TestServer::start(directory.path());
        let mut client = server.client();
        let root = client.root();
        let (held, epoch) = client.acquire(root, "disk", "h1");
        Self {
            client,
            root,
            held,
            epoch,
            _server: server,
            _directory: directory,
        }
    }

    fn replace(
        &mut self,
        object: FileHandle,
        kept: &str,
        owner: &str,
    ) -> Result<(FileHandle, u64), LeaseStatus> {
        let args = ReplaceArgs {
            object,
            file: DirEntry {
                dir: self.root,
                name: Name(b"disk"),
            },
            successor: Name(b"disk.new"),
            kept: Name(kept.as_bytes()),
            owner: Owner(owner.as_bytes()),
            ttl_ms: 60_000,
        };
        let record = self.client.call::<Replace>(&args).unwrap();
        let result = record.results::<Replace>().unwrap().0;
        result
            .map(|grant| (grant.object, grant.holding.epoch))
            .map_err(|refused| refused.status)
    }

    fn take(&mut self, owner: &str, expected_epoch: u64) -> Result<(), LeaseStatus> {
        let args = TakeArgs {
            file: DirEntry {
                dir: self.root,
                name: Name(b"disk"),
            },
            owner: Owner(owner.as_bytes()),
            expected_epoch,
            ttl_ms: 60_000,
        };
        let record = self.client.call::<Take>(&args).unwrap();
        let result = record.results::<Take>().unwrap().0;
        result.map(drop).map_err(|refused| refused.status)
    }

    fn content(&mut self, name: &str) -> Vec<u8> {
        let file = self.client.look_up(self.root, name).unwrap();
        self.client.read(file, 0, 100).unwrap()
    }

    fn write(&mut self, handle: FileHandle, data: &[u8]) -> Result<(), Status> {
        let written = self.client.write(handle, 0, data, Stability::FileSync);
        written.map(drop)
    }
}

#[test]
fn the_successor_gets_the_name_and_the_holder_its_lease() {
    let mut files = Files::new();
    let held = files.held;
    let (child, epoch) = files.replace(held, "base", "h1").unwrap();
    assert_eq!(epoch, files.epoch + 1, "epochs of a name go on rising");
    files.write(child, b"after").unwrap();
    assert_eq!(files.content("disk"), b"after");
    assert_eq!(files.content("base"), b"before");
    assert!(files.client.look_up(files.root, "disk.new").is_err());
    // An answer that was lost is given again, and does nothing.
    assert_eq!(files.replace(held, "base", "h1"), Ok((child, epoch)));
    files.write(child, b"again").unwrap();
    // Once the old lease is given back, nobody writes to the base by it.
    files.client.call::<Release>(&held).unwrap();
    assert_eq!(files.write(held, b"late"), Err(Status::Stale));
    assert_eq!(files.content("base"), b"before");
    // Whoever had the old epoch in mind has missed something.
    assert_eq!(files.take("h2", epoch - 1), Err(LeaseStatus::Stale));
    assert_eq!(files.take("h2", epoch), Ok(()));
    assert_eq!(files.write(child, b"late"), Err(Status::Stale));
}

#[test]
fn only_the_holder_replaces_a_file_and_none_is_lost_by_it() {
    let mut files = Files::new();
    let held = files.held;
    assert_eq!(files.replace(held, "base", "h2"), Err(LeaseStatus::Stale));
    assert_eq!(files.replace(held, "other", "h1"), Err(LeaseStatus::Inval));
    assert_eq!(
        files.replace(held, "nothing", "h1"),
        Err(LeaseStatus::NoEnt)
    );
    let plain = files.client.look_up(files.root, "disk").unwrap();
    assert_eq!(files.replace(plain, "base", "h1"), Err(LeaseStatus::Stale));
    let epoch = files.epoch;
    files.take("h2", epoch).unwrap();
    assert_eq!(files.replace(held, "base", "h1"), Err(LeaseStatus::Stale));
    assert_eq!(files.content("disk"), b"before");
    assert_eq!(files.content("disk.new"), b"");
}

#[test]
fn a_successor_that_another_has_is_left_to_it() {
    let mut files = Files::new();
    let (root, held) = (files.root, files.held);
    files.client.acquire(root, "disk.new", "h2");
    assert_eq!(files.replace(held, "base", "h1"), Err(LeaseStatus::Held));
    assert_eq!(files.content("disk"), b"before");
}
