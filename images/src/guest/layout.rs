//! Where a guest's files lie below an NFS export.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use super::SessionGuest;

/// The storage repository of the lab.
pub const SR_UUID: &str = "7b0f6c5e-6d1c-4a9e-9f56-0e1ab0000001";

/// The session guest's root disk in it.
pub const VDI_UUID: &str = "2f3d8a41-5c77-4b1e-8a30-0e1ab0000101";

/// Paths of an exported guest, below the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// `<sr-uuid>/<vdi-uuid>.vhd`
    pub disk: String,
    /// `boot/<name>/vmlinuz`
    pub kernel: String,
    /// `boot/<name>/initrd.img`
    pub initrd: String,
}

/// Copies `guest` below `export` as the boot files `boot/<name>/` and the disk `<SR_UUID>/<vdi_uuid>.vhd`, which must
/// not be there yet: a guest writes to its disk, so each has its own copy.
pub fn export(guest: &SessionGuest, export: &Path, name: &str, vdi_uuid: &str) -> Result<Exported> {
    let exported = Exported {
        disk: format!("{SR_UUID}/{vdi_uuid}.vhd"),
        kernel: format!("boot/{name}/vmlinuz"),
        initrd: format!("boot/{name}/initrd.img"),
    };
    let sh = Shell::new()?;
    for (from, to) in [
        (&guest.disk_vhd, &exported.disk),
        (&guest.kernel, &exported.kernel),
        (&guest.initrd, &exported.initrd),
    ] {
        let to = export.join(to);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        anyhow::ensure!(!to.exists(), "{} is there already", to.display());
        // A file system that can shares the blocks until one side writes.
        cmd!(sh, "cp --reflink=auto --sparse=auto {from} {to}")
            .quiet()
            .run()?;
    }
    Ok(exported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let guest = SessionGuest::in_folder(folder.path());
        for file in [&guest.kernel, &guest.initrd, &guest.disk_vhd] {
            fs::write(file, "x").expect("file");
        }
        let target = folder.path().join("export");
        let exported = export(&guest, &target, "session", VDI_UUID).expect("exported");
        assert_eq!(exported.disk, format!("{SR_UUID}/{VDI_UUID}.vhd"));
        assert!(target.join(&exported.kernel).is_file());
        assert!(export(&guest, &target, "session", VDI_UUID).is_err());
    }
}
