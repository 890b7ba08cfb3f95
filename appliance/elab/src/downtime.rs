//! How long nobody can reach a guest that changes its host: moved live within a pool; exported from one pool and imported into
//! another; and the same with a snapshot that is carried while it runs, so that only what was written since is carried while it is
//! off. All in one run on one machine.
//!
//! All are told from outside, by the answers of the guest's echo service. Requests leave on a schedule that no answer holds
//! up, so a silence counts in full. Moving live there is one connection all the time; what comes up in another pool has to be
//! connected to anew.

use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab_protocol::Command;
use nfs_sr::sr::delta;
use nfs_sr::sr::store::Directory;
use transfer::{As, Export, Options};
use vhd::Uuid;

use crate::assembly::GUEST;
use crate::bench::Measured;
use crate::lab::{Lab, records, snapshots};
use crate::network::SESSION;

/// RFC 862.
const ECHO_PORT: u16 = 7;
/// Between two requests; also what the figures are good to.
const INTERVAL: Duration = Duration::from_millis(5);
/// Before and after a move, so that its silence has both ends.
const MARGIN: Duration = Duration::from_secs(1);
/// Whatever is waited for comes within this, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the guest is called in the other pool.
const MOVED: &str = "moved";
/// And what it is called there when it came by a snapshot of this name.
const FOLLOWED: &str = "followed";
const CARRIED: &str = "carried";
/// The archive, in the folder of the pool it leaves.
const ARCHIVE: &str = "leaving.xva";

/// Asks the guest's echo service without a pause.
struct Watch {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<()>,
    hearing: JoinHandle<Vec<Instant>>,
}

impl Watch {
    fn begin(lab: &Lab) -> Result<Self> {
        let mut stream = connect(lab)?;
        let mut writer = stream.try_clone().context("cannot share the stream")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asking = std::thread::spawn(move || {
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) && writer.write_all(&[0x55]).is_ok() {
                due += INTERVAL;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            // Ends the listener's waiting; a stream that is closed already needs no closing.
            let _ = writer.shutdown(std::net::Shutdown::Both);
        });
        let hearing = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut some = [0; 64];
            while matches!(stream.read(&mut some), Ok(1..)) {
                heard.push(Instant::now());
            }
            heard
        });
        Ok(Self {
            stop,
            asking,
            hearing,
        })
    }

    /// When answers came.
    fn end(self) -> Result<Vec<Instant>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.asking.join().and_then(|()| self.hearing.join());
        ended.map_err(|_| anyhow!("the watch over the guest has failed"))
    }
}

fn connect(lab: &Lab) -> Result<UnixStream> {
    let guest = SocketAddrV4::new(SESSION.guest_address(1), ECHO_PORT);
    lab.client()
        .connect(guest)
        .context("cannot reach the guest's echo service")
}

/// Measures both ways, with the guest running on the first host of a pool with two; it is gone from there afterwards.
///
/// # Errors
/// When the guest cannot be moved, exported, imported or started.
pub fn measure(
    pool: &Lab,
    other: &Lab,
    repeats: u32,
    progress: &dyn Fn(&str),
) -> Result<Vec<Measured>> {
    progress("a guest moved live");
    let mut live = Vec::new();
    for turn in 0..repeats {
        let to = if turn % 2 == 0 { "h2" } else { "h1" };
        live.push(moved_live(pool, to)?.as_secs_f64());
    }
    progress("a guest carried into another pool by a snapshot, and what came after");
    let followed = followed(pool, other)?;
    other.execute(&Command::VmDestroy {
        vm: FOLLOWED.into(),
    })?;
    pool.execute(&Command::VmStart {
        vm: GUEST.into(),
        host: "h1".into(),
    })?;
    pool.wait_for_console(GUEST, images::guest::READY, PATIENCE)?;
    progress("a guest exported and imported into another pool");
    let [stopped, exported, imported, back] = carried(pool, other)?;
    let figure = |name: &str, samples| Measured::new(name, "s", samples);
    Ok(vec![
        figure("without the guest: moved live", live),
        figure("without the guest: export, import", vec![back]),
        figure("  of it until it is off", vec![stopped]),
        figure("  of it the export", vec![exported - stopped]),
        figure("  of it the import", vec![imported - exported]),
        figure("  of it the boot", vec![back - imported]),
        figure("without the guest: snapshot, rest", vec![followed.back]),
        figure("  of it until it is off", vec![followed.off]),
        figure("  of it the rest", vec![followed.sent - followed.off]),
        figure("  of it the boot", vec![followed.back - followed.sent]),
        figure("  before that, while it ran", vec![followed.before]),
    ])
}

/// The longest silence.
fn moved_live(pool: &Lab, to: &str) -> Result<Duration> {
    let watch = Watch::begin(pool)?;
    std::thread::sleep(MARGIN);
    pool.execute(&Command::VmMigrate {
        vm: GUEST.into(),
        to: to.into(),
        verify: false,
    })?;
    std::thread::sleep(MARGIN);
    let heard = watch.end()?;
    let silences = heard.windows(2).map(|pair| pair[1] - pair[0]);
    silences.max().context("the guest has never answered")
}

/// Seconds of a guest that was carried by a snapshot.
struct Followed {
    /// Snapshot, export and import, while it ran.
    before: f64,
    /// From the last answer until it is off.
    off: f64,
    /// Until the rest is there.
    sent: f64,
    /// Until it answers again.
    back: f64,
}

fn followed(pool: &Lab, other: &Lab) -> Result<Followed> {
    let begun = Instant::now();
    pool.execute(&Command::VmSnapshot {
        vm: GUEST.into(),
        snapshot: Some(CARRIED.into()),
        memory: false,
    })?;
    let [from, to] = [pool, other].map(|lab| records::repository(&lab.folder().join("export")));
    let snapshot = snapshots::find(&from, GUEST, CARRIED)?.vm;
    let files = snapshot.disks.iter();
    let what = transfer::Found {
        files: files.map(|disk| format!("{}.vhd", disk.uuid)).collect(),
        vm: snapshot.clone(),
    };
    let copy = export_and_import(pool, &from, &what, &to, FOLLOWED)?;
    let before = begun.elapsed().as_secs_f64();

    let (last, off) = shut_down(pool)?;
    let now = transfer::find(&from, GUEST)?.vm;
    let (source, target) = (Directory::new(&from), Directory::new(&to));
    let disks = now.disks.iter().zip(&snapshot.disks).zip(&copy.disks);
    for ((disk, then), copy) in disks {
        let [disk, then, copy] = [disk, then, copy].map(|disk| identity(&disk.uuid));
        delta::send(&source, (disk?, then?), &target, copy?)?;
    }
    let sent = Instant::now();
    let back = back_there(other, FOLLOWED)?;
    let [off, sent, back] = [off, sent, back].map(|at| (at - last).as_secs_f64());
    Ok(Followed {
        before,
        off,
        sent,
        back,
    })
}

fn identity(text: &str) -> Result<Uuid> {
    text.parse()
        .ok()
        .with_context(|| format!("\"{text}\" is not the UUID of a disk"))
}

/// Carries a machine's disks into another repository.
fn export_and_import(
    pool: &Lab,
    from: &Path,
    what: &transfer::Found,
    to: &Path,
    name: &str,
) -> Result<formats::vm::Vm> {
    let archive = pool.folder().join(ARCHIVE);
    let export = Export {
        repository: from,
        what,
        target: &archive,
        options: Options::default(),
    };
    export.run(&mut |_| ())?;
    let becomes = As {
        name: Some(name.into()),
        ..As::default()
    };
    let imported = transfer::import(&archive, to, &becomes, &mut |_| ())?;
    std::fs::remove_file(&archive)
        .with_context(|| format!("cannot remove {}", archive.display()))?;
    Ok(imported.vm)
}

/// When the guest has answered last, and when it was off.
fn shut_down(pool: &Lab) -> Result<(Instant, Instant)> {
    let watch = Watch::begin(pool)?;
    std::thread::sleep(MARGIN);
    pool.execute(&Command::VmShutdown { vm: GUEST.into() })?;
    let off = Instant::now();
    let heard = watch.end()?;
    let last = *heard.last().context("the guest has never answered")?;
    Ok((last, off))
}

/// Starts it in the other pool; when it answers.
fn back_there(other: &Lab, vm: &str) -> Result<Instant> {
    other.execute(&Command::VmStart {
        vm: vm.into(),
        host: "h1".into(),
    })?;
    other.wait_for_console(vm, images::guest::READY, PATIENCE)?;
    let mut stream = connect(other)?;
    stream.write_all(&[0x55]).context("cannot ask the guest")?;
    stream
        .read_exact(&mut [0])
        .context("the guest does not answer in the other pool")?;
    Ok(Instant::now())
}

/// Seconds from the last answer until it is off, exported, imported, and answers again.
fn carried(pool: &Lab, other: &Lab) -> Result<[f64; 4]> {
    let archive = pool.folder().join(ARCHIVE);
    let (last, off) = shut_down(pool)?;

    let repository = records::repository(&pool.folder().join("export"));
    let what = transfer::find(&repository, GUEST)?;
    let export = Export {
        repository: &repository,
        what: &what,
        target: &archive,
        options: Options::default(),
    };
    export.run(&mut |_| ())?;
    let exported = Instant::now();
    let becomes = As {
        name: Some(MOVED.into()),
        ..As::default()
    };
    let repository = records::repository(&other.folder().join("export"));
    transfer::import(&archive, &repository, &becomes, &mut |_| ())?;
    let imported = Instant::now();
    let back = back_there(other, MOVED)?;
    std::fs::remove_file(&archive)
        .with_context(|| format!("cannot remove {}", archive.display()))?;
    Ok([off, exported, imported, back].map(|at| (at - last).as_secs_f64()))
}
