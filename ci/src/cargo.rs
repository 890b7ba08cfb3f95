//! Calls of cargo.

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::Exit;
use crate::setup::IMAGE_TARGET;

/// Packages that build only for the bare machine.
const BARE: [&str; 4] = ["--package", "hvcore", "--package", "test-guests"];

/// Formatting and clippy.
pub fn lint(sh: &Shell) -> Result<()> {
    format(sh)?;
    clippy(sh)?;
    clippy_bare(sh)
}

/// Whether everything is formatted.
pub fn format(sh: &Shell) -> Result<()> {
    step("formatting");
    cmd!(sh, "cargo fmt --all --check")
        .run()
        .context("run: cargo fmt --all")
}

/// Clippy, for this machine.
pub fn clippy(sh: &Shell) -> Result<()> {
    step("clippy, for this machine");
    cmd!(
        sh,
        "cargo clippy --quiet --locked --all-targets -- --deny warnings"
    )
    .run()?;
    Ok(())
}

/// Clippy of what is built for the bare machine.
pub fn clippy_bare(sh: &Shell) -> Result<()> {
    step("clippy, for the bare machine");
    cmd!(sh, "cargo clippy --quiet --locked --release --target {IMAGE_TARGET} {BARE...} -- --deny warnings").run()?;
    Ok(())
}

/// Tests inside the crates: no machine is booted.
pub const UNIT_TESTS: &[&str] = &["--lib", "--bins"];
/// Tests that boot machines and run whole programs.
pub const WHOLE_TESTS: &[&str] = &["--test", "*"];

/// What the tests boot: image, guests.
pub fn artifacts(sh: &Shell) -> Result<()> {
    step("artifacts that the tests boot");
    cmd!(
        sh,
        "cargo run --quiet --locked --package images --bin build-images"
    )
    .run()?;
    Ok(())
}

/// Builds tests, so that the time of what follows is theirs.
pub fn build_tests(sh: &Shell, which: &[&str]) -> Result<()> {
    step("building tests");
    if has_nextest(sh) {
        cmd!(sh, "cargo nextest run --locked --no-run {which...}").run()?;
    } else {
        cmd!(sh, "cargo test --quiet --locked --no-run {which...}").run()?;
    }
    Ok(())
}

/// Runs tests: of all packages each time, so that cargo builds each dependency once.
pub fn tests(sh: &Shell, which: &[&str]) -> Result<()> {
    step("tests");
    if has_nextest(sh) {
        cmd!(sh, "cargo nextest run --locked {which...}").run()?;
    } else {
        cmd!(sh, "cargo test --locked {which...}").run()?;
    }
    Ok(())
}

fn has_nextest(sh: &Shell) -> bool {
    cmd!(sh, "cargo nextest --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
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

/// Every scenario that comes with the program.
pub fn scenarios(sh: &Shell, arguments: &[String]) -> Result<()> {
    let mut words: Vec<String> = sh
        .read_dir("scenarios")?
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| path.display().to_string())
        .collect();
    words.sort();
    words.extend_from_slice(arguments);
    elab(sh, "run", &words)
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

pub fn step(what: &str) {
    eprintln!("== {what}");
}
