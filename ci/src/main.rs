//! `cargo xtask`: one command for each thing one does with this repository.
//!
//! It knows how to set a machine up and how to call cargo, and nothing of what is built. `make` and shell scripts
//! were left out: cargo is there anyway.

#![forbid(unsafe_code)]

mod cargo;
mod ci;
mod dist;
mod gate;
mod nested;
mod sbom;
mod setup;

use std::process::ExitCode;

use anyhow::Result;
use xshell::Shell;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup           install what building, testing and the demo need
  demo [ARGS]     set up, build, and show a session that lives through migrations (`elab demo ARGS`)
  test            set up, lint, and run all tests: what `ci full` does
  ci SET [ARGS]   what runners of continuous integration run; each set contains the ones before it
                    quick     set up, lint, tests inside the crates
                    full      and the tests of whole programs and machines
                    nightly   and a lab under nested KVM, and every scenario that comes with the program (`elab run ARGS`)
  bench [ARGS]    set up, build, and measure: a host alone, then a lab (`elab bench ARGS`)
  bench nfs       the storage server beside NFS-Ganesha, if that is installed (nfs-ganesha-vfs, rpcbind; as root)
  bench gate [N]  N times (20) a demo with each of three images, for the benchmark of the regression gate, and that benchmark
  nested          a lab under KVM's nested virtualization, on a machine that emulates a CPU with it: slow, needs no KVM
  dist            a bundle that runs on a machine without Rust: target/dist/elab-*.tar.gz
  lint            formatting and clippy, for the machine and for the image

Exit codes: 0 all is well, 1 something failed, 2 wrong usage, 3 this machine lacks something (what, and how to get it, is
printed), or those of `elab`.
";

/// Ends the program with this code. What happened has been printed.
#[derive(Debug, thiserror::Error)]
#[error("ended with exit code {0}")]
pub struct Exit(pub u8);

/// This machine lacks something; the text says what, and what to run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lacking(pub String);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(Exit(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            eprintln!("xtask: {error:#}");
            ExitCode::from(if error.is::<Lacking>() { 3 } else { 1 })
        }
    }
}

fn run() -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match command.as_deref() {
        Some("setup") if rest.is_empty() => setup::run(&sh),
        Some("lint") if rest.is_empty() => cargo::lint(&sh),
        Some("dist") if rest.is_empty() => {
            setup::run(&sh)?;
            dist::run(&sh).map(drop)
        }
        Some("test") if rest.is_empty() => ci::run(&sh, ci::Set::Full, &[]),
        Some("ci") => match rest.split_first() {
            Some((set, more)) => match ci::Set::named(set) {
                // Only the nightly set takes arguments.
                Some(set) if more.is_empty() || set == ci::Set::Nightly => ci::run(&sh, set, more),
                _ => wrong_usage(),
            },
            None => wrong_usage(),
        },
        Some("demo") => {
            setup::run(&sh)?;
            cargo::elab(&sh, "demo", &rest)
        }
        Some("bench") if rest == ["nfs"] => cargo::bench_storage(&sh),
        Some("bench") if rest.first().is_some_and(|word| word == "gate") => match &rest[1..] {
            [] => gate::collect(&sh, 20),
            [runs] => match runs.parse() {
                Ok(runs) => gate::collect(&sh, runs),
                Err(_) => wrong_usage(),
            },
            _ => wrong_usage(),
        },
        Some("nested") if rest.is_empty() => {
            setup::run(&sh)?;
            nested::run(&sh)
        }
        Some("bench") => {
            setup::run(&sh)?;
            cargo::bench(&sh, &rest)
        }
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        _ => wrong_usage(),
    }
}

fn wrong_usage() -> Result<()> {
    eprint!("{USAGE}");
    Err(Exit(2).into())
}
