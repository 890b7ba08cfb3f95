//! The bootable ISO image of the hypervisor: a hybrid that starts under BIOS and UEFI, as a CD and as a disk.
//!
//! GRUB does all of that with one configuration. Writing the boot sectors ourselves would be less to
//! install, and much more to keep working.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

use crate::retention;

/// Debian's packages with the tools: GRUB's own for both firmwares, and what `grub-mkrescue` calls.
pub const PACKAGES: &[&str] = &[
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "xorriso",
    "mtools",
];

/// What is on the image.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The hypervisor's ELF file.
    pub hypervisor: PathBuf,
    /// Its command line.
    pub command_line: String,
    /// Files loaded beside it, in this order.
    pub modules: Vec<PathBuf>,
}

impl Contents {
    fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        let modules = self.modules.iter().enumerate();
        let modules = modules.map(|(index, path)| (format!("module{index}"), path.as_path()));
        std::iter::once(("hvcore".to_owned(), self.hypervisor.as_path())).chain(modules)
    }

    /// Commands instead of a menu: there is one thing to start, at once.
    fn grub_config(&self) -> Result<String> {
        ensure!(
            !self.command_line.contains(['\n', '\'']),
            "a command line for GRUB may hold neither quotes nor line ends: {:?}",
            self.command_line
        );
        let mut config = String::from(
            "serial --unit=0 --speed=115200\n\
             terminal_input console serial\n\
             terminal_output console serial\n",
        );
        config += "multiboot2 /boot/hvcore";
        for word in self.command_line.split_whitespace() {
            config += &format!(" '{word}'");
        }
        config += "\n";
        for index in 0..self.modules.len() {
            config += &format!("module2 /boot/module{index}\n");
        }
        config += "boot\n";
        Ok(config)
    }
}

/// Gives the ISO image with these contents from the cache folder, or makes it there.
///
/// # Errors
/// A file cannot be read, a tool is missing or fails, or the disk is full.
pub fn build(contents: &Contents, cache: &Path) -> Result<PathBuf> {
    let config = contents.grub_config()?;
    let mut hash = Sha256::new();
    hash.update(&config);
    for (name, path) in contents.files() {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        hash.update(name);
        hash.update(Sha256::digest(bytes));
    }
    let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let iso = cache.join(format!("hypervisor-{}.iso", &hash[..16]));
    if iso.exists() {
        retention::mark_used(&iso).with_context(|| format!("cannot stamp {}", iso.display()))?;
        return Ok(iso);
    }
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let work = tempfile::tempdir_in(cache)
        .with_context(|| format!("cannot create a folder in {}", cache.display()))?;
    let tree = work.path().join("tree");
    fs::create_dir_all(tree.join("boot/grub"))?;
    fs::write(tree.join("boot/grub/grub.cfg"), config)?;
    for (name, path) in contents.files() {
        fs::copy(path, tree.join("boot").join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let unfinished = work.path().join("iso");
    let shell = Shell::new()?;
    cmd!(shell, "grub-mkrescue --output {unfinished} {tree}")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .with_context(|| {
            format!(
                "cannot make the ISO image; are the Debian packages {} installed?",
                PACKAGES.join(", ")
            )
        })?;
    // Under its name only when it is whole.
    fs::rename(&unfinished, &iso)
        .with_context(|| format!("cannot move the ISO image to {}", iso.display()))?;
    Ok(iso)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_loads_everything_in_order() {
        let contents = Contents {
            hypervisor: "hvcore".into(),
            command_line: "guest memory=64 -- quiet".into(),
            modules: vec!["vmlinuz".into(), "initrd".into()],
        };
        let config = contents.grub_config().unwrap();
        let commands: Vec<&str> = config.lines().skip(3).collect();
        assert_eq!(
            commands,
            [
                "multiboot2 /boot/hvcore 'guest' 'memory=64' '--' 'quiet'",
                "module2 /boot/module0",
                "module2 /boot/module1",
                "boot"
            ]
        );
    }

    #[test]
    fn a_command_line_cannot_break_out_of_its_quotes() {
        let contents = Contents {
            command_line: "a'\nhalt".into(),
            ..Contents::default()
        };
        assert!(contents.grub_config().is_err());
    }
}
