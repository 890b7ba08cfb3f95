//! The machines that a lab's repository knows: a record of each lies beside its disks, so that what is exported from a
//! repository, or imported into it while the lab runs, needs nothing of the lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::vm::{DirectBoot, Disk, Nic, Vm};
use host_protocol::{DiskConfig, VmConfig};
use images::guest::SR_UUID;
use vhd::Uuid;

use crate::network::SESSION;

/// The repository of an export.
#[must_use]
pub fn repository(export: &Path) -> PathBuf {
    export.join(SR_UUID)
}

/// Records the machines that a lab begins with.
pub(super) fn write(export: &Path, vms: &[VmConfig]) -> Result<()> {
    let repository = repository(export);
    let there = |disk: &DiskConfig| export.join(&disk.path).is_file();
    for config in vms.iter().filter(|config| config.disks.iter().all(there)) {
        if !repository.is_dir() {
            continue;
        }
        let vm = described(&repository, config)?;
        transfer::record(&repository, &vm)
            .with_context(|| format!("cannot record VM \"{}\"", config.name))?;
    }
    Ok(())
}

/// What hosts are told of a machine, if the repository knows it.
pub(super) fn read(export: &Path, name: &str) -> Result<Option<VmConfig>> {
    let repository = repository(export);
    if !repository.is_dir() {
        return Ok(None);
    }
    let known = transfer::machines(&repository)?;
    let Some(vm) = known.iter().find(|vm| vm.name == name) else {
        return Ok(None);
    };
    if vm.template {
        bail!("\"{name}\" is a template; make a VM from it: elab vm clone {name} NEW");
    }
    config(export, vm).map(Some)
}

/// The template of this name.
pub(super) fn template(repository: &Path, name: &str) -> Result<Option<Vm>> {
    let mut known = transfer::machines(repository)?.into_iter();
    Ok(known.find(|one| one.template && one.name == name))
}

/// A machine in the words of its record, with what hosts are told of it.
pub(super) fn described(repository: &Path, config: &VmConfig) -> Result<Vm> {
    let uuid = Uuid(config.id).to_string();
    let mut recorded = transfer::machines(repository)?.into_iter();
    let recorded = recorded.find(|one| one.uuid == uuid);
    let disk = |disk: &DiskConfig| {
        let file = Path::new(&disk.path);
        let uuid = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a disk's file is named by its UUID")?;
        Ok(Disk {
            uuid: uuid.to_owned(),
            name: config.name.clone(),
            size: transfer::size(repository, uuid)?,
        })
    };
    Ok(Vm {
        uuid,
        name: config.name.clone(),
        memory: u64::from(config.memory_mib) << 20,
        vcpus: config.vcpus.into(),
        weight: config.weight.into(),
        direct_boot: Some(DirectBoot {
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone().unwrap_or_default(),
            command_line: config.cmdline.clone(),
        }),
        disks: config.disks.iter().map(disk).collect::<Result<_>>()?,
        nics: config.nics.iter().map(nic).collect(),
        ..recorded.unwrap_or_default()
    })
}

fn nic(mac: &[u8; 6]) -> Nic {
    Nic {
        mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
        network: SESSION.name.into(),
        model: String::new(),
    }
}

/// Kernels lie in the export, and an archive holds none: a pool runs what it has itself.
fn config(export: &Path, vm: &Vm) -> Result<VmConfig> {
    let name = &vm.name;
    let Some(boot) = &vm.direct_boot else {
        bail!(
            "VM \"{name}\" starts from its disk, by firmware; the hosts of this lab start a kernel"
        );
    };
    for file in [&boot.kernel, &boot.initrd] {
        let plain = file.split('/').all(|part| !part.is_empty() && part != "..");
        if !plain || !export.join(file).is_file() {
            bail!(
                "VM \"{name}\" starts {file}, which this pool does not have; copy it below {}",
                export.display()
            );
        }
    }
    let disk = |disk: &Disk| DiskConfig {
        path: format!("{SR_UUID}/{}.vhd", disk.uuid),
        read_only: false,
    };
    Ok(VmConfig {
        id: vm
            .uuid
            .parse::<Uuid>()
            .map_err(|error| anyhow::anyhow!("VM \"{name}\": its identity is {error}"))?
            .0,
        name: name.clone(),
        memory_mib: u32::try_from(vm.memory >> 20).context("the machine has too much memory")?,
        vcpus: u8::try_from(vm.vcpus).context("the machine has too many vCPUs")?,
        weight: u16::try_from(vm.weight).context("the machine's weight is too large")?,
        kernel: boot.kernel.clone(),
        initrd: Some(boot.initrd.clone()),
        cmdline: boot.command_line.clone(),
        disks: vm.disks.iter().map(disk).collect(),
        nics: vm
            .nics
            .iter()
            .map(|nic| mac(&nic.mac))
            .collect::<Result<_>>()?,
    })
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let parts: Vec<&str> = text.split(':').collect();
    let bytes: Option<Vec<u8>> = parts
        .iter()
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("\"{text}\" is not a MAC address such as 02:e1:ab:10:00:01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_the_same_after_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let export = folder.path();
        let repository = nfs_sr::sr::create(export, SR_UUID.parse().unwrap()).unwrap();
        let store = nfs_sr::sr::store::Directory::new(&repository);
        let uuid = nfs_sr::sr::vdi::new_uuid();
        nfs_sr::sr::vdi::create(&store, uuid, 4 << 20, vhd::DiskKind::Dynamic).unwrap();
        std::fs::create_dir_all(export.join("boot/session")).unwrap();
        let before = VmConfig {
            kernel: "boot/session/vmlinuz".into(),
            initrd: Some("boot/session/initrd.img".into()),
            cmdline: "root=/dev/vda".into(),
            disks: vec![DiskConfig {
                path: format!("{SR_UUID}/{uuid}.vhd"),
                read_only: false,
            }],
            nics: vec![[2, 0xe1, 0xab, 0x10, 0, 1]],
            ..super::super::test_lab::vm("session", 7)
        };
        write(export, std::slice::from_ref(&before)).unwrap();
        let error = read(export, "session").unwrap_err().to_string();
        assert!(error.contains("which this pool does not have"), "{error}");
        for file in ["boot/session/vmlinuz", "boot/session/initrd.img"] {
            std::fs::write(export.join(file), "").unwrap();
        }
        assert_eq!(read(export, "session").unwrap(), Some(before));
        assert_eq!(read(export, "other").unwrap(), None);
    }
}
