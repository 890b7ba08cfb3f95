//! The description: OVF 1.1, as VMware, VirtualBox, XenServer and virt-v2v read and write it.

use std::collections::BTreeMap;

use quick_xml::escape::escape;

use super::xml::Element;
use crate::{
    error::{Error, damaged, unsupported},
    vm::{Disk, Firmware, Nic, Vm},
};

/// A description, and the file of each disk; none of those without contents.
pub(super) struct Described {
    pub vm: Vm,
    pub files: Vec<Option<String>>,
}

// CIM's numbers of resources.
const CPU: &str = "3";
const MEMORY: &str = "4";
const IDE: &str = "5";
const SCSI: &str = "6";
const NIC: &str = "10";
const DISK: &str = "17";
const SATA: &str = "20";

pub(super) fn read(place: &str, xml: &str) -> Result<Described, Error> {
    let root = Element::parse(place, xml)?;
    if root.name != "Envelope" {
        return damaged(
            place,
            format!(
                "it begins with <{}>, no description of a machine does",
                root.name
            ),
        );
    }
    let mut files = BTreeMap::new();
    for file in root
        .child("References")
        .into_iter()
        .flat_map(|all| all.all("File"))
    {
        let compression = file.attribute("compression");
        if !matches!(compression, "" | "identity") {
            return unsupported(place, format!("its files are compressed by {compression}"));
        }
        files.insert(
            file.attribute("id"),
            file.attribute("href").trim_start_matches("./"),
        );
    }
    let mut images = BTreeMap::new();
    for disk in root
        .child("DiskSection")
        .into_iter()
        .flat_map(|all| all.all("Disk"))
    {
        let (id, reference) = (disk.attribute("diskId"), disk.attribute("fileRef"));
        let file = match (reference, files.get(reference)) {
            ("", _) => None,
            (_, Some(file)) => Some((*file).to_owned()),
            (_, None) => {
                return damaged(
                    place,
                    format!("the disk {id} is in the file {reference}, which it does not name"),
                );
            }
        };
        let unit = unit(disk.attribute("capacityAllocationUnits"), 1);
        let capacity = disk.attribute("capacity").parse::<u64>().ok();
        let size = capacity
            .zip(unit)
            .and_then(|(capacity, unit)| capacity.checked_mul(unit));
        let Some(size) = size else {
            return damaged(
                place,
                format!("the disk {id} has a capacity that is no number of bytes"),
            );
        };
        images.insert(id, (file, size));
    }
    if root.child("VirtualSystemCollection").is_some() {
        return unsupported(place, "it describes several machines");
    }
    let Some(system) = root.child("VirtualSystem") else {
        return damaged(place, "it describes no machine");
    };
    let Some(hardware) = system.child("VirtualHardwareSection") else {
        return damaged(place, "it says nothing of the machine's hardware");
    };
    let items: Vec<&Element> = hardware
        .children
        .iter()
        .filter(|child| matches!(&*child.name, "Item" | "StorageItem" | "EthernetPortItem"))
        .collect();
    let mut vm = Vm {
        name: match system.child_text("Name") {
            "" => system.attribute("id").to_owned(),
            name => name.to_owned(),
        },
        description: system
            .child("AnnotationSection")
            .map_or("", |section| section.child_text("Annotation"))
            .to_owned(),
        vcpus: 1,
        weight: 256,
        ..Vm::default()
    };
    for config in hardware
        .all("Config")
        .filter(|config| config.attribute("key") == "firmware")
    {
        if config.attribute("value") == "efi" {
            vm.firmware = Firmware::Uefi;
        }
    }
    let mut slots = Vec::new();
    for item in &items {
        let quantity = item.child_text("VirtualQuantity").parse::<u64>();
        match item.child_text("ResourceType") {
            CPU => vm.vcpus = quantity.ok().and_then(|n| n.try_into().ok()).unwrap_or(1),
            MEMORY => {
                let unit = unit(item.child_text("AllocationUnits"), 1 << 20).unwrap_or(1 << 20);
                vm.memory = quantity.unwrap_or(0).saturating_mul(unit);
            }
            NIC => vm.nics.push(Nic {
                mac: mac(item.child_text("Address")),
                network: item.child_text("Connection").to_owned(),
                model: item.child_text("ResourceSubType").to_owned(),
            }),
            DISK => {
                let resource = item.child_text("HostResource");
                let id = resource.rsplit('/').next().unwrap_or_default();
                let Some((file, size)) = images.get(id) else {
                    return damaged(
                        place,
                        format!("the machine has the disk {resource}, which is not described"),
                    );
                };
                let number = |name| item.child_text(name).parse::<u64>().unwrap_or(u64::MAX);
                let name = match file.as_deref().and_then(|file| file.rsplit_once('.')) {
                    Some((stem, _)) => stem.to_owned(),
                    None => id.to_owned(),
                };
                let disk = Disk {
                    uuid: String::new(),
                    name,
                    size: *size,
                };
                slots.push((
                    (number("Parent"), number("AddressOnParent")),
                    disk,
                    file.clone(),
                ));
            }
            _ => {}
        }
    }
    slots.sort_by_key(|(slot, ..)| *slot);
    if let Some(((parent, _), ..)) = slots.first() {
        let controller = items
            .iter()
            .find(|item| item.child_text("InstanceID").parse() == Ok(*parent));
        vm.controller = controller.map_or(String::new(), |item| controller_name(item));
    }
    let (mut disks, mut disk_files) = (Vec::new(), Vec::new());
    for (_, disk, file) in slots {
        disks.push(disk);
        disk_files.push(file);
    }
    vm.disks = disks;
    vm.check().or_else(|why| damaged(place, why))?;
    Ok(Described {
        vm,
        files: disk_files,
    })
}

fn controller_name(item: &Element) -> String {
    let kind = match item.child_text("ResourceType") {
        IDE => "ide",
        SCSI => "scsi",
        SATA => "sata",
        _ => return String::new(),
    };
    match item.child_text("ResourceSubType") {
        "" => kind.to_owned(),
        model => format!("{kind} {model}"),
    }
}

/// Bytes of a unit: `byte * 2^20` (DSP0004), or a word of OVF 0.9.
fn unit(text: &str, default: u64) -> Option<u64> {
    let plain: String = text.split_whitespace().collect();
    Some(match &*plain.to_ascii_lowercase() {
        "" => default,
        "byte" | "bytes" => 1,
        "kb" | "kilobytes" => 1 << 10,
        "mb" | "megabytes" => 1 << 20,
        "gb" | "gigabytes" => 1 << 30,
        other => {
            let exponent: u32 = other.strip_prefix("byte*2^")?.parse().ok()?;
            1u64.checked_shl(exponent)?
        }
    })
}

/// With or without colons.
fn mac(text: &str) -> String {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() != 12 {
        return String::new();
    }
    let pairs: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
    pairs.join(":").to_ascii_lowercase()
}

/// The description of a machine whose disks are in these files of so many bytes.
pub(super) fn write(vm: &Vm, files: &[(String, u64)]) -> String {
    let mut out = String::from(concat!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
        "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" ",
        "xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" ",
        "xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" ",
        "xmlns:vmw=\"http://www.vmware.com/schema/ovf\">\n  <References>\n",
    ));
    for (n, (file, size)) in files.iter().enumerate() {
        out += &format!(
            "    <File ovf:id=\"file{n}\" ovf:href=\"{}\" ovf:size=\"{size}\"/>\n",
            escape(file)
        );
    }
    out += "  </References>\n  <DiskSection>\n    <Info>Disks of the machine</Info>\n";
    for (n, disk) in vm.disks.iter().enumerate() {
        out += &format!(
            "    <Disk ovf:diskId=\"disk{n}\" ovf:fileRef=\"file{n}\" ovf:capacity=\"{}\" ovf:capacityAllocationUnits=\"byte\" \
             ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>\n",
            disk.size
        );
    }
    out += "  </DiskSection>\n  <NetworkSection>\n    <Info>Networks of the machine</Info>\n";
    let mut networks: Vec<&str> = vm.nics.iter().map(|nic| &*nic.network).collect();
    networks.sort_unstable();
    networks.dedup();
    for network in networks {
        out += &format!(
            "    <Network ovf:name=\"{}\"><Description/></Network>\n",
            escape(network)
        );
    }
    let name = escape(&vm.name);
    out += &format!(
        "  </NetworkSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    <Info>A machine</Info>\n    <Name>{name}</Name>\n    \
         <AnnotationSection><Info>A note</Info><Annotation>{}</Annotation></AnnotationSection>\n    \
         <OperatingSystemSection ovf:id=\"101\"><Info>Linux, 64 bits</Info></OperatingSystemSection>\n    \
         <VirtualHardwareSection>\n      <Info>Hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>\n      </System>\n",
        escape(&vm.description)
    );
    // Children of an item in the order of the alphabet: strict readers want it.
    let mut id = 0;
    let mut item = |children: &[(&str, &str)]| {
        id += 1;
        out += "      <Item>\n";
        let id_text = id.to_string();
        let mut children = children.to_vec();
        children.push(("InstanceID", &id_text));
        children.sort_unstable();
        for (name, text) in children {
            out += &format!("        <rasd:{name}>{}</rasd:{name}>\n", escape(text));
        }
        out += "      </Item>\n";
        id
    };
    let vcpus = vm.vcpus.to_string();
    item(&[
        ("ElementName", "CPUs"),
        ("ResourceType", CPU),
        ("VirtualQuantity", &vcpus),
    ]);
    let memory = (vm.memory >> 20).to_string();
    item(&[
        ("AllocationUnits", "byte * 2^20"),
        ("ElementName", "Memory"),
        ("ResourceType", MEMORY),
        ("VirtualQuantity", &memory),
    ]);
    let (kind, model) = vm
        .controller
        .split_once(' ')
        .unwrap_or((&vm.controller, ""));
    let (resource, model) = match (kind, model) {
        ("ide", model) => (IDE, model),
        ("sata", "") => (SATA, "AHCI"),
        ("sata", model) => (SATA, model),
        (_, "") => (SCSI, "lsilogic"),
        (_, model) => (SCSI, model),
    };
    let mut controller = vec![
        ("Address", "0"),
        ("ElementName", "Controller 0"),
        ("ResourceType", resource),
    ];
    if !model.is_empty() {
        controller.push(("ResourceSubType", model));
    }
    let parent = item(&controller).to_string();
    for n in 0..vm.disks.len() {
        let (number, resource) = (n.to_string(), format!("ovf:/disk/disk{n}"));
        item(&[
            ("AddressOnParent", &number),
            ("ElementName", &format!("Disk {n}")),
            ("HostResource", &resource),
            ("Parent", &parent),
            ("ResourceType", DISK),
        ]);
    }
    for (n, nic) in vm.nics.iter().enumerate() {
        let name = format!("Network card {n}");
        let model = if nic.model.is_empty() {
            "E1000"
        } else {
            &nic.model
        };
        let mut children = vec![
            ("AutomaticAllocation", "true"),
            ("Connection", &*nic.network),
            ("ElementName", &name),
            ("ResourceSubType", model),
            ("ResourceType", NIC),
        ];
        if !nic.mac.is_empty() {
            children.push(("Address", &nic.mac));
        }
        item(&children);
    }
    let firmware = match vm.firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "efi",
    };
    out += &format!(
        "      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"{firmware}\"/>\n"
    );
    out += "    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n";
    out
}
