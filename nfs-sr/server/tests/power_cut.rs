//! Power cuts: whatever the server has acknowledged as stable or committed is there after it, and so is every lease.

mod support;

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use fastrand::Rng;
use nfs3::{
    DirEntry, FileHandle, Name, Stability, Time, WriteVerifier,
    lease::{Get, Owner, Take, TakeArgs},
    nfs::{GetAttr, Write},
};
use rstest::rstest;
use support::{
    Calls, Options, TestServer,
    power::{PowerCutDisk, fast_directory},
};

const SECTOR: usize = 512;
const SECTORS: u64 = 64;

/// What a sector may hold: the last value that was acknowledged as durable, and those written since.
#[derive(Default)]
struct Sector {
    possible: Vec<u8>,
}

struct World {
    random: Rng,
    disk: PowerCutDisk,
    sectors: HashMap<u64, Sector>,
    epoch: u64,
    verifier: Option<WriteVerifier>,
    uncommitted: Vec<u64>,
    /// The latest time of modification that a stable write has told.
    modified: Option<Time>,
    /// How stable a write must be for its time to count.
    times_of: Stability,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            disk: PowerCutDisk::default(),
            sectors: HashMap::new(),
            epoch: 0,
            verifier: None,
            uncommitted: Vec::new(),
            modified: None,
            times_of: Stability::FileSync,
        }
    }

    /// One life of a server, ended by a power cut.
    fn life(&mut self, directory: &Path, commit_sync: bool) -> Result<(), String> {
        let options = Options {
            disk: Arc::new(self.disk.clone()),
            commit_sync,
            ..Options::default()
        };
        let server = TestServer::with(directory, options);
        let mut client = server.client();
        let root = client.root();
        let file = match client.look_up(root, "disk") {
            Ok(file) => file,
            Err(_) => client.create(root, "disk").expect("created"),
        };
        self.check(&mut client, root, file)?;
        let (mut handle, _) = match self.epoch {
            0 => client.acquire(root, "disk", "h0"),
            _ => self.take(&mut client, root),
        };
        self.epoch += 1;
        for _ in 0..self.random.usize(1..25) {
            match self.random.u8(0..10) {
                0..6 => self.write(&mut client, handle),
                6..9 => self.commit(&mut client, handle),
                _ => {
                    handle = self.take(&mut client, root).0;
                    self.epoch += 1;
                }
            }
        }
        // Writes that are not answered yet when the power goes may or may not have happened.
        for _ in 0..self.random.usize(0..4) {
            let (at, value) = (self.random.u64(0..SECTORS), self.random.u8(1..));
            self.sectors.entry(at).or_default().possible.push(value);
            let data = [value; SECTOR];
            let (offset, stable) = (at * SECTOR as u64, self.stability());
            let args = nfs3::nfs::WriteArgs {
                file: handle,
                offset,
                count: SECTOR as u32,
                stable,
                data: nfs3::Data(&data),
            };
            client.send::<Write>(&args).expect("sent");
        }
        drop(client);
        drop(server);
        let disk = std::mem::take(&mut self.disk);
        disk.cut(&mut self.random);
        self.uncommitted.clear();
        Ok(())
    }

    fn stability(&mut self) -> Stability {
        match self.random.u8(0..10) {
            0..7 => Stability::Unstable,
            7 | 8 => Stability::DataSync,
            _ => Stability::FileSync,
        }
    }

    fn write(
        &mut self,
        client: &mut nfs_sr::client::Client<std::net::TcpStream>,
        handle: FileHandle,
    ) {
        let (at, value, stable) = (
            self.random.u64(0..SECTORS),
            self.random.u8(1..),
            self.stability(),
        );
        let ok = client
            .write(handle, at * SECTOR as u64, &[value; SECTOR], stable)
            .expect("the holder writes");
        assert!(ok.committed >= stable);
        if ok.committed >= self.times_of {
            self.modified = ok.wcc.after.map(|attributes| attributes.mtime);
        }
        let sector = self.sectors.entry(at).or_default();
        if ok.committed == Stability::Unstable {
            sector.possible.push(value);
            self.uncommitted.push(at);
        } else {
            sector.possible = vec![value];
        }
    }

    fn commit(
        &mut self,
        client: &mut nfs_sr::client::Client<std::net::TcpStream>,
        handle: FileHandle,
    ) {
        client.commit(handle).expect("committed");
        for at in self.uncommitted.drain(..) {
            let possible = &mut self.sectors.get_mut(&at).expect("written").possible;
            *possible = possible.split_off(possible.len() - 1);
        }
    }

    fn take(
        &mut self,
        client: &mut nfs_sr::client::Client<std::net::TcpStream>,
        root: FileHandle,
    ) -> (FileHandle, u64) {
        let file = DirEntry {
            dir: root,
            name: Name(b"disk"),
        };
        let owner = format!("h{}", self.random.u8(..));
        let args = TakeArgs {
            file,
            owner: Owner(owner.as_bytes()),
            expected_epoch: self.epoch,
            ttl_ms: 60_000,
        };
        let record = client.call::<Take>(&args).expect("connected");
        let grant = record
            .results::<Take>()
            .expect("a reply")
            .0
            .expect("the epoch is right");
        (grant.object, grant.holding.epoch)
    }

    /// Every sector holds something that it may hold, the lease is the one that was answered, and the verifier is new.
    fn check(
        &mut self,
        client: &mut nfs_sr::client::Client<std::net::TcpStream>,
        root: FileHandle,
        file: FileHandle,
    ) -> Result<(), String> {
        let record = client
            .call::<Get>(&DirEntry {
                dir: root,
                name: Name(b"disk"),
            })
            .expect("connected");
        let epoch = record
            .results::<Get>()
            .expect("a reply")
            .0
            .expect("the file exists")
            .epoch;
        if epoch != self.epoch {
            return Err(format!(
                "the lease's epoch is {epoch}, {} was granted",
                self.epoch
            ));
        }
        let verifier = client.commit(file).expect("committed");
        if self.verifier.replace(verifier) == Some(verifier) {
            return Err("the write verifier is that of the instance before".into());
        }
        let record = client.call::<GetAttr>(&file).expect("connected");
        let now = record
            .results::<GetAttr>()
            .expect("a reply")
            .expect("it exists")
            .mtime;
        if let Some(told) = self.modified.take()
            && (now.seconds, now.nanoseconds) < (told.seconds, told.nanoseconds)
        {
            return Err(format!("it was modified at {now:?}, {told:?} was told"));
        }
        for at in 0..SECTORS {
            let mut bytes = client
                .read(file, at * SECTOR as u64, SECTOR as u32)
                .expect("read");
            bytes.resize(SECTOR, 0);
            let possible = self
                .sectors
                .get(&at)
                .map_or(&[0][..], |sector| &sector.possible);
            let durable = self
                .sectors
                .get(&at)
                .is_none_or(|sector| sector.possible.is_empty());
            let value = bytes[0];
            if bytes != [value; SECTOR] {
                return Err(format!("sector {at} is torn"));
            }
            if !possible.contains(&value) && (!durable || value != 0) {
                return Err(format!(
                    "sector {at} holds {value}, not one of {possible:?}"
                ));
            }
            self.sectors.insert(
                at,
                Sector {
                    possible: vec![value],
                },
            );
        }
        Ok(())
    }
}

/// Lives of the server on one disk.
const LIVES: u64 = 10;

/// Runs the worlds of these seeds; an error says what was lost.
fn lives(seeds: Range<u64>, commit_sync: bool, times_of: Stability) -> Result<(), String> {
    for seed in seeds {
        let dir = fast_directory();
        let mut world = World::new(seed);
        world.times_of = times_of;
        for life in 0..LIVES {
            world
                .life(dir.path(), commit_sync)
                .map_err(|why| format!("seed {seed}, life {life}: {why}"))?;
        }
    }
    Ok(())
}

/// In four parts, so that they run side by side.
#[rstest]
fn a_thousand_power_cuts_lose_nothing_that_was_acknowledged(#[values(0, 25, 50, 75)] first: u64) {
    if let Err(why) = lives(first..first + 25, true, Stability::FileSync) {
        panic!("{why}");
    }
}

#[test]
fn negative_control_without_commit_data_is_lost() {
    lives(0..20, false, Stability::FileSync)
        .expect_err("a server that does not sync loses data, and the test must see it");
}

#[test]
fn negative_control_the_times_of_data_sync_writes_are_lost() {
    let why = lives(0..20, true, Stability::DataSync)
        .expect_err("DATA_SYNC promises no times, and the test must see them go back");
    assert!(why.contains("was modified at"), "{why}");
}
