//! Carries out the command line.

use std::path::Path;
use std::process::{Command as Program, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab_protocol::Command;

use super::{
    Action, BenchArguments, Build, CannotRun, Cli, DEFAULT_DIRTY, DEFAULT_PROBE_HZ, DemoArguments,
    DemoName, HaAction, HostAction, LinkAction, ReportAction, SrAction, Which, evidence, export,
    scenario, status,
};
use crate::assembly::{self, Choices, GUEST};
use crate::client::Client;
use crate::interrupt::{self, Interrupts};
use crate::lab::{Lab, Stopper};
use crate::run_folder::{self, RUNS};
use crate::{bench, console, demo, doctor, downtime, join};

/// Firmware, GRUB and our own boot, on a busy machine under emulation.
const HOST_PATIENCE: Duration = Duration::from_secs(60);
/// A Debian guest to its SSH server, likewise.
const GUEST_PATIENCE: Duration = Duration::from_secs(120);

/// Name of the labs of `elab bench`.
const BENCH: &str = "bench";
/// Name of the pool that a guest goes to there.
const OTHER_POOL: &str = "bench-other";

/// Does what the command line says.
///
/// # Errors
/// See [`super::exit_code`].
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Action::Doctor { json } => doctor(json),
        Action::Build => build(),
        Action::Demo(arguments) => run_demo(&arguments),
        Action::Run(arguments) => scenario::run(&arguments),
        Action::RunOne(arguments) => scenario::run_one(*arguments),
        Action::Check { files } => scenario::check(&files),
        Action::List { json, figures } => scenario::list(json, figures),
        Action::Schema => scenario::schema(),
        Action::Report { action, path, form } => match action {
            Some(ReportAction::Merge { folders, into }) => evidence::merge(&folders, &into),
            None => evidence::report(path, form),
        },
        Action::History(arguments) => super::history::history(&arguments),
        Action::Gate(arguments) => super::gate::gate(&arguments),
        Action::ReleaseReport(arguments) => super::release::report(&arguments),
        Action::Compare(arguments) => evidence::compare(&arguments),
        Action::Replay { run, play, speed } => evidence::replay(&run, play, speed),
        Action::Export(arguments) => export::export(&arguments),
        Action::Import(arguments) => export::import(&arguments),
        Action::ImportTree(arguments) => super::import_tree::import_tree(&arguments),
        Action::ExportRun { run, file } => evidence::export(&run, file),
        Action::Bisect(arguments) => evidence::bisect(&arguments),
        Action::Bench(arguments) => run_bench(&arguments),
        Action::Up {
            which,
            build,
            hosts,
            no_guest,
            detach,
        } => {
            if detach {
                up_detached(&which)
            } else {
                up(&which, &build, hosts, no_guest)
            }
        }
        Action::StorageServer(options) => {
            nfs_sr::serve::serve(*options)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Down { which } => down(&which),
        Action::Status { which, json } => show(&which, json, "", status::status),
        Action::Host { which, action } => match host_command(action) {
            Ok(command) => tell(&which, &command),
            Err(json) => show(&which, json, "/hosts", status::hosts),
        },
        Action::Vm { which, action } => super::vm::run(&which, action),
        Action::Template { which, action } => super::vm::templates(&which, action),
        Action::Tui(arguments) => super::tui::run(&arguments),
        Action::Console { which, vm } => {
            console::attach(&mut Client::connect(Path::new(RUNS), &which.name)?, &vm)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Link { which, action } => match action {
            LinkAction::List { json } => {
                show(&which, json, "/links", |links| match status::links(links) {
                    none if none.is_empty() => "all links are healthy\n".into(),
                    some => some,
                })
            }
            LinkAction::Set { link, fault } => {
                let fault = fault.fault();
                tell(&which, &Command::LinkSet { link, fault })
            }
            LinkAction::Heal { link } => tell(&which, &Command::LinkHeal { link }),
        },
        Action::Ha { which, action } => match action {
            HaAction::Enable { failures } => {
                let mut client = Client::connect(Path::new(RUNS), &which.name)?;
                let view = client.execute(&Command::HaEnable { failures })?;
                print!("{}", status::plan(&serde_json::json!([view])));
                let borne = view["tolerated_failures"].as_u64().unwrap_or(0);
                Ok(if borne < u64::from(failures) {
                    ExitCode::FAILURE
                } else {
                    ExitCode::SUCCESS
                })
            }
            HaAction::Status { json } => show_pool(&which, json, status::pool),
            HaAction::Plan { json } => show_pool(&which, json, status::plan),
        },
        Action::Sr {
            which,
            action: SrAction::Coalesce,
        } => super::vm::coalesce(&which),
        Action::Sr { which, action } => tell(
            &which,
            &match action {
                SrAction::Pause => Command::StoragePause,
                SrAction::Resume => Command::StorageResume,
                SrAction::Kill => Command::StorageKill,
                SrAction::Start => Command::StorageStart,
                SrAction::Coalesce => Command::StorageCoalesce,
                SrAction::Fault { fault } => Command::StorageFault { fault },
            },
        ),
    }
}

/// The command, or for a list whether as JSON.
fn host_command(action: HostAction) -> Result<Command, bool> {
    Ok(match action {
        HostAction::List { json } => return Err(json),
        HostAction::PowerOn { host } => Command::HostPowerOn { host },
        HostAction::PowerOff { host } => Command::HostPowerOff { host },
        HostAction::Pull { host } => Command::HostPull { host },
        HostAction::Reset { host } => Command::HostReset { host },
        HostAction::Freeze { host } => Command::HostFreeze { host },
        HostAction::Thaw { host } => Command::HostThaw { host },
    })
}

fn tell(which: &Which, command: &Command) -> Result<ExitCode> {
    Client::connect(Path::new(RUNS), &which.name)?.execute(command)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows a part of the lab's status.
pub(super) fn show(
    which: &Which,
    json: bool,
    part: &str,
    draw: impl FnOnce(&serde_json::Value) -> String,
) -> Result<ExitCode> {
    let status = Client::connect(Path::new(RUNS), &which.name)?.execute(&Command::Status)?;
    let part = status
        .pointer(part)
        .context("the lab's status lacks a part; it is of another version")?;
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(part).context("cannot write JSON")?
        );
    } else {
        print!("{}", draw(part));
    }
    Ok(ExitCode::SUCCESS)
}

fn show_pool(
    which: &Which,
    json: bool,
    draw: impl FnOnce(&serde_json::Value) -> String,
) -> Result<ExitCode> {
    let views = Client::connect(Path::new(RUNS), &which.name)?.execute(&Command::HaStatus)?;
    if json {
        let text = serde_json::to_string_pretty(&views).context("cannot write JSON")?;
        println!("{text}");
    } else {
        print!("{}", draw(&views));
    }
    Ok(ExitCode::SUCCESS)
}

fn doctor(json: bool) -> Result<ExitCode> {
    let findings = doctor::examine();
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&findings).context("cannot write JSON")?
        );
    } else {
        print!("{}", doctor::show(&findings));
    }
    let complete = findings.iter().all(|finding| finding.ok);
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

impl Build {
    pub(super) fn choices(&self, name: &str, hosts: u8) -> Choices {
        Choices {
            name: name.into(),
            hosts,
            host_memory_mib: self.host_memory,
            fast_boot: self.fast_boot,
            image: self.image.clone(),
            first_image: None,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            capture: self.capture,
            guests: vec![assembly::GuestChoice::default()],
        }
    }
}

fn build() -> Result<ExitCode> {
    let build = Build {
        fast_boot: false,
        host_memory: 0,
        image: None,
        capture: false,
        seed: None,
    };
    let artifacts = assembly::artifacts(&build.choices("build", 0), &progress)?;
    println!("hypervisor  {:?}", artifacts.boot);
    println!("guest disk  {}", artifacts.guest.disk_vhd.display());
    println!("kernel      {}", artifacts.guest.kernel.display());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn progress(text: &str) {
    eprintln!("elab: {text}");
}

/// A lab with its hosts up and, if wanted, its guest ready.
fn start_lab(
    choices: &Choices,
    guest: bool,
    interrupts: &Interrupts,
) -> Result<(Lab, assembly::Artifacts)> {
    let accelerator = assembly::choose_accelerator(&progress);
    progress(&format!("accelerator {accelerator}"));
    let artifacts = assembly::artifacts(choices, &progress)?;
    let base = Path::new(RUNS);
    std::fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
    let lab = Lab::start(assembly::lab_config(choices, &artifacts, &accelerator)?)?;
    let stopper = lab.stopper();
    interrupts.on_interrupt(move || stopper.stop());
    let begun = Instant::now();
    progress(&format!(
        "{} hosts boot; log and consoles are in {}",
        choices.hosts,
        lab.folder().display()
    ));
    lab.power_on_all(HOST_PATIENCE)?;
    progress(&format!(
        "hosts up after {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    if guest {
        let begun = Instant::now();
        lab.execute(&Command::VmStart {
            vm: GUEST.into(),
            host: "h1".into(),
        })?;
        lab.wait_for_console(GUEST, images::guest::READY, GUEST_PATIENCE)?;
        progress(&format!(
            "guest ready after {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
    }
    Ok((lab, artifacts))
}

fn up(which: &Which, build: &Build, hosts: u8, no_guest: bool) -> Result<ExitCode> {
    let interrupts = Interrupts::take()?;
    let choices = build.choices(&which.name, hosts);
    let (lab, artifacts) = match start_lab(&choices, !no_guest, &interrupts) {
        Err(_) if interrupts.came() => return Ok(ExitCode::from(interrupt::EXIT_CODE)),
        other => other?,
    };
    if !no_guest {
        let command = join::by_ssh(&lab, &artifacts)?;
        progress(&format!("join the guest: {command}"));
    }
    progress("the lab is up; Ctrl-C or `elab down` ends it");
    lab.wait_until_told_to_stop();
    progress("ending");
    lab.stop("told to")?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the same command without `--detach` in the background and returns when its lab is up.
fn up_detached(which: &Which) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--detach" && argument != "-d");
    let folder = Path::new(RUNS).join(&which.name);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let log = folder.join("up.log");
    let file =
        std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Program::new(program)
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .context("cannot start the lab in the background")?;
    let mut shown = 0;
    loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        eprint!("{}", text.get(shown..).unwrap_or_default());
        shown = text.len();
        if text.contains("the lab is up") {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(status) = child.try_wait().context("cannot watch the lab")? {
            bail!("the lab did not come up ({status})");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn down(which: &Which) -> Result<ExitCode> {
    let mut client = Client::connect(Path::new(RUNS), &which.name)?;
    client.execute(&Command::Down)?;
    let folder = client.folder().to_owned();
    let deadline = Instant::now() + Duration::from_secs(30);
    while run_folder::is_running(&folder)? {
        if Instant::now() > deadline {
            bail!(
                "lab \"{}\" does not end; its process can be killed, nothing is left behind",
                which.name
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_bench(arguments: &BenchArguments) -> Result<ExitCode> {
    let interrupts = Interrupts::take()?;
    let choices = arguments.build.choices(BENCH, 2);
    let guest = start_lab(&choices, true, &interrupts).and_then(|(lab, artifacts)| {
        let mut measured = bench::guest(&lab, &artifacts, arguments.repeats, &progress)?;
        let other = arguments.build.choices(OTHER_POOL, 1);
        let (other, _) = start_lab(&other, false, &interrupts)?;
        let stoppers = [lab.stopper(), other.stopper()];
        interrupts.on_interrupt(move || stoppers.iter().for_each(Stopper::stop));
        measured.extend(downtime::measure(
            &lab,
            &other,
            arguments.repeats,
            &progress,
        )?);
        other.stop("measured")?;
        lab.stop("measured")?;
        Ok(measured)
    });
    let measured = match guest {
        Err(_) if interrupts.came() => return Ok(ExitCode::from(interrupt::EXIT_CODE)),
        other => other?,
    };
    print!("{}", bench::show(&measured));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&measured).context("cannot write JSON")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if arguments.migrations == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let demo = DemoArguments {
        which: DemoName { name: BENCH.into() },
        build: arguments.build.clone(),
        migrations: arguments.migrations,
        json: None,
        quick: false,
        dirty: DEFAULT_DIRTY,
        probe_hz: DEFAULT_PROBE_HZ,
        verify: false,
    };
    run_demo_with(&demo, &interrupts)
}

fn run_demo(arguments: &DemoArguments) -> Result<ExitCode> {
    if arguments.migrations > 0 && arguments.build.host_memory < 320 {
        return Err(CannotRun(
            "a host needs 320 MiB at least to run the guest; give --host-memory".into(),
        )
        .into());
    }
    run_demo_with(arguments, &Interrupts::take()?)
}

fn run_demo_with(arguments: &DemoArguments, interrupts: &Interrupts) -> Result<ExitCode> {
    match demo::run(arguments, interrupts, &progress) {
        Err(_) if interrupts.came() => Ok(ExitCode::from(interrupt::EXIT_CODE)),
        other => other,
    }
}
