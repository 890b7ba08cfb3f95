//! Quantities as people write them: a number and its unit, never a bare number whose unit must be guessed.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error};

/// Longest time a scenario may name.
const TIME_MAX_S: f64 = 86_400.0;
/// Highest rate, in bits per second.
const RATE_MAX_BPS: f64 = 1e12;
/// Largest size, in bytes.
const SIZE_MAX: f64 = 1e12;

/// A stretch of time: `400ms`, `1.5s`, `2min`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// A data rate: `10mbit`, `500kbit`, `1gbit` (a second, decimal).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second.
    pub bps: u64,
}

/// A size: `768MiB`, `4KiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes.
    pub bytes: u64,
}

/// A number and its unit, the unit being one of `units`.
fn with_unit(text: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
    let scale = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("give a number with a unit: {}", names.join(", ")))?
        .1;
    let value: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("\"{number}\" is no number"))?;
    if !value.is_finite() || value < 0.0 {
        return Err("a number from 0 on is needed".into());
    }
    Ok(value * scale)
}

/// Reads a stretch of time.
///
/// # Errors
/// In words, when the text is none or longer than a day.
pub fn time(text: &str) -> Result<Duration, String> {
    let seconds = with_unit(
        text,
        &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0)],
    )?;
    if seconds > TIME_MAX_S {
        return Err("at most a day".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads a rate, in bits per second.
///
/// # Errors
/// In words, when the text is none.
pub fn rate(text: &str) -> Result<u64, String> {
    let bits = with_unit(text, &[("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)])?;
    if !(1.0..=RATE_MAX_BPS).contains(&bits) {
        return Err("from 0.001kbit to 1000gbit".into());
    }
    Ok(bits as u64)
}

/// Reads a size, in bytes.
///
/// # Errors
/// In words, when the text is none.
pub fn size(text: &str) -> Result<u64, String> {
    let units = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
    ];
    let bytes = with_unit(text, &units)?;
    if bytes > SIZE_MAX {
        return Err("at most 931GiB".into());
    }
    Ok(bytes as u64)
}

/// Reads a probability.
///
/// # Errors
/// In words, when the text is none.
pub fn probability(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no number"))?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("a share from 0 to 1".into())
    }
}

macro_rules! from_text {
    ($type:ident, $name:literal, $read:expr, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let read: fn(&str) -> Result<$type, String> = $read;
                read(&text).map_err(|why| D::Error::custom(format!("\"{text}\": {why}")))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

from_text!(
    Time,
    "Time",
    |text| time(text).map(Time),
    r"^[0-9.]+ ?(us|ms|s|min)$"
);
from_text!(
    Rate,
    "Rate",
    |text| rate(text).map(|bps| Rate { bps }),
    r"^[0-9.]+ ?(kbit|mbit|gbit)$"
);
from_text!(
    Size,
    "Size",
    |text| size(text).map(|bytes| Size { bytes }),
    r"^[0-9.]+ ?(KiB|MiB|GiB)$"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_need_units_and_sense() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(time("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(rate("10mbit"), Ok(10_000_000));
        assert_eq!(size("8 MiB"), Ok(8 << 20));
        for wrong in ["20", "ms", "-1ms", "nanms", "2000min", "20h", ""] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0mbit", "5", "1e99gbit"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        for wrong in ["8", "8MB", "1e9GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(probability("1.01").is_err() && probability("NaN").is_err());
    }
}
