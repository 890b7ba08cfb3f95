//! `cargo xtask dist`: everything that a machine without Rust needs, in one archive.
//!
//! The commit, not the moment, is the time of every file, and the order is that of names: the same program and images give the same
//! archive.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::cargo::step;
use crate::sbom;

/// Files with these names are made here.
const SUMS: &str = "SHA256SUMS";
const SBOM: &str = "sbom.cdx.json";
const README: &str = "README.txt";

/// Builds everything and packs it; gives the archive.
pub fn run(sh: &Shell) -> Result<PathBuf> {
    let metadata = metadata(sh)?;
    let version = version_of(&metadata, "elab")?;
    let commit = cmd!(sh, "git describe --always --dirty --abbrev=12 --exclude=*")
        .quiet()
        .read()
        .context("a bundle says which commit it was built from, and git cannot tell it")?;
    let target = target_folder(&metadata)?;
    let name = format!("elab-{version}-{commit}-x86_64-linux");
    let dist = target.join("dist");
    let folder = dist.join(&name);
    sh.remove_path(&folder)?;
    sh.create_dir(folder.join("scenarios"))?;

    {
        let _commit = sh.push_env("ELAB_COMMIT", &commit);
        program_and_images(sh, &target, &folder)?;
    }
    for path in sh.read_dir("scenarios")? {
        if path.extension().is_some_and(|ending| ending == "toml") {
            sh.copy_file(path, folder.join("scenarios"))?;
        }
    }
    step("what it is made of");
    let lock = sh.read_file("Cargo.lock")?;
    let manifest = sh.read_file(folder.join("images/guest/manifest.json"))?;
    let guest: Value =
        serde_json::from_str(&manifest).context("the guest's manifest is damaged")?;
    let bill = sbom::bill(&metadata, &lock, &guest, &commit)?;
    sh.write_file(
        folder.join(SBOM),
        serde_json::to_string_pretty(&bill)? + "\n",
    )?;
    sh.write_file(folder.join(README), readme(&version, &commit))?;
    let sums = sums(sh, &folder)?;
    sh.write_file(folder.join(SUMS), sums)?;

    step("the archive");
    let archive = dist.join(format!("{name}.tar.gz"));
    let time = cmd!(sh, "git log -1 --format=@%ct").quiet().read()?;
    cmd!(
        sh,
        "tar --create --gzip --sort=name --owner=0 --group=0 --numeric-owner --mtime={time} --directory {dist} --file {archive} {name}"
    )
    .run()?;
    step("a try of it, as a machine without Rust has it");
    try_out(sh, &archive, &dist.join("try"), &name)?;
    let bytes = std::fs::metadata(&archive)
        .with_context(|| format!("cannot find {}", archive.display()))?
        .len();
    println!("{} ({} MB)", archive.display(), bytes / 1_000_000);
    Ok(archive)
}

/// What runs: the program, and the images that it finds beside it.
pub fn program_and_images(sh: &Shell, target: &Path, folder: &Path) -> Result<()> {
    step("the program");
    // Together, so that both are linked from the same builds of what they share.
    cmd!(
        sh,
        "cargo build --quiet --locked --release --package elab --package images"
    )
    .run()?;
    let built = target.join("release");
    sh.copy_file(built.join("elab"), folder)?;
    step("its images");
    let bundle_images = built.join("bundle-images");
    cmd!(sh, "{bundle_images} {folder}").run()?;
    Ok(())
}

/// Unpacks the archive and calls the program without cargo or anything else of this environment.
fn try_out(sh: &Shell, archive: &Path, folder: &Path, name: &str) -> Result<()> {
    sh.remove_path(folder)?;
    sh.create_dir(folder)?;
    cmd!(
        sh,
        "tar --extract --gzip --directory {folder} --file {archive}"
    )
    .run()?;
    let unpacked = folder.join(name);
    {
        let _there = sh.push_dir(&unpacked);
        cmd!(sh, "sha256sum --check --quiet {SUMS}").run()?;
    }
    let scenario = unpacked.join("scenarios/demo.toml");
    let clean = |arguments: &[&str]| -> Result<()> {
        let elab = unpacked.join("elab");
        let _there = sh.push_dir(folder);
        cmd!(sh, "env -i PATH=/usr/bin:/bin {elab} {arguments...}")
            .run()
            .with_context(|| format!("the bundle is not whole: elab {}", arguments.join(" ")))
    };
    clean(&["check", &scenario.display().to_string()])?;
    // The images are found, and the guest is as it was built.
    clean(&["build"])?;
    sh.remove_path(folder)?;
    Ok(())
}

/// Where cargo puts what it builds.
pub fn target_folder(metadata: &Value) -> Result<PathBuf> {
    let folder = metadata["target_directory"].as_str();
    Ok(folder.context("cargo names no target folder")?.into())
}

/// What cargo tells of this workspace.
pub fn metadata(sh: &Shell) -> Result<Value> {
    let text = cmd!(sh, "cargo metadata --locked --format-version 1")
        .quiet()
        .read()?;
    serde_json::from_str(&text).context("cargo's metadata is no JSON")
}

fn version_of(metadata: &Value, package: &str) -> Result<String> {
    let packages = metadata["packages"].as_array();
    packages
        .into_iter()
        .flatten()
        .find(|one| one["name"] == package && one["source"].is_null())
        .and_then(|one| Some(one["version"].as_str()?.to_owned()))
        .with_context(|| format!("cargo knows no package {package}"))
}

/// The sums of all files, as `sha256sum --check` reads them.
fn sums(sh: &Shell, folder: &Path) -> Result<String> {
    let _there = sh.push_dir(folder);
    let list = cmd!(sh, "find . -type f").quiet().read()?;
    let mut files: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("./"))
        .collect();
    files.sort_unstable();
    if files.is_empty() {
        bail!("{} is empty", folder.display());
    }
    Ok(cmd!(sh, "sha256sum {files...}").quiet().read()? + "\n")
}

fn readme(version: &str, commit: &str) -> String {
    format!(
        "elab {version}, built from {commit}

Needs: Linux on x86-64 with the C library of Debian 12 or newer, and three packages:
  sudo apt-get install qemu-system-x86 qemu-utils e2fsprogs

  ./elab doctor       what this machine offers, what is missing
  ./elab demo         a session that lives through a live migration, and the report of it
  ./elab --help       all else

What is here:
  elab                the program; it finds what it needs in images/ beside it
  images/             the hypervisor's bootable image, and the session guest with the licences of its packages
  scenarios/          the scenarios that come with the program, to be changed
  {SBOM}       all that program and guest are made of (CycloneDX)
  {SUMS}          sha256sum --check {SUMS}

The guest's keys are in the bundle and known to everyone who has it: the session network of a lab leads nowhere else.
Licence of elab: Apache-2.0. Of the guest's packages: images/guest/licences.txt; their sources are those of their distribution.
"
    )
}
