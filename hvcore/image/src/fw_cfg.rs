//! QEMU's firmware configuration device, through which a launcher passes files
//! (QEMU documentation, specs/fw_cfg).

use alloc::{vec, vec::Vec};

use x86_64::instructions::port::{PortReadOnly, PortWriteOnly};

const SELECTOR_PORT: u16 = 0x510;
const DATA_PORT: u16 = 0x511;
/// Item that reads as "QEMU".
const SIGNATURE: u16 = 0;
/// Item that lists the files.
const DIRECTORY: u16 = 0x19;
/// Bytes of a directory entry: size, selector, reserved, name.
const ENTRY_BYTES: usize = 64;
/// Most files looked at.
const FILES_MAX: u32 = 1024;

/// A file by name, when there is such a device and it has the file with at most `bytes_max` bytes.
pub fn read(name: &str, bytes_max: usize) -> Option<Vec<u8>> {
    select(SIGNATURE);
    if read_array() != *b"QEMU" {
        return None;
    }
    select(DIRECTORY);
    let count = u32::from_be_bytes(read_array());
    for _ in 0..count.min(FILES_MAX) {
        let entry: [u8; ENTRY_BYTES] = read_array();
        let size = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        let stored = entry[8..].split(|byte| *byte == 0).next();
        if stored == Some(name.as_bytes()) {
            if size > bytes_max {
                return None;
            }
            select(u16::from_be_bytes([entry[4], entry[5]]));
            let mut bytes = vec![0; size];
            bytes.fill_with(read_byte);
            return Some(bytes);
        }
    }
    None
}

fn select(item: u16) {
    // SAFETY: selects what the data port reads; without the device it does nothing.
    unsafe { PortWriteOnly::new(SELECTOR_PORT).write(item) }
}

fn read_byte() -> u8 {
    // SAFETY: reads the device's next byte; without the device it reads all ones.
    unsafe { PortReadOnly::new(DATA_PORT).read() }
}

fn read_array<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| read_byte())
}
