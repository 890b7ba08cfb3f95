//! What `report.json` holds. Times are milliseconds. It knows no log and no drawing: [`super::Run::of`] fills it in, and every other
//! form of the report is made of it.

use serde::{Deserialize, Serialize};

use super::expectations::Expectation;
use crate::measure::statistics::Spread;

/// Version of `report.json`; fields are only added within a version.
pub const SCHEMA: u32 = 1;

/// What `report.json` holds. Times are milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The result in one or two sentences.
    pub headline: String,
    /// Whether every expectation was met.
    pub passed: bool,
    /// What it ran on.
    pub machine: Machine,
    /// The migrations in order.
    pub migrations: Vec<Migration>,
    /// The probes.
    pub probes: Vec<Probe>,
    /// The typing user.
    pub typist: Typist,
    /// Each figure over all migrations.
    pub summary: Vec<Figure>,
    /// Each limit and whether it was kept.
    pub expectations: Vec<Expectation>,
}

/// What a run was made on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the physical CPU.
    pub cpu: String,
    /// `tcg` (emulation) or `kvm`.
    pub accel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Version of this program.
    pub elab: String,
}

/// One migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// Number in the run, from 1.
    pub number: u32,
    /// Host it left.
    pub from: String,
    /// Host it went to.
    pub to: String,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// From the request until the source had let go.
    pub total_ms: f64,
    /// From the stop of the vCPUs until the first instruction at the destination.
    pub pause_ms: Option<f64>,
    /// Rounds in order; the last one ran with the guest stopped.
    pub rounds: Vec<Round>,
    /// Bytes on the wire in all rounds.
    pub bytes: u64,
    /// Pages sent with content.
    pub pages: u64,
    /// Pages sent as "zero".
    pub zero_pages: u64,
    /// Longest silence of the 1 kHz UDP probe in this migration.
    pub udp_gap_ms: Option<f64>,
    /// Longest silence of the 1 kHz TCP probe.
    pub tcp_gap_ms: Option<f64>,
    /// Longest silence of the UDP probe in a quiet stretch of the same length before.
    pub udp_baseline_gap_ms: Option<f64>,
    /// Longest time from a key's due moment to its echo on the screen.
    pub longest_echo_ms: Option<f64>,
    /// 95th percentile of the echoes of keys due between the request and the stop.
    pub precopy_echo_p95_ms: Option<f64>,
    /// Longest silence of the UDP probe that touches the pause. It is shorter than `udp_gap_ms` when the longest one fell
    /// into pre-copy or came afterwards.
    pub switchover_gap_ms: Option<f64>,
    /// The longest silence cut into phases.
    pub phases: Vec<Phase>,
    /// What no mark explains of it.
    pub unattributed_ms: Option<f64>,
    /// When the longest silence began, on the run's clock.
    pub gap_start_ms: Option<f64>,
    /// How late the UDP probe itself was at worst in the silence. Its figure is void when this is more than a quarter
    /// of the gap.
    pub probe_late_ms: f64,
    /// Whether the probe was punctual enough for its figure to count.
    pub valid: bool,
    /// Bound on the error of the phase marks.
    pub clock_error_ms: f64,
    /// Whether guest RAM had the same hash on both sides, where it was asked for.
    pub memory_equal: Option<bool>,
    /// When the migration was asked for and had ended, on the run's clock.
    pub window_ms: [f64; 2],
}

/// A round of a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Pages sent with content.
    pub pages: u32,
    /// Pages sent as "zero".
    pub zero_pages: u32,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took.
    pub ms: f64,
    /// Pages dirty at its end.
    pub dirty_after: u32,
}

/// A named piece of an interruption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Name.
    pub name: String,
    /// Length.
    pub ms: f64,
}

/// A probe over the whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// `udp`, `tcp`, `ping`, ...
    pub name: String,
    /// Time between two requests; also the resolution of its figures.
    pub interval_ms: f64,
    /// Requests.
    pub sent: u64,
    /// Requests without any answer.
    pub lost: u64,
    /// Answers beyond the first to one request.
    pub duplicated: u64,
    /// Answers that came after the answer to a later request.
    pub reordered: u64,
    /// Longest silence while nothing was done to the guest.
    pub baseline_gap_ms: Option<f64>,
    /// Median time to an answer meanwhile.
    pub baseline_median_ms: Option<f64>,
    /// Longest silence during any migration.
    pub gap_ms: Option<f64>,
    /// How late the probe itself was at worst.
    pub late_max_ms: f64,
    /// The raw samples, beside the report.
    pub samples: String,
}

/// The typing user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Typist {
    /// Keys typed.
    pub keys: u64,
    /// Keys whose echo never came.
    pub lost: u64,
    /// Whether each saved document was, byte by byte, what had been typed; `None` when none was compared. A key lost, doubled or out of
    /// order would show here.
    pub content_equal: Option<bool>,
    /// Documents compared.
    pub documents: u64,
    /// Whether one TCP connection served from the first key to the last.
    pub same_session: bool,
    /// Time to the echo while nothing was done to the guest.
    pub baseline_echo_ms: Option<Spread>,
    /// Time to the echo of keys due during a migration.
    pub echo_ms: Option<Spread>,
    /// 95th percentile of the echo between the request and the stop, over all migrations.
    pub precopy_echo_p95_ms: Option<f64>,
    /// The raw samples, beside the report.
    pub samples: String,
}

/// A figure over all migrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Name.
    pub name: String,
    /// Unit.
    pub unit: String,
    /// Middle, tail, worst.
    #[serde(flatten)]
    pub spread: Spread,
    /// Every value in order of the migrations.
    pub samples: Vec<f64>,
}

impl Report {
    /// A figure by its name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.summary.iter().find(|one| one.name == name)
    }
}

/// Names of the figures in [`Report::summary`].
pub mod figure {
    #![allow(missing_docs)]
    pub const UDP_GAP: &str = "UDP gap";
    pub const TCP_GAP: &str = "TCP gap";
    pub const SWITCHOVER_GAP: &str = "UDP gap, switch-over";
    pub const BASELINE_GAP: &str = "UDP gap, quiet";
    pub const LONGEST_ECHO: &str = "longest echo";
    pub const PAUSE: &str = "vCPU pause";
    pub const TOTAL: &str = "total";
    pub const BYTES: &str = "on the wire";
    pub const UNATTRIBUTED: &str = "unattributed";
}
