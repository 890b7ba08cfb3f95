//! The few ACPI tables a host needs (ACPI specification 6.5, chapter 5): where the interrupt controller,
//! the event timer and PCI's configuration space are, and how to switch off.

use alloc::{string::String, vec::Vec};

use crate::PhysicalMemory;

/// Bytes of an extended root pointer (5.2.5.3).
pub const RSDP_BYTES: usize = 36;
/// Where a BIOS leaves the root pointer, on a 16-byte boundary (5.2.5.1).
const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;
/// Bytes of a table's header (5.2.6).
const HEADER_BYTES: usize = 36;
/// Largest table read: none of those wanted comes near.
const TABLE_BYTES_MAX: usize = 1 << 20;
/// Most tables looked at.
const TABLES_MAX: usize = 256;

/// Physical address of the table that lists all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootTable {
    /// With 32-bit entries.
    Rsdt(u64),
    /// With 64-bit entries.
    Xsdt(u64),
}

impl RootTable {
    /// Reads a root pointer structure; none when its signature or checksum is wrong.
    #[must_use]
    pub fn parse(rsdp: &[u8]) -> Option<Self> {
        let first = rsdp.get(..20)?;
        if !first.starts_with(b"RSD PTR ") || sum(first) != 0 {
            return None;
        }
        let revision = rsdp[15];
        if revision >= 2
            && let Some(extended) = rsdp.get(..RSDP_BYTES)
            && sum(extended) == 0
        {
            return Some(Self::Xsdt(u64_at(extended, 24)?));
        }
        Some(Self::Rsdt(u32_at(first, 16)?.into()))
    }

    /// Searches where a BIOS leaves the root pointer, for boot loaders that do not pass it on.
    #[must_use]
    pub fn search(memory: &impl PhysicalMemory) -> Option<Self> {
        BIOS_AREA
            .step_by(16)
            .find_map(|address| Self::parse(&memory.read_vec(address, RSDP_BYTES)))
    }
}

/// What the tables said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Memory-mapped PCI configuration space of segment 0: its address and first bus.
    pub pci_config: Option<(u64, u8)>,
    /// High-precision event timer.
    pub hpet: Option<u64>,
    /// The IOAPIC that serves interrupt lines from 0.
    pub io_apic: Option<u64>,
    /// IOAPIC inputs of the legacy interrupt lines that are not wired one to one: (line, input).
    pub overrides: Vec<(u8, u32)>,
    /// I/O port of the ACPI timer.
    pub acpi_timer: Option<u16>,
    /// I/O port and value that switch the machine off (PM1a control and the S5 sleep type).
    pub power_off: Option<(u16, u16)>,
}

impl Tables {
    /// Reads the tables below `root`. Damaged ones are passed over: each has its fallback.
    #[must_use]
    pub fn read(memory: &impl PhysicalMemory, root: RootTable) -> Self {
        let mut tables = Self::default();
        let (address, width) = match root {
            RootTable::Rsdt(address) => (address, 4),
            RootTable::Xsdt(address) => (address, 8),
        };
        let Some((_, list)) = table(memory, address) else {
            return tables;
        };
        for entry in list[HEADER_BYTES..].chunks_exact(width).take(TABLES_MAX) {
            let address = match width {
                4 => u32_at(entry, 0).map(u64::from),
                _ => u64_at(entry, 0),
            };
            if let Some((signature, bytes)) = address.and_then(|address| table(memory, address)) {
                tables.take(memory, &signature, &bytes);
            }
        }
        tables
    }

    /// The IOAPIC input of a legacy interrupt line.
    #[must_use]
    pub fn input_of_line(&self, line: u8) -> u32 {
        self.overrides
            .iter()
            .find(|(from, _)| *from == line)
            .map_or(line.into(), |(_, input)| *input)
    }

    fn take(&mut self, memory: &impl PhysicalMemory, signature: &str, bytes: &[u8]) {
        match signature {
            // PCI Firmware Specification 3.2, 4.1.2: entries of 16 bytes after 8 reserved ones.
            "MCFG" => {
                self.pci_config = bytes
                    .get(HEADER_BYTES + 8..)
                    .unwrap_or_default()
                    .chunks_exact(16)
                    .find(|entry| entry[8..10] == [0, 0])
                    .and_then(|entry| Some((u64_at(entry, 0)?, entry[10])));
            }
            // IA-PC HPET Specification 1.0a, 3.2.4: the address follows its descriptor.
            "HPET" => self.hpet = u64_at(bytes, 44),
            "APIC" => self.take_madt(bytes),
            "FACP" => {
                self.acpi_timer = u32_at(bytes, 76)
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|port| *port != 0);
                self.power_off = power_off(memory, bytes);
            }
            _ => {}
        }
    }

    /// The interrupt controllers (5.2.12).
    fn take_madt(&mut self, bytes: &[u8]) {
        const IO_APIC: u8 = 1;
        const OVERRIDE: u8 = 2;
        let mut rest = bytes.get(HEADER_BYTES + 8..).unwrap_or_default();
        while let [kind, len, ..] = *rest {
            let Some(entry) = rest.get(..usize::from(len.max(2))) else {
                return;
            };
            match kind {
                IO_APIC if u32_at(entry, 8) == Some(0) => {
                    self.io_apic = u32_at(entry, 4).map(u64::from);
                }
                OVERRIDE => {
                    if let (Some(&line), Some(input)) = (entry.get(3), u32_at(entry, 4)) {
                        self.overrides.push((line, input));
                    }
                }
                _ => {}
            }
            rest = &rest[entry.len()..];
        }
    }
}

/// What to write where to switch off: PM1a control from the FADT, and SLP_TYP from the `\_S5` package,
/// found by its encoding since there is no AML interpreter here.
fn power_off(memory: &impl PhysicalMemory, fadt: &[u8]) -> Option<(u16, u16)> {
    const SLEEP_ENABLE: u16 = 1 << 13;
    let port = u16::try_from(u32_at(fadt, 64)?).ok()?;
    let (_, dsdt) = table(memory, u32_at(fadt, 40)?.into())?;
    // NameOp "_S5_" PackageOp PkgLength NumElements, then a byte constant (20.2).
    let name = dsdt
        .windows(6)
        .position(|window| window == b"\x08_S5_\x12")?;
    let package = dsdt.get(name + 6..)?;
    let length_bytes = usize::from(package.first()? >> 6) + 1;
    let sleep_type = match package.get(length_bytes + 1..)? {
        [0x0a, value, ..] => *value,
        [value @ 0..=1, ..] => *value,
        _ => return None,
    };
    Some((port, SLEEP_ENABLE | (u16::from(sleep_type) & 7) << 10))
}

/// A table with its signature, when its length and checksum are right.
fn table(memory: &impl PhysicalMemory, address: u64) -> Option<(String, Vec<u8>)> {
    let len = memory.read_u32(address.checked_add(4)?) as usize;
    if address == 0 || !(HEADER_BYTES..=TABLE_BYTES_MAX).contains(&len) {
        return None;
    }
    let bytes = memory.read_vec(address, len);
    if sum(&bytes) != 0 {
        return None;
    }
    Some((String::from_utf8_lossy(&bytes[..4]).into_owned(), bytes))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::Pieces;

    fn table_bytes(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend((HEADER_BYTES as u32 + body.len() as u32).to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(body);
        bytes[9] = 0u8.wrapping_sub(sum(&bytes));
        bytes
    }

    fn machine() -> Pieces {
        let mut mcfg = vec![0; 8];
        mcfg.extend(0xb000_0000u64.to_le_bytes());
        mcfg.extend([0, 0, 0, 255, 0, 0, 0, 0]);
        let mut hpet = vec![0; 8];
        hpet.extend(0xfed0_0000u64.to_le_bytes());
        let mut madt = vec![0; 8];
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        let mut fadt = vec![0; 100];
        fadt[4..8].copy_from_slice(&0x6000u32.to_le_bytes());
        fadt[40..44].copy_from_slice(&0x608u32.to_le_bytes());
        fadt[28..32].copy_from_slice(&0x604u32.to_le_bytes());
        let dsdt = b"xx\x08_S5_\x12\x06\x04\x0a\x05\x0a\x05";
        let mut rsdt = Vec::new();
        for address in [0x2000u32, 0x3000, 0x4000, 0x5000, 0x7000] {
            rsdt.extend(address.to_le_bytes());
        }
        Pieces(vec![
            (0x1000, table_bytes(b"RSDT", &rsdt)),
            (0x2000, table_bytes(b"MCFG", &mcfg)),
            (0x3000, table_bytes(b"HPET", &hpet)),
            (0x4000, table_bytes(b"APIC", &madt)),
            (0x5000, table_bytes(b"FACP", &fadt)),
            (0x6000, table_bytes(b"DSDT", dsdt)),
        ])
    }

    #[test]
    fn tables_are_found_and_missing_ones_passed_over() {
        let tables = Tables::read(&machine(), RootTable::Rsdt(0x1000));
        assert_eq!(tables.pci_config, Some((0xb000_0000, 0)));
        assert_eq!(tables.hpet, Some(0xfed0_0000));
        assert_eq!(tables.io_apic, Some(0xfec0_0000));
        assert_eq!(tables.input_of_line(0), 2);
        assert_eq!(tables.input_of_line(4), 4);
        assert_eq!(tables.acpi_timer, Some(0x608));
        assert_eq!(tables.power_off, Some((0x604, 0x2000 | 5 << 10)));
    }

    #[test]
    fn a_table_with_a_wrong_checksum_is_passed_over() {
        let mut memory = machine();
        memory.0[2].1[40] ^= 1;
        assert_eq!(Tables::read(&memory, RootTable::Rsdt(0x1000)).hpet, None);
    }

    #[test]
    fn the_root_pointer_is_checked() {
        let mut rsdp = b"RSD PTR ".to_vec();
        rsdp.resize(20, 0);
        rsdp[16..20].copy_from_slice(&0x1234u32.to_le_bytes());
        rsdp[8] = 0u8.wrapping_sub(sum(&rsdp));
        assert_eq!(RootTable::parse(&rsdp), Some(RootTable::Rsdt(0x1234)));
        let memory = Pieces(vec![(0xf_5a40, rsdp.clone())]);
        assert_eq!(RootTable::search(&memory), Some(RootTable::Rsdt(0x1234)));
        rsdp[16] ^= 1;
        assert_eq!(RootTable::parse(&rsdp), None);
    }

    proptest! {
        #[test]
        fn no_table_content_panics(
            which in 1usize..6,
            body in prop::collection::vec(any::<u8>(), 0..96),
        ) {
            let mut memory = machine();
            let (_, bytes) = &mut memory.0[which];
            let signature = *bytes.first_chunk::<4>().unwrap();
            *bytes = table_bytes(&signature, &body);
            let _ = Tables::read(&memory, RootTable::Rsdt(0x1000));
        }
    }
}
