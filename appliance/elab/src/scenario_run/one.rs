//! One run of a scenario: a lab of its own, the engine, the evidence, the verdict. It is a process of its own, so that nothing of
//! one run is left for the next and several can go on beside one another.

use std::io::{BufRead, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab_protocol::{Command, Record};
use scenarios::engine::{self, Drive, Ended, Engine, Hear};
use scenarios::evidence::{self, fingerprint::Fingerprint};
use scenarios::measure::read_log;
use scenarios::report::run::{RunReport, figures_of, steps_of};
use scenarios::report::{self, Limits};
use scenarios::scenario::Scenario;
use scenarios::scenario::file::{Pattern, Restart};
use scenarios::verdict::{self, Evidence, Verdict, file_system};

use super::{ScenarioLab, disks};
use crate::assembly::{self, Artifacts, Choices, GuestChoice};
use crate::interrupt::Interrupts;
use crate::join;
use crate::lab::Lab;
use crate::qemu::Boot;
use crate::run_folder::RUNS;

/// Firmware, GRUB and our own boot, on a machine of factor 1.
const HOST_PATIENCE: Duration = Duration::from_secs(60);
/// A Debian guest to its SSH server, likewise.
const GUEST_PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// What one run needs to know.
pub struct Order {
    /// The scenario, with one combination of its matrix.
    pub scenario: Scenario,
    /// Text of its file.
    pub text: String,
    /// The combination, `path=value`.
    pub settings: Vec<String>,
    /// That combination in words.
    pub variant: String,
    /// Name of the lab and of its folder.
    pub name: String,
    /// Number of the run, from 1.
    pub number: u32,
    /// Of all that is left to chance.
    pub seed: u64,
    /// A line for the shell that runs it again.
    pub command: String,
    /// Boot by QEMU's loader.
    pub fast_boot: bool,
    /// Boot this.
    pub image: Option<PathBuf>,
    /// Boot the first host from this, of another version.
    pub old_image: Option<PathBuf>,
    /// Keep heavy evidence whatever the verdict.
    pub keep: bool,
    /// Capture although the scenario does not ask for it.
    pub capture: bool,
    /// Ask before each step.
    pub step: bool,
    /// Stop at such records.
    pub breakpoints: Vec<Pattern>,
}

/// Runs a scenario once; gives the report, which is also in the run's folder as `run.json`.
///
/// # Errors
/// When the lab could not be had, or its evidence cannot be read or written.
pub fn run(order: &Order, interrupts: &Interrupts, progress: &dyn Fn(&str)) -> Result<RunReport> {
    let begun = Instant::now();
    let factor = engine::factor::measure();
    let scenario = &order.scenario;
    let guests: Vec<GuestChoice> = scenario
        .guests
        .get_ref()
        .iter()
        .map(|guest| GuestChoice {
            name: guest.name.get_ref().clone(),
            memory_mib: u32::try_from(guest.memory.get_ref().bytes / MIB).unwrap_or(u32::MAX),
        })
        .collect();
    let choices = Choices {
        name: order.name.clone(),
        hosts: *scenario.pool.hosts.get_ref(),
        host_memory_mib: u32::try_from(scenario.pool.memory.get_ref().bytes / MIB)
            .unwrap_or(u32::MAX),
        fast_boot: order.fast_boot,
        image: order.image.clone(),
        first_image: order.old_image.clone(),
        seed: order.seed,
        capture: order.capture || scenario.evidence.capture,
        guests,
    };
    let accelerator = assembly::choose_accelerator(progress);
    let artifacts = assembly::artifacts(&choices, progress)?;
    std::fs::create_dir_all(RUNS).with_context(|| format!("cannot make {RUNS}"))?;
    let machine = Fingerprint::of_this_machine(factor, hash_of_image(&artifacts)?);
    let lab = Lab::start(assembly::lab_config(&choices, &artifacts, &accelerator)?)?;
    let folder = lab.folder().to_owned();
    std::fs::write(folder.join(SCENARIO_FILE), &order.text).context("cannot write the scenario")?;
    let stopper = lab.stopper();
    interrupts.on_interrupt(move || stopper.stop());
    let ended = match act(order, lab, &artifacts, factor, interrupts, progress) {
        Ok(ended) => ended,
        Err(_) if interrupts.came() => Ended::Interrupted,
        Err(error) => Ended::Failed(format!("{error:#}")),
    };
    if ended == Ended::Interrupted {
        // Nobody judges it. The log says how far it came.
        if !order.keep {
            evidence::remove_heavy(&folder).context("cannot remove evidence")?;
        }
        bail!("interrupted");
    }
    let records =
        read_log(&folder.join("events.jsonl")).context("cannot read the run's own log")?;
    let report = judge(order, &folder, &records, &ended, machine, begun)?;
    let passed = report.verdict == Verdict::Passed;
    if passed && !order.keep {
        evidence::remove_heavy(&folder).context("cannot remove evidence")?;
    }
    Ok(report)
}

/// Boots, drives, ends the lab.
fn act(
    order: &Order,
    lab: Lab,
    artifacts: &Artifacts,
    factor: f64,
    interrupts: &Interrupts,
    progress: &dyn Fn(&str),
) -> Result<Ended> {
    let outcome = boot(order, &lab, factor, progress);
    if let Err(error) = outcome {
        lab.stop(&format!("{error:#}"))?;
        return Err(error);
    }
    // Whoever watches may join.
    join::by_ssh(&lab, artifacts)?;
    let names: Vec<String> = order
        .scenario
        .guests
        .get_ref()
        .iter()
        .map(|guest| guest.name.get_ref().clone())
        .collect();
    let lab = Arc::new(ScenarioLab::new(lab, join::access(artifacts)?, &names));
    let drive = Drive {
        factor,
        seed: order.seed,
        before_step: order.step.then(|| {
            Box::new(|name: &str| ask(&format!("next is {name}; Enter goes on"))) as Hear<str>
        }),
        breakpoints: order.breakpoints.clone(),
        at_break: (!order.breakpoints.is_empty()).then(|| {
            Box::new(|record: &Record| {
                let event = serde_json::to_string(&record.event).unwrap_or_default();
                ask(&format!("stopped at {event}; Enter goes on"));
            }) as Hear<Record>
        }),
        progress: Box::new(|text| eprintln!("elab: {text}")),
    };
    let engine = Engine::new(
        Arc::clone(&lab) as Arc<dyn engine::Lab>,
        Arc::new(order.scenario.clone()),
        drive,
    );
    let interrupter = engine.interrupter();
    let stopper = lab.lab().stopper();
    interrupts.on_interrupt(move || {
        interrupter.interrupt();
        stopper.stop();
    });
    let watchdog = Watchdog::start(
        order.scenario.timeout.0.mul_f64(factor),
        engine.interrupter(),
    )?;
    let mut ended = engine.run();
    if watchdog.came() && ended == Ended::Interrupted {
        ended = Ended::Failed(format!(
            "the run was not over after {:?}, its `timeout`",
            order.scenario.timeout.0.mul_f64(factor)
        ));
    }
    let reason = match &ended {
        Ended::Completed => "the scenario is over".to_owned(),
        Ended::Failed(why) | Ended::Missed(why) => why.clone(),
        Ended::Interrupted => "interrupted".into(),
    };
    lab.lab().stop(&reason)?;
    Ok(ended)
}

fn boot(order: &Order, lab: &Lab, factor: f64, progress: &dyn Fn(&str)) -> Result<()> {
    let begun = Instant::now();
    lab.power_on_all(HOST_PATIENCE.mul_f64(factor))?;
    let guests = order.scenario.guests.get_ref();
    for guest in guests {
        lab.execute(&Command::VmStart {
            vm: guest.name.get_ref().clone(),
            host: guest.host.get_ref().clone(),
        })?;
    }
    for guest in guests {
        // They boot together, each the slower for it.
        let patience = GUEST_PATIENCE.mul_f64(factor * guests.len() as f64);
        lab.wait_for_console(guest.name.get_ref(), images::guest::READY, patience)?;
    }
    for guest in guests {
        let restart = guest.restart;
        if restart == Restart::default() {
            continue;
        }
        lab.execute(&Command::VmSet {
            vm: guest.name.get_ref().clone(),
            priority: Some(restart.priority),
            order: Some(restart.order),
            start_delay_ms: u32::try_from(restart.delay.0.as_millis()).ok(),
            best_effort: Some(restart.best_effort),
            from: Some(restart.from),
        })?;
    }
    if let Some(failures) = &order.scenario.pool.protect {
        lab.execute(&Command::HaEnable {
            failures: *failures.get_ref(),
        })?;
    }
    progress(&format!(
        "{} hosts and {} guests up after {:.1} s",
        order.scenario.pool.hosts.get_ref(),
        guests.len(),
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Interrupts an engine that is not done in time.
struct Watchdog {
    came: Arc<std::sync::atomic::AtomicBool>,
    _stop: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn start(time: Duration, interrupter: engine::Interrupter) -> Result<Self> {
        let came = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = Arc::clone(&came);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if stopped.recv_timeout(time) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    flag.store(true, std::sync::atomic::Ordering::SeqCst);
                    interrupter.interrupt();
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { came, _stop: stop })
    }

    fn came(&self) -> bool {
        self.came.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Asks a person; without one it goes on.
fn ask(text: &str) {
    eprintln!("elab: {text}");
    let _ = stdin().lock().read_line(&mut String::new());
}

fn judge(
    order: &Order,
    folder: &Path,
    records: &[Record],
    ended: &Ended,
    machine: Fingerprint,
    begun: Instant,
) -> Result<RunReport> {
    let guests = order.scenario.guests.get_ref();
    let mut consoles = Vec::new();
    let mut file_systems = Vec::new();
    for (number, guest) in (1..).zip(guests) {
        let name = guest.name.get_ref();
        let console = folder.join(format!("{name}.console.log"));
        let text = std::fs::read(&console).unwrap_or_default();
        consoles.push((name.clone(), String::from_utf8_lossy(&text).into_owned()));
        if order.scenario.checks.file_system {
            let vhd = assembly::disk_file(folder, number);
            let found = disks::check(&vhd, &folder.join("disk.raw")).unwrap_or_else(|error| {
                file_system::FileSystem {
                    clean: false,
                    said: error,
                }
            });
            file_systems.push((name.clone(), found));
        }
    }
    let measured = report::Run::of(records, &Limits::default());
    let judgement = verdict::judge(
        &Evidence {
            scenario: &order.scenario,
            records,
            consoles: &consoles,
            file_systems: &file_systems,
        },
        &measured.report,
    );
    let (mut verdict, mut reasons) = (judgement.verdict, judgement.reasons);
    // A step's failure is in the log; what failed before any step is only here.
    if let Ended::Failed(why) = ended {
        if !reasons.iter().any(|reason| reason.contains(why.as_str())) {
            reasons.insert(0, why.clone());
        }
        verdict = Verdict::Failed;
    }
    let report = RunReport {
        schema: report::book::SCHEMA,
        scenario: order.scenario.name.get_ref().clone(),
        variant: order.variant.clone(),
        settings: order.settings.clone(),
        number: order.number,
        seed: order.seed,
        command: order.command.clone(),
        verdict,
        reasons,
        checks: judgement.checks,
        figures: figures_of(&measured.report, records),
        steps: steps_of(records),
        seconds: begun.elapsed().as_secs_f64(),
        folder: String::new(),
        machine: machine.with_lab(records),
        echoes_ms: measured.echoes_ms(),
        measured: Some(measured.report.clone()),
    };
    measured.write(folder).context("cannot write the report")?;
    evidence::write_file_systems(folder, &file_systems).context("cannot write evidence")?;
    evidence::finish(folder, &report.scenario, records).context("cannot write evidence")?;
    let json = serde_json::to_vec_pretty(&report).context("cannot write JSON")?;
    std::fs::write(folder.join(RUN_FILE), json).context("cannot write run.json")?;
    Ok(report)
}

/// A run's own report in its folder.
pub const RUN_FILE: &str = "run.json";

/// The scenario's file in a run's folder.
pub const SCENARIO_FILE: &str = "scenario.toml";

/// Judges a run again by the evidence in its folder; gives what was said of it then, and what is said now.
///
/// # Errors
/// When the folder is none of a run.
pub fn judge_again(folder: &Path) -> Result<(RunReport, verdict::Judgement, Vec<Record>)> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let then: RunReport = serde_json::from_str(&read(RUN_FILE)?).context("run.json is damaged")?;
    let text = read(SCENARIO_FILE)?;
    let scenario = scenarios::scenario::parse_with(SCENARIO_FILE, &text, &then.settings)?;
    let records = read_log(&folder.join("events.jsonl"))?;
    let consoles: Vec<(String, String)> = scenario
        .guests
        .get_ref()
        .iter()
        .map(|guest| {
            let name = guest.name.get_ref().clone();
            let text =
                std::fs::read(folder.join(format!("{name}.console.log"))).unwrap_or_default();
            (name, String::from_utf8_lossy(&text).into_owned())
        })
        .collect();
    let file_systems =
        evidence::read_file_systems(folder).context("file-systems.json is damaged")?;
    let measured = report::Run::of(&records, &Limits::default()).report;
    let now = verdict::judge(
        &Evidence {
            scenario: &scenario,
            records: &records,
            consoles: &consoles,
            file_systems: &file_systems,
        },
        &measured,
    );
    Ok((then, now, records))
}

fn hash_of_image(artifacts: &Artifacts) -> Result<String> {
    let hash = |boot: &Boot| {
        let path = boot.path();
        evidence::sha256(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let image = hash(&artifacts.boot)?;
    Ok(match &artifacts.first {
        // A pool of two versions is not to be taken for one of either.
        Some(first) => format!("{image}, h1 {}", hash(first)?),
        None => image,
    })
}
