//! Faults at the phases of a migration, triggered by what the lab's log says.
//!
//! Each of the destination, the source, the storage server and the link between the hosts is lost at the beginning of each
//! phase. Phases of less than a millisecond may be over before the fault strikes: what must hold is judged by what the storage
//! server's log says of the lease, not by what was aimed at. The exact moments are simulated, beside the crates
//! `migration` and `host`.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use elab::assembly::GUEST;
use lab_protocol::{Event, Phase, Role};
use scenarios::session::{HUMAN_US, MAX_ROWS, SessionConfig, Summary, Typist};

use crate::log::assert_never_two_copies;
use crate::real_lab::{PATIENCE, RealLab};

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Its QEMU is killed.
    Destination,
    /// Likewise.
    Source,
    /// Its process is killed, and starts again when the guest has stopped or the migration was given up.
    Storage,
    /// The destination is cut from the management network until the command has ended.
    Link,
}

/// The beginnings of the phases, and whether memory is compared: that makes the last but one seconds long.
const MOMENTS: [(Role, Phase, bool); 8] = [
    (Role::Source, Phase::SetUp, false),
    (Role::Source, Phase::PreCopy, false),
    (Role::Source, Phase::Drain, false),
    (Role::Source, Phase::LastPages, false),
    (Role::Source, Phase::DeviceState, true),
    (Role::Destination, Phase::LeaseHandOver, false),
    (Role::Destination, Phase::Resume, false),
    (Role::Source, Phase::Forward, false),
];

/// What came of a migration that something was done to.
struct Outcome {
    /// The command's error; empty when the guest moved.
    error: String,
    /// The lease went to the destination.
    committed: bool,
}

/// A lab whose guest is migrated again and again.
struct Faults {
    lab: RealLab,
    user: User,
    /// Where the guest is, and where it can go.
    way: [&'static str; 2],
}

impl Faults {
    fn start(name: &str) -> Self {
        let lab = RealLab::start(name);
        let user = User::start(&lab);
        let way = ["h1", "h2"];
        Self { lab, user, way }
    }

    /// Migrates, loses `victim` when `role` begins `phase`, and checks what must hold then.
    fn strike(&mut self, victim: Victim, (role, phase, verify): (Role, Phase, bool)) {
        let [from, to] = self.way;
        let what = format!("{victim:?} lost at {phase:?}, {from} to {to}");
        let begun = Instant::now();
        let before = self.lab.log().records().len();
        let outcome = self.migrate(&what, (role, phase, verify), || self.lose(victim));
        eprintln!(
            "{what}: {} after {:.1} s: {}",
            if outcome.committed {
                "the guest moved"
            } else {
                "the guest stayed"
            },
            begun.elapsed().as_secs_f64(),
            if outcome.error.is_empty() {
                "no error"
            } else {
                &outcome.error
            },
        );
        if outcome.committed {
            self.way.reverse();
        } else {
            assert_is_a_sentence(&outcome.error, [from, to]);
        }
        match (victim, outcome.committed) {
            (Victim::Source, false) | (Victim::Destination, true) => self.the_guest_is_lost(before),
            _ => assert_goes_on(&self.lab, self.way[0]),
        }
        match victim {
            Victim::Source => self.lab.power_on(from),
            Victim::Destination => self.lab.power_on(to),
            Victim::Link => self.lab.wait_until_reachable(to),
            Victim::Storage => {}
        }
    }

    /// Migrates, and calls `fault` when `role` begins `phase`.
    fn migrate(
        &self,
        what: &str,
        (role, phase, verify): (Role, Phase, bool),
        fault: impl FnOnce(),
    ) -> Outcome {
        let lab = &self.lab;
        let to = self.way[1];
        let log = lab.log();
        let before = log.records().len();
        let (struck, result) = std::thread::scope(|scope| {
            let migration = scope.spawn(|| lab.migrate(to, verify));
            let begins = |event: &Event| {
                matches!(event, Event::MigrationPhase { role: its, phase: begun, .. }
                    if (*its, *begun) == (role, phase))
            };
            let trigger = log.wait(before, PATIENCE, begins, || migration.is_finished());
            if trigger.is_some() {
                fault();
            }
            (trigger.is_some(), migration.join().unwrap())
        });
        assert!(struck, "{what}: the phase never began: {result:?}");
        lab.cut_management(to, false);
        // A storage server that dies with the lease in its journal can no longer say so; that the guest runs there says it, too.
        let taken = |event: Event| match event {
            Event::Lease { owner, change, .. } => owner == to && change == "transferred",
            Event::FirstInstruction { host, .. } => host == to,
            _ => false,
        };
        Outcome {
            error: result
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default(),
            committed: log.events().skip(before).any(taken),
        }
    }

    fn lose(&self, victim: Victim) {
        let [from, to] = self.way;
        match victim {
            Victim::Destination => self.lab.pull(to),
            Victim::Source => self.lab.pull(from),
            Victim::Link => self.lab.cut_management(to, true),
            Victim::Storage => {
                let log = self.lab.log();
                let before = log.records().len();
                self.lab.kill_storage();
                let needed = |event: &Event| {
                    matches!(
                        event,
                        Event::MigrationPhase {
                            phase: Phase::DeviceState | Phase::LeaseHandOver | Phase::Aborted,
                            ..
                        }
                    )
                };
                // Past these it is needed as well, and nothing tells.
                log.wait(before, Duration::from_secs(1), needed, || false);
                self.lab.start_storage();
            }
        }
    }

    /// The guest went down with its host: it runs nowhere, and starts on the other with all that its disk had been told to
    /// keep.
    fn the_guest_is_lost(&mut self, before: usize) {
        let [lost, other] = self.way;
        assert_eq!(self.lab.guest_host(), None);
        let ran =
            |event: Event| matches!(event, Event::FirstInstruction { host, .. } if host == other);
        assert!(
            !self.lab.log().events().skip(before).any(ran),
            "half a guest ran on {other}"
        );
        // The dead host's lease has to run out first.
        let console = self.lab.console_length();
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.lab.start_guest(other) {
            assert!(Instant::now() < deadline, "{error:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.lab.wait_for_console(console);
        eprintln!("  lost with {lost}, started again on {other}");
        assert_eq!(self.lab.run("elab-disk check /root/kept 20"), "ok\n");
        self.way.reverse();
        self.user = User::start(&self.lab);
        assert_goes_on(&self.lab, other);
    }

    /// Each moment in turn.
    fn strike_all(mut self, victims: &[Victim]) {
        self.lab.run("elab-disk write /root/kept 0 20");
        for victim in victims {
            for moment in MOMENTS {
                self.strike(*victim, moment);
            }
        }
        let typed = self.user.finish();
        assert!(typed.keys > 0 && typed.documents > 0);
        assert_eq!((typed.lost, typed.duplicated, typed.reordered), (0, 0, 0));
        assert!(typed.content_equal, "the document");
        assert_never_two_copies(&self.lab.log().records());
        self.lab.stop();
    }
}

#[test]
fn a_lost_host_leaves_one_guest_or_none_and_says_what_happened() {
    Faults::start("test-host-faults").strike_all(&[Victim::Destination, Victim::Source]);
}

#[test]
fn a_lost_server_or_link_leaves_one_guest_and_says_what_happened() {
    Faults::start("test-link-faults").strike_all(&[Victim::Storage, Victim::Link]);
}

/// Someone who types all the while, from the moment there is one.
struct User {
    typist: Typist,
}

impl User {
    fn start(lab: &RealLab) -> Self {
        let (open, opened) = mpsc::channel();
        let config = SessionConfig {
            vm: GUEST.into(),
            access: lab.access(),
            folder: "/root".into(),
            rows: MAX_ROWS,
            seed: 1,
            interval_us: HUMAN_US,
            origin: Instant::now() - Duration::from_nanos(lab.lab().clock().now_ns()),
            patience: PATIENCE,
            recording: None,
        };
        let (journal, clock) = (lab.lab().journal().clone(), lab.lab().clock());
        let typist = Typist::start(lab.ssh(), config, move |event| {
            if matches!(event, Event::SessionOpen { .. }) {
                // Nobody waits for another one.
                let _ = open.send(());
            }
            journal.record(clock.now_ns(), "session", event);
        });
        opened.recv_timeout(PATIENCE).expect("a session");
        Self {
            typist: typist.unwrap(),
        }
    }

    fn finish(self) -> Summary {
        self.typist.finish().unwrap()
    }
}

/// The guest runs on `host`, and there alone; its disk works, and the user's keys reach it.
fn assert_goes_on(lab: &RealLab, host: &str) {
    lab.wait_for_status("the guest runs", |_| {
        lab.guest_host().as_deref() == Some(host)
    });
    let written = lab.run("elab-disk write /root/after 0 3 && elab-disk check /root/after 3");
    assert_eq!(written, "0\n1\n2\nok\n", "the guest's disk at {host}");
    let before = lab.log().records().len();
    let echoed = |event: &Event| {
        matches!(
            event,
            Event::Key {
                echo_ns: Some(_),
                ..
            }
        )
    };
    let key = lab.log().wait(before, PATIENCE, echoed, || false);
    assert!(key.is_some(), "the session does not go on at {host}");
    assert_never_two_copies(&lab.log().records());
}

/// An error for people: it says what happened, of which VM and between which hosts.
fn assert_is_a_sentence(error: &str, [from, to]: [&str; 2]) {
    let begins = format!("of \"{GUEST}\" from {from} to {to} failed: ");
    let (_, why) = error
        .split_once(&begins)
        .unwrap_or_else(|| panic!("not the error of this migration: {error:?}"));
    assert!(why.split_whitespace().count() >= 4, "no sentence: {error}");
}
