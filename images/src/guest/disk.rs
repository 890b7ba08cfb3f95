//! The guest's root disk: ext4 in a raw image, and the same as a dynamic VHD.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use nfs_sr::sr::store::Directory;
use nfs_sr::sr::vdi;
use vhd::Uuid;
use xshell::{Shell, cmd};

use super::VDI_UUID;

/// Size of the root disk. The file system uses about a quarter of it; holes take no space.
const DISK_BYTES: u64 = 1 << 30;

/// Makes an ext4 file system of everything below `root`, in a sparse file.
pub fn write_ext4(sh: &Shell, root: &Path, image: &Path) -> Result<()> {
    File::create(image)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("cannot create {}", image.display()))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let _path = sh.push_env("PATH", format!("{path}:/usr/sbin:/sbin"));
    // Under fakeroot every file looks like root's, whoever builds. Inode tables and journal are initialised
    // here: lazily, the guest's kernel would write them in the background of every first boot.
    cmd!(
        sh,
        "fakeroot mke2fs -q -F -t ext4 -L elab-root -m 0 -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0
         -J size=16 -d {root} {image}"
    )
    .quiet()
    .run()
    .context("cannot make the guest's file system")
}

/// Turns the raw image into a dynamic VHD.
pub fn write_vhd(raw: &Path, vhd: &Path) -> Result<()> {
    let folder = vhd.parent().context("a file has a folder")?;
    let uuid: Uuid = VDI_UUID.parse().expect("the constant is a UUID");
    vdi::import(&Directory::new(folder), uuid, raw, None)
        .context("cannot convert the guest's disk to VHD")?;
    fs::rename(folder.join(vdi::file_name(uuid)), vhd)
        .with_context(|| format!("cannot create {}", vhd.display()))
}
