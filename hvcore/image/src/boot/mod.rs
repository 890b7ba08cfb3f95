//! The way in: from the boot loader's 32-bit entry to Rust in long mode.

use core::arch::global_asm;

global_asm!(include_str!("entry.s"));

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static boot_stack_end: u8;
}

/// Physical addresses of the image: code, data, stack and boot page tables.
pub fn image() -> core::ops::Range<u64> {
    (&raw const image_start) as u64..(&raw const image_end) as u64
}

/// The frame pointer and return address stored at frame pointer `frame`, while it lies on the boot
/// stack.
pub fn caller(frame: u64) -> Option<(u64, u64)> {
    let end = (&raw const boot_stack_end) as u64;
    if !frame.is_multiple_of(8) || !(end - STACK_BYTES..=end - 16).contains(&frame) {
        return None;
    }
    let words = frame as *const [u64; 2];
    // SAFETY: two aligned words inside the boot stack, which is always mapped and initialised (bss).
    let [next, address] = unsafe { words.read() };
    (address != 0).then_some((next, address))
}

/// Whether the stack has stayed within its bounds: its lowest words are still zero.
pub fn stack_is_sound() -> bool {
    const WORDS: usize = 8;
    let end = (&raw const boot_stack_end) as u64;
    let lowest = (end - STACK_BYTES) as *const u64;
    // SAFETY: the words are inside the boot stack, which is always mapped; volatile, since the
    // stack's owner may write them at any time.
    (0..WORDS).all(|index| unsafe { lowest.add(index).read_volatile() } == 0)
}

/// As in `entry.s`.
const STACK_BYTES: u64 = 256 * 1024;
