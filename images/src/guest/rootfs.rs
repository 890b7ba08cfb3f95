//! The guest's root file system: packages unpacked, then configured by a few files of our own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use super::keys::Keys;
use super::packages::{self, Package};

/// Our files in the guest: path, mode, contents.
pub const FILES: &[(&str, u32, &str)] = &[
    // Busybox's acpid names a press of any power button so.
    (
        "etc/acpi/PWRF/00000080",
        0o755,
        include_str!("../../guest/power-button"),
    ),
    ("etc/fstab", 0o644, include_str!("../../guest/fstab")),
    ("etc/group", 0o644, include_str!("../../guest/group")),
    (
        "etc/inetd.conf",
        0o644,
        include_str!("../../guest/inetd.conf"),
    ),
    ("etc/inittab", 0o644, include_str!("../../guest/inittab")),
    (
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files\nservices: files\n",
    ),
    ("etc/passwd", 0o644, include_str!("../../guest/passwd")),
    ("etc/profile", 0o644, include_str!("../../guest/profile")),
    ("etc/rc", 0o755, include_str!("../../guest/rc")),
    ("etc/services", 0o644, include_str!("../../guest/services")),
    ("etc/shadow", 0o600, include_str!("../../guest/shadow")),
    ("etc/shells", 0o644, "/bin/sh\n"),
    (
        "usr/bin/elab-dirty",
        0o755,
        include_str!("../../guest/elab-dirty"),
    ),
    (
        "usr/bin/elab-disk",
        0o755,
        include_str!("../../guest/elab-disk"),
    ),
];

/// What nothing in the guest reads.
const PRUNED: &[&str] = &[
    "boot",
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl",
    "var/cache",
];

/// The kernel among the unpacked packages.
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Folder of its modules.
    pub modules: PathBuf,
}

/// Unpacks `packages` below `root`.
pub fn unpack(root: &Path, packages: &[Package]) -> Result<()> {
    // The merged /usr, as every supported release has it.
    for folder in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(folder))?;
        symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    for package in packages {
        packages::unpack(package, root)?;
    }
    Ok(())
}

/// Finds the one kernel that was unpacked.
pub fn find_kernel(root: &Path) -> Result<Kernel> {
    let boot = root.join("boot");
    for entry in fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            let modules = root.join("usr/lib/modules").join(version);
            return Ok(Kernel {
                image: path,
                modules,
            });
        }
    }
    bail!(
        "the packages hold no kernel: {} has no vmlinuz",
        boot.display()
    )
}

/// Writes our files, the keys, and links to busybox for the commands that no package has.
pub fn configure(sh: &Shell, root: &Path, keys: &Keys) -> Result<()> {
    for folder in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root/.ssh",
        "mnt",
        "etc/acpi/PWRF",
        "etc/dropbear",
        "var/log",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for (path, mode, contents) in FILES {
        write(&root.join(path), *mode, contents.as_bytes())?;
    }
    write(
        &root.join("root/.ssh/authorized_keys"),
        0o600,
        keys.client_public.as_bytes(),
    )?;
    write(
        &root.join("etc/dropbear/dropbear_ed25519_host_key"),
        0o600,
        &keys.host_private,
    )?;
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;

    link_applets(sh, root)?;
    let init = root.join("usr/sbin/init");
    if fs::symlink_metadata(&init).is_err() {
        symlink("../bin/busybox", &init)?;
    }
    Ok(())
}

/// Links busybox to the commands that no package has.
pub fn link_applets(sh: &Shell, root: &Path) -> Result<()> {
    // It is statically linked, so it runs here as it will run there.
    let busybox = root.join("usr/bin/busybox");
    for applet in cmd!(sh, "{busybox} --list").quiet().read()?.lines() {
        let places = ["usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(applet));
        if places
            .iter()
            .all(|place| fs::symlink_metadata(place).is_err())
        {
            symlink("busybox", &places[0])?;
        }
    }
    Ok(())
}

/// Removes what the guest does not need.
pub fn prune(root: &Path) -> Result<()> {
    for path in PRUNED {
        match fs::remove_dir_all(root.join(path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes a file with this mode.
pub fn write(path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_with_its_modules() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(find_kernel(root.path()).is_err());
        fs::create_dir(root.path().join("boot")).expect("boot");
        assert!(find_kernel(root.path()).is_err());
        fs::write(root.path().join("boot/config-6.1"), "").expect("file");
        fs::write(root.path().join("boot/vmlinuz-6.1"), "").expect("file");
        let kernel = find_kernel(root.path()).expect("found");
        assert!(kernel.modules.ends_with("usr/lib/modules/6.1"));
    }
}
