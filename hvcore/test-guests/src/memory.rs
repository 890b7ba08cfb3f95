//! Paging inside the guest, and RAM below it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    check,
    cpu::{attempt, cr3, set_cr3},
    virtio::Entropy,
};

const PAGE: u64 = 4096;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE_FAULT: u8 = 14;

#[repr(C, align(4096))]
struct Page([u64; 512]);

/// Tables for one window of 4 KiB pages at [`WINDOW`], and two pages to map there.
static mut LEVEL3: Page = Page([0; 512]);
static mut LEVEL2: Page = Page([0; 512]);
static mut LEVEL1: Page = Page([0; 512]);
static mut DATA: [Page; 2] = [const { Page([0; 512]) }; 2];

/// An address whose top-level entry the loader left free.
const WINDOW: u64 = 0x40_0000_0000 * 2;

fn address<T>(of: *const T) -> u64 {
    of as u64
}

fn set_entry(table: *mut Page, index: usize, value: u64) {
    // SAFETY: the tables are this module's own, and there is one thread.
    unsafe { (&raw mut (*table).0[index]).write_volatile(value) };
}

fn entry(table: *const Page, index: usize) -> u64 {
    // SAFETY: as `set_entry`.
    unsafe { (&raw const (*table).0[index]).read_volatile() }
}

fn read(address: u64) -> u64 {
    // SAFETY: the tests read only what they mapped, or expect the fault.
    unsafe { core::ptr::read_volatile(address as *const u64) }
}

fn write(address: u64, value: u64) {
    // SAFETY: as `read`.
    unsafe { core::ptr::write_volatile(address as *mut u64, value) };
}

/// The guest's own page tables work: mapping, remapping, protection, A and D bits.
pub fn paging() {
    let root = (cr3() & ADDRESS) as *mut Page;
    let (level3, level2, level1) = (&raw mut LEVEL3, &raw mut LEVEL2, &raw mut LEVEL1);
    let top = (WINDOW >> 39 & 511) as usize;
    set_entry(root, top, address(level3) | PRESENT | WRITABLE);
    set_entry(
        level3,
        (WINDOW >> 30 & 511) as usize,
        address(level2) | PRESENT | WRITABLE,
    );
    set_entry(level2, 0, address(level1) | PRESENT | WRITABLE);
    let data = (&raw const DATA).cast::<Page>();
    let (first, second) = (address(data), address(data) + PAGE);
    set_entry(level1, 0, first | PRESENT | WRITABLE);
    set_entry(level1, 1, second | PRESENT | WRITABLE);
    set_cr3(cr3());

    check!(
        entry(level1, 0) & (ACCESSED | DIRTY) == 0,
        "A or D before any access"
    );
    check!(read(WINDOW) == 0, "fresh page reads {:#x}", read(WINDOW));
    check!(
        entry(level1, 0) & (ACCESSED | DIRTY) == ACCESSED,
        "a read sets only A"
    );
    write(WINDOW, 0x1122_3344_5566_7788);
    check!(entry(level1, 0) & DIRTY != 0, "a write sets D");
    check!(
        read(first) == 0x1122_3344_5566_7788,
        "the alias shows the write"
    );
    // An access over both pages.
    write(WINDOW + PAGE - 4, 0xaaaa_bbbb_cccc_dddd);
    check!(
        read(second) & 0xffff_ffff == 0xaaaa_bbbb,
        "the upper half is in the second page"
    );

    // Remapped: the old translation must be gone.
    set_entry(level1, 0, second | PRESENT | WRITABLE);
    set_cr3(cr3());
    check!(
        read(WINDOW) == read(second),
        "the old translation is still in use"
    );

    set_entry(level1, 0, first | PRESENT);
    set_cr3(cr3());
    let fault = attempt(|| write(WINDOW, 1)).expect_err("write to a read-only page");
    check!(
        fault.vector == PAGE_FAULT && fault.error == 0b11,
        "{fault:?}"
    );
    set_entry(level1, 0, first | PRESENT | NO_EXECUTE);
    set_cr3(cr3());
    if nx_enabled() {
        let fault = attempt(|| {
            // SAFETY: the page cannot be executed, which is the point.
            let function: extern "C" fn() = unsafe { core::mem::transmute(WINDOW as *const ()) };
            function();
        })
        .expect_err("execution of data");
        check!(
            fault.vector == PAGE_FAULT && fault.error & 1 << 4 != 0,
            "{fault:?}"
        );
    }
    let fault = attempt(|| read(WINDOW + 2 * PAGE)).expect_err("read of nothing");
    check!(fault.vector == PAGE_FAULT && fault.error == 0, "{fault:?}");
    set_entry(root, top, 0);
    set_cr3(cr3());
}

fn nx_enabled() -> bool {
    crate::cpu::rdmsr(0xc000_0080) & 1 << 11 != 0
}

static RAM_END: AtomicU64 = AtomicU64::new(0);

/// Takes the size of RAM from the loader's memory map (Linux, x86/zero-page.rst: `e820_entries` at 0x1e8, the
/// table at 0x2d0, 20 bytes an entry).
pub fn init(zero_page: *const u8) {
    // SAFETY: the loader passes a whole zero page.
    unsafe {
        let entries = usize::from(zero_page.add(0x1e8).read());
        for index in 0..entries {
            let entry = zero_page.add(0x2d0 + index * 20);
            let start = entry.cast::<u64>().read_unaligned();
            let length = entry.add(8).cast::<u64>().read_unaligned();
            let kind = entry.add(16).cast::<u32>().read_unaligned();
            if kind == 1 && start == 1 << 20 {
                RAM_END.store(start + length, Ordering::Relaxed);
            }
        }
    }
}

fn ram_end() -> u64 {
    RAM_END.load(Ordering::Relaxed)
}

/// First address behind the guest's image.
fn free_start() -> u64 {
    unsafe extern "C" {
        static image_end: u8;
    }
    ((&raw const image_end) as u64).next_multiple_of(PAGE)
}

/// The page tables in use, which the loader put somewhere into RAM: as many as an identity map of 4 GiB
/// takes, with room to spare.
fn tables_in_use() -> [u64; 16] {
    fn collect(table: u64, level: u32, found: &mut [u64; 16], count: &mut usize) {
        found[*count] = table;
        *count += 1;
        for index in 0..512 {
            let entry = read(table + index * 8);
            if entry & PRESENT != 0 && level > 2 && entry & LARGE == 0 {
                collect(entry & ADDRESS, level - 1, found, count);
            } else if entry & PRESENT != 0 && level == 2 && entry & LARGE == 0 {
                found[*count] = entry & ADDRESS;
                *count += 1;
            }
        }
    }
    let mut found = [0; 16];
    collect(cr3() & ADDRESS, 4, &mut found, &mut 0);
    found
}

/// Every page of RAM is zero at first, and holds what is put there.
pub fn all_ram() {
    let tables = tables_in_use();
    let pages = || {
        (free_start()..ram_end())
            .step_by(PAGE as usize)
            .filter(|page| !tables.contains(page))
    };
    for page in pages() {
        check!(read(page + 8) == 0, "page {page:#x} was not zero");
        write(page, page ^ 0x5555_5555_5555_5555);
    }
    for page in pages() {
        let value = read(page);
        check!(
            value == page ^ 0x5555_5555_5555_5555,
            "page {page:#x} reads {value:#x}"
        );
    }
}

/// Dirties memory in an irregular pattern, some of it through a device, for the host to check
/// its dirty log against.
pub fn dirty() {
    const WRITES: u32 = 20_000;
    let pages = (ram_end() - free_start()) / PAGE;
    let tables = tables_in_use();
    let mut entropy = Entropy::start().expect("the machine has an entropy device");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut writes = 0;
    while writes < WRITES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let page = free_start() + random % pages * PAGE;
        if tables.contains(&page) {
            continue;
        }
        if random >> 60 == 0 {
            entropy.fill(page);
        } else {
            write(page + (random >> 50 & 0xff8), random);
        }
        writes += 1;
    }
}
