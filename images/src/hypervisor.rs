//! What is built for the bare machine: the hypervisor image, one ELF file that QEMU boots by `-kernel` and GRUB
//! from a disk, and the kernel that holds its test guests.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// The target it is built for; the toolchain needs it installed (`rustup target add`).
pub const TARGET: &str = "x86_64-unknown-none";

/// Builds the image, or finds that it is up to date; gives the file.
///
/// # Errors
/// When it does not compile. Cargo's messages have gone to the terminal by then.
pub fn build() -> Result<PathBuf> {
    build_package("hvcore")
}

/// As [`build`], for the kernel of `hvcore/test-guests`.
///
/// # Errors
/// As [`build`].
pub fn build_test_guests() -> Result<PathBuf> {
    build_package("test-guests")
}

/// Builds a package whose binary has its name.
fn build_package(package: &str) -> Result<PathBuf> {
    let shell = Shell::new()?;
    shell.change_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let messages = cmd!(
        shell,
        "{cargo} build --quiet --release --package {package} --target {TARGET} --message-format json-render-diagnostics"
    )
    // Flags meant for the program that calls this would go before those of the target.
    .env_remove("RUSTFLAGS")
    .env_remove("CARGO_ENCODED_RUSTFLAGS")
    .quiet()
    .read()
    .with_context(|| {
        format!("{package} does not build; if the target is missing: rustup target add {TARGET}")
    })?;
    // The path depends on cargo's settings, so cargo is asked: one JSON object on each line
    // (The Cargo Book, "External tools").
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("cargo's message is not JSON: {line}"))?;
        if message["target"]["name"] == package
            && let Some(file) = message["executable"].as_str()
        {
            return Ok(file.into());
        }
    }
    bail!("cargo built no executable {package}")
}
