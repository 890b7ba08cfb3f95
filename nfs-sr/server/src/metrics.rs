//! Counters and latencies, in the text format of Prometheus.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nfs3::{lease, mount, nfs, portmap};
use serde::Serialize;

use crate::server::Server;

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS: [u64; 8] = [10, 30, 100, 300, 1000, 3000, 10_000, 100_000];
const PROGRAMS: [u32; 4] = [
    nfs::PROGRAM,
    mount::PROGRAM,
    portmap::PROGRAM,
    lease::PROGRAM,
];
/// More than any of the programs has.
const PROCEDURES: usize = 24;

#[derive(Default)]
struct Operation {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    microseconds: AtomicU64,
}

/// What the server counts.
#[derive(Default)]
pub struct Metrics {
    operations: [[Operation; PROCEDURES]; PROGRAMS.len()],
    /// Bytes of data sent in READ.
    pub read_bytes: AtomicU64,
    /// Bytes of data received in WRITE.
    pub written_bytes: AtomicU64,
    /// Calls refused for a lease.
    pub lease_refusals: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicU64,
}

/// The calls of one procedure since the server's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Its name.
    pub name: &'static str,
    /// How many were answered.
    pub calls: u64,
    /// From each call's arrival to its reply, all of them together.
    pub time_us: u64,
}

impl Metrics {
    /// Counts a call.
    pub fn answered(&self, program: u32, procedure: u32, latency: Duration) {
        let program = PROGRAMS.iter().position(|known| *known == program);
        let Some(operation) =
            program.and_then(|program| self.operations[program].get(procedure as usize))
        else {
            return;
        };
        let microseconds = latency.as_micros() as u64;
        let bucket = BUCKETS
            .iter()
            .position(|bound| microseconds <= *bound)
            .unwrap_or(BUCKETS.len());
        operation.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        operation
            .microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
    }

    /// The calls of NFS and of leases, by their names; those that nobody has made are left out.
    pub fn calls(&self) -> Vec<Calls> {
        let programs = PROGRAMS.iter().zip(&self.operations);
        let of = |(program, operations): (&u32, &[Operation; PROCEDURES])| {
            let name: fn(u32) -> &'static str = match *program {
                nfs::PROGRAM => nfs::procedure_name,
                lease::PROGRAM => lease::procedure_name,
                _ => return Vec::new(),
            };
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (0..)
                .zip(operations)
                .map(|(procedure, operation)| Calls {
                    name: name(procedure),
                    calls: operation.buckets.iter().map(load).sum(),
                    time_us: load(&operation.microseconds),
                })
                .filter(|calls| calls.calls > 0)
                .collect()
        };
        programs.flat_map(of).collect()
    }

    /// All of it as text.
    pub fn render(server: &Server) -> String {
        let metrics = &server.metrics;
        let mut out = String::new();
        let _ = writeln!(
            out,
            "# HELP nfs_sr_call_seconds Time from a call's arrival to its reply.\n# TYPE nfs_sr_call_seconds histogram"
        );
        for (program, operations) in PROGRAMS.iter().zip(&metrics.operations) {
            for (procedure, operation) in (0..).zip(operations) {
                render_operation(&mut out, *program, procedure, operation);
            }
        }
        let (syncs, waited) = server.durability.counts();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lines = [
            (
                "read_bytes_total",
                "counter",
                "Bytes of data sent in READ.",
                load(&metrics.read_bytes),
            ),
            (
                "written_bytes_total",
                "counter",
                "Bytes of data received in WRITE.",
                load(&metrics.written_bytes),
            ),
            (
                "lease_refusals_total",
                "counter",
                "Calls refused for a lease.",
                load(&metrics.lease_refusals),
            ),
            (
                "syncs_total",
                "counter",
                "Syncs of files and directories.",
                syncs,
            ),
            (
                "sync_waiters_total",
                "counter",
                "Calls that were answered after a sync.",
                waited,
            ),
            (
                "connections",
                "gauge",
                "Open connections.",
                load(&metrics.connections),
            ),
            (
                "storage_failed",
                "gauge",
                "1 if a sync has failed and nothing is written any more.",
                server.durability.failed().into(),
            ),
        ];
        for (name, kind, help, value) in lines {
            let _ = writeln!(
                out,
                "# HELP nfs_sr_{name} {help}\n# TYPE nfs_sr_{name} {kind}\nnfs_sr_{name} {value}"
            );
        }
        out
    }
}

fn render_operation(out: &mut String, program: u32, procedure: u32, operation: &Operation) {
    let name = match program {
        nfs::PROGRAM => nfs::procedure_name(procedure),
        mount::PROGRAM => mount::procedure_name(procedure),
        portmap::PROGRAM => portmap::procedure_name(procedure),
        _ => lease::procedure_name(procedure),
    };
    let counts = operation
        .buckets
        .each_ref()
        .map(|bucket| bucket.load(Ordering::Relaxed));
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return;
    }
    let labels = format!("program=\"{program}\",procedure=\"{name}\"");
    let mut sum = 0;
    for (bound, count) in BUCKETS.iter().zip(counts) {
        sum += count;
        let seconds = *bound as f64 / 1e6;
        let _ = writeln!(
            out,
            "nfs_sr_call_seconds_bucket{{{labels},le=\"{seconds}\"}} {sum}"
        );
    }
    let seconds = operation.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
    let _ = writeln!(
        out,
        "nfs_sr_call_seconds_bucket{{{labels},le=\"+Inf\"}} {total}"
    );
    let _ = writeln!(out, "nfs_sr_call_seconds_sum{{{labels}}} {seconds}");
    let _ = writeln!(out, "nfs_sr_call_seconds_count{{{labels}}} {total}");
}
