//! A Linux root tree, such as a physical machine's, becomes a disk that a virtual machine boots: what P2V is, without the
//! guessing. The tree's own kernel and initial RAM disk are used, and nothing in the tree is changed.
//!
//! What would keep it from booting is found before anything is written: no kernel or no initrd, no driver of the virtual
//! disk in either. Repairing it here (running the tree's `update-initramfs`) was rejected: it runs code of the tree.
//!
//! It does not know repositories of machines: it gives a raw disk, two files and a command line.

mod initrd;

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

/// What the kernel must have built in, or its initrd bring, to find its root on a virtual disk.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// How initrds are called, before and after the kernel's version: by Debian, Fedora, others.
const INITRDS: [(&str, &str); 4] = [
    ("initrd.img-", ""),
    ("initramfs-", ".img"),
    ("initrd-", ""),
    ("initramfs-", ""),
];
/// Room on the disk beside what the tree holds: a quarter more, and as much as this.
const ROOM: u64 = 256 << 20;

/// A tree, unpacked.
pub struct Tree {
    root: PathBuf,
    /// Who owns what, as it was in the tree: for whoever unpacks without being the superuser.
    owners: PathBuf,
}

/// What starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's version.
    pub version: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// The root file system will have this UUID, which the command line names.
    pub uuid: String,
    /// What the kernel is told.
    pub command_line: String,
    /// What may be missing in the new machine, for people.
    pub notes: Vec<String>,
}

impl Tree {
    /// Unpacks a tree, a directory or an archive that `tar` knows, into a folder. Of a directory what lies on other file systems
    /// (`/proc`, mounted disks) is left out.
    ///
    /// # Errors
    /// When it cannot be read, or a program is missing.
    pub fn unpack(source: &Path, into: &Path) -> Result<Self> {
        let sh = Shell::new()?;
        let tree = Self {
            root: into.join("root"),
            owners: into.join("owners"),
        };
        fs::create_dir(&tree.root)?;
        let (root, owners) = (&tree.root, &tree.owners);
        // One shell below one fakeroot, so that the owners of the directory and of its copy are seen alike.
        let script = if source.is_dir() {
            "tar -C \"$0\" --one-file-system --numeric-owner -c . | tar -C \"$1\" --numeric-owner -xp"
        } else {
            "tar -C \"$1\" --numeric-owner -xpf \"$0\""
        };
        let source = source
            .canonicalize()
            .with_context(|| format!("cannot read {}", source.display()))?;
        cmd!(sh, "fakeroot -s {owners} sh -c {script} {source} {root}")
            .quiet()
            .run()
            .with_context(|| format!("cannot unpack {}", source.display()))?;
        Ok(tree)
    }

    /// Finds what starts the tree.
    ///
    /// # Errors
    /// When it would not boot on a virtual disk; the text says why and what to do about it.
    pub fn boot(&self) -> Result<Boot> {
        let (version, kernel, initrd) = self.kernel()?;
        let image = fs::read(&kernel)?;
        // Linux, Documentation/arch/x86/boot.rst.
        ensure!(
            image.get(0x202..0x206) == Some(b"HdrS"),
            "/boot/vmlinuz-{version} is no kernel for x86"
        );
        let brought = initrd::names(&initrd)
            .with_context(|| format!("the initrd of kernel {version} cannot be read"))?;
        let modules = self.inside(&format!("usr/lib/modules/{version}/modules.builtin"));
        let modules =
            modules.or_else(|| self.inside(&format!("lib/modules/{version}/modules.builtin")));
        let builtin = match modules {
            Some(list) => fs::read_to_string(list)?,
            None => String::new(),
        };
        let has = |driver: &str| {
            let files = brought.iter().map(String::as_str).chain(builtin.lines());
            files.filter_map(module_name).any(|name| name == driver)
        };
        let missing: Vec<&str> = DRIVERS.into_iter().filter(|driver| !has(driver)).collect();
        if !missing.is_empty() {
            bail!(
                "kernel {version} would not find its disk: neither it nor its initrd has {}. In the tree, add these names to \
                 /etc/initramfs-tools/modules and run update-initramfs -u (with dracut: dracut --force --add-drivers \"{}\"), \
                 and import it again",
                missing.join(", "),
                missing.join(" ")
            );
        }
        let fstab = match self.inside("etc/fstab") {
            Some(file) => fs::read_to_string(file)?,
            None => String::new(),
        };
        let (uuid, mut notes) = read_fstab(&fstab);
        let uuid = match uuid {
            Some(uuid) => uuid,
            None => nfs_sr::sr::vdi::new_uuid().to_string(),
        };
        if !has("virtio_net") && !self.has_module(&version, "virtio_net") {
            notes.push(format!(
                "kernel {version} has no virtio_net: the machine will have no network"
            ));
        }
        Ok(Boot {
            command_line: format!("root=UUID={uuid} ro console=ttyS0"),
            version,
            kernel,
            initrd,
            uuid,
            notes,
        })
    }

    /// Makes the disk: one ext4 file system, without partitions, in a sparse file. Gives its size.
    ///
    /// # Errors
    /// When the tree does not fit, or a program is missing.
    pub fn write_disk(&self, boot: &Boot, size: Option<u64>, image: &Path) -> Result<u64> {
        let sh = Shell::new()?;
        let (root, owners, uuid) = (&self.root, &self.owners, &boot.uuid);
        let held = cmd!(sh, "du -s --block-size=1 {root}").quiet().read()?;
        let held = held
            .split_whitespace()
            .next()
            .and_then(|bytes| bytes.parse().ok());
        let held: u64 = held.context("du says nothing of the tree's size")?;
        let size = size.unwrap_or((held + held / 4 + ROOM).next_multiple_of(64 << 20));
        fs::File::create(image)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("cannot create {}", image.display()))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let _path = sh.push_env("PATH", format!("{path}:/usr/sbin:/sbin"));
        cmd!(
            sh,
            "fakeroot -i {owners} mke2fs -q -F -t ext4 -U {uuid} -m 1 -d {root} {image}"
        )
        .quiet()
        .run()
        .with_context(|| {
            format!("cannot make a file system of {size} bytes of the tree; does it fit?")
        })?;
        Ok(size)
    }

    /// A file of the tree, unless it, or a folder above it, is a link: that could lead out of the tree.
    fn inside(&self, path: &str) -> Option<PathBuf> {
        let mut file = self.root.clone();
        for part in path.split('/') {
            file.push(part);
            if fs::symlink_metadata(&file).ok()?.is_symlink() {
                return None;
            }
        }
        Some(file)
    }

    /// The newest kernel that has an initrd.
    fn kernel(&self) -> Result<(String, PathBuf, PathBuf)> {
        let boot = self.inside("boot").context(
            "the tree has no directory /boot: it is no root tree, or its kernels were not copied",
        )?;
        let mut found = Vec::new();
        let mut lonely = Vec::new();
        for entry in fs::read_dir(&boot)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_prefix("vmlinuz-") else {
                continue;
            };
            let Some(kernel) = self.inside(&format!("boot/{name}")) else {
                continue;
            };
            let initrd = INITRDS
                .iter()
                .find_map(|(before, after)| self.inside(&format!("boot/{before}{version}{after}")));
            match initrd {
                Some(initrd) => found.push((version.to_owned(), kernel, initrd)),
                None => lonely.push(version.to_owned()),
            }
        }
        found.sort_by(|a, b| by_version(&a.0, &b.0));
        found.pop().with_context(|| match &lonely[..] {
            [] => "the tree has no kernel: /boot has no vmlinuz-<version>".to_owned(),
            versions => format!(
                "no kernel in the tree has an initrd: {}",
                versions.join(", ")
            ),
        })
    }

    fn has_module(&self, version: &str, wanted: &str) -> bool {
        let lists = ["usr/lib", "lib"].map(|lib| format!("{lib}/modules/{version}/modules.dep"));
        let list = lists.iter().find_map(|list| self.inside(list));
        let text = list
            .and_then(|list| fs::read_to_string(list).ok())
            .unwrap_or_default();
        let files = text.lines().filter_map(|line| line.split(':').next());
        files.filter_map(module_name).any(|name| name == wanted)
    }
}

/// Name of the module in a file such as `kernel/drivers/block/virtio_blk.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let name = file.rsplit('/').next()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// Orders versions as people do: 6.10 is after 6.9.
fn by_version(a: &str, b: &str) -> Ordering {
    fn parts(version: &str) -> Vec<(u64, &str)> {
        let words = version.split(['.', '-', '+', '_', '~']);
        words
            .map(|word| (word.parse().unwrap_or(0), word))
            .collect()
    }
    parts(a).cmp(&parts(b))
}

/// The UUID that `/etc/fstab` names for the root, and what else it wants that the new machine does not have.
fn read_fstab(fstab: &str) -> (Option<String>, Vec<String>) {
    let (mut uuid, mut notes) = (None, Vec::new());
    for line in fstab.lines() {
        let mut fields = line.split_whitespace();
        let (Some(what), Some(place), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if what.starts_with('#')
            || matches!(kind, "proc" | "sysfs" | "tmpfs" | "devpts" | "debugfs")
        {
            continue;
        }
        let named = what
            .strip_prefix("UUID=")
            .map(|uuid| uuid.trim_matches('"').to_lowercase());
        match named.filter(|uuid| place == "/" && uuid.parse::<vhd::Uuid>().is_ok()) {
            Some(root) => uuid = Some(root),
            None => notes.push(format!(
                "/etc/fstab mounts {what} on {place}, which the new machine does not have; its boot may wait for it"
            )),
        }
    }
    (uuid, notes)
}

#[cfg(test)]
mod tests;
