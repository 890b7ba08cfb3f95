//! The PC's battery-backed clock (Motorola MC146818): its registers as a moment in time.

/// Registers of second, minute, hour, day, month and year.
pub const REGISTERS: [u8; 6] = [0, 2, 4, 7, 8, 9];
/// The register whose bit [`UPDATING`] says that the others are changing.
pub const STATUS_A: u8 = 10;
/// Bit of [`STATUS_A`].
pub const UPDATING: u8 = 0x80;
/// The register that tells the format of the others.
pub const STATUS_B: u8 = 11;

/// In [`STATUS_B`]: numbers are binary, not BCD.
const BINARY: u8 = 4;
/// In [`STATUS_B`]: hours run from 0 to 23.
const HOURS_24: u8 = 2;
/// In the hour, when hours run from 1 to 12.
const AFTERNOON: u8 = 0x80;

/// Seconds since 1970 of the registers' values. The century is taken as the 21st; values that no clock
/// shows are cut to the nearest that it can.
#[must_use]
pub fn unix_seconds(registers: [u8; 6], status_b: u8) -> u64 {
    let number = |value: u8| {
        u64::from(if status_b & BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        })
    };
    let [second, minute, hour, day, month, year] = registers;
    let hour = if status_b & HOURS_24 != 0 {
        number(hour)
    } else {
        number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    let (day, month) = (number(day).clamp(1, 31), number(month).clamp(1, 12));
    // Years that begin in March put the leap day last.
    let year = 2000 + number(year).min(99) - u64::from(month <= 2);
    let days_before_month = (153 * ((month + 9) % 12) + 2) / 5;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + days_before_month + day - 1;
    /// Days from 1 March of year 0 to 1 January 1970.
    const DAYS_TO_1970: u64 = 719_468;
    ((days - DAYS_TO_1970) * 24 + hour.min(23)) * 3600
        + number(minute).min(59) * 60
        + number(second).min(59)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        // `date -u -d @...` gives the expected values.
        let bcd = [0x59, 0x58, 0x23, 0x29, 0x02, 0x24];
        assert_eq!(unix_seconds(bcd, HOURS_24), 1_709_251_139);
        let binary = [0, 0, 0, 1, 1, 0];
        assert_eq!(unix_seconds(binary, HOURS_24 | BINARY), 946_684_800);
        let half_past_noon = [0, 30, 12 | AFTERNOON, 21, 11, 26];
        assert_eq!(unix_seconds(half_past_noon, BINARY), 1_795_264_200);
        let half_past_midnight = [0, 30, 12, 21, 11, 26];
        assert_eq!(unix_seconds(half_past_midnight, BINARY), 1_795_221_000);
    }

    proptest! {
        #[test]
        fn any_values_give_a_moment_of_this_century(
            registers: [u8; 6], status_b: u8,
        ) {
            let seconds = unix_seconds(registers, status_b);
            prop_assert!((946_684_800..4_102_444_800 + 86_400 * 2).contains(&seconds));
        }
    }
}
