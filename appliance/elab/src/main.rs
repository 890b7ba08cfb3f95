//! The `elab` program.

use std::process::ExitCode;

use clap::Parser;
use elab::cli::{self, Cli};
use nix::sys::signal::SigSet;

fn main() -> ExitCode {
    // Whoever started this may wait for signals itself, as `elab tui` does, and have them blocked: nothing would end us then.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        eprintln!("elab: cannot unblock signals: {error}");
    }
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("elab: {error:#}");
            cli::exit_code(&error)
        }
    }
}
