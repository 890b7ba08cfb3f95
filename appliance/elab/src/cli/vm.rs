//! `elab vm ...`

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Subcommand;
use lab_protocol::command::Changes;
use lab_protocol::{Command, Restart, RestartFrom};
use scenarios::scenario::units;
use serde_json::Value;

use super::run::show;
use super::{Which, status};
use crate::client::Client;
use crate::run_folder::RUNS;

/// `elab vm ...`
#[derive(Clone, Debug, Subcommand)]
pub enum VmAction {
    /// List the VMs
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start a VM
    Start {
        /// The VM
        vm: String,
        /// Where
        #[arg(long, default_value = "h1")]
        host: String,
    },
    /// Press its power button, or pull its plug
    Stop {
        /// The VM
        vm: String,
        /// Pull its plug; of a suspended VM, throw the memory away
        #[arg(long)]
        force: bool,
    },
    /// Move it to another host while it runs
    Migrate {
        /// The VM
        vm: String,
        /// Where to
        to: String,
        /// Compare its memory on both sides (adds seconds to the pause)
        #[arg(long)]
        verify: bool,
    },
    /// Cancel its migration; it runs on where it is
    Cancel {
        /// The VM
        vm: String,
    },
    /// Say how it is restarted when its host fails; `elab ha enable` has it restarted at all
    ///
    /// What is not given stays as it is; without any, what it is.
    Set {
        /// The VM
        vm: String,
        /// Who gets memory first when there is not enough for all; 0 is first
        #[arg(long, value_name = "N")]
        restart_priority: Option<u8>,
        /// Who starts first: it waits until all of lower order run
        #[arg(long, value_name = "N")]
        order: Option<u16>,
        /// It waits so long when its turn has come, as 2s
        #[arg(long, value_name = "TIME", value_parser = start_delay)]
        start_delay: Option<Duration>,
        /// Restart it if there is room, without a promise: the plan does not reckon with it
        #[arg(
            long,
            value_name = "YES",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "true"
        )]
        best_effort: Option<bool>,
        /// What it goes on from: boot, with all that was on its disk; or checkpoint, the last one, with memory and disk as
        /// they were then, and what was written since kept as a snapshot
        #[arg(long, value_name = "FROM")]
        restart_from: Option<RestartFrom>,
    },
    /// Write its memory to the repository and switch it off, to go on from there later
    ///
    /// It goes on once, on any host: `elab vm resume`. It cannot be started meanwhile, since its disk would move on without its
    /// memory.
    Suspend {
        /// The VM
        vm: String,
    },
    /// Keep what its disks hold now, while it runs or is off
    ///
    /// A running VM stands still for some milliseconds. Nothing is copied: from then on what it writes goes elsewhere.
    Snapshot {
        /// The VM
        vm: String,
        /// What to call it
        #[arg(long, value_name = "SNAPSHOT")]
        label: Option<String>,
    },
    /// Keep its memory too, so that it can go on from this moment as often as is wanted
    ///
    /// It stands still while its memory is written, and then runs on. `elab vm revert` goes back.
    Checkpoint {
        /// The VM
        vm: String,
        /// What to call it
        #[arg(long, value_name = "SNAPSHOT")]
        label: Option<String>,
    },
    /// List the snapshots of a VM, or of all
    Snapshots {
        /// The VM
        vm: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to a snapshot; what the VM, which must be off, holds now is lost
    ///
    /// From a checkpoint it goes on at once. Else it is off, to be started.
    Revert {
        /// The VM
        vm: String,
        /// Its snapshot
        snapshot: String,
        /// Where it goes on; on the host that it was on, if none is given
        #[arg(long, value_name = "HOST")]
        on: Option<String>,
        /// Take the disks only: it will boot
        #[arg(long)]
        cold: bool,
    },
    /// Remove a snapshot
    DeleteSnapshot {
        /// The VM
        vm: String,
        /// Its snapshot
        snapshot: String,
    },
    /// Make a new VM from a template, or from a VM that is off, or from a snapshot
    ///
    /// Nothing is copied, whatever the size, unless it is asked for. The new VM has an identity, network cards and an address of
    /// its own.
    Clone {
        /// The template or VM
        vm: String,
        /// Name of the new VM
        new: String,
        /// The VM's snapshot to begin with; then the VM may run
        #[arg(long)]
        snapshot: Option<String>,
        /// Copy the disks, so that it shares nothing with its origin
        #[arg(long)]
        full: bool,
        /// What it has that its origin has not
        #[command(flatten)]
        changes: ChangeArguments,
    },
    /// Let a suspended VM go on
    Resume {
        /// The VM
        vm: String,
        /// Where; on the host that it was on, if none is given
        #[arg(long, value_name = "HOST")]
        on: Option<String>,
    },
}

/// What a new VM or template has that its origin has not.
#[derive(Clone, Debug, clap::Args)]
pub struct ChangeArguments {
    /// Its memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub memory: Option<u32>,
    /// Its vCPUs
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vcpus: Option<u8>,
    /// Its share of CPU time; 256 is usual
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub weight: Option<u16>,
    /// A network card on this network, instead of those of its origin; more than once for more
    #[arg(long = "network", value_name = "NETWORK")]
    pub networks: Vec<String>,
    /// Whether it is started when its host is
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "true|false")]
    pub start_on_boot: Option<bool>,
}

impl From<ChangeArguments> for Changes {
    fn from(arguments: ChangeArguments) -> Self {
        Self {
            memory_mib: arguments.memory,
            vcpus: arguments.vcpus,
            weight: arguments.weight,
            networks: arguments.networks,
            start_on_boot: arguments.start_on_boot,
        }
    }
}

/// `elab template ...`
#[derive(Clone, Debug, Subcommand)]
pub enum TemplateAction {
    /// List the templates
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a template from a VM that is off, or from a snapshot
    ///
    /// Nothing is copied. A template cannot be started: `elab vm clone TEMPLATE NEW` makes a VM from it.
    Create {
        /// Name of the template
        template: String,
        /// What it is made from
        #[arg(long, value_name = "VM")]
        from: String,
        /// The VM's snapshot to begin with; then the VM may run
        #[arg(long)]
        snapshot: Option<String>,
        /// What it has that its origin has not
        #[command(flatten)]
        changes: ChangeArguments,
    },
    /// Remove a template; VMs made from it stay
    Delete {
        /// The template
        template: String,
    },
}

/// Does what is asked with templates.
///
/// # Errors
/// As the lab says.
pub(super) fn templates(which: &Which, action: TemplateAction) -> Result<ExitCode> {
    let command = match action {
        TemplateAction::List { json } => {
            return list(which, &Command::Templates, json, status::templates);
        }
        TemplateAction::Create {
            template,
            from,
            snapshot,
            changes,
        } => Command::VmClone {
            vm: from,
            snapshot,
            new: template,
            template: true,
            full: false,
            changes: changes.into(),
        },
        TemplateAction::Delete { template } => Command::TemplateDelete { template },
    };
    Client::connect(Path::new(RUNS), &which.name)?.execute(&command)?;
    Ok(ExitCode::SUCCESS)
}

/// Longer than anybody waits for a service.
const MAX_START_DELAY: Duration = Duration::from_secs(3600);

fn start_delay(text: &str) -> Result<Duration, String> {
    match units::time(text)? {
        long if long > MAX_START_DELAY => Err("at most an hour".into()),
        time => Ok(time),
    }
}

/// Has base copies merged, and says what was done.
///
/// # Errors
/// As the lab says.
pub(super) fn coalesce(which: &Which) -> Result<ExitCode> {
    let command = Command::StorageCoalesce;
    let outcome = Client::connect(Path::new(RUNS), &which.name)?.execute(&command)?;
    let done = outcome["done"].as_array().map_or(&[][..], Vec::as_slice);
    for sentence in done.iter().filter_map(Value::as_str) {
        println!("{sentence}");
    }
    if let Some(why) = outcome["kept"].as_str() {
        println!("space is not freed yet: {why}; ask again");
    } else if done.is_empty() {
        println!("there was nothing to merge");
    }
    Ok(ExitCode::SUCCESS)
}

/// Does it.
///
/// # Errors
/// As the lab says.
pub(super) fn run(which: &Which, action: VmAction) -> Result<ExitCode> {
    let command = match action {
        VmAction::List { json } => return show(which, json, "/vms", status::vms),
        VmAction::Start { vm, host } => Command::VmStart { vm, host },
        VmAction::Stop { vm, force: false } => Command::VmShutdown { vm },
        VmAction::Stop { vm, force: true } => Command::VmDestroy { vm },
        VmAction::Migrate { vm, to, verify } => Command::VmMigrate { vm, to, verify },
        VmAction::Cancel { vm } => Command::VmMigrateCancel { vm },
        VmAction::Set {
            vm,
            restart_priority,
            order,
            start_delay,
            best_effort,
            restart_from,
        } => Command::VmSet {
            vm,
            priority: restart_priority,
            order,
            start_delay_ms: start_delay
                .map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
            best_effort,
            from: restart_from,
        },
        VmAction::Suspend { vm } => Command::VmSuspend { vm },
        VmAction::Snapshot { vm, label } => Command::VmSnapshot {
            vm,
            snapshot: label,
            memory: false,
        },
        VmAction::Checkpoint { vm, label } => Command::VmSnapshot {
            vm,
            snapshot: label,
            memory: true,
        },
        VmAction::Snapshots { vm, json } => {
            return list(which, &Command::VmSnapshots { vm }, json, status::snapshots);
        }
        VmAction::Revert {
            vm,
            snapshot,
            on,
            cold,
        } => Command::VmRevert {
            vm,
            snapshot,
            host: on,
            cold,
        },
        VmAction::DeleteSnapshot { vm, snapshot } => Command::VmSnapshotDelete { vm, snapshot },
        VmAction::Clone {
            vm,
            new,
            snapshot,
            full,
            changes,
        } => Command::VmClone {
            vm,
            snapshot,
            new,
            template: false,
            full,
            changes: changes.into(),
        },
        VmAction::Resume { vm, on } => Command::VmResume { vm, host: on },
    };
    let begun = Instant::now();
    let value = Client::connect(Path::new(RUNS), &which.name)?.execute(&command)?;
    let seconds = begun.elapsed().as_secs_f64();
    match command {
        Command::VmMigrate { vm, to, .. } => {
            if let Some(number) = value["migration"].as_u64() {
                println!("{vm} runs on {to}: migration {number}, {seconds:.1} s");
            }
        }
        Command::VmSet { vm, .. } => {
            let restart: Restart =
                serde_json::from_value(value).context("the lab is of another version")?;
            let words = match restart.words() {
                usual if usual.is_empty() => "priority 0, order 0, no delay, by a boot".into(),
                words => words,
            };
            println!("{vm} is restarted with: {words}");
        }
        Command::VmSnapshot { vm, .. } => {
            let name = value["snapshot"].as_str().unwrap_or("-");
            let pause = value["pause_ns"].as_f64().unwrap_or_default() / 1e6;
            println!("{vm}: {name}; it stood still for {pause:.1} ms");
        }
        Command::VmRevert { vm, snapshot, .. } => {
            println!("{vm} is back at {snapshot}, {seconds:.1} s")
        }
        Command::VmClone { new, .. } => println!("{new} is there, {seconds:.2} s"),
        Command::VmSuspend { vm } => println!("{vm} is suspended, {seconds:.1} s"),
        Command::VmResume { vm, .. } => println!("{vm} goes on, {seconds:.1} s"),
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn list(
    which: &Which,
    command: &Command,
    json: bool,
    shown: fn(&Value) -> String,
) -> Result<ExitCode> {
    let known = Client::connect(Path::new(RUNS), &which.name)?.execute(command)?;
    if json {
        let text = serde_json::to_string_pretty(&known).context("cannot write JSON")?;
        println!("{text}");
    } else {
        print!("{}", shown(&known));
    }
    Ok(ExitCode::SUCCESS)
}
