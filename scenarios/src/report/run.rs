//! One run of a scenario, as its folder's `run.json` and the reports hold it.

use std::collections::BTreeMap;

use lab_protocol::{Event, PoolMark, ProbeKind, Record};
use serde::{Deserialize, Serialize};

use super::{Report, ms};
use crate::evidence::fingerprint::Fingerprint;
use crate::measure::Window;
use crate::measure::outage::Outage;
use crate::measure::series::Series;
use crate::measure::statistics::quantile;
use crate::verdict::{Check, Verdict};

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// [`super::book::SCHEMA`].
    pub schema: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// Its combination of the matrix in words.
    pub variant: String,
    /// The same for a program: `path=value`.
    #[serde(default)]
    pub settings: Vec<String>,
    /// Number among the runs of this variant, from 1.
    pub number: u32,
    /// Seed of all that was left to chance.
    pub seed: u64,
    /// A line for the shell that runs it again.
    pub command: String,
    /// What it came to.
    pub verdict: Verdict,
    /// Why that is not "passed".
    pub reasons: Vec<String>,
    /// What the checkers found.
    pub checks: Vec<Check>,
    /// Figures by name, in order of the migrations or one a run.
    pub figures: BTreeMap<String, Vec<f64>>,
    /// The steps.
    pub steps: Vec<StepReport>,
    /// How long it took, power-on to the end.
    pub seconds: f64,
    /// Its folder beside the report.
    pub folder: String,
    /// What it was made on.
    pub machine: Fingerprint,
    /// Everything measured; `None` when the lab did not come up.
    pub measured: Option<Report>,
    /// Times to the echo of every key, ms, in order of their schedule.
    pub echoes_ms: Vec<f64>,
}

/// A step, as the event log has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number, from 1.
    pub step: u32,
    /// What it was.
    pub name: String,
    /// `done`, `failed`, `missed`, or `started` when it had not ended.
    pub state: String,
    /// When it started, ms on the run's clock.
    pub start_ms: f64,
    /// When it ended.
    pub end_ms: Option<f64>,
    /// What came of it.
    pub detail: String,
}

/// The steps in a log.
#[must_use]
pub fn steps_of(records: &[Record]) -> Vec<StepReport> {
    let mut steps: Vec<StepReport> = Vec::new();
    for record in records {
        let Event::Step {
            step,
            name,
            state,
            detail,
        } = &record.event
        else {
            continue;
        };
        let t_ms = ms(record.t_ns);
        match steps.iter_mut().find(|one| one.step == *step) {
            Some(one) => {
                if state == "started" {
                    one.start_ms = t_ms;
                } else {
                    one.end_ms = Some(t_ms);
                }
                one.state.clone_from(state);
                one.detail.clone_from(detail);
            }
            None => steps.push(StepReport {
                step: *step,
                name: name.clone(),
                state: state.clone(),
                start_ms: t_ms,
                end_ms: None,
                detail: detail.clone(),
            }),
        }
    }
    steps
}

/// All figures of a run that it has values for; see [`crate::scenario::figure::ALL`].
#[must_use]
pub fn figures_of(report: &Report, records: &[Record]) -> BTreeMap<String, Vec<f64>> {
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for one in &crate::scenario::figure::ALL {
        if let Some(figure) = report.figure(one.title) {
            figures.insert(one.name.into(), figure.samples.clone());
        }
    }
    let mut add = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            figures.insert(name.into(), vec![value]);
        }
    };
    add("precopy-echo-p95", report.typist.precopy_echo_p95_ms);
    let whole = Window {
        start_ns: 0,
        end_ns: records.iter().map(|record| record.t_ns).max().unwrap_or(0) + 1,
    };
    let typist = Series::of(records, ProbeKind::Typist);
    add("run-echo-worst", typist.longest_latency_ns(whole).map(ms));
    add("run-echo-p95", quantile(&typist.latencies_ms(whole), 0.95));
    for (name, kind) in [
        ("run-udp-gap", ProbeKind::Udp),
        ("run-tcp-gap", ProbeKind::Tcp),
        ("run-disk-gap", ProbeKind::Disk),
    ] {
        let silence = Series::of(records, kind).longest_silence(whole);
        add(name, silence.map(|silence| ms(silence.len_ns())));
    }
    add("evacuation", evacuation_ms(records));
    add_outages(&mut figures, records);
    figures
}

/// What the pool did about hosts that failed.
fn add_outages(figures: &mut BTreeMap<String, Vec<f64>>, records: &[Record]) {
    let of_pool = |wanted: PoolMark| {
        let is =
            |record: &&Record| matches!(&record.event, Event::Pool { mark, .. } if *mark == wanted);
        records.iter().filter(is).count() as f64
    };
    let is_pool = |record: &Record| matches!(record.event, Event::Pool { .. });
    if records.iter().any(is_pool) {
        for (name, mark) in [
            ("restarts", PoolMark::Restart),
            ("suspicions", PoolMark::Suspected),
            ("standstills", PoolMark::PermitLapsed),
            ("self-fences", PoolMark::SelfFenced),
        ] {
            figures.insert(name.into(), vec![of_pool(mark)]);
        }
    }
    for outage in Outage::all(records) {
        for (name, time) in [
            ("outage-detect", outage.detect_ns()),
            ("outage-fence", outage.agree_and_fence_ns()),
            ("outage-decide", outage.decide_ns()),
            ("outage-start", outage.start_ns()),
            ("outage-boot", outage.boot_ns()),
            ("outage-session", outage.session_ns()),
            ("outage-echo", outage.first_echo_ns()),
            ("outage-without-boot", outage.without_boot_ns()),
        ] {
            if let Some(time) = time {
                figures.entry(name.into()).or_default().push(ms(time));
            }
        }
        let lost = figures.entry("keys-lost-with-host".into()).or_default();
        lost.push(f64::from(outage.keys_lost));
    }
}

/// From the first request to the last end of the migrations that an evacuation asked for.
fn evacuation_ms(records: &[Record]) -> Option<f64> {
    let step = steps_of(records)
        .into_iter()
        .find(|one| one.name.contains(": evacuate ") && one.state == "done")?;
    Some(step.end_ms? - step.start_ms)
}
