//! Just enough of the ACPI Machine Language to describe a handful of devices (ACPI 6.5, chapter 20).
//!
//! Each function gives the encoding of one term; terms are joined by concatenation.

use alloc::{vec, vec::Vec};

const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const STRING: u8 = 0x0d;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const PACKAGE: u8 = 0x12;
const METHOD: u8 = 0x14;
const NOTIFY: u8 = 0x86;
const DEVICE: [u8; 2] = [0x5b, 0x82];

/// A length that includes its own encoding (20.2.4).
fn with_length(body: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    let (bytes, len) = match body.len() {
        n @ 0..0x3f => (1, n + 1),
        n @ 0..0xffe => (2, n + 2),
        n => (3, n + 3),
    };
    if bytes == 1 {
        encoded.push(len as u8);
    } else {
        encoded.push(((bytes - 1) << 6) as u8 | (len & 0xf) as u8);
        encoded.extend(&(len >> 4).to_le_bytes()[..bytes - 1]);
    }
    encoded.extend(body);
    encoded
}

/// A name of up to four characters, padded.
fn segment(name: &str) -> [u8; 4] {
    let mut padded = [b'_'; 4];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

/// `Scope (\name) { .. }`
pub fn scope(name: &str, body: &[Vec<u8>]) -> Vec<u8> {
    let path = [b"\\", &segment(name)[..]].concat();
    [vec![SCOPE], with_length(&[path, body.concat()].concat())].concat()
}

/// `Device (name) { .. }`
pub fn device(name: &str, body: &[Vec<u8>]) -> Vec<u8> {
    let body = [segment(name).to_vec(), body.concat()].concat();
    [DEVICE.to_vec(), with_length(&body)].concat()
}

/// `Name (name, value)`
pub fn name(name: &str, value: &[u8]) -> Vec<u8> {
    [&[NAME], &segment(name)[..], value].concat()
}

/// `Method (name, arguments, Serialized) { .. }`
pub fn method(name: &str, arguments: u8, body: &[u8]) -> Vec<u8> {
    const SERIALIZED: u8 = 8;
    let body = [&segment(name)[..], &[arguments | SERIALIZED], body].concat();
    [vec![METHOD], with_length(&body)].concat()
}

/// `Notify (device, value)`
pub fn notify(device: &str, value: u8) -> Vec<u8> {
    [&[NOTIFY], &segment(device)[..], &[BYTE, value]].concat()
}

/// An integer.
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => vec![value as u8],
        2..=0xff => vec![BYTE, value as u8],
        0x100..=0xffff => [&[WORD], &(value as u16).to_le_bytes()[..]].concat(),
        _ => [&[DWORD], &value.to_le_bytes()[..]].concat(),
    }
}

/// A string.
pub fn string(text: &str) -> Vec<u8> {
    [&[STRING], text.as_bytes(), &[0]].concat()
}

/// `Package () { .. }`
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = [vec![elements.len() as u8], elements.concat()].concat();
    [vec![PACKAGE], with_length(&body)].concat()
}

/// `EisaId (..)`: three letters of five bits and four hexadecimal digits.
pub fn eisa_id(id: &str) -> Vec<u8> {
    let (vendor, product) = id.split_at(3);
    let vendor = vendor
        .bytes()
        .fold(0, |code, letter| code << 5 | u32::from(letter - 0x40));
    let product = u32::from_str_radix(product, 16).expect("an EISA id ends in four hex digits");
    integer((vendor << 16 | product).swap_bytes())
}

/// `ResourceTemplate () { .. }`
pub fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    // End tag; a checksum of 0 means that there is none.
    let bytes = [descriptors.concat(), vec![0x79, 0]].concat();
    let body = [integer(bytes.len() as u32), bytes].concat();
    [vec![BUFFER], with_length(&body)].concat()
}

/// I/O ports that a device decodes (6.4.2.5).
pub fn io_ports(base: u16, len: u8) -> Vec<u8> {
    let [low, high] = base.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// An edge-triggered, active-high interrupt of the I/O APIC (6.4.3.6).
pub fn interrupt(pin: u32) -> Vec<u8> {
    const CONSUMER_EDGE: u8 = 0b11;
    [&[0x89, 6, 0, CONSUMER_EDGE, 1], &pin.to_le_bytes()[..]].concat()
}

/// Bus numbers that a bridge passes on (6.4.3.5.3).
pub fn bus_numbers(first: u16, last: u16) -> Vec<u8> {
    let mut bytes = vec![0x88, 13, 0, 2, 0x0c, 0];
    for value in [0, first, last, 0, last - first + 1] {
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Memory that a bridge passes on (6.4.3.5.2).
pub fn memory_window(base: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x87, 23, 0, 0, 0x0c, 1];
    for value in [0, base, base + (len - 1), 0, len] {
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_lengths_are_encoded_as_the_specification_says() {
        assert_eq!(eisa_id("PNP0A03"), [DWORD, 0x41, 0xd0, 0x0a, 0x03]);
        assert_eq!(with_length(&[7; 10])[0], 11);
        assert_eq!(with_length(&[7; 0x3f])[..2], [0x41, 0x04]);
    }
}
