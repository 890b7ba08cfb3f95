//! `ova.xml`: records of the XenAPI that describe a machine and what it hangs on.

use std::collections::BTreeMap;

use super::value::Value;
use crate::{
    error::{Error, damaged, unsupported},
    vm::{DirectBoot, Disk, Firmware, Nic, Vm},
};

const PLACE: &str = "ova.xml";
const NULL: &str = "OpaqueRef:NULL";
/// xapi refuses what is newer than itself; nothing here needs more than this.
const XAPI: (u32, u32) = (1, 20);
/// Keys of `other_config` that only this program knows.
const KERNEL: &str = "elab-kernel";
const INITRD: &str = "elab-initrd";
const COMMAND_LINE: &str = "elab-command-line";
/// As XenServer's hosts look for it.
const START_ON_BOOT: &str = "auto_poweron";

/// The reference of a disk. All have four digits, so that their order as text is that of the disks.
pub(super) fn disk_reference(index: usize) -> String {
    format!("Ref:{}", 1000 + index)
}

const HOST: &str = "Ref:0";
const VM: &str = "Ref:1";
const SR: &str = "Ref:2";

fn text(text: impl ToString) -> Value {
    Value::text(text)
}

fn references(all: impl Iterator<Item = String>) -> Value {
    Value::Array(all.map(Value::Text).collect())
}

fn pairs(pairs: &[(&str, &str)]) -> Value {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), text(value));
    Value::Struct(pairs.iter().map(pair).collect())
}

fn object(class: &str, id: &str, snapshot: Value) -> Value {
    Value::map([
        ("class", text(class)),
        ("id", text(id)),
        ("snapshot", snapshot),
    ])
}

/// The description of a machine.
pub(super) fn write(vm: &Vm) -> String {
    let version = Value::map([
        ("hostname", text("elab")),
        ("date", text("")),
        ("product_version", text("8.2.0")),
        ("product_brand", text("elab")),
        ("build_number", text(env!("CARGO_PKG_VERSION"))),
        ("xapi_major", text(XAPI.0)),
        ("xapi_minor", text(XAPI.1)),
        ("export_vsn", text(2)),
    ]);
    // The order of classes is xapi's.
    let mut objects = vec![object("host", HOST, host()), object("VM", VM, machine(vm))];
    objects.extend((0..vm.disks.len()).map(|i| object("VBD", &vbd(i), block_device(i))));
    let networks = networks(vm);
    objects.extend((0..).zip(&vm.nics).map(|(i, nic)| {
        let network = networks.iter().position(|name| *name == nic.network);
        object("VIF", &vif(i), interface(i, nic, network.unwrap_or(0)))
    }));
    objects.extend((0..).zip(&networks).map(|(i, name)| {
        let record = Value::map([
            ("uuid", text("")),
            ("name_label", text(name)),
            ("name_description", text("")),
            ("VIFs", Value::Array(Vec::new())),
            ("PIFs", Value::Array(Vec::new())),
            ("other_config", Value::empty_map()),
            ("bridge", text(format!("xenbr{i}"))),
            ("tags", Value::Array(Vec::new())),
        ]);
        object("network", &network(i), record)
    }));
    objects.extend(
        (0..)
            .zip(&vm.disks)
            .map(|(i, disk)| object("VDI", &disk_reference(i), image(i, disk))),
    );
    objects.push(object("SR", SR, repository(vm.disks.len())));
    Value::map([("version", version), ("objects", Value::Array(objects))]).to_xml()
}

fn vbd(index: usize) -> String {
    format!("Ref:{}", 2000 + index)
}

fn vif(index: usize) -> String {
    format!("Ref:{}", 3000 + index)
}

fn network(index: usize) -> String {
    format!("Ref:{}", 4000 + index)
}

fn networks(vm: &Vm) -> Vec<String> {
    let mut names: Vec<String> = vm.nics.iter().map(|nic| nic.network.clone()).collect();
    names.sort();
    names.dedup();
    names
}

fn host() -> Value {
    Value::map([
        ("uuid", text("")),
        ("name_label", text("elab")),
        ("name_description", text("")),
        ("other_config", Value::empty_map()),
    ])
}

fn machine(vm: &Vm) -> Value {
    let mut other_config = vec![("base_template_name", "Other install media")];
    if let Some(boot) = &vm.direct_boot {
        other_config.extend([
            (KERNEL, boot.kernel.as_str()),
            (INITRD, boot.initrd.as_str()),
            (COMMAND_LINE, boot.command_line.as_str()),
        ]);
    }
    if vm.start_on_boot {
        other_config.push((START_ON_BOOT, "true"));
    }
    let firmware = match vm.firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
    };
    let weight = vm.weight.to_string();
    let none = || Value::Array(Vec::new());
    Value::map([
        ("uuid", text(&vm.uuid)),
        ("name_label", text(&vm.name)),
        ("name_description", text(&vm.description)),
        ("power_state", text("Halted")),
        ("is_a_template", Value::Bool(vm.template)),
        ("is_a_snapshot", Value::Bool(false)),
        ("is_control_domain", Value::Bool(false)),
        ("domain_type", text("hvm")),
        ("user_version", text(1)),
        ("memory_static_min", text(vm.memory)),
        ("memory_static_max", text(vm.memory)),
        ("memory_dynamic_min", text(vm.memory)),
        ("memory_dynamic_max", text(vm.memory)),
        ("memory_target", text(vm.memory)),
        ("memory_overhead", text(0)),
        ("VCPUs_params", pairs(&[("weight", &weight)])),
        ("VCPUs_max", text(vm.vcpus)),
        ("VCPUs_at_startup", text(vm.vcpus)),
        ("actions_after_shutdown", text("destroy")),
        ("actions_after_reboot", text("restart")),
        ("actions_after_crash", text("restart")),
        ("HVM_boot_policy", text("BIOS order")),
        (
            "HVM_boot_params",
            pairs(&[("firmware", firmware), ("order", "cd")]),
        ),
        ("HVM_shadow_multiplier", text("1")),
        (
            "platform",
            pairs(&[
                ("acpi", "1"),
                ("apic", "true"),
                ("pae", "true"),
                ("nx", "true"),
                ("viridian", "false"),
                ("hpet", "true"),
                ("timeoffset", "0"),
                ("device-model", "qemu-upstream-compat"),
                ("secureboot", "false"),
            ]),
        ),
        ("PV_bootloader", text("")),
        ("PV_kernel", text("")),
        ("PV_ramdisk", text("")),
        ("PV_args", text("")),
        ("PV_bootloader_args", text("")),
        ("PV_legacy_args", text("")),
        ("PCI_bus", text("")),
        ("other_config", pairs(&other_config)),
        ("xenstore_data", Value::empty_map()),
        ("bios_strings", Value::empty_map()),
        ("blocked_operations", Value::empty_map()),
        ("recommendations", text("")),
        ("tags", none()),
        ("ha_always_run", Value::Bool(false)),
        ("ha_restart_priority", text("")),
        ("order", text(0)),
        ("start_delay", text(0)),
        ("shutdown_delay", text(0)),
        ("version", text(0)),
        ("generation_id", text("")),
        ("hardware_platform_version", text(0)),
        ("affinity", text(NULL)),
        ("resident_on", text(NULL)),
        ("suspend_VDI", text(NULL)),
        ("suspend_SR", text(NULL)),
        ("snapshot_of", text(NULL)),
        ("parent", text(NULL)),
        ("appliance", text(NULL)),
        ("protection_policy", text(NULL)),
        ("metrics", text(NULL)),
        ("guest_metrics", text(NULL)),
        ("children", none()),
        ("snapshots", none()),
        ("snapshot_time", Value::Date("19700101T00:00:00Z".into())),
        ("consoles", none()),
        ("VBDs", references((0..vm.disks.len()).map(vbd))),
        ("VIFs", references((0..vm.nics.len()).map(vif))),
        ("VTPMs", none()),
        ("VGPUs", none()),
        ("attached_PCIs", none()),
        ("crash_dumps", none()),
    ])
}

/// Linux's name of a Xen block device: `xvda`, ... `xvdz`, `xvdaa`.
fn device(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let name = match index {
        0..26 => letter(index).to_string(),
        _ => format!("{}{}", letter(index / 26 - 1), letter(index)),
    };
    format!("xvd{name}")
}

fn block_device(index: usize) -> Value {
    Value::map([
        ("uuid", text("")),
        ("VM", text(VM)),
        ("VDI", text(disk_reference(index))),
        ("device", text(device(index))),
        ("userdevice", text(index)),
        ("bootable", Value::Bool(index == 0)),
        ("mode", text("RW")),
        ("type", text("Disk")),
        ("unpluggable", Value::Bool(false)),
        ("empty", Value::Bool(false)),
        ("storage_lock", Value::Bool(false)),
        ("currently_attached", Value::Bool(false)),
        ("other_config", Value::empty_map()),
        ("status_code", text(0)),
        ("status_detail", text("")),
        ("runtime_properties", Value::empty_map()),
        ("qos_algorithm_type", text("")),
        ("qos_algorithm_params", Value::empty_map()),
        ("qos_supported_algorithms", Value::Array(Vec::new())),
        ("metrics", text(NULL)),
    ])
}

fn interface(index: usize, nic: &Nic, on: usize) -> Value {
    Value::map([
        ("uuid", text("")),
        ("VM", text(VM)),
        ("network", text(network(on))),
        ("device", text(index)),
        ("MAC", text(&nic.mac)),
        ("MAC_autogenerated", Value::Bool(nic.mac.is_empty())),
        ("MTU", text(1500)),
        ("other_config", Value::empty_map()),
        ("currently_attached", Value::Bool(false)),
        ("locking_mode", text("network_default")),
        ("ipv4_allowed", Value::Array(Vec::new())),
        ("ipv6_allowed", Value::Array(Vec::new())),
        ("ipv4_configuration_mode", text("None")),
        ("ipv4_addresses", Value::Array(Vec::new())),
        ("ipv4_gateway", text("")),
        ("ipv6_configuration_mode", text("None")),
        ("ipv6_addresses", Value::Array(Vec::new())),
        ("ipv6_gateway", text("")),
        ("qos_algorithm_type", text("")),
        ("qos_algorithm_params", Value::empty_map()),
        ("qos_supported_algorithms", Value::Array(Vec::new())),
        ("metrics", text(NULL)),
    ])
}

fn image(index: usize, disk: &Disk) -> Value {
    Value::map([
        ("uuid", text(&disk.uuid)),
        ("name_label", text(&disk.name)),
        ("name_description", text("")),
        ("SR", text(SR)),
        ("VBDs", references([vbd(index)].into_iter())),
        ("virtual_size", text(disk.size)),
        ("physical_utilisation", text(disk.size)),
        ("type", text("user")),
        ("sharable", Value::Bool(false)),
        ("read_only", Value::Bool(false)),
        ("other_config", Value::empty_map()),
        ("storage_lock", Value::Bool(false)),
        ("managed", Value::Bool(true)),
        ("missing", Value::Bool(false)),
        ("parent", text(NULL)),
        ("location", text(&disk.uuid)),
        ("xenstore_data", Value::empty_map()),
        ("sm_config", Value::empty_map()),
        ("is_a_snapshot", Value::Bool(false)),
        ("snapshot_of", text(NULL)),
        ("snapshots", Value::Array(Vec::new())),
        ("snapshot_time", Value::Date("19700101T00:00:00Z".into())),
        ("tags", Value::Array(Vec::new())),
        ("allow_caching", Value::Bool(false)),
        ("on_boot", text("persist")),
        ("is_tools_iso", Value::Bool(false)),
    ])
}

fn repository(disks: usize) -> Value {
    Value::map([
        ("uuid", text("")),
        ("name_label", text("elab")),
        ("name_description", text("")),
        ("VDIs", references((0..disks).map(disk_reference))),
        ("type", text("nfs")),
        ("content_type", text("user")),
        ("other_config", Value::empty_map()),
        ("sm_config", Value::empty_map()),
    ])
}

/// Reads a description: the machine, and the reference of each of its disks.
pub(super) fn read(xml: &str) -> Result<(Vm, Vec<String>), Error> {
    if xml.contains("<appliance") {
        return unsupported(PLACE, "it is of XenServer 3 or 4 (version 0.1)");
    }
    let root = Value::parse(xml)?;
    let empty = Value::empty_map();
    let version = root.get("version").unwrap_or(&empty);
    match version.number("export_vsn") {
        Some(1..=2) => {}
        _ => {
            return unsupported(
                PLACE,
                "its version (export_vsn) is not 1 or 2: the archive has no checksums beside its chunks",
            );
        }
    }
    let objects = root.get("objects").map_or(&[][..], Value::items);
    let by_reference: BTreeMap<&str, (&str, &Value)> = objects
        .iter()
        .filter_map(|object| {
            let snapshot = object.get("snapshot")?;
            Some((object.str("id"), (object.str("class"), snapshot)))
        })
        .collect();
    let record = |class: &str, reference: &str| match by_reference.get(reference) {
        Some((found, record)) if *found == class => Ok(*record),
        _ => damaged(
            PLACE,
            format!("it names the {class} {reference}, which it does not describe"),
        ),
    };
    let mut machines = by_reference
        .values()
        .filter(|(class, record)| *class == "VM" && !record.bool("is_a_snapshot"));
    let Some((_, machine)) = machines.next() else {
        return damaged(PLACE, "it describes no machine");
    };
    if machines.next().is_some() {
        return unsupported(PLACE, "it describes several machines");
    }
    let mut slots = Vec::new();
    for reference in machine.get("VBDs").map_or(&[][..], Value::items) {
        let Value::Text(reference) = reference else {
            return damaged(PLACE, "a reference is no text");
        };
        let vbd = record("VBD", reference)?;
        if vbd.str("type") == "CD" || vbd.bool("empty") {
            continue;
        }
        let vdi = vbd.str("VDI");
        let image = record("VDI", vdi)?;
        let Some(size) = image.number("virtual_size") else {
            return damaged(PLACE, format!("the VDI {vdi} has a size that is no number"));
        };
        let disk = Disk {
            uuid: image.str("uuid").to_owned(),
            name: image.str("name_label").to_owned(),
            size,
        };
        slots.push((
            vbd.number("userdevice").unwrap_or(u64::MAX),
            disk,
            vdi.to_owned(),
        ));
    }
    slots.sort_by_key(|(slot, ..)| *slot);
    let mut nics = Vec::new();
    for reference in machine.get("VIFs").map_or(&[][..], Value::items) {
        let Value::Text(reference) = reference else {
            return damaged(PLACE, "a reference is no text");
        };
        let vif = record("VIF", reference)?;
        let network = vif.str("network");
        let network = by_reference
            .get(network)
            .map_or("", |(_, record)| record.str("name_label"));
        let nic = Nic {
            mac: vif.str("MAC").to_owned(),
            network: network.to_owned(),
            model: String::new(),
        };
        nics.push((vif.number("device").unwrap_or(u64::MAX), nic));
    }
    nics.sort_by_key(|(slot, _)| *slot);
    let other_config = machine.get("other_config").unwrap_or(&empty);
    let direct_boot = (!other_config.str(KERNEL).is_empty()).then(|| DirectBoot {
        kernel: other_config.str(KERNEL).to_owned(),
        initrd: other_config.str(INITRD).to_owned(),
        command_line: other_config.str(COMMAND_LINE).to_owned(),
    });
    let boot = machine.get("HVM_boot_params").unwrap_or(&empty);
    let (mut disks, mut disk_references) = (Vec::new(), Vec::new());
    for (_, disk, reference) in slots {
        disks.push(disk);
        disk_references.push(reference);
    }
    let vm = Vm {
        uuid: machine.str("uuid").to_owned(),
        name: machine.str("name_label").to_owned(),
        description: machine.str("name_description").to_owned(),
        template: machine.bool("is_a_template"),
        start_on_boot: other_config.str(START_ON_BOOT) == "true",
        memory: machine.number("memory_static_max").unwrap_or(0),
        vcpus: machine
            .number("VCPUs_max")
            .and_then(|n| n.try_into().ok())
            .unwrap_or(1),
        weight: machine
            .get("VCPUs_params")
            .and_then(|params| params.number("weight"))
            .and_then(|n| n.try_into().ok())
            .unwrap_or(256),
        firmware: if boot.str("firmware") == "uefi" {
            Firmware::Uefi
        } else {
            Firmware::Bios
        },
        direct_boot,
        controller: String::new(),
        disks,
        nics: nics.into_iter().map(|(_, nic)| nic).collect(),
    };
    vm.check().or_else(|why| damaged(PLACE, why))?;
    Ok((vm, disk_references))
}
