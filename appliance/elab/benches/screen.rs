//! What `elab tui` costs in a terminal: the real program from its start to its first frame, from a key to the screen that answers it,
//! and its own CPU time while it plays a recorded lab of four hosts and twenty guests at ten frames a second; and a log of a million
//! lines. The limits stand behind the figures.
//!
//! `cargo bench --package elab --bench screen`. Prints least, median and most of each; compare figures of one machine only. What drawing
//! costs without a terminal is told by `cargo bench --package tui`.

#[path = "../../../tui/tests/fixture/mod.rs"]
mod fixture;
#[path = "../tests/terminal/mod.rs"]
mod terminal;

use std::path::Path;
use std::time::{Duration, Instant};

use fixture::Story;
use terminal::Terminal;

const STARTS: usize = 10;
const MILLION_STARTS: usize = 3;
/// The screen is 200 by 60: the most there is to draw.
const SIZE: (u16, u16) = (60, 200);
/// So long each view plays.
const PLAYED: Duration = Duration::from_secs(5);
/// Nothing here takes so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// A frame has come when nothing more has for so long.
const QUIET: Duration = Duration::from_millis(40);
const VIEWS: [&str; 6] = [
    "Overview",
    "Session",
    "Migration",
    "Network",
    "Storage",
    "Events",
];

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    println!(
        "{what:<44} {:>8.2} {:>8.2} {:>8.2} ms",
        ms(&times[0]),
        ms(&times[times.len() / 2]),
        ms(&times[times.len() - 1])
    );
}

fn write(base: &Path, run: &str, bytes: &[u8]) {
    let folder = base.join(".elab/run").join(run);
    std::fs::create_dir_all(&folder).expect("a folder below a new one");
    std::fs::write(folder.join("events.jsonl"), bytes).expect("there is room");
}

/// Starts the program; gives it with the time to its first frame.
fn start(base: &Path, run: &str) -> (Terminal, Duration) {
    let began = Instant::now();
    let mut terminal = Terminal::start_sized(base, &["--replay", run], SIZE);
    terminal.expect("Runs");
    (terminal, began.elapsed())
}

/// Types a key; gives the time until the whole screen that answers it has come.
fn key(terminal: &mut Terminal, key: &str) -> Duration {
    let before = terminal.contents();
    let began = Instant::now();
    terminal.type_keys(key);
    let mut whole = Duration::ZERO;
    while terminal.contents() == before {
        assert!(terminal.read(PATIENCE), "{key:?} is not answered");
        whole = began.elapsed();
    }
    // A frame comes in pieces, one right after the other.
    while terminal.read(QUIET) {
        whole = began.elapsed();
    }
    whole
}

/// CPU time of all threads of a program, as the scheduler counts it.
fn cpu(terminal: &Terminal) -> Duration {
    let tasks = format!("/proc/{}/task", terminal.pid());
    let tasks = std::fs::read_dir(tasks).expect("it runs");
    let ns = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ns.sum())
}

fn main() {
    let base = tempfile::tempdir().expect("there is a place for temporary files");
    let bytes = Story::busy(4, 20).bytes();
    write(base.path(), "busy", &bytes);
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    write(base.path(), "million", &bytes.repeat(1_000_000 / lines + 1));

    println!("{:<44} {:>8} {:>8} {:>8}", "", "least", "median", "most");
    let first = (0..STARTS).map(|_| {
        let (mut terminal, took) = start(base.path(), "busy");
        terminal.type_keys("q");
        terminal.end();
        took
    });
    print("first frame, 4 hosts, 20 guests (200 ms)", first.collect());

    let (mut terminal, _) = start(base.path(), "busy");
    let mut answers = Vec::new();
    for _ in 0..STARTS {
        for view in ["2", "3", "4", "5", "6", "?", "\x1b", "1"] {
            answers.push(key(&mut terminal, view));
        }
    }
    print("a key until the screen answers (50 ms)", answers);

    for (number, view) in (1..).zip(VIEWS) {
        terminal.type_keys(&format!("{number} "));
        terminal.expect("REPLAY playing");
        let (before, began) = (cpu(&terminal), Instant::now());
        while began.elapsed() < PLAYED {
            terminal.read(PLAYED.saturating_sub(began.elapsed()));
        }
        let share = (cpu(&terminal) - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!(
            "{:<44} {:>8.2} % of a core",
            format!("ten frames a second of {view} (3 %)"),
            share * 100.0
        );
        terminal.type_keys(" ");
    }
    terminal.type_keys("q");
    terminal.end();

    let opened = (0..MILLION_STARTS).map(|_| {
        let (mut terminal, took) = start(base.path(), "million");
        terminal.type_keys("q");
        terminal.end();
        took
    });
    print("a million events on the screen (1000 ms)", opened.collect());
}
