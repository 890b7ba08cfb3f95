//! The command line.

mod arguments;
mod evidence;
mod export;
mod gate;
mod history;
mod import_tree;
mod release;
mod run;
mod scenario;
mod status;
mod tui;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab_protocol::command::DiskFault;

pub use arguments::FaultArguments;
pub use evidence::{BisectArguments, CompareArguments, Form};
pub use export::{ExportArguments, ImportArguments, Place};
pub use gate::GateArguments;
pub use history::HistoryArguments;
pub use import_tree::ImportTreeArguments;
pub use release::ReleaseArguments;
pub use run::run;
pub use scenario::{RunArguments, RunOneArguments};
pub use tui::TuiArguments;
pub use vm::{TemplateAction, VmAction};

use scenarios::scenario::ScenarioError;

/// This machine cannot run what was asked for; the text says what is missing and how to get it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotRun(pub String);

/// An expectation was not met; everything else worked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ExpectationFailed(pub String);

/// The run proves nothing either way.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Inconclusive(pub String);

/// What an error means to the shell.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<CannotRun>() {
        ExitCode::from(3)
    } else if error.is::<Inconclusive>() {
        ExitCode::from(4)
    } else if error.is::<ScenarioError>() {
        ExitCode::from(2)
    } else {
        ExitCode::from(1)
    }
}

/// MiB a second that the guest of a demo dirties.
const DEFAULT_DIRTY: u32 = 2;
/// Datagrams a second of a demo's probe.
const DEFAULT_PROBE_HZ: u32 = 250;

const AFTER_HELP: &str = "\
Examples:
  elab doctor                     what this machine offers and what is missing
  elab demo                       two hosts, a live session, a migration, a report
  elab demo --migrations 20       the same with twenty migrations, back and forth
  elab run --tag quick            the quick scenarios, with a report of all
  elab run my.toml -n 10          a scenario of yours, ten times
  elab bench                      disk, network and migrations, with their spread
  elab up                         a lab to play with; Ctrl-C ends it
  elab vm migrate session h2      in another terminal: move the guest
  elab link set h1:mgmt --delay 20ms --loss 0.01
  elab host pull h1               cut a host's power without warning
  elab export session s.xva       a VM that is off, into one file
  elab import s.xva --name other  and into the repository of another lab
  elab tui                        all of it on one screen

Exit codes:
  0  all is well            3  this machine cannot run it
  1  it failed              4  the result proves nothing either way
  2  wrong usage          130  interrupted

Files: a lab keeps its log, consoles, sockets and reports in .elab/run/<name>, images in .elab/images.";

/// Boots a pool of real hypervisor hosts, puts a live session into a guest, moves or breaks things, and reports what
/// the user noticed.
#[derive(Debug, Parser)]
#[command(name = "elab", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Action,
}

/// Which lab a command is for.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Name of the lab
    #[arg(long, global = true, default_value = "lab", value_name = "NAME")]
    pub name: String,
}

/// How a lab is built.
#[derive(Clone, Debug, clap::Args)]
pub struct Build {
    /// Boot hosts by QEMU's own kernel loader instead of firmware and GRUB from the ISO
    #[arg(long)]
    pub fast_boot: bool,
    /// Memory of each host, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 768, value_parser = clap::value_parser!(u32).range(256..=65536))]
    pub host_memory: u32,
    /// Use this bootable image (an ISO, or an ELF with --fast-boot) instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Write what passes each port of the hosts to pcapng files in the run folder
    #[arg(long)]
    pub capture: bool,
    /// Seed of everything that is left to chance
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Say what this machine offers, what is missing, and how to get it
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Build the images a lab needs, or verify those that are there
    Build,
    /// Run the demo: a live session on a guest that moves between two hosts, and the report of it
    Demo(DemoArguments),
    /// Run scenarios: labs are built, things are done to them, and what their users noticed is judged
    ///
    /// A scenario is a file (`elab schema` describes it), or the name of one that comes with the program. Each run has a
    /// process and a folder of its own; the results, with reports for people and for programs, go to a folder below
    /// .elab/results.
    Run(Box<RunArguments>),
    /// One run, in its own process
    #[command(hide = true)]
    RunOne(Box<RunOneArguments>),
    /// Check scenario files without running them
    Check {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List the scenarios that come with the program
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// List the figures that a scenario can set limits to instead
        #[arg(long)]
        figures: bool,
    },
    /// Print the JSON schema of scenario files
    Schema,
    /// Print the report of results, in the form that is wanted
    #[command(args_conflicts_with_subcommands = true)]
    Report {
        /// What else to do with results
        #[command(subcommand)]
        action: Option<ReportAction>,
        /// Folder of results, or a report.json; the newest results if none is given
        path: Option<PathBuf>,
        /// Which form
        #[arg(long, value_enum, default_value_t = Form::Text)]
        form: Form,
    },
    /// Show how figures went from commit to commit, by the history that runs are appended to
    History(HistoryArguments),
    /// Compare results, programs or hypervisor images: is B worse, better, or the same?
    ///
    /// Programs and images are run in turns (A B B A) on this machine. A difference must be unlikely by chance and large
    /// enough to matter. Exit code 1 says worse, 4 that the runs cannot tell.
    Compare(CompareArguments),
    /// Decide whether a change may pass: run it in turns with the last release, and once more where it looks worse
    ///
    /// A difference counts when it is found twice. Exit code 1 says worse, 4 that the runs cannot tell; what a quarantine
    /// names is run and told, and does not count.
    Gate(GateArguments),
    /// Write the page that goes with a release: each figure against its limit and the last two releases
    ReleaseReport(ReleaseArguments),
    /// Judge a run again by its evidence, and show what happened
    Replay {
        /// Folder of a run, or a file made by `elab export-run`
        run: PathBuf,
        /// Play the session on this terminal
        #[arg(long)]
        play: bool,
        /// So many times as fast
        #[arg(long, default_value_t = 1.0, value_name = "TIMES", value_parser = speed)]
        speed: f64,
    },
    /// Put a run into one file that can be sent to others
    ExportRun {
        /// Folder of a run
        run: PathBuf,
        /// The file; <run>.tar.gz if none is given
        file: Option<PathBuf>,
    },
    /// Write a VM that is off, with its disks, to a file
    ///
    /// If interrupted, it leaves FILE.part, and goes on from there when it is called again. An XVA is read back and verified
    /// while it is written.
    Export(ExportArguments),
    /// Create a VM from an archive, or a disk from an image: all of it, or nothing if it is damaged
    Import(ImportArguments),
    /// Create a VM from the root tree of a Linux machine: its files on a new disk, its own kernel and initrd
    ///
    /// The tree needs a kernel with an initrd in /boot that have the drivers of virtual disks; otherwise it is said what to do.
    /// Nothing in the tree is changed, and nothing of it is run.
    ImportTree(ImportTreeArguments),
    /// Find the commit from which on a scenario fails, by git bisect in a work tree of its own
    Bisect(BisectArguments),
    /// Measure the guest's disk and network, then migrations, with the spread of each
    Bench(BenchArguments),
    /// Start a lab: two hosts, the storage server, the session guest
    ///
    /// It runs until Ctrl-C or `elab down`. Progress goes to standard error; when the guest is ready, a line says how to
    /// join it with ssh.
    Up {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// How it is built
        #[command(flatten)]
        build: Build,
        /// Number of hosts
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
        hosts: u8,
        /// Start the hosts only, without the guest
        #[arg(long)]
        no_guest: bool,
        /// Return when the lab is up and leave it running in the background
        #[arg(long, short)]
        detach: bool,
    },
    /// End a lab
    Down {
        /// Which lab
        #[command(flatten)]
        which: Which,
    },
    /// Show hosts, VMs, storage and link faults of a lab
    Status {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the hosts, switch them on and off, freeze them
    Host {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: HostAction,
    },
    /// Start, stop, move, suspend and list VMs
    Vm {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: VmAction,
    },
    /// Make templates of VMs, list and remove them
    Template {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: TemplateAction,
    },
    /// Explore a lab by hand: see the pool, watch the session, break things, replay runs
    Tui(Box<TuiArguments>),
    /// Join this terminal with a VM's serial console; Ctrl-] detaches
    Console {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// The VM
        #[arg(default_value = "session")]
        vm: String,
    },
    /// List the faults of network links, set and heal them
    Link {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: LinkAction,
    },
    /// Have the VMs of hosts that fail restarted, and ask what the pool would do
    Ha {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: HaAction,
    },
    /// Freeze, kill and start the storage server
    Sr {
        /// Which lab
        #[command(flatten)]
        which: Which,
        /// What to do
        #[command(subcommand)]
        action: SrAction,
    },
    /// Serve a storage repository, as `nfs-sr serve` does; a lab starts this program anew for it
    #[command(hide = true)]
    StorageServer(Box<nfs_sr::serve::ServeOptions>),
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.01..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("a number from 0.01 to 1000".into()),
    }
}

/// Arguments of `elab demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArguments {
    /// Which lab
    #[command(flatten)]
    pub which: DemoName,
    /// How it is built
    #[command(flatten)]
    pub build: Build,
    /// Number of migrations, back and forth
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub migrations: u32,
    /// Also write the report's JSON here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Shorter quiet stretches, for a first look
    #[arg(long)]
    pub quick: bool,
    /// Have the guest dirty 8 MiB at this many MiB/s meanwhile; 0 for an idle guest
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_DIRTY, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub dirty: u32,
    /// Datagrams a second of the probe that measures the silence. An emulated guest answers 1000 a second only while
    /// it has nothing else to do
    #[arg(long, value_name = "HZ", default_value_t = DEFAULT_PROBE_HZ, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub probe_hz: u32,
    /// Compare the guest's memory on both sides at every migration (adds seconds to the pause)
    #[arg(long)]
    pub verify: bool,
}

/// What can be done with results but printing their report.
#[derive(Clone, Debug, Subcommand)]
pub enum ReportAction {
    /// Join the results of shards, or of several days, into one folder with one report: limits are judged over all runs
    Merge {
        /// Folders of results
        #[arg(required = true, value_name = "RESULTS")]
        folders: Vec<PathBuf>,
        /// The new folder
        #[arg(long, value_name = "FOLDER")]
        into: PathBuf,
    },
}

/// Arguments of `elab bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArguments {
    /// How it is built
    #[command(flatten)]
    pub build: Build,
    /// Number of migrations, back and forth
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub migrations: u32,
    /// Passes over disk and network
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Also write all samples as JSON here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which folder a demo uses.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoName {
    /// Name of the run, and of its folder
    #[arg(long, default_value = "demo", value_name = "NAME")]
    pub name: String,
}

/// `elab host ...`
#[derive(Clone, Debug, Subcommand)]
pub enum HostAction {
    /// List the hosts: power, whether they answer, memory, storage
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Switch a host on
    PowerOn {
        /// The host
        host: String,
    },
    /// Stop its guests and switch it off
    PowerOff {
        /// The host
        host: String,
    },
    /// Cut its power without warning
    Pull {
        /// The host
        host: String,
    },
    /// Cut its power and switch it on again at once
    Reset {
        /// The host
        host: String,
    },
    /// Stop it in its tracks
    Freeze {
        /// The host
        host: String,
    },
    /// Let a frozen host go on
    Thaw {
        /// The host
        host: String,
    },
}

/// `elab link ...`
#[derive(Clone, Debug, Subcommand)]
pub enum LinkAction {
    /// List the links that have a fault
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a fault on a link, replacing the one it has
    ///
    /// A link is written <host>:<network>, followed by > for what the host sends, < for what it receives, nothing for
    /// both. The networks are mgmt, storage and session. Mind to quote the arrows.
    Set {
        /// For instance h1:mgmt or 'h2:storage<'
        link: String,
        /// The fault
        #[command(flatten)]
        fault: FaultArguments,
    },
    /// Take a link's fault off
    Heal {
        /// For instance h1:mgmt
        link: String,
    },
}

/// `elab ha ...`
#[derive(Clone, Debug, Subcommand)]
pub enum HaAction {
    /// Make the lab's hosts a pool that protects all its VMs
    ///
    /// From then on, the VMs of a host that fails are restarted on the others, those too that are cloned or imported later;
    /// `elab vm set` says how. Said again, it changes how many hosts may fail. The exit code is 1 if the pool has too little
    /// memory to restart all of them, whichever hosts fail: then it says which failures would be too many, and restarts
    /// as many as have room.
    Enable {
        /// How many hosts may fail at once with every VM restarted
        #[arg(
            long,
            visible_alias = "host-failures-to-tolerate",
            value_name = "N",
            default_value_t = 1
        )]
        failures: u8,
    },
    /// Show the pool as each of its hosts sees it: who is in it, who decides, where each VM is and how far it is protected
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what would happen if a host failed, how many may fail at once, and which failures would be too many
    Plan {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `elab sr ...`
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum SrAction {
    /// Freeze the storage server
    Pause,
    /// Let it go on
    Resume,
    /// Kill it, as by a power cut
    Kill,
    /// Start it again
    Start,
    /// Merge base copies that only one other base copy needs, while VMs run
    ///
    /// This happens by itself when a snapshot or a template is removed. A chain of base copies has at most 30 disks; what a
    /// running VM writes to is merged with its parent when the VM is off, by `nfs-sr sr coalesce`.
    Coalesce,
    /// Have its disk fail, as disks do, or be well again
    Fault {
        /// eio-read, eio-write, eio-fsync, full; clear makes it well
        fault: DiskFault,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
