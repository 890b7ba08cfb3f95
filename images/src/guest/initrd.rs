//! The initrd: busybox, the modules that reach disk and network, and an init that hands over to the disk.
//!
//! Debian's own initramfs-tools would need the guest's maintainer scripts and carries far more; loading and
//! unpacking it under an emulated CPU costs more than the rest of the boot.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use super::rootfs::Kernel;

/// The first program.
pub const INIT: &str = include_str!("../../guest/initrd-init");

/// Modules the guest needs before its disk is there, or that its init would have to load: `true` when the guest
/// cannot do without. What they depend on is found and loaded before them.
pub const MODULES: &[(&str, bool)] = &[
    ("virtio_pci", true),
    ("virtio_blk", true),
    ("virtio_net", true),
    ("ext4", true),
    // ext4's metadata checksums look for it by the name of its algorithm, which is no dependency.
    ("crc32c_generic", false),
    ("virtio_rng", false),
    ("virtio_balloon", false),
    // The power button, and the device file by which programs hear of it.
    ("button", false),
    ("evdev", false),
];

/// Commands that [`INIT`] uses.
const APPLETS: &[&str] = &["cat", "insmod", "mount", "sh", "switch_root", "usleep"];

/// Writes an initrd that loads these modules to `path`.
pub fn write(
    sh: &Shell,
    root: &Path,
    kernel: &Kernel,
    modules: &[(&str, bool)],
    path: &Path,
) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(folder)?;
    }
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file(
        "bin/busybox",
        0o755,
        &fs::read(root.join("usr/bin/busybox"))?,
    )?;
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    let found = Modules::of(sh, kernel)?;
    let order = found.order(modules)?;
    for name in &order {
        archive.file(&format!("modules/{name}.ko"), 0o644, &found.read(name)?)?;
    }
    archive.file("modules/order", 0o644, order.join("\n").as_bytes())?;
    archive.finish()
}

/// The modules of a kernel.
struct Modules<'a> {
    sh: &'a Shell,
    /// Name (with `_` for `-`) and file of each.
    files: Vec<(String, PathBuf)>,
    /// Names of those that are linked into the kernel.
    builtin: Vec<String>,
}

impl<'a> Modules<'a> {
    fn of(sh: &'a Shell, kernel: &Kernel) -> Result<Self> {
        let mut files = Vec::new();
        let mut folders = vec![kernel.modules.join("kernel")];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder)
                .with_context(|| format!("cannot read {}", folder.display()))?;
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.push((name, entry.path()));
                }
            }
        }
        let list = kernel.modules.join("modules.builtin");
        let builtin = fs::read_to_string(&list)
            .with_context(|| format!("cannot read {}", list.display()))?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Self { sh, files, builtin })
    }

    /// All modules to load, each after those it depends on.
    fn order(&self, wanted: &[(&str, bool)]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for (name, required) in wanted {
            if self.file(name).is_some() {
                self.add(name, &mut order)?;
            } else if *required && !self.builtin.iter().any(|builtin| builtin == name) {
                bail!("the kernel has no module {name}");
            }
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<String>) -> Result<()> {
        if order.iter().any(|known| known == name) {
            return Ok(());
        }
        for dependency in dependencies(&self.read(name)?) {
            if self.file(&dependency).is_some() {
                self.add(&dependency, order)?;
            } else if !self.builtin.contains(&dependency) {
                bail!("module {name} depends on {dependency}, which the kernel does not have");
            }
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn file(&self, name: &str) -> Option<&Path> {
        let (_, path) = self.files.iter().find(|(known, _)| known == name)?;
        Some(path)
    }

    /// The module itself: newer releases compress the file.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self
            .file(name)
            .with_context(|| format!("no module {name}"))?;
        let sh = self.sh;
        let bytes = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => {
                cmd!(sh, "xz --decompress --stdout {path}")
                    .quiet()
                    .output()?
                    .stdout
            }
            Some("zst") => {
                cmd!(sh, "zstd --decompress --stdout {path}")
                    .quiet()
                    .output()?
                    .stdout
            }
            _ => fs::read(path)?,
        };
        Ok(bytes)
    }
}

/// The name of the module in a file, or `None` for another kind of file.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = [".ko", ".ko.xz", ".ko.zst"]
        .iter()
        .find_map(|end| file.strip_suffix(end))?;
    Some(name.replace('-', "_"))
}

/// What a module depends on, by its `.modinfo` section: zero-terminated `key=value` strings, one of them
/// `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = &module[start + key.len()..];
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// A cpio archive in the format "newc", as the kernel reads it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<W> {
    out: W,
    entries: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            entries: 0,
            written: 0,
        }
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, 0o040_755, &[])
    }

    fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entry(path, 0o100_000 | mode, contents)
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, 0o120_777, target.as_bytes())
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let size =
            u32::try_from(contents.len()).context("a file of 4 GiB does not fit an initrd")?;
        let (inode, links, name_size) = (self.entries, 1, path.len() + 1);
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}\
             {name_size:08x}{0:08x}",
            0
        );
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(contents)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    fn align(&mut self) -> Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_a_module() {
        assert_eq!(
            dependencies(b"\x7fELF..license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(dependencies(b"x\0depends=\0y").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn module_names_are_normal() {
        assert_eq!(
            module_name(Path::new("kernel/x/virtio-rng.ko.xz")).as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(module_name(Path::new("a/ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }

    #[test]
    fn modules_load_after_what_they_depend_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let kernel = Kernel {
            image: PathBuf::new(),
            modules: folder.path().to_owned(),
        };
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).expect("folder");
        for (name, depends) in [
            ("virtio", "virtio_ring"),
            ("virtio_ring", ""),
            ("virtio_pci", "virtio,virtio_ring"),
            ("virtio_blk", "virtio"),
            ("virtio_net", "failover"),
        ] {
            let contents = format!("\0depends={depends}\0");
            fs::write(drivers.join(format!("{name}.ko")), contents).expect("file");
        }
        let builtin = folder.path().join("modules.builtin");
        fs::write(
            &builtin,
            "kernel/fs/ext4/ext4.ko\nkernel/net/core/failover.ko\n",
        )
        .expect("file");
        let sh = Shell::new().expect("shell");
        let order = Modules::of(&sh, &kernel)
            .expect("modules")
            .order(MODULES)
            .expect("order");
        assert_eq!(
            order,
            [
                "virtio_ring",
                "virtio",
                "virtio_pci",
                "virtio_blk",
                "virtio_net"
            ]
        );

        // Negative: a module that is neither a file nor built in.
        fs::write(&builtin, "kernel/fs/ext4/ext4.ko\n").expect("file");
        let error = Modules::of(&sh, &kernel)
            .expect("modules")
            .order(MODULES)
            .expect_err("refused");
        assert!(error.to_string().contains("failover"), "{error}");
    }

    #[test]
    fn archive_entries_are_aligned() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("init", 0o755, b"#!x").expect("written");
        archive.finish().expect("finished");
        assert_eq!(&bytes[..6], b"070701");
        let name = 110..115;
        assert_eq!(&bytes[name], b"init\0");
        assert_eq!(&bytes[116..120], b"#!x\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
