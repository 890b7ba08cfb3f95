//! Guests that do what no sane guest does. They must be answered, or stopped with a reason; neither the
//! host nor another guest may notice.

use core::arch::asm;

use crate::{
    check,
    cpu::{attempt, inb, inl, inw, outb, outl, rdmsr, set_cr3, wrmsr},
    interrupts::load_idt,
    println, virtio,
};

/// Device memory, and an address where nothing is.
const DEVICE: u64 = 0xfec0_0000;
const NOTHING: u64 = 0x00f0_0000_0000;
/// A port where nothing is.
const EMPTY: u16 = 0x2e8;

/// Numbers that look random and are always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Every MSR of the known ranges is read and written with nonsense; each answers or faults.
pub fn wild_msr() {
    // What would take this guest's own ground away: system calls and segment bases are harmless, but
    // turning long mode off or moving the APIC is the guest's own loss, not a test.
    const SPARED: [u32; 2] = [0x1b, 0xc000_0080];
    let mut random = Random(7);
    let mut answered = 0;
    let ranges = [0..0x200, 0x200..0x300, 0x6e0..0x6e1, 0x800..0x840];
    let high = [
        0x4b56_4d00..0x4b56_4d10,
        0xc000_0000..0xc000_0110,
        0xc001_0000..0xc001_0200,
    ];
    for number in ranges.into_iter().chain(high).flatten() {
        let read = attempt(|| rdmsr(number));
        answered += u32::from(read.is_ok());
        if SPARED.contains(&number) || (0x830..=0x83f).contains(&number) {
            continue;
        }
        let value = random.next();
        let wrote = attempt(|| wrmsr(number, value));
        // Whoever took the nonsense gets the old value back.
        if let (Ok(()), Ok(old)) = (wrote, read) {
            let _ = attempt(|| wrmsr(number, old));
        }
    }
    println!("{answered} MSRs answered");
    check!(answered > 10, "only {answered} MSRs answered");
}

/// Every low port and a sample of the others are read, and most are written.
pub fn wild_io() {
    let mut random = Random(11);
    for port in (0..0x1000_u16).chain((0x1000..0xff00).step_by(251)) {
        inb(port);
        inw(port & !1);
        inl(port & !3);
        // Not the console, nor what switches off or resets.
        let spared = matches!(
            port & !3,
            0x60 | 0x64 | 0x90 | 0x3f8..=0x3ff | 0x5f0..=0x60f | 0xcf8
        );
        if !spared {
            outb(port, random.next() as u8);
            outl(port & !3, random.next() as u32);
        }
    }
}

/// Device memory is read and written at every offset and with every size.
pub fn wild_mmio() {
    let mut random = Random(13);
    let bars = virtio::devices().map(|device| device.common);
    for base in bars.chain([DEVICE]) {
        for offset in (0..0x4000_u64).step_by(17) {
            let at = base + offset;
            // SAFETY: device memory of this guest.
            unsafe {
                core::ptr::read_volatile(at as *const u8);
                core::ptr::read_unaligned(at as *const u16);
                core::ptr::read_unaligned(at as *const u32);
                core::ptr::write_volatile(at as *mut u8, random.next() as u8);
                core::ptr::write_unaligned(at as *mut u32, random.next() as u32);
            }
        }
    }
}

/// Rings that lie outside RAM, overlap themselves, or lead in circles.
pub fn bad_rings() {
    let mut rung = 0;
    for device in virtio::devices() {
        for rings in [
            // Nowhere; at the very end of the address space; on top of each other; a loop.
            [NOTHING, NOTHING, NOTHING],
            [u64::MAX - 15, u64::MAX - 7, u64::MAX - 3],
            [0x10_0000, 0x10_0000, 0x10_0000],
            looped(),
        ] {
            device.start(rings);
            device.ring();
            rung += 1;
        }
    }
    println!("rang {rung} bad queues");
    check!(rung > 0, "there was no queue to ring");
}

/// A descriptor that continues with itself, made available many times.
fn looped() -> [u64; 3] {
    #[repr(C, align(4096))]
    struct Ring([u16; 2048]);
    static mut TABLE: Ring = Ring([0; 2048]);
    static mut AVAILABLE: Ring = Ring([0; 2048]);
    static mut USED: Ring = Ring([0; 2048]);
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    // SAFETY: one thread, and the device is not looking yet.
    unsafe {
        // Address in RAM, length 64 KiB, flags NEXT|WRITE, next = itself.
        TABLE.0[..8].copy_from_slice(&[0, 0x20, 0, 0, 0, 1, NEXT | WRITE, 0]);
        AVAILABLE.0[1] = 0x7fff;
    }
    [&raw const TABLE, &raw const AVAILABLE, &raw const USED].map(|ring| ring as u64)
}

/// No table for exceptions: the first one is the last.
pub fn triple_fault() {
    load_idt(0, 0);
    // SAFETY: the end of this guest.
    unsafe { asm!("ud2") };
}

fn jump(to: u64) {
    // SAFETY: the end of this guest.
    unsafe { asm!("jmp {}", in(reg) to) };
}

/// Executes device memory.
pub fn jump_to_device() {
    jump(DEVICE);
}

/// Executes where nothing is. (Behind the loader's identity map of 4 GiB this is a page fault, so the
/// address is below.)
pub fn jump_to_nothing() {
    jump(0xe000_0000);
}

/// Page tables where nothing is.
pub fn tables_in_nothing() {
    set_cr3(NOTHING);
}

/// A stack in device memory, for an exception to be pushed on.
pub fn stack_in_device() {
    // SAFETY: the end of this guest.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) DEVICE + 0x800) };
}

/// String I/O in both directions, and from where nothing is mapped.
pub fn string_io() {
    let mut buffer = [0x2e_u8; 16];
    // SAFETY: the buffer holds the transfers.
    unsafe {
        asm!("rep outsb", in("dx") 0x80, inout("rsi") buffer.as_ptr() => _, inout("rcx") 16_u64 => _);
        asm!("rep insb", in("dx") EMPTY, inout("rdi") buffer.as_mut_ptr() => _, inout("rcx") 16_u64 => _);
    }
    check!(
        buffer == [0xff; 16],
        "INS from an empty port left {buffer:x?}"
    );
    // SAFETY: reads only.
    let lost = attempt(|| unsafe {
        asm!("rep outsd", in("dx") 0x80, inout("rsi") NOTHING => _, inout("rcx") u64::MAX => _);
    });
    check!(lost.is_err(), "OUTS from nowhere went through");
}

/// A breakpoint on the handler of the breakpoint: an endless storm without a single instruction executed
/// (the CPU's own loop, unless the exception exits).
pub fn exception_storm() {
    let handler = storm_handler as extern "C" fn() as usize as u64;
    let mut table = [[0_u64; 2]; 32];
    table[1] = [
        handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler & 0xffff_0000) << 32,
        handler >> 32,
    ];
    load_idt((&raw const table) as u64, 0x1ff);
    // SAFETY: the end of this guest.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr7, {}", "push {} | 0x100", "popfq", "nop", "nop",
            in(reg) handler, in(reg) 0x401_u64, const 2,
        );
    }
}

extern "C" fn storm_handler() {
    // SAFETY: never gets far.
    unsafe { asm!("iretq") };
}
