//! The tables as others read them: checksums by hand, everything else by ACPICA's disassembler.

use std::{fs, process::Command, string::String, vec::Vec};

use super::*;

/// Each table with its signature, found as an operating system finds them.
fn by_signature(vcpus: u8) -> Vec<(String, Vec<u8>)> {
    let bytes = tables(vcpus);
    let at = |address: u64| &bytes[(address - BASE) as usize..];
    let u64_at = |b: &[u8]| u64::from_le_bytes(b[..8].try_into().unwrap());
    let table_at = |address: u64| {
        let table = at(address);
        let len = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        (name, table[..len].to_vec())
    };
    let xsdt = table_at(u64_at(&bytes[24..]));
    let mut found: Vec<_> = xsdt.1[HEADER..]
        .chunks(8)
        .map(|entry| table_at(u64_at(entry)))
        .collect();
    let fadt = found.iter().find(|t| t.0 == "FACP").unwrap().1.clone();
    found.push(table_at(u64_at(&fadt[140..])));
    found.push(xsdt);
    found
}

#[test]
fn every_checksum_is_right() {
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
    let all = tables(8);
    assert!(all.len() < 0x1_0000, "they must end before the reset stub");
    assert_eq!(sum(&all[..20]), 0);
    assert_eq!(sum(&all[..RSDP_LEN]), 0);
    for (name, table) in by_signature(8) {
        assert_eq!(sum(&table), 0, "{name}");
    }
}

#[test]
fn the_disassembler_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        // Not on this machine: `cargo xtask` says how to get it.
        return;
    }
    let folder = std::env::temp_dir().join(std::format!("elab-acpi-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (name, table) in by_signature(2) {
        let file = folder.join(std::format!("{name}.aml"));
        fs::write(&file, table).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        for trouble in ["Error", "Invalid", "Warning", "Incorrect", "unknown"] {
            assert!(!said.contains(trouble), "{name}: {said}");
        }
        let source = fs::read_to_string(file.with_extension("dsl")).unwrap();
        if name == "DSDT" {
            for wanted in [
                "PNP0A03",
                "PNP0501",
                "ACPI0013",
                "Notify (PWRB, 0x80)",
                "\\_SB",
            ] {
                assert!(source.contains(wanted), "no {wanted} in {source}");
            }
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
