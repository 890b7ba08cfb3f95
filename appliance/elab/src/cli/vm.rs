//! `elab vm ...`

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Subcommand;
use lab_protocol::Command;

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
    /// Write its memory to the repository and switch it off, to go on from there later
    ///
    /// It goes on once, on any host: `elab vm resume`. It cannot be started meanwhile, since its disk would move on without its
    /// memory.
    Suspend {
        /// The VM
        vm: String,
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
        VmAction::Suspend { vm } => Command::VmSuspend { vm },
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
        Command::VmSuspend { vm } => println!("{vm} is suspended, {seconds:.1} s"),
        Command::VmResume { vm, .. } => println!("{vm} goes on, {seconds:.1} s"),
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}
