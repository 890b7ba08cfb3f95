//! VMDK in its streamOptimized form, which an OVA holds ("Virtual Disk Format 5.0", VMware): grains of 64 KiB, each compressed, in
//! the order of the disk, with their tables behind them.
//!
//! ```text
//! header, descriptor (text)
//! grain: sector, length, zlib stream          those that are zeros are left out
//! ...    table of 512 grains, after them
//! directory of tables, footer (the header, which now knows where the directory is), end of stream
//! ```
//!
//! All integers are little-endian; a sector is 512 bytes. Reading goes by the grains alone, in one pass; the tables
//! are for those who jump.

mod read;
mod write;

pub use read::Reader;
pub use write::{State, Writer};

const SECTOR: u64 = 512;
/// Sectors of a grain.
const GRAIN: u64 = 128;
const GRAIN_BYTES: usize = (GRAIN * SECTOR) as usize;
/// Entries of a table of grains.
const TABLE: usize = 512;
/// Sectors before the first grain.
const OVERHEAD: u64 = 128;
const MAGIC: [u8; 4] = *b"KDMV";
/// Newline test is valid, grains are compressed, markers are there.
const FLAGS: u32 = 0x0003_0001;
const DIRECTORY_AT_END: u64 = u64::MAX;
const DEFLATE: u16 = 1;

const END_OF_STREAM: u32 = 0;
const GRAIN_TABLE: u32 = 1;
const GRAIN_DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;

fn header(capacity: u64, directory: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC);
    put(4, &3u32.to_le_bytes());
    put(8, &FLAGS.to_le_bytes());
    put(12, &capacity.to_le_bytes());
    put(20, &GRAIN.to_le_bytes());
    // Descriptor: first sector and length.
    put(28, &1u64.to_le_bytes());
    put(36, &20u64.to_le_bytes());
    put(44, &(TABLE as u32).to_le_bytes());
    // No second directory.
    put(48, &0u64.to_le_bytes());
    put(56, &directory.to_le_bytes());
    put(64, &OVERHEAD.to_le_bytes());
    // Tells a file that was sent as text.
    put(73, b"\n \r\n");
    put(77, &DEFLATE.to_le_bytes());
    bytes
}
