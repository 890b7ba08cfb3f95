//! What the terminal interface costs: the first frame, a frame, a key, a minute at ten frames a second, and a log of a million
//! lines. The limits stand behind the figures.
//!
//! `cargo bench --package tui`. Prints least, median and most of each; compare figures of one machine only.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use fixture::Story;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tui::app::{App, Input, Mode};
use tui::config::Config;
use tui::log::Log;

const REPEATS: usize = 15;

fn app(log: Log) -> App {
    let mode = Mode::Live {
        ahead_ns: 64_000_000_000,
    };
    App::new(&Config::default(), log, mode).expect("the defaults are consistent")
}

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

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn main() {
    println!("{:<44} {:>8} {:>8} {:>8}", "", "least", "median", "most");
    let bytes = Story::busy(4, 20).bytes();
    let mut terminal = Terminal::new(TestBackend::new(200, 60)).expect("a test's terminal");
    let first = (0..REPEATS).map(|_| {
        let bytes = bytes.clone();
        time(|| {
            let mut app = app(Log::from_bytes(bytes));
            app.update(Input::Tick, 0);
            terminal
                .draw(|frame| tui::view::draw(&mut app, frame))
                .expect("it draws");
        })
    });
    print("first frame, 4 hosts, 20 guests (200 ms)", first.collect());

    let mut shown = app(Log::from_bytes(bytes.clone()));
    for key in 1..=6u8 {
        shown.show(tui::app::View::ALL[usize::from(key - 1)]);
        let frames: Vec<Duration> = (0..REPEATS)
            .map(|turn| {
                time(|| {
                    shown.update(Input::Tick, turn as u64 * 100_000_000);
                    terminal
                        .draw(|frame| tui::view::draw(&mut shown, frame))
                        .expect("it draws");
                })
            })
            .collect();
        print(&format!("a frame of {}", shown.view.name()), frames);
    }

    let key = |c| {
        let event = KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE);
        Input::Key(event)
    };
    let keys = "123456j?\u{1b}".repeat(REPEATS);
    let answered = keys.chars().map(|c| {
        time(|| {
            shown.update(key(c), 0);
            terminal
                .draw(|frame| tui::view::draw(&mut shown, frame))
                .expect("it draws");
        })
    });
    print("a key until its frame is drawn (50 ms)", answered.collect());

    // As it comes: each frame folds what a tenth of a second has brought.
    let shares = tui::app::View::ALL[..6].iter().map(|view| {
        let mode = Mode::Replay {
            at_ns: 4_000_000_000,
            playing: false,
        };
        let log = Log::from_bytes(bytes.clone());
        let mut app = App::new(&Config::default(), log, mode).expect("the defaults are consistent");
        app.show(*view);
        app.update(key(' '), 0);
        let minute = time(|| {
            for frame in 1..=600 {
                app.update(Input::Tick, frame * 100_000_000);
                terminal
                    .draw(|frame| tui::view::draw(&mut app, frame))
                    .expect("it draws");
            }
        });
        assert_eq!(app.lab_now_ns(), 64_000_000_000, "it has played");
        (view.name(), minute.as_secs_f64() / 60.0 * 100.0)
    });
    for (view, percent) in shares {
        println!(
            "{:<44} {percent:>8.2} % of a core",
            format!("ten frames a second of {view} (3 %)")
        );
    }

    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    let million = bytes.repeat(1_000_000 / lines + 1);
    let opened = (0..3).map(|_| {
        let million = million.clone();
        time(|| {
            let mut app = app(Log::from_bytes(million));
            app.show(tui::app::View::Events);
            app.update(Input::Tick, 0);
            terminal
                .draw(|frame| tui::view::draw(&mut app, frame))
                .expect("it draws");
        })
    });
    print("a million events on the screen (1000 ms)", opened.collect());
}
