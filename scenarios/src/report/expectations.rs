//! What a run must keep to, each with its limit and its value side by side.

use serde::{Deserialize, Serialize};

use super::{Report, figure};

/// Limits of a run; medians over its migrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Silence of the UDP probe, ms.
    pub udp_gap_ms: f64,
    /// Longest echo of a key, ms.
    pub longest_echo_ms: f64,
    /// Stop of the vCPUs until the first instruction, ms.
    pub pause_ms: f64,
    /// 95th percentile of the echo between request and stop, ms.
    pub precopy_echo_p95_ms: f64,
    /// Request until the end, ms.
    pub total_ms: f64,
    /// MB (10^6 bytes) on the wire.
    pub megabytes: f64,
    /// Percent of the silence that no mark explains.
    pub unattributed_percent: f64,
}

impl Default for Limits {
    /// For a guest of 256 MiB that dirties 2 MiB/s, on two cores under emulation.
    fn default() -> Self {
        Self {
            udp_gap_ms: 80.0,
            longest_echo_ms: 150.0,
            pause_ms: 15.0,
            precopy_echo_p95_ms: 40.0,
            total_ms: 2000.0,
            megabytes: 80.0,
            unattributed_percent: 5.0,
        }
    }
}

/// A limit and whether it was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// What is expected.
    pub name: String,
    /// The limit in words and figures.
    pub limit: String,
    /// What was found.
    pub value: String,
    /// Whether that keeps to the limit.
    pub passed: bool,
    /// Whether it is about correctness (nothing lost) and not about speed.
    pub correctness: bool,
}

pub(super) fn check(report: &Report, limits: &Limits) -> Vec<Expectation> {
    let mut all = Vec::new();
    let mut exact = |name: &str, limit: &str, value: String, passed: bool| {
        all.push(Expectation {
            name: name.to_owned(),
            limit: limit.to_owned(),
            value,
            passed,
            correctness: true,
        });
    };
    let failed = report
        .migrations
        .iter()
        .filter(|one| !one.error.is_empty())
        .count();
    exact("migrations failed", "0", failed.to_string(), failed == 0);
    exact(
        "keys lost",
        "0",
        report.typist.lost.to_string(),
        report.typist.lost == 0,
    );
    let equal = report.typist.content_equal;
    exact(
        "document equals what was typed",
        "yes",
        match equal {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => "not compared".to_owned(),
        },
        equal == Some(true),
    );
    exact(
        "session kept",
        "yes",
        if report.typist.same_session {
            "yes"
        } else {
            "no"
        }
        .to_owned(),
        report.typist.same_session,
    );
    for probe in &report.probes {
        let wrong = probe.lost + probe.duplicated;
        exact(
            &format!("{} answers lost or doubled", probe.name),
            "0",
            format!("{wrong} of {}", probe.sent),
            wrong == 0,
        );
    }
    let unequal = report
        .migrations
        .iter()
        .filter(|one| one.memory_equal == Some(false))
        .count();
    if report
        .migrations
        .iter()
        .any(|one| one.memory_equal.is_some())
    {
        exact(
            "migrations with unequal memory",
            "0",
            unequal.to_string(),
            unequal == 0,
        );
    }

    let mut at_most = |name: &str, limit: f64, unit: &str, value: Option<f64>| {
        all.push(Expectation {
            name: name.to_owned(),
            limit: format!("≤ {limit:.0} {unit}"),
            value: value.map_or_else(
                || "not measured".to_owned(),
                |value| format!("{value:.1} {unit}"),
            ),
            passed: value.is_some_and(|value| value <= limit),
            correctness: false,
        });
    };
    let median = |name| report.figure(name).map(|one| one.spread.median);
    if !report.migrations.is_empty() {
        at_most(
            "longest echo, median",
            limits.longest_echo_ms,
            "ms",
            median(figure::LONGEST_ECHO),
        );
        at_most(
            "UDP gap, median",
            limits.udp_gap_ms,
            "ms",
            median(figure::UDP_GAP),
        );
        at_most(
            "vCPU pause, median",
            limits.pause_ms,
            "ms",
            median(figure::PAUSE),
        );
        at_most(
            "echo during pre-copy, p95",
            limits.precopy_echo_p95_ms,
            "ms",
            report.typist.precopy_echo_p95_ms,
        );
        at_most(
            "total, median",
            limits.total_ms,
            "ms",
            median(figure::TOTAL),
        );
        at_most(
            "on the wire, median",
            limits.megabytes,
            "MB",
            median(figure::BYTES),
        );
        at_most(
            "unattributed, median",
            limits.unattributed_percent,
            "%",
            median(figure::UNATTRIBUTED),
        );
    }
    all
}
