//! The command line of `nfs-sr`.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, Subcommand};
use nfs3::{
    DirEntry, Name,
    lease::{Break, Get, Holding, ListAll, Mode},
};
use vhd::{DiskKind, Uuid};

use crate::{
    client::Client,
    durability,
    node::PRIVATE,
    serve::{ServeOptions, serve},
    sr::{self, chain, check, guard::Guard, statefile, store::Directory, vdi},
};

const EXAMPLES: &str = "\
Examples:
  nfs-sr serve /srv/sr --listen 0.0.0.0:2049 --client 198.18.1.0/24
  nfs-sr sr create /srv/sr
  nfs-sr vdi import /srv/sr/<sr-uuid> debian.raw --size 8GiB
  nfs-sr vdi snapshot /srv/sr/<sr-uuid>/<vdi-uuid>.vhd
  nfs-sr sr check /srv/sr/<sr-uuid>

Exit codes: 0 done, 1 it failed or a check found something, 2 wrong usage.";

/// Storage repository: an NFS version 3 server with leases for virtual disks, and its tools.
#[derive(Debug, Parser)]
#[command(name = "nfs-sr", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Export a directory. Reports as JSON lines on standard output, the first when it is ready.
    Serve(Box<ServeOptions>),
    /// Storage repositories: directories `<export>/<sr-uuid>`.
    #[command(subcommand)]
    Sr(SrCommand),
    /// Virtual disks: files `<vdi-uuid>.vhd` in a repository.
    #[command(subcommand)]
    Vdi(VdiCommand),
    /// Leases of a running server: who may write which disk.
    #[command(subcommand)]
    Lease(LeaseCommand),
}

#[derive(Debug, Subcommand)]
enum LeaseCommand {
    /// List the leases that are held.
    List {
        /// TCP address of the server.
        #[arg(long, default_value = "127.0.0.1:2049")]
        server: SocketAddr,
    },
    /// Take a lease away from its holder. If that host still runs the VM, its disk fails at once and for good.
    Break {
        /// Path of the disk below the export: `<sr-uuid>/<vdi-uuid>.vhd`.
        disk: String,
        /// TCP address of the server.
        #[arg(long, default_value = "127.0.0.1:2049")]
        server: SocketAddr,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum SrCommand {
    /// Create a repository and print its directory.
    Create {
        /// Directory that is, or will be, exported.
        export: PathBuf,
        /// Its UUID; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
    },
    /// Find everything that is wrong with a repository. Exits with 1 if there is anything.
    Check {
        /// Directory of the repository.
        sr: PathBuf,
        /// Repair what can be repaired without losing what anybody can see. Stop the VMs first.
        #[arg(long)]
        repair: bool,
    },
    /// Reclaim space: remove base copies that nobody needs, merge those with one child. Disks that hosts have open are left
    /// alone.
    Gc {
        /// Directory of the repository.
        sr: PathBuf,
    },
    /// Show the heartbeats in the statefile of a repository.
    Statefile {
        /// Directory of the repository.
        sr: PathBuf,
        /// Make the statefile, of a repository that has none.
        #[arg(long)]
        create: bool,
    },
}

#[derive(Debug, Subcommand)]
enum VdiCommand {
    /// Create an empty disk and print its file.
    Create {
        /// Directory of the repository.
        sr: PathBuf,
        /// Size, such as 4GiB.
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// Its UUID; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Allocate all of it at once.
        #[arg(long)]
        fixed: bool,
    },
    /// Make a disk from a raw image or a VHD and print its file. Zeros take no space.
    Import {
        /// Directory of the repository.
        sr: PathBuf,
        /// The image. One that ends like a VHD is one; its parents must lie beside it.
        image: PathBuf,
        /// Its UUID; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Size, if larger than the image.
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Write a disk, with what it has from its parents, to an image.
    Export {
        /// File of the disk.
        vdi: PathBuf,
        /// The image.
        image: PathBuf,
        /// What to write. A VHD must not exist yet.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Make a disk with the contents that another has now, at once and without copying, and print its file. The other must
    /// not be open at a host.
    #[command(alias = "clone")]
    Snapshot {
        /// File of the disk.
        vdi: PathBuf,
        /// UUID of the new disk; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
    },
    /// Make a disk with the contents that another has now, its parents included, and that shares nothing with it; print its file.
    /// The other must not be open at a host.
    Copy {
        /// File of the disk.
        vdi: PathBuf,
        /// Directory of the repository that gets the copy; that of the disk if none is given.
        #[arg(long, value_name = "SR")]
        to: Option<PathBuf>,
        /// UUID of the new disk; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
    },
    /// Give a disk the contents that another one has now, such as a snapshot of it, at once and without copying. What it held
    /// is gone. Neither must be open at a host.
    Revert {
        /// File of the disk.
        vdi: PathBuf,
        /// File of the disk whose contents it gets.
        #[arg(long)]
        to: PathBuf,
    },
    /// Remove a disk. `sr gc` reclaims what it shared.
    Delete {
        /// File of the disk.
        vdi: PathBuf,
    },
    /// Make a disk larger.
    Resize {
        /// File of the disk.
        vdi: PathBuf,
        /// New size, such as 8GiB.
        #[arg(long, value_parser = parse_size)]
        size: u64,
    },
    /// Describe a disk, as JSON.
    Info {
        /// File of the disk.
        vdi: PathBuf,
    },
}

/// Format of an image.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// The disk byte for byte, with holes for zeros.
    #[default]
    Raw,
    /// A dynamic VHD without parents.
    Vhd,
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(options) => serve(*options),
        Command::Sr(command) => run_sr(command),
        Command::Vdi(command) => run_vdi(command),
        Command::Lease(command) => run_lease(command),
    }
}

fn run_sr(command: SrCommand) -> Result<()> {
    match command {
        SrCommand::Create { export, uuid } => {
            let uuid = uuid.unwrap_or_else(vdi::new_uuid);
            let path = sr::create(&export, uuid)
                .with_context(|| format!("cannot create a repository in {}", export.display()))?;
            println!("{}", path.display());
        }
        SrCommand::Check { sr, repair } => {
            let store = Directory::new(&sr);
            let problems = if repair {
                check::repair(&store)?
            } else {
                check::Survey::take(&store)?.problems
            };
            for problem in &problems {
                let repairable = !repair && problem.is_repairable();
                println!(
                    "{problem}{}",
                    if repairable {
                        " (--repair can mend it)"
                    } else {
                        ""
                    }
                );
            }
            let export = sr.canonicalize()?;
            let private = export.parent().unwrap_or(&export).join(PRIVATE);
            let failure = durability::mark(&private)?;
            if let Some(failure) = &failure {
                println!("the server: {failure}; what VMs wrote last may be lost");
            }
            if failure.is_some() || problems.iter().any(|problem| !problem.is_harmless()) {
                bail!("{} has problems", sr.display());
            }
        }
        SrCommand::Gc { sr } => {
            let store = Directory::new(&sr);
            for done in chain::collect(&store, &Guard::new(&sr)?)? {
                println!("{done}");
            }
        }
        SrCommand::Statefile { sr, create: true } => {
            let path = sr.canonicalize()?;
            let name = path.file_name().and_then(|name| name.to_str());
            let uuid = name.and_then(|name| name.parse().ok()).with_context(|| {
                format!(
                    "{} is not the directory of a repository, whose name is a UUID",
                    sr.display()
                )
            })?;
            statefile::create(&Directory::new(&sr), uuid)?;
        }
        SrCommand::Statefile { sr, create: false } => {
            println!("{:>5}  {:<36}  {:>12}", "INDEX", "HOST", "HEARTBEATS");
            for heartbeat in statefile::heartbeats(&Directory::new(&sr))? {
                match heartbeat.last {
                    Ok((host, sequence)) => {
                        println!("{:>5}  {host}  {sequence:>12}", heartbeat.index)
                    }
                    Err(bad) => println!("{:>5}  {bad}", heartbeat.index),
                }
            }
        }
    }
    Ok(())
}

fn run_vdi(command: VdiCommand) -> Result<()> {
    match command {
        VdiCommand::Create {
            sr,
            size,
            uuid,
            fixed,
        } => {
            let uuid = uuid.unwrap_or_else(vdi::new_uuid);
            let kind = if fixed {
                DiskKind::Fixed
            } else {
                DiskKind::Dynamic
            };
            vdi::create(&Directory::new(&sr), uuid, size, kind)?;
            println!("{}", sr.join(vdi::file_name(uuid)).display());
        }
        VdiCommand::Import {
            sr,
            image,
            uuid,
            size,
        } => {
            let uuid = uuid.unwrap_or_else(vdi::new_uuid);
            vdi::import(&Directory::new(&sr), uuid, &image, size)?;
            println!("{}", sr.join(vdi::file_name(uuid)).display());
        }
        VdiCommand::Export { vdi, image, format } => {
            let (store, name) = split(&vdi)?;
            match format {
                Format::Raw => vdi::export(&store, &name, &image)?,
                Format::Vhd => vdi::export_vhd(&store, &name, &image)?,
            }
        }
        VdiCommand::Snapshot { vdi, uuid } => {
            let (store, name) = split(&vdi)?;
            let new = uuid.unwrap_or_else(vdi::new_uuid);
            let guard = Guard::new(directory(&vdi))?;
            guard.hold(&name)?;
            chain::snapshot(&store, disk_uuid(&name)?, new)?;
            println!("{}", directory(&vdi).join(vdi::file_name(new)).display());
        }
        VdiCommand::Copy { vdi, to, uuid } => {
            let (store, name) = split(&vdi)?;
            let new = uuid.unwrap_or_else(vdi::new_uuid);
            let target = to.as_deref().unwrap_or(directory(&vdi));
            let guard = Guard::new(directory(&vdi))?;
            guard.hold(&name)?;
            vdi::copy(&store, &name, &Directory::new(target), new)?;
            println!("{}", target.join(vdi::file_name(new)).display());
        }
        VdiCommand::Revert { vdi, to } => {
            let ((store, name), (_, other)) = (split(&vdi)?, split(&to)?);
            if directory(&vdi).canonicalize()? != directory(&to).canonicalize()? {
                bail!(
                    "{} and {} are in different repositories; import it there",
                    vdi.display(),
                    to.display()
                );
            }
            let guard = Guard::new(directory(&vdi))?;
            guard.hold(&name)?;
            guard.hold(&other)?;
            chain::revert(&store, disk_uuid(&name)?, disk_uuid(&other)?)?;
        }
        VdiCommand::Delete { vdi } => {
            let (store, name) = split(&vdi)?;
            let guard = Guard::new(directory(&vdi))?;
            guard.hold(&name)?;
            chain::delete(&store, disk_uuid(&name)?)?;
        }
        VdiCommand::Resize { vdi, size } => {
            let (store, name) = split(&vdi)?;
            let guard = Guard::new(directory(&vdi))?;
            guard.hold(&name)?;
            chain::resize(&store, disk_uuid(&name)?, size)?;
        }
        VdiCommand::Info { vdi } => {
            let (store, name) = split(&vdi)?;
            println!(
                "{}",
                serde_json::to_string_pretty(&vdi::info(&store, &name)?)?
            );
        }
    }
    Ok(())
}

fn run_lease(command: LeaseCommand) -> Result<()> {
    match command {
        LeaseCommand::List { server } => {
            let mut client = Client::new(connect(server)?);
            let record = client.call::<ListAll>(&())?;
            println!(
                "{:>8}  {:<9}  {:>9}  {:<24}  DISK",
                "EPOCH", "MODE", "LEFT", "OWNER"
            );
            for lease in record.results::<ListAll>()?.leases.0 {
                let Holding {
                    epoch,
                    mode,
                    owner,
                    remaining_ms,
                } = lease.holding;
                let mode = if mode == Mode::Exclusive {
                    "exclusive"
                } else {
                    "shared"
                };
                let left = if remaining_ms == 0 {
                    "expired".into()
                } else {
                    format!("{} s", remaining_ms / 1000)
                };
                let (owner, path) = (
                    String::from_utf8_lossy(owner.0),
                    String::from_utf8_lossy(lease.path.0),
                );
                println!("{epoch:>8}  {mode:<9}  {left:>9}  {owner:<24}  {path}");
            }
        }
        LeaseCommand::Break { disk, server, yes } => {
            let mut client = Client::new(connect(server)?);
            let (dir, name) = disk.rsplit_once('/').unwrap_or(("", &disk));
            let root = client.mount("/")?;
            let dir = client.look_up(root, dir)?;
            let file = DirEntry {
                dir,
                name: Name(name.as_bytes()),
            };
            let record = client.call::<Get>(&file)?;
            let holding = record
                .results::<Get>()?
                .0
                .map_err(|refused| anyhow!("{disk}: {:?}", refused.status))?;
            let owner = String::from_utf8_lossy(holding.owner.0).into_owned();
            if owner.is_empty() {
                bail!("nobody holds {disk}");
            }
            if !yes
                && !confirm(&format!(
                    "{owner} holds {disk}. If it still runs the VM, its disk fails now. Break?"
                ))?
            {
                bail!("nothing was changed");
            }
            let record = client.call::<Break>(&file)?;
            record
                .results::<Break>()?
                .0
                .map_err(|refused| anyhow!("{disk}: {:?}", refused.status))?;
            println!("{disk} was taken from {owner}");
        }
    }
    Ok(())
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(server)
        .with_context(|| format!("cannot reach a server at {server}; name it with --server"))
}

fn confirm(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// The directory of a disk's file.
fn directory(vdi: &Path) -> &Path {
    vdi.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The repository and the file's name in it.
fn split(vdi: &Path) -> Result<(Directory, String)> {
    let Some(name) = vdi.file_name().and_then(|name| name.to_str()) else {
        bail!(
            "'{}' is not the file of a disk, such as <sr>/<uuid>.vhd",
            vdi.display()
        );
    };
    Ok((Directory::new(directory(vdi)), name.to_owned()))
}

fn disk_uuid(name: &str) -> Result<Uuid> {
    vdi::uuid_of(name)
        .with_context(|| format!("'{name}' is not the name of a disk, which is <uuid>.vhd"))
}

/// A size such as `4GiB`, `512M` or `1048576`; the units are binary.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("'{text}' is not a size such as 4GiB or 512M")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size such as 4GiB or 512M"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(
            parse_size("4 apples").is_err()
                && parse_size("99999999999T").is_err()
                && parse_size("").is_err()
        );
    }
}
