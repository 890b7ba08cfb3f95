//! The heap behind `alloc`.

use talc::{TalcLock, source::Claim};

/// Enough until the memory map is known.
const BOOT_HEAP_BYTES: usize = 256 * 1024;

static mut BOOT_HEAP: [u8; BOOT_HEAP_BYTES] = [0; BOOT_HEAP_BYTES];

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Claim> =
    // SAFETY: nothing else names the array.
    TalcLock::new(unsafe { Claim::array(&raw mut BOOT_HEAP) });
