//! The ACPI tables (ACPI 6.5): hardware-reduced, so that there is no power management hardware to emulate.
//!
//! They describe processors, the I/O APIC, the PCI bus, the serial port, a power button, and where to write
//! for power-off and reset. They are written before the kernel starts and not needed afterwards.

mod aml;

use alloc::{vec, vec::Vec};

use crate::{apic, pci, ports, serial};

/// Where the tables are: a part below 1 MiB that the memory map calls reserved.
pub const BASE: u64 = 0xe_0000;
/// Pin of the I/O APIC that the power button drives.
pub const POWER_BUTTON_PIN: usize = 5;

/// The value that the `\_S5` object asks the guest to write for power-off.
pub const SLEEP_TYPE_OFF: u8 = 5;

const HEADER: usize = 36;
const RSDP_LEN: usize = 36;
const FADT_LEN: usize = 276;
const OEM: &[u8; 6] = b"ELAB  ";
const OEM_TABLE: &[u8; 8] = b"GUEST   ";

/// The tables in one piece for [`BASE`], the RSDP first.
#[must_use]
pub fn tables(vcpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; RSDP_LEN];
    let mut place = |table: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let address = BASE + bytes.len() as u64;
        bytes.extend(table);
        address
    };
    let dsdt = place(table(b"DSDT", 2, &dsdt()));
    let fadt = place(fadt(dsdt));
    let madt = place(table(b"APIC", 5, &madt(vcpus)));
    let entries: Vec<u8> = [fadt, madt]
        .iter()
        .flat_map(|address| address.to_le_bytes())
        .collect();
    let xsdt = place(table(b"XSDT", 1, &entries));
    bytes[..RSDP_LEN].copy_from_slice(&rsdp(xsdt));
    bytes
}

/// Makes the sum of all bytes zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
}

/// A table with its header (5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend(((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(OEM);
    bytes.extend(OEM_TABLE);
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(b"ELAB");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(body);
    set_checksum(&mut bytes, 9);
    bytes
}

/// Root pointer (5.2.5.3).
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR ".to_vec();
    bytes.push(0);
    bytes.extend(OEM);
    bytes.push(2);
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend((RSDP_LEN as u32).to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    set_checksum(&mut bytes[..20], 8);
    set_checksum(&mut bytes, 32);
    bytes
}

/// An I/O port of one byte as a generic address (5.2.3.2).
fn port(address: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&[1, 8, 0, 1]);
    bytes[4..6].copy_from_slice(&address.to_le_bytes());
    bytes
}

/// Fixed description (5.2.9).
fn fadt(dsdt: u64) -> Vec<u8> {
    /// No VGA, no CMOS clock.
    const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
    /// Buttons are devices, there is a reset register, the hardware is reduced.
    const FLAGS: u32 = 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
    let mut body = vec![0; FADT_LEN - HEADER];
    let mut set = |offset: usize, bytes: &[u8]| {
        body[offset - HEADER..offset - HEADER + bytes.len()].copy_from_slice(bytes);
    };
    set(109, &BOOT_ARCHITECTURE.to_le_bytes());
    set(112, &FLAGS.to_le_bytes());
    set(116, &port(ports::RESET));
    set(128, &[ports::RESET_VALUE]);
    set(131, &[5]);
    set(140, &dsdt.to_le_bytes());
    set(244, &port(ports::SLEEP_CONTROL));
    set(256, &port(ports::SLEEP_STATUS));
    table(b"FACP", 6, &body)
}

/// Interrupt controllers (5.2.12).
fn madt(vcpus: u8) -> Vec<u8> {
    const LOCAL_APIC_BASE: u32 = 0xfee0_0000;
    let mut body = LOCAL_APIC_BASE.to_le_bytes().to_vec();
    body.extend(0_u32.to_le_bytes());
    for id in 0..u32::from(vcpus) {
        body.extend([9, 16, 0, 0]);
        body.extend(id.to_le_bytes());
        body.extend(1_u32.to_le_bytes());
        body.extend(id.to_le_bytes());
    }
    body.extend([1, 12, 0, 0]);
    body.extend((apic::io::BASE as u32).to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    body
}

/// Devices.
fn dsdt() -> Vec<u8> {
    use aml::{
        bus_numbers, device, eisa_id, integer, interrupt, io_ports, memory_window, method, name,
        notify, package, resources, scope, string,
    };
    let off = package(&[
        integer(SLEEP_TYPE_OFF.into()),
        integer(0),
        integer(0),
        integer(0),
    ]);
    let pci = device(
        "PCI0",
        &[
            name("_HID", &eisa_id("PNP0A03")),
            name("_UID", &integer(0)),
            name("_BBN", &integer(0)),
            name(
                "_CRS",
                &resources(&[
                    bus_numbers(0, 0),
                    io_ports(pci::ADDRESS_PORT, 8),
                    memory_window(pci::MEMORY_BASE as u32, pci::MEMORY_SIZE as u32),
                ]),
            ),
        ],
    );
    let serial = device(
        "COM1",
        &[
            name("_HID", &eisa_id("PNP0501")),
            name("_UID", &integer(1)),
            name(
                "_CRS",
                &resources(&[io_ports(serial::BASE, 8), interrupt(serial::PIN as u32)]),
            ),
        ],
    );
    let button = device("PWRB", &[name("_HID", &eisa_id("PNP0C0C"))]);
    // The generic event device has one interrupt, so its method need not look which one came.
    let events = device(
        "GED0",
        &[
            name("_HID", &string("ACPI0013")),
            name("_UID", &integer(0)),
            name("_CRS", &resources(&[interrupt(POWER_BUTTON_PIN as u32)])),
            method("_EVT", 1, &notify("PWRB", 0x80)),
        ],
    );
    [
        name("_S5_", &off),
        scope("_SB_", &[pci, serial, button, events]),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
