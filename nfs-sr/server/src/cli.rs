//! The command line of `nfs-sr`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use vhd::{DiskKind, Uuid};

use crate::{
    serve::{ServeOptions, serve},
    sr::{self, store::Directory, vdi},
};

/// Storage repository: an NFS version 3 server with leases for virtual disks, and its tools.
#[derive(Debug, Parser)]
#[command(name = "nfs-sr", version)]
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
    /// Make a disk from a raw image and print its file. Zeros take no space.
    Import {
        /// Directory of the repository.
        sr: PathBuf,
        /// The image.
        raw: PathBuf,
        /// Its UUID; a random one if none is given.
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Size, if larger than the image.
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Write a disk, with what it has from its parents, to a raw image.
    Export {
        /// File of the disk.
        vdi: PathBuf,
        /// The image.
        raw: PathBuf,
    },
    /// Describe a disk, as JSON.
    Info {
        /// File of the disk.
        vdi: PathBuf,
    },
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(options) => serve(*options),
        Command::Sr(command) => run_sr(command),
        Command::Vdi(command) => run_vdi(command),
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
            raw,
            uuid,
            size,
        } => {
            let uuid = uuid.unwrap_or_else(vdi::new_uuid);
            vdi::import(&Directory::new(&sr), uuid, &raw, size)?;
            println!("{}", sr.join(vdi::file_name(uuid)).display());
        }
        VdiCommand::Export { vdi, raw } => {
            let (store, name) = split(&vdi)?;
            vdi::export(&store, &name, &raw)?;
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

/// The repository and the file's name in it.
fn split(vdi: &Path) -> Result<(Directory, String)> {
    let Some(name) = vdi.file_name().and_then(|name| name.to_str()) else {
        bail!(
            "'{}' is not the file of a disk, such as <sr>/<uuid>.vhd",
            vdi.display()
        );
    };
    let parent = vdi.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((
        Directory::new(parent.unwrap_or(Path::new("."))),
        name.to_owned(),
    ))
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
