//! The `nfs-sr` program.

use std::process::ExitCode;

use clap::Parser;
use nfs_sr::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nfs-sr: {error:#}");
            ExitCode::FAILURE
        }
    }
}
