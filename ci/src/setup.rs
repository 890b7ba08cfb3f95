//! Sets a machine up: the Rust target of the image and Debian or Ubuntu packages.
//!
//! Each need is looked for by the file that is used, not by package, so that whatever way it came to be there
//! counts. Nothing but what is missing is installed.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::Lacking;

/// What the hypervisor image is built for.
pub const IMAGE_TARGET: &str = "x86_64-unknown-none";

/// A program (by name) or file (by path), and the package that has it.
const NEEDS: &[(&str, &str)] = &[
    // Building.
    ("cc", "gcc"),
    ("/usr/include/stdlib.h", "libc6-dev"),
    // Hosts and guests.
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("/usr/share/ovmf/OVMF.fd", "ovmf"),
    // The bootable image.
    ("grub-mkrescue", "grub-common"),
    ("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
    (
        "/usr/lib/grub/x86_64-efi/multiboot2.mod",
        "grub-efi-amd64-bin",
    ),
    ("xorriso", "xorriso"),
    ("mformat", "mtools"),
    // The session guest.
    ("dpkg-deb", "dpkg"),
    ("fakeroot", "fakeroot"),
    ("mke2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    // Tests: reference tools, and the spreadsheet on a terminal.
    ("iasl", "acpica-tools"),
    ("nfs-ls", "libnfs-utils"),
    (
        "/usr/lib/x86_64-linux-gnu/qemu/block-nfs.so",
        "qemu-block-extra",
    ),
    ("sc", "sc"),
    ("xva-img", "xva-img"),
    ("script", "bsdutils"),
    ("ssh", "openssh-client"),
    ("chromium", "chromium"),
    ("git", "git"),
];

/// Packages must not ask for their configuration.
const NO_QUESTIONS: &str = "DEBIAN_FRONTEND=noninteractive";

/// Makes everything be there, or says what to run.
pub fn run(sh: &Shell) -> Result<()> {
    rust_target(sh)?;
    packages(sh)
}

fn rust_target(sh: &Shell) -> Result<()> {
    let libraries = cmd!(sh, "rustc --print target-libdir --target {IMAGE_TARGET}")
        .quiet()
        .read()?;
    if Path::new(&libraries).is_dir() {
        return Ok(());
    }
    eprintln!("== installing the Rust target {IMAGE_TARGET}");
    cmd!(sh, "rustup target add {IMAGE_TARGET}")
        .run()
        .map_err(|error| {
            let words = format!(
                "the Rust target is missing ({error}); run: rustup target add {IMAGE_TARGET}"
            );
            Lacking(words).into()
        })
}

fn packages(sh: &Shell) -> Result<()> {
    let missing: Vec<&str> = NEEDS
        .iter()
        .filter(|(need, _)| !is_there(need))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_program("apt-get") {
        let words = format!("this machine lacks what these packages of Debian have: {list}");
        return Err(Lacking(words).into());
    }
    let by_hand = by_hand(&list, is_program("sudo"));
    let Some(apt_get) = apt_get_as_root(sh)? else {
        return Err(Lacking(format!("packages are missing; run: {by_hand}")).into());
    };
    let (program, before) = apt_get.split_first().expect("it names a program");
    eprintln!("== installing packages: {list}");
    cmd!(sh, "{program} {before...} -qq update").run()?;
    cmd!(
        sh,
        "{program} {before...} -qq install --no-install-recommends -y {missing...}"
    )
    .run()
    .with_context(|| format!("packages cannot be installed; try: {by_hand}"))?;
    match NEEDS.iter().find(|(need, _)| !is_there(need)) {
        None => Ok(()),
        Some((need, package)) => bail!("{package} is installed, but {need} is not there"),
    }
}

/// The one line that installs packages, for whoever can become root.
fn by_hand(list: &str, sudo: bool) -> String {
    let install = format!("apt-get update && apt-get install --no-install-recommends --yes {list}");
    if sudo {
        format!("sudo sh -c '{install}'")
    } else {
        format!("su --login --command '{install}'")
    }
}

/// The words that run `apt-get` as root, if that can be had.
fn apt_get_as_root(sh: &Shell) -> Result<Option<Vec<&'static str>>> {
    if cmd!(sh, "id --user").quiet().read()? == "0" {
        return Ok(Some(vec!["env", NO_QUESTIONS, "apt-get"]));
    }
    if !is_program("sudo") {
        return Ok(None);
    }
    let without_password = cmd!(sh, "sudo --non-interactive true")
        .quiet()
        .ignore_stderr()
        .run()
        .is_ok();
    // At a terminal, sudo can ask.
    Ok((without_password || std::io::stdin().is_terminal())
        .then(|| vec!["sudo", "env", NO_QUESTIONS, "apt-get"]))
}

fn is_there(need: &str) -> bool {
    if need.starts_with('/') {
        Path::new(need).exists()
    } else {
        is_program(need)
    }
}

/// Users' PATH may lack the folders of the administrator's programs, which they may run all the same.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_looked_for_by_path_or_by_name() {
        assert!(is_there("/etc/os-release"));
        assert!(is_there("sh"));
        assert!(!is_there("/etc/no-such-file"));
        assert!(!is_there("no-such-program"));
    }

    #[test]
    fn what_is_to_be_run_by_hand_is_one_line_for_those_with_and_without_sudo() {
        let install = "apt-get update && apt-get install --no-install-recommends --yes a b";
        assert_eq!(by_hand("a b", true), format!("sudo sh -c '{install}'"));
        assert_eq!(
            by_hand("a b", false),
            format!("su --login --command '{install}'")
        );
    }
}
