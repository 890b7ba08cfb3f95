//! Starting a Linux kernel by its 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst).
//!
//! The payload of a bzImage unpacks itself in a fraction of a second, so there is no need to take it apart, and every
//! distribution's kernel works. Firmware is not involved: what the kernel asks of it is in tables here.

use alloc::{vec, vec::Vec};

use guest_memory::{Gpa, GuestMemory, HOLE_END, HOLE_START, PAGE_SIZE};

use crate::{
    machine::LoadError,
    processor,
    vcpu::{Segment, VcpuState, gpr},
};

/// Offsets in the setup header, which is at the same place in the file and in the zero page.
mod header {
    pub const START: usize = 0x1f1;
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const END_LESS_0X202: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER_TYPE: usize = 0x210;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const COMMAND_LINE: usize = 0x228;
    pub const RAMDISK_HIGHEST: usize = 0x22c;
    pub const LOAD_FLAGS_64: usize = 0x236;
    pub const COMMAND_LINE_MAX: usize = 0x238;
    pub const PREFERRED_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// Offsets in the zero page.
mod zero_page {
    pub const RSDP: usize = 0x70;
    pub const E820_COUNT: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
}

/// The kernel has an entry point for 64-bit mode.
const XLF_KERNEL_64: u16 = 1;
/// That entry point, from where the payload was loaded.
const ENTRY_64: u64 = 0x200;
const VERSION_2_12: u16 = 0x020c;

// Low memory: nobody but us puts anything there.
const GDT: u64 = 0x1000;
const ZERO_PAGE: u64 = 0x2000;
const COMMAND_LINE: u64 = 0x3000;
const COMMAND_LINE_ROOM: usize = 0x1000;
const PAGE_TABLES: u64 = 0x9000;
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;

/// Where a PC goes on after a jump to its reset vector in real mode.
const RESET_STUB: u64 = 0xf_fff0;

/// Puts kernel, initrd, command line and tables into RAM; gives the boot vCPU's state.
///
/// # Errors
/// When the image is no bootable kernel or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    command_line: &str,
    rsdp: u64,
) -> Result<VcpuState, LoadError> {
    let image = Image::parse(kernel)?;
    let line_max = (COMMAND_LINE_ROOM - 1).min(image.command_line_max as usize);
    fits(
        "the command line",
        command_line.len() as u64,
        line_max as u64,
    )?;

    // The kernel unpacks itself into `init_size` bytes from its preferred address; the initrd is at the top of RAM.
    let low_ram = memory.size().min(HOLE_START);
    let kernel_end = image.preferred_address.saturating_add(image.init_size);
    fits("the kernel", kernel_end, low_ram)?;
    let initrd = initrd.unwrap_or_default();
    let top = low_ram.min(image.initrd_highest + 1);
    let room = top.saturating_sub(kernel_end) / PAGE_SIZE as u64 * PAGE_SIZE as u64;
    fits("the initrd", initrd.len() as u64, room)?;
    let initrd_start = (top - initrd.len() as u64) & !(PAGE_SIZE as u64 - 1);

    let put = |gpa: u64, bytes: &[u8]| place(memory, gpa, bytes);
    put(image.preferred_address, image.payload)?;
    put(initrd_start, initrd)?;
    put(COMMAND_LINE, command_line.as_bytes())?;
    put(COMMAND_LINE + command_line.len() as u64, &[0])?;

    let mut page = vec![0; PAGE_SIZE];
    page[header::START..header::START + image.header.len()].copy_from_slice(image.header);
    page[header::LOADER_TYPE] = 0xff;
    set(
        &mut page,
        header::RAMDISK_IMAGE,
        &(initrd_start as u32).to_le_bytes(),
    );
    set(
        &mut page,
        header::RAMDISK_SIZE,
        &(initrd.len() as u32).to_le_bytes(),
    );
    set(
        &mut page,
        header::COMMAND_LINE,
        &(COMMAND_LINE as u32).to_le_bytes(),
    );
    set(&mut page, zero_page::RSDP, &rsdp.to_le_bytes());
    let map = memory_map(memory.size());
    page[zero_page::E820_COUNT] = map.len() as u8;
    for (i, (start, end, kind)) in map.iter().enumerate() {
        let entry = zero_page::E820_TABLE + i * 20;
        set(&mut page, entry, &start.to_le_bytes());
        set(&mut page, entry + 8, &(end - start).to_le_bytes());
        set(&mut page, entry + 16, &kind.to_le_bytes());
    }
    put(ZERO_PAGE, &page)?;
    put(GDT, &gdt())?;
    put(PAGE_TABLES, &identity_map())?;
    put(RESET_STUB, &reset_stub())?;
    Ok(boot_state(image.preferred_address + ENTRY_64))
}

/// Puts what a kernel finds at boot into RAM.
///
/// # Errors
/// When there is no RAM at that place.
pub fn place(memory: &GuestMemory, gpa: u64, bytes: &[u8]) -> Result<(), LoadError> {
    memory
        .write(Gpa(gpa), bytes)
        .map_err(|_| LoadError::NoRoom {
            what: "the boot data",
            needed: gpa + bytes.len() as u64,
            available: memory.size(),
        })
}

fn fits(what: &'static str, needed: u64, available: u64) -> Result<(), LoadError> {
    if needed <= available {
        return Ok(());
    }
    Err(LoadError::NoRoom {
        what,
        needed,
        available,
    })
}

fn set(page: &mut [u8], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage, checked.
struct Image<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    preferred_address: u64,
    init_size: u64,
    command_line_max: u32,
    initrd_highest: u64,
}

impl<'a> Image<'a> {
    fn parse(kernel: &'a [u8]) -> Result<Self, LoadError> {
        let bad = LoadError::BadKernel;
        if kernel.len() < PAGE_SIZE {
            return Err(bad("it is too short"));
        }
        let u16_at = |i: usize| u16::from_le_bytes([kernel[i], kernel[i + 1]]);
        let u32_at = |i: usize| u32::from(u16_at(i)) | u32::from(u16_at(i + 2)) << 16;
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if kernel[header::MAGIC..header::MAGIC + 4] != *b"HdrS" {
            return Err(bad("its header has no signature"));
        }
        if u16_at(header::VERSION) < VERSION_2_12 {
            return Err(bad("its boot protocol is too old"));
        }
        if u16_at(header::LOAD_FLAGS_64) & XLF_KERNEL_64 == 0 {
            return Err(bad("it has no 64-bit entry point"));
        }
        let header_end = header::MAGIC + usize::from(kernel[header::END_LESS_0X202]);
        // 0 means 4, for the sake of very old loaders.
        let sectors = match kernel[header::SETUP_SECTORS] {
            0 => 4,
            n => usize::from(n),
        };
        let payload = kernel
            .get((sectors + 1) * 512..)
            .ok_or(bad("it is shorter than its setup code"))?;
        let image = Self {
            header: &kernel[header::START..header_end],
            payload,
            preferred_address: u64_at(header::PREFERRED_ADDRESS),
            init_size: u64::from(u32_at(header::INIT_SIZE)).max(payload.len() as u64),
            command_line_max: u32_at(header::COMMAND_LINE_MAX),
            initrd_highest: u32_at(header::RAMDISK_HIGHEST).into(),
        };
        if image.preferred_address < HIGH_START {
            return Err(bad("it wants to be loaded below 1 MiB"));
        }
        Ok(image)
    }
}

/// The e820 map: start, end, kind. ACPI tables and the reset stub are in the part below 1 MiB that is reserved.
fn memory_map(size: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_END, E820_RAM),
        (LOW_END, HIGH_START, E820_RESERVED),
        (HIGH_START, size.min(HOLE_START), E820_RAM),
    ];
    if size > HOLE_START {
        map.push((HOLE_END, HOLE_END + size - HOLE_START, E820_RAM));
    }
    map
}

fn gdt() -> Vec<u8> {
    // Null, unused, 64-bit code, data.
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64]
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// The first 4 GiB, mapped to themselves by 2 MiB pages: six tables.
fn identity_map() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |n: u64| PAGE_TABLES + n * PAGE_SIZE as u64;
    let mut entries = vec![0_u64; 6 * 512];
    entries[0] = table(1) | PRESENT_WRITABLE;
    for i in 0..4 {
        entries[512 + i] = table(2 + i as u64) | PRESENT_WRITABLE;
    }
    for (i, entry) in entries[1024..].iter_mut().enumerate() {
        *entry = (i as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// `mov dx, 0x601; mov al, 0x42; out dx, al; hlt`: Linux' way to restart a machine without a better one is
/// a jump to here, and zeroes would run for ever.
fn reset_stub() -> Vec<u8> {
    let [low, high] = crate::ports::RESET.to_le_bytes();
    vec![0xba, low, high, 0xb0, crate::ports::RESET_VALUE, 0xee, 0xf4]
}

fn boot_state(entry: u64) -> VcpuState {
    let flat = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    let data = flat(SELECTOR_DATA, 0xc93);
    let mut state = VcpuState {
        rip: entry,
        cs: flat(SELECTOR_CODE, 0xa9b),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdtr: Segment {
            limit: 31,
            base: GDT,
            ..Segment::default()
        },
        // PG, WP, NE, ET, MP, PE.
        cr0: 0x8001_0033,
        cr3: PAGE_TABLES,
        // PAE.
        cr4: 0x20,
        // LME, LMA.
        efer: 0x500,
        ..processor::reset_state()
    };
    state.gprs[usize::from(gpr::RSI)] = ZERO_PAGE;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::testing;

    const MIB: usize = 1 << 20;

    fn kernel() -> Vec<u8> {
        let mut image = vec![0; 8192];
        image[header::SETUP_SECTORS] = 7;
        image[header::END_LESS_0X202] = 0x66;
        set(&mut image, header::MAGIC, b"HdrS");
        set(&mut image, header::VERSION, &0x020f_u16.to_le_bytes());
        set(&mut image, header::LOAD_FLAGS_64, &1_u16.to_le_bytes());
        set(
            &mut image,
            header::COMMAND_LINE_MAX,
            &2047_u32.to_le_bytes(),
        );
        set(
            &mut image,
            header::RAMDISK_HIGHEST,
            &0x7fff_ffff_u32.to_le_bytes(),
        );
        set(
            &mut image,
            header::PREFERRED_ADDRESS,
            &(2 * MIB as u64).to_le_bytes(),
        );
        set(&mut image, header::INIT_SIZE, &(MIB as u32).to_le_bytes());
        image[4096] = 0xaa;
        image
    }

    fn load_into(
        memory: &GuestMemory,
        kernel: &[u8],
        initrd: &[u8],
    ) -> Result<VcpuState, LoadError> {
        load(memory, kernel, Some(initrd), "quiet", 0xe_0000)
    }

    #[test]
    fn everything_is_where_the_zero_page_says() {
        let memory = testing::memory(8 * MIB);
        let state = load_into(&memory, &kernel(), &[1, 2, 3]).unwrap();
        assert_eq!(state.rip, 2 * MIB as u64 + 0x200);
        let mut byte = [0];
        memory.read(Gpa(2 * MIB as u64), &mut byte).unwrap();
        assert_eq!(byte, [0xaa]);
        let page = state.gprs[usize::from(gpr::RSI)];
        let at = |offset: usize| memory.read_u32(Gpa(page + offset as u64)).unwrap();
        assert_eq!(at(header::RAMDISK_IMAGE), (8 * MIB - 4096) as u32);
        assert_eq!(at(header::RAMDISK_SIZE), 3);
        assert_eq!(at(zero_page::RSDP), 0xe_0000);
        assert_eq!(at(zero_page::E820_COUNT) & 0xff, 3);
        let mut line = [0; 6];
        memory
            .read(Gpa(at(header::COMMAND_LINE).into()), &mut line)
            .unwrap();
        assert_eq!(&line, b"quiet\0");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = testing::memory(8 * MIB);
        for damage in [header::MAGIC, header::VERSION + 1, header::LOAD_FLAGS_64] {
            let mut image = kernel();
            image[damage] = 0;
            let refused = load_into(&memory, &image, &[]);
            assert!(
                matches!(refused, Err(LoadError::BadKernel(_))),
                "{refused:?}"
            );
        }
        assert!(load_into(&memory, &[0; 100], &[]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let memory = testing::memory(4 * MIB);
        let refused = load_into(&memory, &kernel(), &vec![0; 2 * MIB]).unwrap_err();
        assert_eq!(
            refused,
            LoadError::NoRoom {
                what: "the initrd",
                needed: 2 * MIB as u64,
                available: MIB as u64
            }
        );
        let line = "x".repeat(4096);
        assert!(load(&memory, &kernel(), None, &line, 0).is_err());
    }

    #[test]
    fn ram_above_the_hole_is_in_the_map() {
        let map = memory_map(HOLE_START + MIB as u64);
        assert_eq!(map[2].1, HOLE_START);
        assert_eq!(map[3], (HOLE_END, HOLE_END + MIB as u64, E820_RAM));
    }
}
