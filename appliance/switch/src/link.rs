//! One directed link between a port and its switch, and what a fault makes of a frame on it.
//!
//! The order is that of a real line: a cut line carries nothing; a frame may be lost, doubled or damaged; it
//! waits until the line is free (rate), then travels (delay, jitter). A link keeps the order of its frames whatever the
//! jitter: frames change places only where `reorder` says so, which keeps causes apart in a report.

use lab_protocol::LinkFault;

/// How long a frame is held back that others shall overtake.
const OVERTAKEN_NS: u64 = 1_000_000;
/// A rate-limited link drops what would wait longer than this.
const QUEUE_LIMIT_NS: u64 = 200_000_000;

/// A direction of a link, seen from the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the port to the switch; written `>`.
    Sending,
    /// From the switch to the port; written `<`.
    Receiving,
}

/// Why a frame went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropCause {
    /// The link is cut.
    #[error("link cut")]
    Cut,
    /// Lost by the link's loss rate.
    #[error("lost")]
    Lost,
    /// The queue of a rate-limited link is full.
    #[error("queue full")]
    QueueFull,
    /// Shorter than an Ethernet header, or longer than the network's MTU allows.
    #[error("bad length")]
    BadLength,
    /// The receiver does not read, and its buffer is full.
    #[error("receiver does not read")]
    ReceiverStalled,
    /// Nothing is connected to the port.
    #[error("not connected")]
    NotConnected,
}

/// One copy of a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transit {
    /// When it arrives.
    pub due_ns: u64,
    /// A byte that is changed: its position, and the bits that flip.
    pub damage: Option<(usize, u8)>,
}

/// What becomes of a frame: at most two copies of it, or none and the reason.
pub type Fate = Result<(Transit, Option<Transit>), DropCause>;

/// State of a directed link.
#[derive(Debug)]
pub struct Link {
    fault: LinkFault,
    healthy: bool,
    /// A burst of loss is under way.
    losing: bool,
    random: fastrand::Rng,
    line_free_ns: u64,
    last_due_ns: u64,
}

impl Link {
    /// A healthy link; `seed` decides all that a fault leaves to chance.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            fault: LinkFault::default(),
            healthy: true,
            losing: false,
            random: fastrand::Rng::with_seed(seed),
            line_free_ns: 0,
            last_due_ns: 0,
        }
    }

    /// Replaces the link's fault. Frames already on their way keep the fate they were given.
    pub fn set_fault(&mut self, fault: LinkFault) {
        self.healthy = fault == LinkFault::default();
        self.losing = false;
        self.fault = fault;
    }

    /// The fault now.
    #[must_use]
    pub fn fault(&self) -> &LinkFault {
        &self.fault
    }

    /// Decides about one frame of `length` bytes.
    pub fn pass(&mut self, length: usize, now_ns: u64) -> Fate {
        if self.healthy && self.last_due_ns <= now_ns {
            return Ok((
                Transit {
                    due_ns: now_ns,
                    damage: None,
                },
                None,
            ));
        }
        if self.fault.cut {
            return Err(DropCause::Cut);
        }
        if self.loses() {
            return Err(DropCause::Lost);
        }
        let twice = self.chance(self.fault.duplicate);
        let first = self.travel(length, now_ns)?;
        let second = if twice {
            self.travel(length, now_ns).ok()
        } else {
            None
        };
        Ok((first, second))
    }

    fn travel(&mut self, length: usize, now_ns: u64) -> Result<Transit, DropCause> {
        let damage = (length > 0 && self.chance(self.fault.corrupt))
            .then(|| (self.random.usize(0..length), self.random.u8(1..=u8::MAX)));
        let mut at = now_ns;
        if self.fault.rate_bps > 0 {
            let bits = u128::from(length as u64) * 8;
            let line_ns = u64::try_from(bits * 1_000_000_000 / u128::from(self.fault.rate_bps))
                .unwrap_or(u64::MAX);
            let begin = self.line_free_ns.max(now_ns);
            if begin - now_ns > QUEUE_LIMIT_NS {
                return Err(DropCause::QueueFull);
            }
            self.line_free_ns = begin.saturating_add(line_ns);
            at = self.line_free_ns;
        }
        let jitter = self.fault.jitter_us.saturating_mul(1000);
        let swing = if jitter > 0 {
            self.random.u64(0..=jitter.saturating_mul(2))
        } else {
            0
        };
        let delay = self.fault.delay_us.saturating_mul(1000);
        let due = at
            .saturating_add(delay)
            .saturating_add(swing)
            .saturating_sub(jitter)
            .max(at);
        if self.chance(self.fault.reorder) {
            return Ok(Transit {
                due_ns: due.max(self.last_due_ns).saturating_add(OVERTAKEN_NS),
                damage,
            });
        }
        self.last_due_ns = due.max(self.last_due_ns);
        Ok(Transit {
            due_ns: self.last_due_ns,
            damage,
        })
    }

    /// Whether this frame is lost. In bursts: a chain of two states, in one of which every frame is lost (Gilbert, 1960), so
    /// that a burst has the mean length asked for and the share of frames lost is `loss`.
    fn loses(&mut self) -> bool {
        let (loss, burst) = (self.fault.loss, self.fault.loss_burst);
        if burst <= 1.0 || loss >= 1.0 {
            return self.chance(loss);
        }
        let ends = 1.0 / burst;
        self.losing = if self.losing {
            !self.chance(ends)
        } else {
            self.chance((ends * loss / (1.0 - loss)).min(1.0))
        };
        self.losing
    }

    fn chance(&mut self, probability: f64) -> bool {
        // A link without this fault draws nothing, so adding one fault does not change the luck of another.
        probability > 0.0 && self.random.f64() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn faults() -> impl Strategy<Value = LinkFault> {
        (
            0u64..5000,
            0u64..5000,
            0.0f64..1.0,
            0.0f64..1.0,
            0.0f64..1.0,
        )
            .prop_map(
                |(delay_us, jitter_us, loss, duplicate, corrupt)| LinkFault {
                    delay_us,
                    jitter_us,
                    loss,
                    duplicate,
                    corrupt,
                    ..LinkFault::default()
                },
            )
    }

    fn run(seed: u64, fault: &LinkFault) -> Vec<Fate> {
        let mut link = Link::new(seed);
        link.set_fault(fault.clone());
        (0..200)
            .map(|i| link.pass(64 + i, i as u64 * 10_000))
            .collect()
    }

    proptest! {
        #[test]
        fn a_seed_decides_everything(seed: u64, fault in faults()) {
            prop_assert_eq!(run(seed, &fault), run(seed, &fault));
        }

        #[test]
        fn order_is_kept_without_reorder(seed: u64, fault in faults()) {
            let mut last = 0;
            for (first, second) in run(seed, &fault).into_iter().flatten() {
                for transit in [Some(first), second].into_iter().flatten() {
                    prop_assert!(transit.due_ns >= last);
                    last = transit.due_ns;
                }
            }
        }
    }

    #[test]
    fn another_seed_gives_another_course() {
        let fault = LinkFault {
            loss: 0.5,
            ..LinkFault::default()
        };
        assert_ne!(run(1, &fault), run(2, &fault));
    }

    #[test]
    fn a_healthy_link_passes_at_once() {
        let mut link = Link::new(1);
        let (transit, copy) = link.pass(100, 5).unwrap();
        assert_eq!((transit.due_ns, transit.damage, copy), (5, None, None));
    }

    #[test]
    fn healing_does_not_let_frames_overtake() {
        let mut link = Link::new(1);
        link.set_fault(LinkFault {
            delay_us: 1000,
            ..LinkFault::default()
        });
        assert_eq!(link.pass(64, 0).unwrap().0.due_ns, 1_000_000);
        link.set_fault(LinkFault::default());
        assert_eq!(link.pass(64, 10).unwrap().0.due_ns, 1_000_000);
        assert_eq!(link.pass(64, 2_000_000).unwrap().0.due_ns, 2_000_000);
    }

    #[test]
    fn reordering_lets_the_next_frame_overtake() {
        let mut link = Link::new(1);
        link.set_fault(LinkFault {
            reorder: 1.0,
            ..LinkFault::default()
        });
        let held = link.pass(64, 0).unwrap().0.due_ns;
        link.set_fault(LinkFault::default());
        assert!(link.pass(64, 100).unwrap().0.due_ns < held);
    }

    #[test]
    fn rate_spaces_frames_and_bounds_the_queue() {
        let mut link = Link::new(1);
        // 1000 bytes take 8 ms.
        link.set_fault(LinkFault {
            rate_bps: 1_000_000,
            ..LinkFault::default()
        });
        assert_eq!(link.pass(1000, 0).unwrap().0.due_ns, 8_000_000);
        assert_eq!(link.pass(1000, 0).unwrap().0.due_ns, 16_000_000);
        let passed = (0..100).filter(|_| link.pass(1000, 0).is_ok()).count();
        assert!((20..=30).contains(&passed), "{passed} frames were queued");
        assert_eq!(link.pass(1000, 0), Err(DropCause::QueueFull));
    }

    #[test]
    fn damage_always_changes_the_frame() {
        let mut link = Link::new(3);
        link.set_fault(LinkFault {
            corrupt: 1.0,
            ..LinkFault::default()
        });
        for _ in 0..1000 {
            let (at, mask) = link.pass(60, 0).unwrap().0.damage.unwrap();
            assert!(at < 60 && mask != 0);
        }
    }

    #[test]
    fn losses_come_in_bursts_of_the_length_asked_for_at_the_rate_asked_for() {
        let mut link = Link::new(7);
        link.set_fault(LinkFault {
            loss: 0.1,
            loss_burst: 8.0,
            ..LinkFault::default()
        });
        let lost: Vec<bool> = (0..200_000).map(|i| link.pass(100, i).is_err()).collect();
        let share = lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64;
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let length = share * lost.len() as f64 / bursts as f64;
        assert!((share - 0.1).abs() < 0.01, "{share}");
        assert!((length - 8.0).abs() < 0.8, "{length}");
    }
}
