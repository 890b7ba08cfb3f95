//! The report of a run. [`Report`] is what `report.json` holds; the terminal summary and the page are drawn from
//! it and from the probes' series, and say nothing that is not in them.

pub mod book;
mod chart;
mod expectations;
mod html;
pub mod junit;
pub mod markdown;
mod outage;
mod page;
mod player;
pub mod release;
pub mod run;
mod samples;
mod schema;
pub mod screen;
mod terminal;

use std::{collections::BTreeMap, fs, io, path::Path};

use lab_protocol::{Event, ProbeKind, Record};

pub use expectations::{Expectation, Limits};
pub use schema::{Figure, Machine, Migration, Phase, Probe, Report, Round, SCHEMA, Typist, figure};
pub use terminal::summary;

use crate::measure::{
    Window,
    attribution::{self, Attribution},
    migration,
    series::{Sample, Series, is_measured},
    statistics::{Spread, quantile},
};

/// A run that is ready to be reported: its report and what the pictures need.
#[derive(Clone, Debug)]
pub struct Run {
    /// The report.
    pub report: Report,
    series: Vec<(ProbeKind, Series)>,
}

const PROBES: [(ProbeKind, &str); 5] = [
    (ProbeKind::Udp, "udp"),
    (ProbeKind::Tcp, "tcp"),
    (ProbeKind::Ping, "ping"),
    (ProbeKind::Disk, "disk"),
    (ProbeKind::Clock, "clock"),
];

impl Run {
    /// Computes everything from a run's records.
    #[must_use]
    pub fn of(records: &[Record], limits: &Limits) -> Self {
        let records: Vec<Record> = records
            .iter()
            .filter(|record| is_measured(record))
            .cloned()
            .collect();
        let records = records.as_slice();
        let migrations = migration::Migration::all(records);
        let quiet = quiet_windows(records, &migrations);
        let typist = Series::of(records, ProbeKind::Typist);
        let series: Vec<_> = PROBES
            .iter()
            .map(|(kind, _)| (*kind, Series::of(records, *kind)))
            .filter(|(_, series)| !series.samples.is_empty())
            .collect();
        let of = |kind| {
            series
                .iter()
                .find(|(one, _)| *one == kind)
                .map(|(_, series)| series)
        };

        let reported: Vec<_> = migrations
            .iter()
            .map(|one| {
                report_migration(one, of(ProbeKind::Udp), of(ProbeKind::Tcp), &typist, &quiet)
            })
            .collect();
        let mut report = Report {
            schema: SCHEMA,
            headline: String::new(),
            passed: false,
            machine: machine(records),
            probes: series
                .iter()
                .map(|(kind, one)| report_probe(*kind, one, &migrations, &quiet))
                .collect(),
            typist: report_typist(records, &typist, &migrations, &quiet),
            summary: summarise(&reported),
            migrations: reported,
            expectations: Vec::new(),
        };
        report.expectations = expectations::check(&report, limits);
        report.passed = report.expectations.iter().all(|one| one.passed);
        report.headline = headline(&report);
        let mut series = series;
        series.push((ProbeKind::Typist, typist));
        Self { report, series }
    }

    /// Times to the echo of every key that had one, in order of their schedule.
    #[must_use]
    pub fn echoes_ms(&self) -> Vec<f64> {
        let typist = self
            .series
            .iter()
            .find(|(kind, _)| *kind == ProbeKind::Typist);
        let samples = typist.map(|(_, series)| series.samples.as_slice());
        let latencies = samples.unwrap_or_default().iter();
        latencies.filter_map(Sample::latency_ns).map(ms).collect()
    }

    /// Writes `report.json`, `report.html` and the raw samples into a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        samples::write(folder, &self.series)?;
        let json = serde_json::to_vec_pretty(&self.report).map_err(io::Error::other)?;
        fs::write(folder.join("report.json"), json)?;
        fs::write(
            folder.join("report.html"),
            html::page(&self.report, &self.series),
        )
    }
}

fn ms(ns: u64) -> f64 {
    // Microseconds are the resolution of anything stamped here; further digits would only look precise.
    (ns as f64 / 1e3).round() / 1e3
}

fn machine(records: &[Record]) -> Machine {
    let started = records.iter().find_map(|record| match &record.event {
        Event::LabStarted {
            version,
            accelerator,
            qemu,
            cpu,
            ..
        } => Some(Machine {
            cpu: cpu.clone(),
            accel: accelerator.clone(),
            qemu: qemu.clone(),
            elab: version.clone(),
        }),
        _ => None,
    });
    started.unwrap_or_default()
}

/// The stretches between the opening of the session and the end in which no migration was under way.
fn quiet_windows(records: &[Record], migrations: &[migration::Migration]) -> Vec<Window> {
    let opened = records.iter().find_map(|record| {
        matches!(record.event, Event::SessionOpen { .. }).then_some(record.t_ns)
    });
    let probed = records.iter().find_map(|record| match record.event {
        Event::ProbeSamples { due_ns, .. } | Event::Key { due_ns, .. } => Some(due_ns),
        _ => None,
    });
    let mut start_ns = opened.max(probed).unwrap_or(0);
    let end = records.last().map_or(0, |record| record.t_ns);
    let mut quiet = Vec::new();
    for one in migrations {
        quiet.push(Window {
            start_ns,
            end_ns: one.requested_ns,
        });
        start_ns = one.window().end_ns;
    }
    quiet.push(Window {
        start_ns,
        end_ns: end,
    });
    without(quiet, &disturbances(records, end))
}

/// The stretches in which a fault was in effect, and a second after: what is usual does not show there.
fn disturbances(records: &[Record], end_ns: u64) -> Vec<Window> {
    const AFTERMATH_NS: u64 = 1_000_000_000;
    let mut open: BTreeMap<&str, u64> = BTreeMap::new();
    let mut all = Vec::new();
    for record in records {
        let (what, begins) = match &record.event {
            Event::LinkFault { link, fault } => (link.as_str(), fault != "healed"),
            Event::StorageState { state } => (
                "storage server",
                matches!(state.as_str(), "paused" | "killed" | "died"),
            ),
            Event::HostPower { host, state } => (
                host.as_str(),
                matches!(state.as_str(), "frozen" | "pulled" | "died"),
            ),
            _ => continue,
        };
        if begins {
            open.entry(what).or_insert(record.t_ns);
        } else if let Some(start_ns) = open.remove(what) {
            all.push(Window {
                start_ns,
                end_ns: record.t_ns + AFTERMATH_NS,
            });
        }
    }
    all.extend(
        open.into_values()
            .map(|start_ns| Window { start_ns, end_ns }),
    );
    all
}

/// What is left of some stretches without others.
fn without(stretches: Vec<Window>, others: &[Window]) -> Vec<Window> {
    let whole = stretches
        .into_iter()
        .filter(|one| one.len_ns() > 0)
        .collect();
    others.iter().fold(whole, |left: Vec<Window>, other| {
        left.into_iter()
            .flat_map(|one| {
                let before = Window {
                    end_ns: one.end_ns.min(other.start_ns),
                    ..one
                };
                let after = Window {
                    start_ns: one.start_ns.max(other.end_ns),
                    ..one
                };
                [before, after]
            })
            .filter(|one| one.len_ns() > 0)
            .collect()
    })
}

/// The last quiet stretch before a moment, no longer than `len_ns`: a longest silence grows with the time in which it is looked
/// for, so only stretches of the same length compare.
fn baseline(quiet: &[Window], before_ns: u64, len_ns: u64) -> Option<Window> {
    let before = || {
        quiet
            .iter()
            .rev()
            .filter(|window| window.end_ns <= before_ns)
    };
    // Where migrations follow one another closely, the last stretch that is long enough lies further back.
    let window = before()
        .find(|window| window.len_ns() >= len_ns)
        .or_else(|| before().max_by_key(|window| window.len_ns()))?;
    Some(Window {
        start_ns: window.start_ns.max(window.end_ns.saturating_sub(len_ns)),
        end_ns: window.end_ns,
    })
}

fn report_migration(
    one: &migration::Migration,
    udp: Option<&Series>,
    tcp: Option<&Series>,
    typist: &Series,
    quiet: &[Window],
) -> Migration {
    let window = one.window();
    let silence = udp.and_then(|series| series.longest_silence(window));
    let base = baseline(quiet, one.requested_ns, window.len_ns());
    let usual = udp
        .zip(base)
        .and_then(|(series, base)| series.longest_silence(base));
    let switchover = udp
        .zip(one.pause())
        .and_then(|(series, pause)| series.longest_silence_touching(window, pause));
    let cut: Option<Attribution> = silence
        .and_then(|silence| attribution::attribute(silence, one, usual.map_or(0, Window::len_ns)));
    let late = udp
        .zip(silence)
        .map_or(0, |(series, silence)| series.late_max_ns(silence));
    let precopy = one
        .precopy()
        .map(|window| typist.latencies_ms(window))
        .unwrap_or_default();
    let [source, destination] = &one.hashes;
    Migration {
        number: one.number,
        from: one.from.clone(),
        to: one.to.clone(),
        error: one.error.clone(),
        total_ms: ms(one.ended_ns.unwrap_or(one.requested_ns) - one.requested_ns),
        pause_ms: one.pause_ns().map(ms),
        rounds: one
            .rounds
            .iter()
            .map(|round| Round {
                pages: round.pages,
                zero_pages: round.zero_pages,
                bytes: round.bytes,
                ms: ms(round.duration_ns),
                dirty_after: round.dirty_after,
            })
            .collect(),
        bytes: one.rounds.iter().map(|round| round.bytes).sum(),
        pages: one.rounds.iter().map(|round| u64::from(round.pages)).sum(),
        zero_pages: one
            .rounds
            .iter()
            .map(|round| u64::from(round.zero_pages))
            .sum(),
        udp_gap_ms: silence.map(|silence| ms(silence.len_ns())),
        tcp_gap_ms: tcp
            .and_then(|series| series.longest_silence(window))
            .map(|silence| ms(silence.len_ns())),
        udp_baseline_gap_ms: usual.map(|silence| ms(silence.len_ns())),
        longest_echo_ms: typist.longest_latency_ns(window).map(ms),
        precopy_echo_p95_ms: quantile(&precopy, 0.95),
        phases: cut
            .iter()
            .flat_map(|cut| &cut.pieces)
            .map(|piece| Phase {
                name: piece.name.to_owned(),
                ms: ms(piece.ns),
            })
            .collect(),
        unattributed_ms: cut.map(|cut| ms(cut.unattributed_ns)),
        switchover_gap_ms: switchover.map(|silence| ms(silence.len_ns())),
        gap_start_ms: silence.map(|silence| ms(silence.start_ns)),
        probe_late_ms: ms(late),
        valid: silence.is_none_or(|silence| late * 4 <= silence.len_ns()),
        clock_error_ms: ms(one
            .marks
            .iter()
            .map(|mark| mark.error_ns)
            .max()
            .unwrap_or(0)),
        memory_equal: source
            .as_ref()
            .zip(destination.as_ref())
            .map(|(source, destination)| source == destination),
        window_ms: [
            ms(one.requested_ns),
            ms(one.ended_ns.unwrap_or(one.requested_ns)),
        ],
    }
}

fn report_probe(
    kind: ProbeKind,
    series: &Series,
    migrations: &[migration::Migration],
    quiet: &[Window],
) -> Probe {
    let longest = |windows: &mut dyn Iterator<Item = Window>| {
        windows
            .filter_map(|window| series.longest_silence(window))
            .map(Window::len_ns)
            .max()
            .map(ms)
    };
    let all = Window {
        start_ns: 0,
        end_ns: u64::MAX,
    };
    let quiet_latencies: Vec<f64> = quiet
        .iter()
        .flat_map(|window| series.latencies_ms(*window))
        .collect();
    let name = name_of(kind);
    Probe {
        name: name.to_owned(),
        interval_ms: ms(series.interval_ns),
        sent: series.samples.len() as u64,
        lost: series.lost(),
        duplicated: series.duplicated,
        reordered: series.reordered,
        baseline_gap_ms: longest(
            &mut migrations
                .iter()
                .filter_map(|one| baseline(quiet, one.requested_ns, one.window().len_ns())),
        ),
        baseline_median_ms: quantile(&quiet_latencies, 0.5),
        gap_ms: longest(&mut migrations.iter().map(migration::Migration::window)),
        late_max_ms: ms(series.late_max_ns(all)),
        samples: samples::file_name(name),
    }
}

fn report_typist(
    records: &[Record],
    series: &Series,
    migrations: &[migration::Migration],
    quiet: &[Window],
) -> Typist {
    let documents: Vec<bool> = records
        .iter()
        .filter_map(|record| match record.event {
            Event::DocumentChecked { equal, .. } => Some(equal),
            _ => None,
        })
        .collect();
    let over = |windows: &mut dyn Iterator<Item = Window>| -> Vec<f64> {
        windows
            .flat_map(|window| series.latencies_ms(window))
            .collect()
    };
    let opened = records
        .iter()
        .filter(|record| matches!(record.event, Event::SessionOpen { .. }))
        .count();
    let lost_session = records
        .iter()
        .any(|record| matches!(record.event, Event::SessionLost { .. }));
    Typist {
        keys: series.samples.len() as u64,
        lost: series.lost(),
        content_equal: (!documents.is_empty()).then(|| documents.iter().all(|equal| *equal)),
        documents: documents.len() as u64,
        same_session: opened == 1 && !lost_session,
        baseline_echo_ms: Spread::of(&over(&mut quiet.iter().copied())),
        echo_ms: Spread::of(&over(
            &mut migrations.iter().map(migration::Migration::window),
        )),
        precopy_echo_p95_ms: quantile(
            &over(&mut migrations.iter().filter_map(migration::Migration::precopy)),
            0.95,
        ),
        samples: samples::file_name(name_of(ProbeKind::Typist)),
    }
}

fn name_of(kind: ProbeKind) -> &'static str {
    PROBES
        .iter()
        .find(|(one, _)| *one == kind)
        .map_or("typist", |(_, name)| name)
}

fn summarise(migrations: &[Migration]) -> Vec<Figure> {
    let good: Vec<_> = migrations
        .iter()
        .filter(|one| one.error.is_empty())
        .collect();
    let mut figures = Vec::new();
    let mut add = |name: &str, unit: &str, of: &dyn Fn(&Migration) -> Option<f64>| {
        let samples: Vec<f64> = good.iter().filter_map(|one| of(one)).collect();
        if let Some(spread) = Spread::of(&samples) {
            figures.push(Figure {
                name: name.to_owned(),
                unit: unit.to_owned(),
                spread,
                samples,
            });
        }
    };
    add(figure::LONGEST_ECHO, "ms", &|one| one.longest_echo_ms);
    add(figure::UDP_GAP, "ms", &|one| {
        one.udp_gap_ms.filter(|_| one.valid)
    });
    add(figure::SWITCHOVER_GAP, "ms", &|one| {
        one.switchover_gap_ms.filter(|_| one.valid)
    });
    add(figure::BASELINE_GAP, "ms", &|one| one.udp_baseline_gap_ms);
    add(figure::TCP_GAP, "ms", &|one| one.tcp_gap_ms);
    add(figure::PAUSE, "ms", &|one| one.pause_ms);
    add(figure::TOTAL, "ms", &|one| Some(one.total_ms));
    add(figure::BYTES, "MB", &|one| Some(one.bytes as f64 / 1e6));
    add(figure::UNATTRIBUTED, "%", &|one| {
        let gap = one.udp_gap_ms.filter(|gap| *gap > 0.0)?;
        Some(one.unattributed_ms? / gap * 100.0)
    });
    figures
}

fn headline(report: &Report) -> String {
    let times = match report
        .migrations
        .iter()
        .filter(|one| one.error.is_empty())
        .count()
    {
        0 => "No migration succeeded".to_owned(),
        1 => "The guest moved once".to_owned(),
        n => format!("The guest moved {n} times"),
    };
    let felt = report
        .figure(figure::LONGEST_ECHO)
        .map_or_else(String::new, |echo| {
            let usual = report
                .typist
                .baseline_echo_ms
                .map_or_else(String::new, |quiet| {
                    format!(", against {:.0} ms when all is quiet", quiet.median)
                });
            let spread = if echo.samples.len() > 1 {
                format!(
                    "for {:.0} ms (median; p95 {:.0}, worst {:.0})",
                    echo.spread.median, echo.spread.p95, echo.spread.max
                )
            } else {
                format!("for {:.0} ms", echo.spread.max)
            };
            format!(" while its user typed. The screen stood still {spread}{usual}")
        });
    let typist = &report.typist;
    let kept = match (typist.content_equal, typist.lost) {
        (Some(true), 0) => format!(
            "All {} keys arrived, in order, and the document is what was typed",
            typist.keys
        ),
        (Some(true), lost) => format!(
            "{lost} of {} keys were never echoed, though the document is what was typed",
            typist.keys
        ),
        (Some(false), _) => "The document is NOT what was typed".to_owned(),
        (None, _) => "The document was not compared".to_owned(),
    };
    let session = if typist.same_session {
        "the session was never interrupted"
    } else {
        "the session was LOST and opened again"
    };
    format!("{times}{felt}. {kept}; {session}.")
}
