//! Arguments that are read from words: times, rates, probabilities.

use std::time::Duration;

use lab_protocol::LinkFault;
use scenarios::scenario::units;

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
    #[arg(long, value_name = "SHARE", value_parser = units::probability)]
    pub loss: Option<f64>,
    /// Mean length of a burst of loss, in frames; without it each frame is lost by itself
    #[arg(long, value_name = "FRAMES", requires = "loss")]
    pub loss_burst: Option<f64>,
    /// Share of frames that come twice
    #[arg(long, value_name = "SHARE", value_parser = units::probability)]
    pub duplicate: Option<f64>,
    /// Share of frames with a wrong byte
    #[arg(long, value_name = "SHARE", value_parser = units::probability)]
    pub corrupt: Option<f64>,
    /// Share of frames that a later one overtakes
    #[arg(long, value_name = "SHARE", value_parser = units::probability)]
    pub reorder: Option<f64>,
    /// Limit, as 10mbit, 500kbit, 1gbit
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
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
            loss_burst: self.loss_burst.unwrap_or_default(),
            duplicate: self.duplicate.unwrap_or_default(),
            corrupt: self.corrupt.unwrap_or_default(),
            reorder: self.reorder.unwrap_or_default(),
            rate_bps: self.rate.unwrap_or_default(),
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = units::time(text)?;
    if time > Duration::from_secs(60) {
        return Err("at most 60s".into());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_on_a_link_is_bounded() {
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(time("61s").is_err());
    }
}
