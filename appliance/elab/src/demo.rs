//! The demo: a session on a guest that moves, and the report of what its user noticed.

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab_protocol::{Command, Event, ProbeKind};
use scenarios::measure::read_log;
use scenarios::report::{Limits, Report, Run, summary};
use scenarios::session::{self, Access, HUMAN_US, MAX_ROWS, SessionConfig, Stream, Typist};

use crate::assembly::{Artifacts, GUEST};
use crate::cli::{DemoArguments, ExpectationFailed};
use crate::endpoint::probe::ProbeConfig;
use crate::endpoint::{Endpoint, ProbeId};
use crate::lab::Lab;
use crate::network::SESSION;

/// RFC 4253.
pub(crate) const SSH_PORT: u16 = 22;
/// RFC 862.
const ECHO_PORT: u16 = 7;
const MS: u64 = 1_000_000;
const SLOW_PROBE_NS: u64 = 20 * MS;
/// The guest dirties so much memory, round and round.
const DIRTY_MIB: u32 = 8;
/// An answer of the guest may take so long before the session counts as lost.
const SESSION_PATIENCE: Duration = Duration::from_secs(30);

/// How long the stretches between the events are.
struct Rhythm {
    /// Nothing happens: the baseline.
    quiet: Duration,
    /// From the end of one migration to the next.
    pause: Duration,
    /// After the last one.
    rest: Duration,
}

impl Rhythm {
    fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            Self {
                quiet: seconds(3),
                pause: seconds(1),
                rest: seconds(1),
            }
        } else {
            Self {
                quiet: seconds(8),
                pause: seconds(2),
                rest: seconds(3),
            }
        }
    }
}

/// Runs the demo on a lab whose guest is ready, ends the lab, and reports.
///
/// # Errors
/// When the lab or the session fails, or an expectation is not met.
pub fn run(
    lab: Lab,
    artifacts: &Artifacts,
    arguments: &DemoArguments,
    progress: &dyn Fn(&str),
) -> Result<ExitCode> {
    let folder = lab.folder().to_owned();
    let outcome = act(&lab, artifacts, arguments, progress);
    let reason = match &outcome {
        Ok(()) => "the demo is over".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    lab.stop(&reason)?;
    outcome.with_context(|| format!("the run's log and consoles are in {}", folder.display()))?;

    let records =
        read_log(&folder.join("events.jsonl")).context("cannot read the run's own log")?;
    let run = Run::of(&records, &Limits::default());
    run.write(&folder)
        .with_context(|| format!("cannot write the report into {}", folder.display()))?;
    if let Some(path) = &arguments.json {
        std::fs::copy(folder.join("report.json"), path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", summary(&run.report));
    println!("report: {}", folder.join("report.html").display());
    verdict(&run.report)
}

/// What was expected for correctness decides; how fast it was is shown, and is another question on another machine.
fn verdict(report: &Report) -> Result<ExitCode> {
    let missed: Vec<_> = report
        .expectations
        .iter()
        .filter(|expectation| expectation.correctness && !expectation.passed)
        .map(|expectation| {
            format!(
                "{}: {}, expected {}",
                expectation.name, expectation.value, expectation.limit
            )
        })
        .collect();
    if missed.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(ExpectationFailed(missed.join("; ")).into())
    }
}

/// All that happens between the guest's start and the lab's end.
fn act(
    lab: &Lab,
    artifacts: &Artifacts,
    arguments: &DemoArguments,
    progress: &dyn Fn(&str),
) -> Result<()> {
    let rhythm = Rhythm::new(arguments.quick);
    let seed = arguments.build.seed.unwrap_or(1);
    if arguments.dirty > 0 {
        start_dirtying(lab, artifacts, arguments.dirty)?;
    }
    let (typist, opened) = start_typist(lab, artifacts, seed)?;
    wait_for_session(lab, &typist, &opened)?;
    let probes = start_probes(lab.prober(), arguments.probe_hz)?;
    progress(&format!(
        "the session is open: typing, and probing {} times a second",
        arguments.probe_hz
    ));
    wait(lab, rhythm.quiet)?;
    for number in 1..=arguments.migrations {
        let to = if guest_is_on(lab, "h1")? { "h2" } else { "h1" };
        let begun = Instant::now();
        let result = lab.execute(&Command::VmMigrate {
            vm: GUEST.into(),
            to: to.into(),
            verify: arguments.verify,
        });
        match result {
            Ok(_) => progress(&format!(
                "migration {number} of {}: now on {to}, {:.2} s",
                arguments.migrations,
                begun.elapsed().as_secs_f64()
            )),
            // The session tells whether its user noticed; the report has the failure.
            Err(error) => progress(&format!("{error:#}")),
        }
        wait(lab, rhythm.pause)?;
    }
    wait(lab, rhythm.rest)?;
    let summary = typist.finish().context("the session")?;
    for probe in probes {
        lab.prober().stop_probe(probe).context("the probes")?;
    }
    progress(&format!(
        "{} keys typed, {} documents compared: {}",
        summary.keys,
        summary.documents,
        if summary.content_equal {
            "equal"
        } else {
            "NOT equal"
        }
    ));
    Ok(())
}

/// Where the guest is: a migration that failed has left it where it was.
fn guest_is_on(lab: &Lab, host: &str) -> Result<bool> {
    let status = lab.execute(&Command::Status)?;
    let vms = status["vms"]
        .as_array()
        .context("the lab's status lists no VMs")?;
    Ok(vms
        .iter()
        .any(|vm| vm["name"] == GUEST && vm["host"] == host))
}

/// Waits, unless the lab is told to end.
fn wait(lab: &Lab, time: Duration) -> Result<()> {
    anyhow::ensure!(!lab.wait_or_stop(time), "interrupted");
    Ok(())
}

/// The guest's own load; it ends with the guest.
fn start_dirtying(lab: &Lab, artifacts: &Artifacts, mib_a_second: u32) -> Result<()> {
    let command = format!("elab-dirty {DIRTY_MIB} {mib_a_second} </dev/null >/dev/null 2>&1 &");
    session::output(connect(lab)?, &access(artifacts)?, &command)
        .context("cannot start the guest's load")?;
    Ok(())
}

fn connect(lab: &Lab) -> Result<Stream> {
    let guest = std::net::SocketAddrV4::new(SESSION.guest_address(1), SSH_PORT);
    let stream = lab
        .client()
        .connect(guest)
        .context("cannot reach the guest's SSH server")?;
    Ok(Stream::Unix(stream))
}

/// Someone begins to log in; the receiver hears when the first key is about to be typed.
fn start_typist(lab: &Lab, artifacts: &Artifacts, seed: u64) -> Result<(Typist, Receiver<()>)> {
    let config = SessionConfig {
        vm: GUEST.into(),
        access: access(artifacts)?,
        folder: "/root".into(),
        rows: MAX_ROWS,
        seed,
        interval_us: HUMAN_US,
        origin: Instant::now() - Duration::from_nanos(lab.clock().now_ns()),
        patience: SESSION_PATIENCE,
        recording: Some(lab.folder().join(format!("{GUEST}.output.jsonl"))),
    };
    let (journal, clock) = (lab.journal().clone(), lab.clock());
    let (open, opened) = mpsc::channel();
    let typist = Typist::start(connect(lab)?, config, move |event| {
        if matches!(event, Event::SessionOpen { .. }) {
            // Nobody waits any more when the demo was interrupted.
            let _ = open.send(());
        }
        journal.record(clock.now_ns(), "session", event);
    })?;
    Ok((typist, opened))
}

/// Returns when typing begins; a session that ends instead is reported when it is finished.
fn wait_for_session(lab: &Lab, typist: &Typist, opened: &Receiver<()>) -> Result<()> {
    while opened.try_recv().is_err() && !typist.has_ended() {
        wait(lab, Duration::from_millis(20))?;
    }
    Ok(())
}

pub(crate) fn access(artifacts: &Artifacts) -> Result<Access> {
    let host_key = &artifacts.guest.ssh_host_key;
    let text = std::fs::read_to_string(host_key)
        .with_context(|| format!("cannot read {}", host_key.display()))?;
    Ok(Access::new("root", &artifacts.guest.ssh_key, &text)?)
}

/// Starts the probes. UDP is the one that is judged. Every answer costs an emulated guest about half a millisecond of its
/// CPU, so the others are slower: a guest that is kept busy by probes alone would show nothing but that.
fn start_probes(prober: &Endpoint, hz: u32) -> Result<Vec<ProbeId>> {
    let to = std::net::SocketAddrV4::new(SESSION.guest_address(1), ECHO_PORT);
    let udp_ns = 1000 * MS / u64::from(hz);
    [
        (ProbeKind::Udp, udp_ns),
        (ProbeKind::Tcp, SLOW_PROBE_NS),
        (ProbeKind::Ping, SLOW_PROBE_NS),
    ]
    .into_iter()
    .map(|(kind, interval_ns)| {
        prober
            .start_probe(ProbeConfig {
                kind,
                to,
                interval_ns,
            })
            .context("cannot start a probe")
    })
    .collect()
}
