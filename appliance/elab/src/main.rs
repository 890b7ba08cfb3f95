//! The `elab` program.

use std::process::ExitCode;

use clap::Parser;
use elab::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("elab: {error:#}");
            cli::exit_code(&error)
        }
    }
}
