//! SIGKILL of the real program under load: clients find their handles, leases and all that was committed at the next instance.

mod support;

use std::{
    collections::HashMap,
    io,
    net::TcpStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nfs_sr::client::Client;
use nfs3::{
    Data, DirEntry, FileHandle, Name, Stability, Time, WriteVerifier,
    lease::{Owner, Take, TakeArgs},
    nfs::{Commit, CommitArgs, GetAttr, Read, ReadArgs, Write, WriteArgs},
};
use support::{Calls, power::fast_directory, program::Program};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// What a client knows, over all lives of the server.
struct Host {
    random: fastrand::Rng,
    handle: FileHandle,
    root: FileHandle,
    epoch: u64,
    verifier: WriteVerifier,
    /// The last value of each block; and those that the server may lose.
    blocks: HashMap<u64, u8>,
    uncommitted: HashMap<u64, u8>,
    /// Time of modification, as the last stable write told it.
    modified: Option<Time>,
    /// Lives of the server in which it got to work.
    recovered: Arc<AtomicU64>,
}

impl Host {
    /// Works until the connection breaks. Every reply counts.
    fn work(&mut self, client: &mut Client<TcpStream>) -> io::Result<()> {
        self.recover(client)?;
        self.recovered.fetch_add(1, Ordering::SeqCst);
        for step in 0u64.. {
            match self.random.u8(0..20) {
                0..14 => self.write(client, Stability::Unstable)?,
                14 | 15 => self.write(client, Stability::FileSync)?,
                16 | 17 => self.commit(client)?,
                18 => self.read(client)?,
                _ => self.take(client, step)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, client: &mut Client<TcpStream>, stable: Stability) -> io::Result<()> {
        let (at, value) = (self.random.u64(0..BLOCKS), self.random.u8(..));
        // From here on the block may hold the new value even if the reply is lost; so it is written again until it is known.
        self.uncommitted.insert(at, value);
        self.put(client, at, value, stable)
    }

    fn put(
        &mut self,
        client: &mut Client<TcpStream>,
        at: u64,
        value: u8,
        stable: Stability,
    ) -> io::Result<()> {
        let data = [value; BLOCK];
        let args = WriteArgs {
            file: self.handle,
            offset: at * BLOCK as u64,
            count: BLOCK as u32,
            stable,
            data: Data(&data),
        };
        let record = client.call::<Write>(&args)?;
        let ok = record
            .results::<Write>()
            .expect("a reply")
            .expect("the holder writes");
        assert_eq!(ok.verifier, self.verifier, "one instance has one verifier");
        self.blocks.insert(at, value);
        if ok.committed != Stability::Unstable {
            self.uncommitted.remove(&at);
        }
        if ok.committed == Stability::FileSync {
            self.modified = ok.wcc.after.map(|attributes| attributes.mtime);
        }
        Ok(())
    }

    fn commit(&mut self, client: &mut Client<TcpStream>) -> io::Result<()> {
        let record = client.call::<Commit>(&CommitArgs {
            file: self.handle,
            offset: 0,
            count: 0,
        })?;
        let ok = record
            .results::<Commit>()
            .expect("a reply")
            .expect("committed");
        assert_eq!(ok.verifier, self.verifier, "one instance has one verifier");
        self.uncommitted.clear();
        Ok(())
    }

    fn read(&mut self, client: &mut Client<TcpStream>) -> io::Result<()> {
        let at = self.random.u64(0..BLOCKS);
        let args = ReadArgs {
            file: self.handle,
            offset: at * BLOCK as u64,
            count: BLOCK as u32,
        };
        let record = client.call::<Read>(&args)?;
        let read = record
            .results::<Read>()
            .expect("a reply")
            .expect("the holder reads");
        if let Some(value) = self.blocks.get(&at) {
            assert_eq!(read.data.0, [*value; BLOCK], "block {at}");
        }
        Ok(())
    }

    fn take(&mut self, client: &mut Client<TcpStream>, step: u64) -> io::Result<()> {
        let owner = format!("host-{step}");
        let file = DirEntry {
            dir: self.root,
            name: Name(b"disk"),
        };
        let args = TakeArgs {
            file,
            owner: Owner(owner.as_bytes()),
            expected_epoch: self.epoch,
            ttl_ms: 60_000,
        };
        let record = client.call::<Take>(&args)?;
        let grant = record
            .results::<Take>()
            .expect("a reply")
            .0
            .expect("the epoch is right");
        (self.handle, self.epoch) = (grant.object, grant.holding.epoch);
        Ok(())
    }

    /// After a restart: the lease is ours, or a TAKE whose reply was lost has happened; the verifier tells that unstable
    /// writes may be gone; everything else is there.
    fn recover(&mut self, client: &mut Client<TcpStream>) -> io::Result<()> {
        let file = DirEntry {
            dir: self.root,
            name: Name(b"disk"),
        };
        let mut epoch = self.epoch;
        loop {
            let args = TakeArgs {
                file,
                owner: Owner(b"host"),
                expected_epoch: epoch,
                ttl_ms: 60_000,
            };
            let record = client.call::<Take>(&args)?;
            match record.results::<Take>().expect("a reply").0 {
                Ok(grant) => {
                    (self.handle, self.epoch) = (grant.object, grant.holding.epoch);
                    break;
                }
                Err(refused) => {
                    assert_eq!(
                        refused.holding.epoch,
                        self.epoch + 1,
                        "at most the TAKE without a reply"
                    );
                    epoch = refused.holding.epoch;
                }
            }
        }
        let record = client.call::<Commit>(&CommitArgs {
            file: self.handle,
            offset: 0,
            count: 0,
        })?;
        let verifier = record
            .results::<Commit>()
            .expect("a reply")
            .expect("committed")
            .verifier;
        assert_ne!(
            verifier, self.verifier,
            "another instance has another verifier"
        );
        self.verifier = verifier;
        let record = client.call::<GetAttr>(&self.handle)?;
        let now = record
            .results::<GetAttr>()
            .expect("a reply")
            .expect("it exists")
            .mtime;
        if let Some(told) = self.modified {
            assert!((now.seconds, now.nanoseconds) >= (told.seconds, told.nanoseconds));
        }
        for at in 0..BLOCKS {
            let args = ReadArgs {
                file: self.handle,
                offset: at * BLOCK as u64,
                count: BLOCK as u32,
            };
            let record = client.call::<Read>(&args)?;
            let read = record
                .results::<Read>()
                .expect("a reply")
                .expect("the holder reads");
            if let Some(value) = self.blocks.get(&at)
                && !self.uncommitted.contains_key(&at)
            {
                assert_eq!(read.data.0, [*value; BLOCK], "block {at} was committed");
            }
        }
        for (at, value) in self.uncommitted.clone() {
            self.put(client, at, value, Stability::Unstable)?;
        }
        self.commit(client)
    }
}

#[test]
fn a_hundred_kills_lose_nothing() {
    let dir = fast_directory();
    let mut program = Program::on(dir.path(), "127.0.0.1:0", &[]);
    let listen = program.address.to_string();
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    client.create(root, "disk").expect("created");
    let (handle, epoch) = client.acquire(root, "disk", "host");
    let verifier = [0; 8];
    let random = fastrand::Rng::with_seed(1);
    let mut host = Host {
        random,
        handle,
        root,
        epoch,
        verifier,
        blocks: HashMap::new(),
        uncommitted: HashMap::new(),
        modified: None,
        recovered: Arc::default(),
    };
    let mut longest = Duration::ZERO;
    for kill in 0..100u64 {
        // The moment of the kill is chosen by a thread that knows nothing of what the client does.
        let pid = program.pid();
        let (recovered, before) = (
            host.recovered.clone(),
            host.recovered.load(Ordering::SeqCst),
        );
        let killer = std::thread::spawn(move || {
            // Every fourth kill may come while the client still finds its way; the others wait for it on a slow machine.
            let patience = Instant::now() + Duration::from_secs(5);
            while kill % 4 != 0
                && recovered.load(Ordering::SeqCst) == before
                && Instant::now() < patience
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(5 + kill * 7 % 31));
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        });
        let ended = host.work(&mut client);
        killer.join().expect("the killer does not fail");
        ended.expect_err("the server was killed");
        let died = Instant::now();
        program.wait();
        program = Program::on(dir.path(), &listen, &[]);
        client = Client::new(support::connect(program.address));
        longest = longest.max(died.elapsed());
    }
    let recovered = host.recovered.load(Ordering::SeqCst);
    assert!(
        recovered >= 75 && !host.blocks.is_empty(),
        "there was work in {recovered} lives"
    );
    // A client waits for no more than a start of the program.
    assert!(longest < Duration::from_secs(3), "{longest:?}");
}

/// Who holds `disk` in which epoch by a report, and whether there is an expiry.
fn lease(report: &serde_json::Value, change: &str) -> Option<(String, u64, bool)> {
    let says = |key: &str, word: &str| report[key].as_str() == Some(word);
    if !(says("kind", "lease") && says("path", "disk") && says("change", change)) {
        return None;
    }
    let owner = report["owner"].as_str()?.to_owned();
    let expires = report["remaining_ms"].as_u64().is_some_and(|ms| ms > 0);
    Some((owner, report["epoch"].as_u64()?, expires))
}

#[test]
fn a_hand_over_that_was_not_reported_is_known_after_the_restart() {
    let dir = fast_directory();
    let listen = "127.0.0.1:0";
    let env = || Command::new("env");
    // Nobody reads what it says: when the pipe is full, its reports stay where they are and die with it.
    let (program, unread) = Program::heard(env(), dir.path(), listen, &[]);
    let mut client = Client::new(support::connect(program.address));
    let root = client.root();
    client.create(root, "disk").expect("created");
    let (_, mut epoch) = client.acquire(root, "disk", "source");
    let file = DirEntry {
        dir: root,
        name: Name(b"disk"),
    };
    // 64 KiB is what a pipe holds, pipe(7); a report has more than 100 bytes.
    for _ in 0..1000 {
        let args = TakeArgs {
            file,
            owner: Owner(b"destination"),
            expected_epoch: epoch,
            ttl_ms: 60_000,
        };
        let record = client.call::<Take>(&args).expect("connected");
        let grant = record.results::<Take>().expect("a reply").0;
        epoch = grant.expect("the epoch is right").holding.epoch;
    }
    drop(program);
    let last = unread.filter_map(|report| lease(&report, "transferred"));
    assert!(
        last.last().is_some_and(|(_, reported, _)| reported < epoch),
        "the hand-over was to stay unreported"
    );
    let (program, reports) = Program::heard(env(), dir.path(), listen, &[]);
    // Leases are told before any call is served, so the connection is told after them.
    let _client = support::connect(program.address);
    let held: Vec<_> = reports
        .take_while(|report| report["kind"].as_str() != Some("connection"))
        .filter_map(|report| lease(&report, "held"))
        .collect();
    assert_eq!(held, [("destination".into(), epoch, true)]);
}
