//! What the server reports: JSON lines on standard output, for the lab and for a log.

use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
};

use serde::Serialize;

use crate::metrics::Calls;

/// Lines that wait for a slow reader. What comes on top is dropped, and counted in the next line.
const QUEUE: usize = 4096;

/// Something that happened. `kind` names the variant in kebab-case.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Event {
    /// The server answers calls.
    Ready {
        pid: u32,
        /// TCP address of the loopback transport.
        tcp: Option<String>,
        /// Address on the lab's storage network.
        ethernet: Option<String>,
        export: String,
        /// TCP address of the metrics.
        metrics: Option<String>,
    },
    /// A lease changed: `acquired`, `transferred`, `released`, `expired`, `broken`; or `refused`: a call came with a handle
    /// of another epoch, or a write without a lease. How it is when the server starts: `held` by one alone, `shared` by
    /// this reader among others, or `free`; the instance before may have died between a change and its report.
    Lease {
        path: String,
        epoch: u64,
        owner: String,
        change: &'static str,
        /// Time to live of a lease that was found.
        #[serde(skip_serializing_if = "Option::is_none")]
        remaining_ms: Option<u32>,
    },
    /// A client's connection began or ended.
    Connection {
        client: String,
        state: &'static str,
        reason: Option<String>,
    },
    /// Nothing more is written: a sync failed.
    StorageFailed { path: String, error: String },
    /// From now on the disk fails as it was told to, or, with `clear`, does so no longer.
    DiskFault { fault: String },
    /// What was done since the server's start: once a second while there is anything to do, and once more when that is over.
    Statistics {
        operations: Vec<Calls>,
        read_bytes: u64,
        written_bytes: u64,
    },
    /// Something that an operator should know.
    Warning { message: String },
    /// The server ends.
    Stopped { reason: String },
}

#[derive(Serialize)]
struct Line<'a> {
    /// Nanoseconds of CLOCK_MONOTONIC.
    t_ns: u64,
    /// Events dropped before this one.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
    #[serde(flatten)]
    event: &'a Event,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where events go. Never waits for whoever reads them.
pub struct Events {
    queue: Option<SyncSender<String>>,
    dropped: AtomicU64,
    writer: Option<thread::JoinHandle<()>>,
}

impl Events {
    /// Events go to standard output.
    pub fn to_stdout() -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let writer = thread::Builder::new()
            .name("events".into())
            .spawn(move || write_lines(lines))
            .expect("the system can start a thread");
        Self {
            queue: Some(queue),
            dropped: AtomicU64::new(0),
            writer: Some(writer),
        }
    }

    /// Events go nowhere.
    pub fn discard() -> Self {
        Self {
            queue: None,
            dropped: AtomicU64::new(0),
            writer: None,
        }
    }

    /// Reports one.
    pub fn report(&self, event: &Event) {
        let Some(queue) = &self.queue else { return };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let line = Line {
            t_ns: now_ns(),
            dropped,
            event,
        };
        let line = serde_json::to_string(&line).expect("events have string keys only");
        if let Err(TrySendError::Full(_)) = queue.try_send(line) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_lines(lines: Receiver<String>) {
    for line in lines {
        // A reader that went away is no reason to stop serving.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// CLOCK_MONOTONIC, by which the lab's own stamps are made too.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
