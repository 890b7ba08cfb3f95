//! `elab export` and `elab import`.

use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use formats::compress::Compression;
use formats::vm::Vm;
use formats::xva::Checksum;
use transfer::progress::Progress;
use transfer::{As, Export, Format, Identity, Options};

use crate::lab::{records, snapshots};
use crate::run_folder::RUNS;

/// Between two lines where they are not written over.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Where a machine is, or is to be.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// Name of the lab whose repository it is; the lab may run
    #[arg(long, default_value = "lab", value_name = "NAME")]
    pub name: String,
    /// Directory of a repository, instead of a lab's
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    pub sr: Option<PathBuf>,
}

impl Place {
    pub(super) fn repository(&self) -> Result<PathBuf> {
        let path = match &self.sr {
            Some(path) => path.clone(),
            None => records::repository(&Path::new(RUNS).join(&self.name).join("export")),
        };
        if !path.is_dir() {
            bail!(
                "{} is not there; give the directory of a repository with --sr, or the name of a lab with --name",
                path.display()
            );
        }
        Ok(path)
    }
}

/// Words for what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FormatWord {
    /// XenServer's archive of a machine
    Xva,
    /// OVF, manifest and streamOptimized VMDKs: for VMware and VirtualBox
    Ova,
    /// The one disk, byte for byte, with holes for zeros
    Raw,
    /// The one disk as a dynamic VHD
    Vhd,
    /// The one disk as a streamOptimized VMDK
    Vmdk,
    /// The one disk as qcow2
    Qcow2,
}

/// Words for [`Checksum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ChecksumWord {
    /// XXH64: quick; for XenServer 8 and newer
    Xxhash,
    /// SHA-1: for every XenServer
    Sha1,
}

/// Words for [`Compression`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CompressionWord {
    /// As it is
    None,
    /// gzip
    Gzip,
    /// zstd
    Zstd,
}

/// Arguments of `elab export`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArguments {
    /// The VM, by name or UUID, or a disk by its UUID
    pub vm: String,
    /// The archive, which must not exist
    pub file: PathBuf,
    /// Where the VM is
    #[command(flatten)]
    pub place: Place,
    /// This snapshot of the VM, which may run
    #[arg(long)]
    pub snapshot: Option<String>,
    /// What to write
    #[arg(long, value_enum, default_value_t = FormatWord::Xva)]
    pub format: FormatWord,
    /// Checksum of each chunk of an XVA
    #[arg(long, value_enum, default_value_t = ChecksumWord::Xxhash)]
    pub checksum: ChecksumWord,
    /// Compression of an XVA
    #[arg(long, value_enum, default_value_t = CompressionWord::None)]
    pub compress: CompressionWord,
}

/// Arguments of `elab import`.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArguments {
    /// An XVA or OVA, compressed or not; or an image of a disk: VMDK, qcow2, VHD or raw
    pub file: PathBuf,
    /// Where the VM shall be
    #[command(flatten)]
    pub place: Place,
    /// Verify the archive and say what would be created; write nothing
    #[arg(long)]
    pub check: bool,
    /// Keep the identities of VM, disks and network cards, as from a backup, instead of making new ones
    #[arg(long)]
    pub restore: bool,
    /// Name of the VM; that of the archive if none is given
    #[arg(long, value_name = "VM")]
    pub vm_name: Option<String>,
}

/// `elab export`.
///
/// # Errors
/// When the VM runs, a disk cannot be read, or the archive cannot be written.
pub fn export(arguments: &ExportArguments) -> Result<ExitCode> {
    let repository = arguments.place.repository()?;
    let what = match &arguments.snapshot {
        Some(snapshot) => of_snapshot(&repository, &arguments.vm, snapshot)?,
        None => transfer::find(&repository, &arguments.vm)?,
    };
    let mut line = Line::default();
    let mut watch = |progress| line.show(progress);
    let failed = || format!("\"{}\" was not exported", arguments.vm);
    let (exported, verified) = match other_format(arguments.format) {
        Some(format) => {
            let target = &arguments.file;
            let exported = transfer::export_as(&repository, &what, target, format, &mut watch);
            (exported.with_context(failed)?, "")
        }
        None => {
            let export = Export {
                repository: &repository,
                what: &what,
                target: &arguments.file,
                options: options(arguments),
            };
            (export.run(&mut watch).with_context(failed)?, ", verified")
        }
    };
    line.end();
    if exported.resumed > 0 {
        println!(
            "went on after the first {}, which an earlier try had written",
            bytes(exported.resumed)
        );
    }
    println!(
        "{}: {} of \"{}\"{verified}",
        arguments.file.display(),
        bytes(exported.length),
        what.vm.name
    );
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &ExportArguments) -> Options {
    Options {
        checksum: match arguments.checksum {
            ChecksumWord::Xxhash => Checksum::Xxhash,
            ChecksumWord::Sha1 => Checksum::Sha1,
        },
        compression: match arguments.compress {
            CompressionWord::None => Compression::None,
            CompressionWord::Gzip => Compression::Gzip,
            CompressionWord::Zstd => Compression::Zstd,
        },
    }
}

/// A machine as a snapshot has it.
fn of_snapshot(repository: &Path, vm: &str, name: &str) -> Result<transfer::Found> {
    let vm = snapshots::find(repository, vm, name)?.vm;
    let disks = vm.disks.iter();
    let files = disks.map(|disk| format!("{}.vhd", disk.uuid)).collect();
    Ok(transfer::Found { vm, files })
}

/// What is no XVA.
fn other_format(word: FormatWord) -> Option<Format> {
    match word {
        FormatWord::Xva => None,
        FormatWord::Ova => Some(Format::Ova),
        FormatWord::Raw => Some(Format::Raw),
        FormatWord::Vhd => Some(Format::Vhd),
        FormatWord::Vmdk => Some(Format::Vmdk),
        FormatWord::Qcow2 => Some(Format::Qcow2),
    }
}

/// `elab import`.
///
/// # Errors
/// When the archive is damaged, or the repository has what it would create.
pub fn import(arguments: &ImportArguments) -> Result<ExitCode> {
    let repository = arguments.place.repository()?;
    let becomes = As {
        identity: if arguments.restore {
            Identity::Same
        } else {
            Identity::New
        },
        name: arguments.vm_name.clone(),
    };
    let mut line = Line::default();
    let mut watch = |progress| line.show(progress);
    let failed = || {
        format!(
            "{} was not imported, and nothing is left of it",
            arguments.file.display()
        )
    };
    if transfer::is_image(&arguments.file).with_context(failed)? {
        if arguments.check || arguments.restore || arguments.vm_name.is_some() {
            bail!(
                "{} is an image of a disk: --check, --restore and --vm-name are for archives of machines",
                arguments.file.display()
            );
        }
        let (uuid, size) = transfer::import_image(&arguments.file, &repository, &mut watch)
            .with_context(failed)?;
        line.end();
        println!("created disk {uuid}, {}", bytes(size));
        return Ok(ExitCode::SUCCESS);
    }
    let (vm, data, did) = if arguments.check {
        let planned = transfer::check(&arguments.file, &repository, &becomes, &mut watch)
            .with_context(|| format!("{} cannot be imported", arguments.file.display()))?;
        (planned.vm, planned.data, "would create")
    } else {
        let imported = transfer::import(&arguments.file, &repository, &becomes, &mut watch)
            .with_context(failed)?;
        (imported.vm, imported.data, "created")
    };
    line.end();
    print!("{did} {}", described(&vm, data));
    Ok(ExitCode::SUCCESS)
}

fn described(vm: &Vm, data: u64) -> String {
    let mut text = format!(
        "{} \"{}\" ({}): {} of memory, {} vCPUs, {} of data\n",
        if vm.template { "template" } else { "VM" },
        vm.name,
        vm.uuid,
        bytes(vm.memory),
        vm.vcpus,
        bytes(data)
    );
    for disk in &vm.disks {
        text += &format!(
            "  disk {} \"{}\", {}\n",
            disk.uuid,
            disk.name,
            bytes(disk.size)
        );
    }
    for nic in &vm.nics {
        text += &format!("  network card {} on \"{}\"\n", nic.mac, nic.network);
    }
    text
}

fn bytes(count: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.into_iter().find(|(shift, _)| count >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", count as f64 / (1u64 << shift) as f64),
        None => format!("{count} B"),
    }
}

/// Shows how far it is: on a terminal a line that is written over, elsewhere a line a second for whoever reads the file.
#[derive(Default)]
struct Line {
    shown: String,
    at: Option<Instant>,
}

impl Line {
    fn show(&mut self, progress: Progress) {
        let on_terminal = stderr().is_terminal();
        if !on_terminal && self.at.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            return;
        }
        let percent = progress.done * 100 / progress.total.max(1);
        let left = progress.left.map_or(String::new(), |left| {
            let seconds = left.as_secs_f64().ceil() as u64;
            format!(", {}:{:02} left", seconds / 60, seconds % 60)
        });
        let text = format!("{percent:3} % of {}{left}", bytes(progress.total));
        if text != self.shown {
            // Whoever does not see it misses nothing.
            let _ = if on_terminal {
                write!(stderr(), "\r\x1b[K{text}")
            } else {
                writeln!(stderr(), "{text}")
            };
            self.shown = text;
            self.at = Some(Instant::now());
        }
    }

    fn end(&self) {
        if !self.shown.is_empty() && stderr().is_terminal() {
            let _ = writeln!(stderr());
        }
    }
}
