//! Arguments that are read from words: times, rates, probabilities.

use std::time::Duration;

use lab_protocol::LinkFault;

/// The faults of `elab link set`.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
#[group(required = true, multiple = true)]
pub struct FaultArguments {
    /// No frame passes
    #[arg(long)]
    pub cut: bool,
    /// Delay, as 20ms, 500us, 1s
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub delay: Option<Duration>,
    /// Variation of the delay, either way
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub jitter: Option<Duration>,
    /// Share of frames lost, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = probability)]
    pub loss: Option<f64>,
    /// Share of frames that come twice
    #[arg(long, value_name = "SHARE", value_parser = probability)]
    pub duplicate: Option<f64>,
    /// Share of frames with a wrong byte
    #[arg(long, value_name = "SHARE", value_parser = probability)]
    pub corrupt: Option<f64>,
    /// Share of frames that a later one overtakes
    #[arg(long, value_name = "SHARE", value_parser = probability)]
    pub reorder: Option<f64>,
    /// Limit, as 10mbit, 500kbit, 1gbit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<u64>,
}

impl FaultArguments {
    /// The fault they describe.
    #[must_use]
    pub fn fault(&self) -> LinkFault {
        let us = |time: Option<Duration>| {
            u64::try_from(time.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
        };
        LinkFault {
            cut: self.cut,
            delay_us: us(self.delay),
            jitter_us: us(self.jitter),
            loss: self.loss.unwrap_or_default(),
            duplicate: self.duplicate.unwrap_or_default(),
            corrupt: self.corrupt.unwrap_or_default(),
            reorder: self.reorder.unwrap_or_default(),
            rate_bps: self.rate.unwrap_or_default(),
        }
    }
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

fn time(text: &str) -> Result<Duration, String> {
    let seconds = with_unit(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)])?;
    if seconds > 60.0 {
        return Err("at most 60s".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn rate(text: &str) -> Result<u64, String> {
    let bits = with_unit(text, &[("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)])?;
    if !(1.0..=1e12).contains(&bits) {
        return Err("from 0.001kbit to 1000gbit".into());
    }
    Ok(bits as u64)
}

fn probability(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no number"))?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("a share from 0 to 1".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_need_units_and_sense() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(rate("10mbit"), Ok(10_000_000));
        for wrong in ["20", "ms", "-1ms", "nanms", "61s", "20min", ""] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0mbit", "5", "1e99gbit"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert!(probability("1.01").is_err() && probability("NaN").is_err());
    }
}
