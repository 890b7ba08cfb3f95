//! Throughput and latency of the server, side by side with NFS-Ganesha (Debian's package `nfs-ganesha-vfs`) if that is there.
//!
//! The same client drives both over loopback, in turns, several rounds, and in the same rounds the file system is measured
//! without a server; medians are printed, and every round. Both export a directory on the same file system. Ganesha wants a port mapper and the superuser, so as the superuser the
//! benchmark runs itself again in a network namespace of its own, with `rpcbind`. Options come from the environment:
//! `NFS_BENCH_ROUNDS`, `NFS_BENCH_CASES` for those cases only whose name contains it, `NFS_BENCH_DIR`, and `NFS_BENCH_JSON` for
//! a file with every figure.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nfs_sr::client::Client;
use nfs3::{
    Data, DirEntry, FileHandle, Name, SetAttributes, Stability,
    nfs::{Commit, CommitArgs, Create, CreateArgs, CreateHow, Read, ReadArgs, Write, WriteArgs},
};

/// Bytes of the file; it fits into memory, since the network path is what is measured.
const FILE: u64 = 128 << 20;
/// How long each measurement runs, and in how many slices.
const TIME: Duration = Duration::from_millis(1200);
const SLICES: u32 = 8;
/// Written at a time by the server, and so where none is: how the kernel keeps a file in memory depends on it.
const PIECE: usize = 128 << 10;
const IN_NAMESPACE: &str = "NFS_BENCH_IN_NAMESPACE";

#[derive(Clone, Copy)]
enum Work {
    Write(Stability),
    Read,
}

struct Case {
    name: &'static str,
    work: Work,
    bytes: usize,
    depth: usize,
    sequential: bool,
}

const fn case(
    name: &'static str,
    work: Work,
    bytes: usize,
    depth: usize,
    sequential: bool,
) -> Case {
    Case {
        name,
        work,
        bytes,
        depth,
        sequential,
    }
}

const CASES: [Case; 8] = [
    case(
        "4 KiB write, unstable, queue 32",
        Work::Write(Stability::Unstable),
        4096,
        32,
        false,
    ),
    case("4 KiB read, queue 32", Work::Read, 4096, 32, false),
    case(
        "128 KiB write, unstable, queue 8",
        Work::Write(Stability::Unstable),
        128 << 10,
        8,
        true,
    ),
    case("128 KiB read, queue 8", Work::Read, 128 << 10, 8, true),
    case("4 KiB read, queue 1", Work::Read, 4096, 1, false),
    case(
        "4 KiB write, file-sync, queue 32",
        Work::Write(Stability::FileSync),
        4096,
        32,
        false,
    ),
    case(
        "4 KiB write in order, file-sync, queue 32",
        Work::Write(Stability::FileSync),
        4096,
        32,
        true,
    ),
    case(
        "4 KiB write, file-sync, queue 1",
        Work::Write(Stability::FileSync),
        4096,
        1,
        false,
    ),
];

fn main() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    if root && std::env::var_os(IN_NAMESPACE).is_none() {
        let this = std::env::current_exe().expect("a program has a path");
        let status = Command::new("unshare")
            .arg("-n")
            .arg(this)
            .env(IN_NAMESPACE, "1")
            .status();
        return if status.is_ok_and(|status| status.success()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let base = std::env::var("NFS_BENCH_DIR").map_or_else(|_| std::env::temp_dir(), Into::into);
    let base = tempfile::tempdir_in(base).expect("temporary directory");
    let rounds = std::env::var("NFS_BENCH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3);
    if root {
        let _ = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
    }
    let mut servers = vec![start_own(base.path())];
    if root {
        servers.extend(start_ganesha(base.path()));
    }
    let wanted = std::env::var("NFS_BENCH_CASES").unwrap_or_default();
    let mut results: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    let mut local = LOCAL.map(|(group, sequential)| Local {
        group,
        sequential,
        rates: Vec::new(),
    });
    for _ in 0..rounds {
        for (i, case) in CASES.iter().enumerate() {
            if !case.name.contains(&wanted) {
                continue;
            }
            for (server, rate) in servers.iter().zip(measure(&servers, case)) {
                results.entry((server.name, i)).or_default().push(rate);
            }
        }
        for local in &mut local {
            let rate = local_fdatasync(base.path(), local.group, local.sequential);
            local.rates.push(rate);
        }
    }
    report(&servers, &results, &local);
    ExitCode::SUCCESS
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    /// Where the MOUNT program is.
    mount: SocketAddr,
    children: Vec<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_own(base: &Path) -> Server {
    let export = base.join("own");
    std::fs::create_dir(&export).expect("directory");
    let address: SocketAddr = "127.0.0.1:20491".parse().expect("an address");
    let child = Command::new(env!("CARGO_BIN_EXE_nfs-sr"))
        .arg("serve")
        .arg(&export)
        .args(["--listen", &address.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("start");
    let server = Server {
        name: "nfs-sr",
        address,
        mount: address,
        children: vec![child],
    };
    wait_for(address);
    server
}

fn start_ganesha(base: &Path) -> Option<Server> {
    let export = base.join("ganesha");
    std::fs::create_dir(&export).ok()?;
    let config = format!(
        "NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = 20492; MNT_Port = 20493; Enable_NLM = false; Enable_RQUOTA = false; }}\n\
         EXPORT {{ Export_Id = 1; Path = {path}; Pseudo = /export; Access_Type = RW; Squash = None; Protocols = 3; \
         SecType = sys, none; MaxRead = 1048576; MaxWrite = 1048576; FSAL {{ Name = VFS; }} }}\n\
         LOG {{ Default_Log_Level = WARN; }}\n",
        path = export.display()
    );
    let (file, log, pid) = (
        base.join("ganesha.conf"),
        base.join("ganesha.log"),
        base.join("ganesha.pid"),
    );
    std::fs::write(&file, config).ok()?;
    let rpcbind = Command::new("rpcbind").args(["-f", "-w"]).spawn().ok()?;
    std::thread::sleep(Duration::from_millis(500));
    let ganesha = Command::new("ganesha.nfsd")
        .arg("-F")
        .arg("-f")
        .arg(&file)
        .arg("-L")
        .arg(&log)
        .arg("-p")
        .arg(&pid)
        .spawn();
    let Ok(ganesha) = ganesha else {
        eprintln!("NFS-Ganesha is not there; install nfs-ganesha-vfs and rpcbind to compare");
        return None;
    };
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let server = Server {
        name: "ganesha",
        address: address(20492),
        mount: address(20493),
        children: vec![ganesha, rpcbind],
    };
    wait_for(server.mount);
    // It listens before it has its exports.
    for _ in 0..200 {
        let stream = TcpStream::connect(server.mount).ok();
        if stream.is_some_and(|stream| root(&mut Client::new(stream)).is_some()) {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!(
        "NFS-Ganesha does not serve: {}",
        std::fs::read_to_string(log).unwrap_or_default()
    );
    None
}

/// Ganesha knows its export by its path only, which its list of exports tells.
fn root(client: &mut Client<TcpStream>) -> Option<FileHandle> {
    let record = client.call::<nfs3::mount::Export>(&()).ok()?;
    let exports = record.results::<nfs3::mount::Export>().ok()?.0;
    let path = String::from_utf8_lossy(exports.first()?.path.0).into_owned();
    client.mount(&path).ok()
}

fn wait_for(address: SocketAddr) {
    for _ in 0..200 {
        if TcpStream::connect(address).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("no server at {address}");
}

fn open(server: &Server) -> (Client<TcpStream>, FileHandle) {
    let connect = |address| {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Client::new(stream)
    };
    let root = root(&mut connect(server.mount)).expect("exported");
    let mut client = connect(server.address);
    let how = CreateHow::Unchecked(SetAttributes {
        mode: Some(0o644),
        ..SetAttributes::default()
    });
    let args = CreateArgs {
        place: DirEntry {
            dir: root,
            name: Name(b"file"),
        },
        how,
    };
    let record = client.call::<Create>(&args).expect("connected");
    let created = record
        .results::<Create>()
        .expect("a reply")
        .expect("created");
    (client, created.object.expect("a handle"))
}

/// Calls per second of each server. They take turns in short slices, so that what else the machine does meanwhile falls on all of
/// them alike, and every other time in reverse: the disk may still have work from whoever was before.
fn measure(servers: &[Server], case: &Case) -> Vec<f64> {
    let mut runs: Vec<Run> = servers
        .iter()
        .map(|server| Run::new(server, case))
        .collect();
    for _ in 0..SLICES / 2 {
        runs.iter_mut().for_each(Run::slice);
        runs.iter_mut().rev().for_each(Run::slice);
    }
    runs.iter()
        .map(|run| run.calls as f64 / run.time.as_secs_f64())
        .collect()
}

/// One server's part of a measurement.
struct Run<'a> {
    case: &'a Case,
    client: Client<TcpStream>,
    file: FileHandle,
    data: Vec<u8>,
    random: fastrand::Rng,
    sent: u64,
    calls: u64,
    time: Duration,
}

impl<'a> Run<'a> {
    fn new(server: &Server, case: &'a Case) -> Self {
        let (mut client, file) = open(server);
        fill(&mut client, file);
        Self {
            case,
            client,
            file,
            data: vec![0x5a; case.bytes],
            random: fastrand::Rng::with_seed(7),
            sent: 0,
            calls: 0,
            time: Duration::ZERO,
        }
    }

    fn slice(&mut self) {
        for _ in 0..self.case.depth {
            self.send();
        }
        let begun = Instant::now();
        while begun.elapsed() < TIME / SLICES {
            receive(&mut self.client, self.case);
            self.calls += 1;
            self.send();
        }
        self.time += begun.elapsed();
        for _ in 0..self.case.depth {
            receive(&mut self.client, self.case);
        }
    }

    fn send(&mut self) {
        let (file, count) = (self.file, self.case.bytes as u32);
        let slots = FILE / u64::from(count);
        let slot = if self.case.sequential {
            self.sent % slots
        } else {
            self.random.u64(0..slots)
        };
        self.sent += 1;
        let offset = slot * u64::from(count);
        match self.case.work {
            Work::Read => self.client.send::<Read>(&ReadArgs {
                file,
                offset,
                count,
            }),
            Work::Write(stable) => self.client.send::<Write>(&WriteArgs {
                file,
                offset,
                count,
                stable,
                data: Data(&self.data),
            }),
        }
        .expect("connected");
    }
}

fn receive(client: &mut Client<TcpStream>, case: &Case) {
    let record = client.receive().expect("connected");
    match case.work {
        Work::Read => {
            let read = record.results::<Read>().expect("a reply").expect("read");
            assert_eq!(read.count as usize, case.bytes);
        }
        Work::Write(stable) => {
            let ok = record
                .results::<Write>()
                .expect("a reply")
                .expect("written");
            assert!(ok.count as usize == case.bytes && ok.committed >= stable);
        }
    }
}

/// Writes all of the file and syncs it, so that no measurement pays for another's dirty pages.
fn fill(client: &mut Client<TcpStream>, file: FileHandle) {
    let data = vec![0xa5; 1 << 20];
    for offset in (0..FILE).step_by(1 << 20) {
        let args = WriteArgs {
            file,
            offset,
            count: 1 << 20,
            stable: Stability::Unstable,
            data: Data(&data),
        };
        let record = client.call::<Write>(&args).expect("connected");
        record
            .results::<Write>()
            .expect("a reply")
            .expect("written");
    }
    let record = client
        .call::<Commit>(&CommitArgs {
            file,
            offset: 0,
            count: 0,
        })
        .expect("connected");
    record
        .results::<Commit>()
        .expect("a reply")
        .expect("committed");
}

/// What the file system can do without any server: writes of 4 KiB a second, at random or in order as in the cases, with one
/// `fdatasync` after each `group`.
fn local_fdatasync(base: &Path, group: u64, sequential: bool) -> f64 {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(base.join("local")).expect("create");
    for offset in (0..FILE).step_by(PIECE) {
        file.write_all_at(&[1; PIECE], offset).expect("write");
    }
    file.sync_all().expect("sync");
    let mut random = fastrand::Rng::with_seed(7);
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed() < TIME {
        for _ in 0..group {
            let slots = FILE / 4096;
            let slot = if sequential {
                count % slots
            } else {
                random.u64(0..slots)
            };
            file.write_all_at(&[2; 4096], slot * 4096).expect("write");
            count += 1;
        }
        file.sync_data().expect("sync");
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Groups and orders in which writes without a server are measured.
const LOCAL: [(u64, bool); 4] = [(1, false), (32, false), (1, true), (32, true)];

/// Writes without a server.
struct Local {
    group: u64,
    sequential: bool,
    rates: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(servers: &[Server], results: &BTreeMap<(&str, usize), Vec<f64>>, local: &[Local]) {
    println!("calls per second, median of all rounds [every round]");
    let each = |rates: &[f64]| -> String {
        let each: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
        each.join(" ")
    };
    for (i, case) in CASES.iter().enumerate() {
        if !results.contains_key(&(servers[0].name, i)) {
            continue;
        }
        println!("{}", case.name);
        for server in servers {
            let rounds = &results[&(server.name, i)];
            let rate = median(rounds);
            let mib = rate * case.bytes as f64 / f64::from(1 << 20);
            let latency = 1e6 * case.depth as f64 / rate;
            println!(
                "  {:<8} {rate:>8.0}/s  {mib:>7.1} MiB/s  {latency:>7.0} us  [{}]",
                server.name,
                each(rounds)
            );
            let synced = local
                .iter()
                .find(|local| local.group == 1 && local.sequential == case.sequential);
            if let (Work::Write(Stability::FileSync), Some(synced)) = (case.work, synced) {
                let times = rate / median(&synced.rates);
                println!("           {times:.2} times one fdatasync per write without a server");
            }
        }
        if let [own, other] = servers {
            let rounds = results[&(own.name, i)]
                .iter()
                .zip(&results[&(other.name, i)]);
            let mut ratios: Vec<f64> = rounds.map(|(own, other)| own / other).collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            println!(
                "  ratio    {:>8.2}, of single rounds {least:.2} to {most:.2}",
                median(&ratios)
            );
        }
    }
    for Local {
        group,
        sequential,
        rates,
    } in local
    {
        let order = if *sequential { "in order" } else { "at random" };
        println!(
            "without a server, 4 KiB writes {order}, one fdatasync after every {group}: {:.0}/s [{}]",
            median(rates),
            each(rates)
        );
    }
    if let Some(path) = std::env::var_os("NFS_BENCH_JSON") {
        let cases: Vec<_> = results
            .iter()
            .map(|((server, i), rates)| serde_json::json!({"server": server, "case": CASES[*i].name, "per_second": rates}))
            .collect();
        let json = serde_json::json!({"cases": cases, "local": local.iter().map(|l| serde_json::json!({"group": l.group, "in_order": l.sequential, "per_second": l.rates})).collect::<Vec<_>>()});
        std::fs::write(path, json.to_string()).expect("write the figures");
    }
}
