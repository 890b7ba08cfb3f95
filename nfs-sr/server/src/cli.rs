//! The command line of `nfs-sr`.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::serve::{ServeOptions, serve};

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
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(options) => serve(*options),
    }
}
