//! The session guest: an unmodified Debian kernel and userland that a person works in over SSH.
//!
//! It is built without root and without running anything of the guest's but its key generator: `apt`
//! resolves, downloads and verifies the packages in a private state folder, `dpkg-deb` unpacks them, and
//! the few files of `images/guest/` configure the result. No maintainer script runs and there is no
//! chroot; `debootstrap` and `mmdebstrap` were left out because they need one or the other, or user namespaces.
//!
//! The result is kept below the cache folder, named by the hash of the recipe, and is verified against its
//! manifest whenever it is used.
//!
//! It does not know what runs the guest: the lab, or a plain QEMU in the tests.

pub(crate) mod disk;
pub(crate) mod initrd;
mod keys;
mod layout;
mod licences;
pub(crate) mod manifest;
pub(crate) mod packages;
mod plain_qemu;
pub(crate) mod rootfs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use xshell::Shell;

pub use layout::{Exported, SR_UUID, VDI_UUID, export};
pub use packages::TOOLS;
pub use plain_qemu::PlainQemu;

use crate::retention;
use manifest::Manifest;

/// Packages of the guest; what they depend on comes with them.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "coreutils",
    "dash",
    "dropbear-bin",
    "libc-bin",
    "ncurses-base",
    "ncurses-bin",
    "openbsd-inetd",
    "perl-base",
    "sc",
];

/// Raised when the way of building changes without any input of [`recipe_hash`] changing.
const RECIPE_VERSION: u32 = 3;

/// Files of a built guest, by their names in its folder.
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";
const DISK_VHD: &str = "disk.vhd";
const SSH_KEY: &str = "id_ed25519";
const SSH_HOST_KEY: &str = "host_ed25519.pub";
const LICENCES: &str = "licences.txt";

/// What the kernel is told whoever runs it. An emulated CPU does not speculate, so that mitigations would only cost.
/// Memory is cleared when it is freed and not when it is taken, which costs the same and leaves free memory zero: a
/// quarter less to send when the guest moves.
const PARAMETERS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 init_on_free=1";

/// A built and verified session guest.
#[derive(Clone, Debug)]
pub struct SessionGuest {
    /// Debian's bzImage.
    pub kernel: PathBuf,
    /// Loads the drivers of disk and network and mounts `/dev/vda`.
    pub initrd: PathBuf,
    /// The root disk: ext4 in a dynamic VHD.
    pub disk_vhd: PathBuf,
    /// Private key of `root`, in OpenSSH's format.
    pub ssh_key: PathBuf,
    /// The guest's host key, one line as in `authorized_keys`.
    pub ssh_host_key: PathBuf,
}

impl SessionGuest {
    /// The kernel's command line for a guest of this name and IPv4 address (with prefix length).
    pub fn command_line(&self, name: &str, address: &str, gateway: Option<&str>) -> String {
        let mut line = format!("{PARAMETERS} elab.name={name} elab.address={address}");
        if let Some(gateway) = gateway {
            line.push_str(&format!(" elab.gateway={gateway}"));
        }
        line
    }

    fn in_folder(folder: &Path) -> Self {
        Self {
            kernel: folder.join(KERNEL),
            initrd: folder.join(INITRD),
            disk_vhd: folder.join(DISK_VHD),
            ssh_key: folder.join(SSH_KEY),
            ssh_host_key: folder.join(SSH_HOST_KEY),
        }
    }
}

/// The line a guest prints on its console when its SSH server listens.
pub const READY: &str = "elab: session ready";

/// Gives the session guest from the cache, verified, or builds it there; `progress` is told what happens.
///
/// # Errors
///
/// A tool is missing, a package cannot be had, or the disk is full. A cached guest that fails
/// verification is built anew.
pub fn build(cache: &Path, progress: &dyn Fn(&str)) -> Result<SessionGuest> {
    let distribution = packages::Distribution::of_this_machine()?;
    let name = format!("session-{}", &recipe_hash(&distribution)[..16]);
    let folder = cached(cache, &name, progress, |work, result| {
        build_in(work, result, &distribution, progress)
    })?;
    Ok(SessionGuest::in_folder(&folder))
}

/// Gives the folder `name` of the cache, verified, or has it made: `make` is given a folder to work in and one for its results, which
/// it closes with a manifest.
pub(crate) fn cached(
    cache: &Path,
    name: &str,
    progress: &dyn Fn(&str),
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = cache.join(name);
    let _lock = lock(cache, progress)?;
    if folder.exists() {
        match Manifest::read(&folder).and_then(|manifest| manifest.verify(&folder)) {
            Ok(()) => {
                retention::mark_used(&folder)
                    .with_context(|| format!("cannot stamp {}", folder.display()))?;
                remove_old(cache)?;
                return Ok(folder);
            }
            Err(error) => {
                progress(&format!(
                    "{name}: the cached one is damaged, building anew: {error:#}"
                ));
                fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
    }
    // Built beside its place and moved there when complete, so that a build that dies leaves nothing that
    // looks whole.
    let work = tempfile::Builder::new()
        .prefix("building-")
        .tempdir_in(cache)
        .with_context(|| format!("cannot create a folder in {}", cache.display()))?;
    let result = work.path().join("result");
    fs::create_dir(&result)?;
    make(work.path(), &result)?;
    fs::rename(&result, &folder).with_context(|| format!("cannot create {}", folder.display()))?;
    remove_old(cache)?;
    Ok(folder)
}

/// The session guest of a folder that it was copied to, verified.
///
/// # Errors
/// When it is not as it was built.
pub fn open(folder: &Path) -> Result<SessionGuest> {
    Manifest::read(folder)?.verify(folder)?;
    Ok(SessionGuest::in_folder(folder))
}

/// Removes guests and bootable images that nobody has used for long. The lock must be held.
fn remove_old(cache: &Path) -> Result<()> {
    for prefix in ["session-", "hypervisor-", "nested-"] {
        retention::remove_old(cache, prefix)
            .with_context(|| format!("cannot remove old images in {}", cache.display()))?;
    }
    Ok(())
}

/// One build at a time in a cache: whoever comes second finds the first one's result. The lock ends with the file.
fn lock(cache: &Path, progress: &dyn Fn(&str)) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        progress("another program builds images, waiting");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn build_in(
    work: &Path,
    result: &Path,
    distribution: &packages::Distribution,
    progress: &dyn Fn(&str),
) -> Result<()> {
    let sh = Shell::new()?;
    packages::require_tools()?;

    progress("session guest: fetching packages");
    let names: Vec<&str> = PACKAGES
        .iter()
        .copied()
        .chain([distribution.kernel])
        .collect();
    let packages = packages::download(&sh, &work.join("apt"), &names)?;

    progress(&format!(
        "session guest: unpacking {} packages",
        packages.len()
    ));
    let root = work.join("root");
    rootfs::unpack(&root, &packages)?;
    let kernel = rootfs::find_kernel(&root)?;
    fs::copy(&kernel.image, result.join(KERNEL))?;

    progress("session guest: keys, configuration, initrd");
    let keys = keys::generate(&sh, &root, work)?;
    fs::copy(&keys.client_private, result.join(SSH_KEY))?;
    fs::write(result.join(SSH_HOST_KEY), &keys.host_public)?;
    rootfs::configure(&sh, &root, &keys)?;
    initrd::write(&sh, &root, &kernel, initrd::MODULES, &result.join(INITRD))?;
    licences::write(&root, &result.join(LICENCES))?;
    rootfs::prune(&root)?;

    progress("session guest: disk");
    let raw = work.join("disk.raw");
    disk::write_ext4(&sh, &root, &raw)?;
    disk::write_vhd(&raw, &result.join(DISK_VHD))?;

    Manifest::of(result, &packages)?.write(result)
}

/// Names everything that decides what is built, except the versions of the packages: those are taken when a
/// guest is built and stand in its manifest, so that a cached guest needs no network.
fn recipe_hash(distribution: &packages::Distribution) -> String {
    let mut hash = Sha256::new();
    hash.update(RECIPE_VERSION.to_le_bytes());
    hash.update(distribution.name.as_bytes());
    hash.update(distribution.kernel.as_bytes());
    for package in PACKAGES {
        hash.update(package.as_bytes());
        hash.update(b"\n");
    }
    for (path, mode, contents) in rootfs::FILES {
        hash.update(path.as_bytes());
        hash.update(mode.to_le_bytes());
        hash.update(contents.as_bytes());
    }
    hash.update(initrd::INIT.as_bytes());
    for (name, _) in initrd::MODULES {
        hash.update(name.as_bytes());
        hash.update(b"\n");
    }
    manifest::hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_hash_depends_on_the_distribution() {
        let debian =
            packages::Distribution::from_os_release("ID=debian\nVERSION_CODENAME=bookworm")
                .expect("known");
        let ubuntu = packages::Distribution::from_os_release("ID=ubuntu\nVERSION_CODENAME=jammy")
            .expect("known");
        assert_ne!(recipe_hash(&debian), recipe_hash(&ubuntu));
        assert_eq!(recipe_hash(&debian), recipe_hash(&debian));
    }

    #[test]
    fn the_command_line_names_the_guest_and_its_network() {
        let guest = SessionGuest::in_folder(Path::new("/x"));
        let line = guest.command_line("g1", "198.18.2.101/24", Some("198.18.2.1"));
        assert!(line.contains("elab.address=198.18.2.101/24"));
        assert!(line.contains("elab.gateway=198.18.2.1"));
        assert!(
            !guest
                .command_line("g1", "198.18.2.101/24", None)
                .contains("gateway")
        );
    }
}
