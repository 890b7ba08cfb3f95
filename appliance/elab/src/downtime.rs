//! How long nobody can reach a guest that changes its host: moved live within a pool, and exported from one pool and imported into
//! another, in one run on one machine.
//!
//! Both are told from outside, by the answers of the guest's echo service. Requests leave on a schedule that no answer holds
//! up, so a silence counts in full. Moving live there is one connection all the time; what comes up in another pool has to be
//! connected to anew.

use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab_protocol::Command;
use transfer::{As, Export, Options};

use crate::assembly::GUEST;
use crate::bench::Measured;
use crate::lab::{Lab, records};
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

/// Seconds from the last answer until it is off, exported, imported, and answers again.
fn carried(pool: &Lab, other: &Lab) -> Result<[f64; 4]> {
    let archive = pool.folder().join(ARCHIVE);
    let watch = Watch::begin(pool)?;
    std::thread::sleep(MARGIN);
    pool.execute(&Command::VmShutdown { vm: GUEST.into() })?;
    let off = Instant::now();
    let heard = watch.end()?;
    let last = *heard.last().context("the guest has never answered")?;

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
    other.execute(&Command::VmStart {
        vm: MOVED.into(),
        host: "h1".into(),
    })?;
    other.wait_for_console(MOVED, images::guest::READY, PATIENCE)?;
    let mut stream = connect(other)?;
    stream.write_all(&[0x55]).context("cannot ask the guest")?;
    stream
        .read_exact(&mut [0])
        .context("the guest does not answer in the other pool")?;
    let back = Instant::now();
    std::fs::remove_file(&archive)
        .with_context(|| format!("cannot remove {}", archive.display()))?;
    Ok([off, exported, imported, back].map(|at| (at - last).as_secs_f64()))
}
