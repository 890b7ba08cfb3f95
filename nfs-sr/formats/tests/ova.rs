//! OVA archives: what is written is read, by us and by others; what others write is read.

mod support;

use std::{fs, path::Path, process::Command};

use formats::{
    Error,
    disk::{self, Source},
    ova::{Reader, Writer},
    vm::{Archive, Firmware, Nic, Vm},
    vmdk,
};
use proptest::prelude::*;
use sha1::{Digest, Sha1};
use support::{Memory, Others, contents, machine};

/// As an archive has it: no identities, disks named by their files.
fn expected(vm: &Vm) -> Vm {
    let mut vm = vm.clone();
    vm.uuid.clear();
    vm.weight = 256;
    (vm.template, vm.start_on_boot) = (false, false);
    for (n, disk) in vm.disks.iter_mut().enumerate() {
        disk.uuid.clear();
        disk.name = format!("{}-disk{n}", vm.name);
    }
    vm
}

fn rich(disks: &[Memory]) -> Vm {
    Vm {
        description: "more <than> one & \"quoted\"".into(),
        firmware: Firmware::Uefi,
        controller: "scsi VirtualSCSI".into(),
        nics: vec![
            Nic {
                mac: "02:e1:ab:10:00:01".into(),
                network: "session".into(),
                model: "VmxNet3".into(),
            },
            Nic {
                mac: String::new(),
                network: "other & more".into(),
                model: "PCNet32".into(),
            },
        ],
        ..machine(disks)
    }
}

fn ova(path: &Path, vm: &Vm, disks: &[Memory]) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .expect("a new file");
    let mut writer = Writer::new(file, vm).expect("begun");
    for disk in disks {
        writer
            .disk(&mut disk.clone(), &mut |_, _| Ok(()))
            .expect("written");
    }
    writer.finish().expect("ended");
}

/// Firmware, controller, and kind of network card are what imports are known to lose.
#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let disks = [Memory::random(1, 3 << 20), Memory::random(2, 1 << 20)];
    let vm = rich(&disks);
    let path = folder.path().join("machine.ova");
    ova(&path, &vm, &disks);
    let bytes = fs::read(&path).expect("read");
    let mut reader = Reader::new(&bytes[..]).expect("an archive");
    assert_eq!(reader.vm(), &expected(&vm));
    assert!(contents(&mut reader).expect("sound") == [&disks[0].0[..], &disks[1].0[..]]);
}

/// Where virt-v2v is installed: by its reading of OVF, and by the manifest, the machine is what it was.
#[test]
fn virt_v2v_reads_what_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("machine.ova");
    let disks = [Memory::random(4, 3 << 20)];
    ova(&path, &rich(&disks), &disks);
    let read = || {
        let mut command = Command::new("virt-v2v");
        let arguments = ["-i", "ova", "machine.ova", "-o", "null", "--print-source"];
        command.args(arguments).current_dir(folder.path()).output()
    };
    let output = match read() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("not run: virt-v2v is not installed");
            return;
        }
        output => output.expect("started"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    for line in [
        "source name: session",
        "memory: 268435456 (bytes)",
        "nr vCPUs: 2",
        "firmware: uefi",
        "\"session\" mac: 02:e1:ab:10:00:01",
    ] {
        assert!(said.contains(line), "{line} is not in: {said}");
    }
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.len() - 5000;
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert!(!read().expect("started").status.success(), "it is damaged");
}

/// GNU tar, `sha256sum` and `qemu-img` find what they should.
#[test]
fn others_read_what_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let disks = [Memory::random(3, 5 << 20)];
    ova(&folder.path().join("machine.ova"), &rich(&disks), &disks);
    let script = "set -e; tar --extract --file machine.ova; test $(tar --list --file machine.ova | head -1) = session.ovf; \
                  sed -n 's/^SHA256(\\(.*\\))= \\(.*\\)$/\\2  \\1/p' session.mf | sha256sum --check --strict; \
                  qemu-img check session-disk0.vmdk; qemu-img compare session-disk0.vmdk disk.raw";
    fs::write(folder.path().join("disk.raw"), &disks[0].0).expect("written");
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder.path())
        .output()
        .expect("a shell");
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

/// The way VirtualBox describes a machine: OVF 1.0, other prefixes, SATA, SHA-1, the manifest last.
fn of_virtualbox(image: &[u8], capacity: u64) -> Vec<u8> {
    let ovf = format!(
        r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="box-disk001.vmdk" ovf:id="file1"/></References>
 <DiskSection><Info/><Disk ovf:capacity="{capacity}" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="x"/></DiskSection>
 <NetworkSection><Info/><Network ovf:name="NAT"><Description/></Network></NetworkSection>
 <VirtualSystem ovf:id="box"><Info/><VirtualHardwareSection><Info/>
  <Item><rasd:Caption>1 virtual CPU</rasd:Caption><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
  <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
  <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>AHCI</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
  <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>7</rasd:InstanceID><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
  <Item><rasd:Address>080027A1B2C3</rasd:Address><rasd:Connection>NAT</rasd:Connection><rasd:InstanceID>8</rasd:InstanceID><rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
 </VirtualHardwareSection></VirtualSystem></Envelope>"#
    );
    let sha1 = |data: &[u8]| -> String {
        Sha1::digest(data)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let manifest = format!(
        "SHA1 (box.ovf) = {}\nSHA1 (box-disk001.vmdk) = {}\n",
        sha1(ovf.as_bytes()),
        sha1(image)
    );
    let mut archive = Others::empty();
    archive.member("box.ovf", ovf.as_bytes());
    archive.member("box-disk001.vmdk", image);
    archive.member("box.mf", manifest.as_bytes());
    archive.finish()
}

fn image(disk: &mut Memory) -> Vec<u8> {
    let mut writer = vmdk::Writer::new(Vec::new(), "box-disk001.vmdk", disk.size()).expect("begun");
    disk::copy(disk, &mut writer).expect("copied");
    writer.finish().expect("ended")
}

#[test]
fn what_virtualbox_writes_is_read() {
    let mut disk = Memory::random(4, 2 << 20);
    let bytes = of_virtualbox(&image(&mut disk), disk.size());
    let mut reader = Reader::new(&bytes[..]).expect("an archive");
    let vm = reader.vm().clone();
    assert_eq!(
        (
            vm.name.as_str(),
            vm.memory,
            vm.vcpus,
            vm.controller.as_str()
        ),
        ("box", 512 << 20, 1, "sata AHCI")
    );
    assert_eq!(vm.nics[0].mac, "08:00:27:a1:b2:c3");
    assert!(contents(&mut reader).expect("sound") == [&disk.0[..]]);
}

/// A disk that is not what the manifest says, where its own structure does not show it: the place is named.
#[test]
fn the_manifest_is_believed() {
    let mut disk = Memory::random(5, 1 << 20);
    let sound = image(&mut disk);
    let mut bytes = of_virtualbox(&sound, disk.size());
    // In the descriptor's text, which nobody reads.
    let at = bytes
        .windows(5)
        .position(|some| some == b"CID=f")
        .expect("a descriptor");
    bytes[at + 4] = b'0';
    let read = contents(&mut Reader::new(&bytes[..]).expect("an archive"));
    assert!(
        matches!(&read, Err(Error::Checksum { place, .. }) if place == "box-disk001.vmdk"),
        "{read:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_cut_or_a_changed_byte_does_no_harm(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut disk = Memory::random(6, 1 << 20);
        let mut bytes = of_virtualbox(&image(&mut disk), disk.size());
        let at = at.index(bytes.len());
        let cut = Reader::new(&bytes[..at]).and_then(|mut reader| contents(&mut reader));
        prop_assert!(cut.is_err());
        bytes[at] = to;
        if let Ok(mut reader) = Reader::new(&bytes[..])
            && reader.vm().disks.iter().all(|disk| disk.size < 16 << 20) {
            let _ = contents(&mut reader);
        }
    }
}
