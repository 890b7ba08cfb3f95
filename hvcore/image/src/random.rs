//! Random bytes: from the CPU's generator where it has one, else from the jitter of the time-stamp
//! counter.

use core::arch::x86_64::{__cpuid, _rdrand64_step};

use crate::time;

/// Readings of the counter folded into one byte: a reading jitters by more than a bit under any load.
const READINGS_PER_BYTE: u32 = 64;
/// Tries before the generator counts as broken (AMD and Intel advise 10).
const TRIES: usize = 10;

/// Fills a buffer.
pub fn fill(buf: &mut [u8]) {
    const RDRAND: u32 = 1 << 30;
    let has_generator = __cpuid(1).ecx & RDRAND != 0;
    for chunk in buf.chunks_mut(8) {
        let value = has_generator
            .then(from_cpu)
            .flatten()
            .unwrap_or_else(from_jitter);
        chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
    }
}

fn from_cpu() -> Option<u64> {
    let mut value = 0;
    (0..TRIES).find_map(|_| {
        // SAFETY: called only where CPUID reports RDRAND.
        (unsafe { generate(&mut value) } == 1).then_some(value)
    })
}

/// # Safety
/// The CPU has RDRAND.
#[target_feature(enable = "rdrand")]
unsafe fn generate(value: &mut u64) -> i32 {
    _rdrand64_step(value)
}

fn from_jitter() -> u64 {
    let mut state = time::tsc();
    for _ in 0..8 * READINGS_PER_BYTE {
        // SplitMix64's mixing, with the counter as its increment.
        state = state
            .wrapping_add(time::tsc())
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}
