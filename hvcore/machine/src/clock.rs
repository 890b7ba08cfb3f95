//! Guest time: the paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst).
//!
//! The guest reads its time-stamp counter and scales it by what a page in its RAM says. As long as the counter's
//! rate stays, the pages are written once. There is one time for the whole machine: all vCPUs have one counter.

use guest_memory::{Gpa, GuestMemory, OutOfRange};

use crate::state::SavedClock;

const NS_PER_S: u64 = 1_000_000_000;
/// The clock is the same on all processors.
const FLAG_STABLE: u8 = 1;

/// Lowest bit of the MSR that names the page: the clock is on.
pub const ENABLED: u64 = 1;

/// How guest time follows from the guest's time-stamp counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestClock {
    tsc_hz: u64,
    base_tsc: u64,
    base_ns: u64,
    /// Even; grows when the pages change.
    version: u32,
}

/// Scale from ticks to nanoseconds: shift, multiply, take bits 32 and up.
fn scale(tsc_hz: u64) -> (u32, i8) {
    let mut hz = tsc_hz.max(1);
    let mut shift = 0;
    while hz > 2 * NS_PER_S {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= NS_PER_S {
        hz <<= 1;
        shift += 1;
    }
    (((NS_PER_S << 32) / hz) as u32, shift)
}

impl GuestClock {
    /// Guest time starts at 0 with the counter at 0.
    #[must_use]
    pub fn new(tsc_hz: u64) -> Self {
        Self {
            tsc_hz,
            base_tsc: 0,
            base_ns: 0,
            version: 2,
        }
    }

    /// Rate of the counter.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// Guest time when the counter reads `tsc`, exactly as a guest computes it.
    #[must_use]
    pub fn at(&self, tsc: u64) -> u64 {
        let (multiplier, shift) = scale(self.tsc_hz);
        let ticks = u128::from(tsc.wrapping_sub(self.base_tsc));
        let ticks = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        self.base_ns + ((ticks * u128::from(multiplier)) >> 32) as u64
    }

    /// Goes on without a step at another rate, from where the counter reads `tsc`.
    pub fn change_rate(&mut self, tsc_hz: u64, tsc: u64) {
        self.base_ns = self.at(tsc);
        self.base_tsc = tsc;
        self.tsc_hz = tsc_hz;
        self.version = self.version.wrapping_add(2);
    }

    /// Writes a processor's page, if its MSR says that it has one.
    ///
    /// # Errors
    /// When the page is not RAM.
    pub fn write_page(&self, memory: &GuestMemory, msr: u64) -> Result<(), OutOfRange> {
        if msr & ENABLED == 0 {
            return Ok(());
        }
        let (multiplier, shift) = scale(self.tsc_hz);
        let mut page = [0; 32];
        page[0..4].copy_from_slice(&self.version.to_le_bytes());
        page[8..16].copy_from_slice(&self.base_tsc.to_le_bytes());
        page[16..24].copy_from_slice(&self.base_ns.to_le_bytes());
        page[24..28].copy_from_slice(&multiplier.to_le_bytes());
        page[28] = shift as u8;
        page[29] = FLAG_STABLE;
        memory.write(Gpa(msr & !ENABLED), &page)
    }

    /// Writes what the wall clock read when guest time was 0.
    ///
    /// # Errors
    /// When the place is not RAM.
    pub fn write_wall_clock(
        &self,
        memory: &GuestMemory,
        gpa: Gpa,
        tsc: u64,
        unix_ns: u64,
    ) -> Result<(), OutOfRange> {
        let start_ns = unix_ns.saturating_sub(self.at(tsc));
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..8].copy_from_slice(&((start_ns / NS_PER_S) as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&((start_ns % NS_PER_S) as u32).to_le_bytes());
        memory.write(gpa, &bytes)
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedClock {
        SavedClock {
            tsc_hz: self.tsc_hz,
            base_tsc: self.base_tsc,
            base_ns: self.base_ns,
            version: self.version,
        }
    }

    /// Goes on from a saved state.
    #[must_use]
    pub fn restore(saved: &SavedClock) -> Self {
        Self {
            tsc_hz: saved.tsc_hz,
            base_tsc: saved.base_tsc,
            base_ns: saved.base_ns,
            version: saved.version & !1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::testing;

    #[test]
    fn time_is_right_at_common_rates() {
        for hz in [24_000_000, 1_000_000_000, 2_596_152_000, 5_000_000_000] {
            let clock = GuestClock::new(hz);
            let day = clock.at(hz * 86_400);
            let error = day.abs_diff(86_400 * NS_PER_S);
            assert!(error < 100_000, "{hz} Hz: {error} ns in a day");
        }
    }

    #[test]
    fn a_change_of_rate_is_no_step() {
        let mut clock = GuestClock::new(2_000_000_000);
        let before = clock.at(10_000_000_000);
        clock.change_rate(3_000_000_000, 10_000_000_000);
        assert_eq!(clock.at(10_000_000_000), before);
        assert!(clock.at(13_000_000_000).abs_diff(before + NS_PER_S) < 2);
    }

    #[test]
    fn the_page_says_what_the_clock_computes() {
        let memory = testing::memory(4096);
        let clock = GuestClock::new(2_596_152_000);
        clock.write_page(&memory, 0x100 | ENABLED).unwrap();
        let multiplier = u64::from(memory.read_u32(Gpa(0x118)).unwrap());
        let tsc = 123_456_789_u64;
        assert_eq!(((tsc >> 1) * multiplier) >> 32, clock.at(tsc));
        assert!(clock.write_page(&memory, 0x10_0000 | ENABLED).is_err());
    }
}
