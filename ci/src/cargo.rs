//! Calls of cargo.

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::Exit;
use crate::setup::IMAGE_TARGET;

/// Packages that build only for the bare machine.
const BARE: [&str; 4] = ["--package", "hvcore", "--package", "test-guests"];

/// Formatting and clippy.
pub fn lint(sh: &Shell) -> Result<()> {
    step("formatting");
    cmd!(sh, "cargo fmt --all --check")
        .run()
        .context("run: cargo fmt --all")?;
    step("clippy, for this machine");
    cmd!(
        sh,
        "cargo clippy --quiet --locked --all-targets -- --deny warnings"
    )
    .run()?;
    step("clippy, for the bare machine");
    cmd!(sh, "cargo clippy --quiet --locked --release --target {IMAGE_TARGET} {BARE...} -- --deny warnings").run()?;
    Ok(())
}

/// All tests: those inside the crates first, because they are quick, then those that boot machines.
pub fn test(sh: &Shell) -> Result<()> {
    let nextest = cmd!(sh, "cargo nextest --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok();
    // The same packages each time, so that cargo builds each dependency once.
    step("unit tests");
    if nextest {
        cmd!(sh, "cargo nextest run --locked --lib --bins").run()?;
    } else {
        cmd!(sh, "cargo test --locked --lib --bins").run()?;
    }
    step("artifacts that the tests boot");
    cmd!(
        sh,
        "cargo run --quiet --locked --package images --bin build-images"
    )
    .run()?;
    step("tests of whole programs and machines");
    if nextest {
        cmd!(sh, "cargo nextest run --locked --test *").run()?;
    } else {
        cmd!(sh, "cargo test --locked --test *").run()?;
    }
    Ok(())
}

/// Runs the program `elab`, built for speed.
pub fn elab(sh: &Shell, verb: &str, arguments: &[String]) -> Result<()> {
    step("building");
    cmd!(sh, "cargo build --quiet --locked --release --package elab").run()?;
    // Its exit code says more than that it failed, and it has printed why.
    let status = std::process::Command::new("cargo")
        .current_dir(sh.current_dir())
        .args([
            "run",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "elab",
            "--",
            verb,
        ])
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Exit(u8::try_from(code).unwrap_or(1)).into()),
        None => bail!("elab {verb} ended with {status}"),
    }
}

/// Measures: the hypervisor alone, then a lab that moves its guest again and again.
pub fn bench(sh: &Shell, arguments: &[String]) -> Result<()> {
    step("one host alone");
    cmd!(
        sh,
        "cargo run --quiet --locked --release --package images --bin bench-host"
    )
    .run()?;
    elab(sh, "bench", arguments)
}

/// Measures the storage server and, in turns with it, another one.
pub fn bench_storage(sh: &Shell) -> Result<()> {
    step("the storage server");
    cmd!(
        sh,
        "cargo bench --quiet --locked --package nfs-sr --bench nfs"
    )
    .run()?;
    Ok(())
}

fn step(what: &str) {
    eprintln!("== {what}");
}
