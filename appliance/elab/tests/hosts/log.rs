//! Reads a running lab's event log, and judges it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab_protocol::{Event, Record};

/// How often the log is looked at by whoever waits for a record.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The log of a lab.
pub struct Log {
    path: PathBuf,
}

impl Log {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// All records that are complete.
    pub fn records(&self) -> Vec<Record> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        text[..complete]
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn events(&self) -> impl DoubleEndedIterator<Item = Event> + use<> {
        self.records().into_iter().map(|record| record.event)
    }

    /// Waits for a record from number `from` on; `None` when `over` says so or the deadline has passed.
    pub fn wait(
        &self,
        from: usize,
        patience: Duration,
        wanted: impl Fn(&Event) -> bool,
        over: impl Fn() -> bool,
    ) -> Option<Record> {
        let deadline = Instant::now() + patience;
        loop {
            // Asked first: what is over has left its records.
            let over = over() || Instant::now() > deadline;
            let mut records = self.records().into_iter().skip(from);
            if let Some(record) = records.find(|record| wanted(&record.event)) {
                return Some(record);
            }
            if over {
                return None;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Whoever began to run a VM held its lease then, and no epoch of a lease ever served two hosts.
pub fn assert_never_two_copies(records: &[Record]) {
    let mut leases: Vec<(u64, u64, &str, bool)> = records
        .iter()
        .filter_map(|record| match &record.event {
            Event::Lease {
                epoch,
                owner,
                change,
                ..
            } if matches!(change.as_str(), "acquired" | "transferred" | "held") => {
                Some((record.t_ns, *epoch, owner.as_str(), change == "held"))
            }
            _ => None,
        })
        .collect();
    leases.sort_unstable();
    for pair in leases.windows(2) {
        assert!(
            pair[0].1 < pair[1].1 || pair[0] == pair[1] || pair[0].2 == pair[1].2,
            "an epoch served two hosts: {pair:?}"
        );
    }
    let mut begun: Vec<(u64, &str)> = Vec::new();
    for record in records {
        let runs = match &record.event {
            Event::FirstInstruction { host, .. } => host,
            Event::VmState { host, state, .. } if state == "running" => host,
            _ => continue,
        };
        // The host's clock may be off by so much.
        let latest = record.t_ns + record.error_ns;
        let held = leases.iter().rev().find(|(t_ns, ..)| *t_ns <= latest);
        let Some(&(since, epoch, owner, _)) = held else {
            panic!("{runs} ran the guest before anybody had its lease: {record:?}");
        };
        let next = leases.iter().find(|(t_ns, ..)| *t_ns > latest);
        let late = || is_told_late(records, since..latest, (epoch + 1, runs), next);
        let epoch = if owner != runs && late() {
            epoch + 1
        } else {
            assert_eq!(owner, runs, "ran without the lease: {record:?}");
            epoch
        };
        if let Some((_, other)) = begun.iter().find(|(other, _)| *other == epoch) {
            assert_eq!(other, runs, "two hosts ran the guest in epoch {epoch}");
        }
        begun.push((epoch, runs));
    }
    assert!(!begun.is_empty(), "the guest never ran");
}

/// Whether a lease may have moved without a word: its server died meanwhile, and the next one found it so, if there was one.
fn is_told_late(
    records: &[Record],
    meanwhile: std::ops::Range<u64>,
    moved: (u64, &str),
    next: Option<&(u64, u64, &str, bool)>,
) -> bool {
    let died = |record: &Record| {
        meanwhile.contains(&record.t_ns)
            && matches!(&record.event, Event::StorageState { state } if state == "killed")
    };
    records.iter().any(died)
        && next.is_none_or(|(_, epoch, owner, found)| *found && (*epoch, *owner) == moved)
}

#[test]
fn two_copies_are_noticed() {
    let record = |t_ns, event| Record {
        schema: lab_protocol::SCHEMA,
        seq: t_ns,
        t_ns,
        error_ns: 0,
        source: String::new(),
        event,
    };
    let changed = |t_ns, epoch, owner: &str, change: &str| {
        let change = change.into();
        let (path, owner) = (String::new(), owner.into());
        let event = Event::Lease {
            path,
            epoch,
            owner,
            change,
        };
        record(t_ns, event)
    };
    let lease = |t_ns, epoch, owner: &str| changed(t_ns, epoch, owner, "transferred");
    let killed = |t_ns| {
        let state = "killed".into();
        record(t_ns, Event::StorageState { state })
    };
    let first = |t_ns, host: &str| {
        let (vm, host) = (String::new(), host.into());
        record(t_ns, Event::FirstInstruction { vm, host })
    };
    let good = [
        lease(1, 1, "h1"),
        first(2, "h1"),
        lease(3, 2, "h2"),
        first(4, "h2"),
    ];
    assert_never_two_copies(&good);
    let untold = |finds: &str| {
        [
            lease(1, 1, "h1"),
            first(2, "h1"),
            killed(3),
            first(4, "h2"),
            changed(5, 2, finds, "held"),
        ]
    };
    assert_never_two_copies(&untold("h2"));
    let noticed = std::panic::catch_unwind(|| assert_never_two_copies(&untold("h1")));
    assert!(noticed.is_err(), "the server found it with another");
    for bad in [
        [
            lease(1, 1, "h1"),
            first(2, "h1"),
            lease(5, 2, "h2"),
            first(4, "h2"),
        ],
        [
            lease(1, 1, "h1"),
            first(2, "h1"),
            lease(3, 1, "h2"),
            first(4, "h2"),
        ],
        [
            lease(1, 1, "h1"),
            lease(2, 2, "h2"),
            first(3, "h2"),
            first(4, "h1"),
        ],
    ] {
        let noticed = std::panic::catch_unwind(|| assert_never_two_copies(&bad));
        assert!(noticed.is_err(), "{bad:?}");
    }
}
