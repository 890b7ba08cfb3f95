//! Every view at several sizes, from made-up runs; styles where colour carries meaning; keys and what they ask for.

mod fixture;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use fixture::{Story, demo};
use insta::assert_snapshot;
use lab_protocol::command::DiskFault;
use lab_protocol::{Command, Event, LinkFault, PoolMark};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use rstest::rstest;
use tui::app::{App, Effect, Input, Mode, Run, View};
use tui::config::Config;
use tui::log::Log;
use tui::theme::Theme;

const S: u64 = 1_000_000_000;

fn live(story: &Story, config: &Config) -> App {
    let log = Log::from_bytes(story.bytes());
    let mode = Mode::Live {
        ahead_ns: i128::from(12 * S),
    };
    let mut app = App::new(config, log, mode).unwrap();
    app.update(Input::Tick, 0);
    app
}

fn demo_app() -> App {
    live(&demo(), &Config::default())
}

fn press(app: &mut App, keys: &str) -> Vec<Effect> {
    let mut effects = Vec::new();
    for character in keys.chars() {
        let code = match character {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            '\t' => KeyCode::Tab,
            other => KeyCode::Char(other),
        };
        let event = KeyEvent::new(code, KeyModifiers::NONE);
        effects.extend(app.update(Input::Key(event), 0));
    }
    effects
}

fn screen(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| tui::view::draw(app, frame)).unwrap();
    terminal
}

fn text(app: &mut App, width: u16, height: u16) -> String {
    screen(app, width, height).backend().to_string()
}

#[rstest]
#[case::overview("1")]
#[case::session("2")]
#[case::migration("3")]
#[case::network("4")]
#[case::storage("5")]
#[case::events("6")]
fn views(#[case] key: &str, #[values((80, 24), (120, 40), (200, 60))] (width, height): (u16, u16)) {
    let mut app = demo_app();
    press(&mut app, key);
    let name = format!("{}-{width}x{height}", app.view.name().to_lowercase());
    assert_snapshot!(name, text(&mut app, width, height));
}

#[test]
fn earlier_runs() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "7"), [Effect::ListRuns]);
    let run = |name: &str, running| Run {
        name: name.into(),
        folder: name.into(),
        age_s: 300,
        running,
        migrations: Some(20),
        gap_ms: Some(61.5),
        pause_ms: Some(15.1),
        keys_lost: Some(0),
    };
    app.update(Input::Runs(vec![run("lab", true), run("demo", false)]), 0);
    assert_snapshot!(text(&mut app, 80, 24));
    let report = Effect::OpenReport("lab/report.html".into());
    assert_eq!(press(&mut app, "w"), [report]);
    assert_eq!(press(&mut app, "vjv"), []);
    assert_snapshot!("two_runs", text(&mut app, 80, 24));
    press(&mut app, "\x1bk");
    assert_eq!(press(&mut app, "j\n"), [Effect::Open("demo".into())]);
}

#[test]
fn a_screen_that_is_too_small_says_so() {
    let shown = text(&mut demo_app(), 60, 20);
    assert!(
        shown.contains("elab needs a terminal of 80 by 24 cells"),
        "{shown}"
    );
}

#[test]
fn ascii_means_ascii() {
    let config = Config {
        ascii: true,
        ..Config::default()
    };
    let mut app = live(&demo(), &config);
    for key in "123456m".chars() {
        press(&mut app, &key.to_string());
        // The snapshot's own quotes aside, every cell is ASCII; borders of blocks are line characters of the terminal.
        let shown = text(&mut app, 120, 40).replace('─', "-");
        assert!(shown.is_ascii(), "{shown}");
    }
}

#[test]
fn the_pause_is_shaded_and_slow_answers_are_red() {
    let mut app = demo_app();
    press(&mut app, "3\n+");
    let terminal = screen(&mut app, 120, 40);
    let buffer = terminal.backend().buffer();
    let cells = || buffer.content().iter();
    assert_eq!(app.view, View::Session);
    assert!(
        cells().any(|cell| cell.bg == Color::Rgb(95, 20, 20)),
        "blackout"
    );
    assert!(
        cells().any(|cell| cell.bg == Color::Rgb(60, 50, 10)),
        "brownout"
    );
    assert!(
        cells().any(|cell| cell.bg == Color::Rgb(20, 45, 80)),
        "catch-up"
    );
    let slow = cells().any(|cell| cell.fg == Color::Yellow && cell.symbol() == "▅");
    assert!(slow, "an answer after 80 ms is a high yellow bar");
}

#[test]
fn without_colour_there_is_none() {
    let config = Config {
        theme: Theme::Mono,
        ..Config::default()
    };
    let mut app = live(&demo(), &config);
    for key in "123456".chars() {
        press(&mut app, &key.to_string());
        let terminal = screen(&mut app, 120, 40);
        for cell in terminal.backend().buffer().content() {
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
        }
    }
}

#[test]
fn a_migration_asks_where_to_and_shows_its_command() {
    let mut app = demo_app();
    press(&mut app, "m");
    assert_snapshot!(text(&mut app, 80, 24));
    assert_eq!(
        press(&mut app, "\n"),
        [Effect::Send(tui::command::migrate("session", "h1", false))]
    );
}

#[test]
fn what_cannot_be_undone_asks_first() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "jP"), []);
    assert_snapshot!(text(&mut app, 80, 24));
    assert_eq!(press(&mut app, "n"), []);
    let pulled = Command::HostPull { host: "h2".into() };
    assert_eq!(press(&mut app, "Py"), [Effect::Send(pulled)]);
}

#[test]
fn what_is_impossible_says_why() {
    let mut app = demo_app();
    for (keys, reason) in [
        ("c", "session is not migrating"),
        ("O", "h1 is on"),
        ("s", "session is running"),
        ("x", "select a link in the network view"),
        ("w", "select a run in the runs (7) first"),
        ("r", "no session is open"),
        ("i", "the way into the guest by SSH opens when it is up"),
        ("5C", "session is running; it can be cloned when it is off"),
    ] {
        assert_eq!(press(&mut app, keys), []);
        let shown = text(&mut app, 120, 40);
        assert!(shown.contains(reason), "{reason}: {shown}");
    }
    let config = Config {
        readonly: true,
        ..Config::default()
    };
    let mut app = live(&demo(), &config);
    assert_eq!(press(&mut app, "m"), []);
    assert!(text(&mut app, 120, 40).contains("read-only"));
    assert_eq!(press(&mut app, ":host pull h1\n"), []);
}

#[test]
fn links_are_cut_and_healed() {
    let mut story = demo();
    let mut app = live(&story, &Config::default());
    let cut = Command::LinkSet {
        link: "h1:storage".into(),
        fault: LinkFault {
            cut: true,
            ..LinkFault::default()
        },
    };
    assert_eq!(press(&mut app, "4jxy"), [Effect::Send(cut)]);
    for arrow in ['>', '<'] {
        let event = Event::LinkFault {
            link: format!("h1:storage{arrow}"),
            fault: "cut".into(),
        };
        story.say(11_500, "lab", event);
    }
    let mut app = live(&story, &Config::default());
    let heal = Command::LinkHeal {
        link: "h1:storage".into(),
    };
    assert_eq!(press(&mut app, "4j0"), [Effect::Send(heal)]);
    assert!(text(&mut app, 120, 40).contains('✕'));
}

#[test]
fn a_command_is_typed_completed_and_mended() {
    let mut app = demo_app();
    press(&mut app, ":vm mi\tses\th9");
    assert!(text(&mut app, 120, 40).contains(":vm migrate session h9"));
    let sent = press(&mut app, "\n");
    assert_eq!(
        sent,
        [Effect::Send(tui::command::migrate("session", "h9", false))]
    );
    press(&mut app, ":hots pull\n");
    let shown = text(&mut app, 120, 40);
    assert!(shown.contains("no command \"hots\""), "{shown}");
    let answer = Input::Answer {
        words: "vm migrate session h9".into(),
        result: Err("there is no host \"h9\"; the hosts are h1, h2".into()),
    };
    press(&mut app, "\x1b");
    app.update(answer, 0);
    assert!(text(&mut app, 120, 40).contains("the hosts are h1, h2"));
}

#[test]
fn a_recording_starts_and_ends() {
    let mut app = demo_app();
    app.screens.add_session_output(tui::screen::Output {
        t_ns: S,
        bytes: b"Movie".to_vec(),
    });
    assert_eq!(press(&mut app, "2r"), []);
    assert!(text(&mut app, 80, 24).contains(" REC "));
    app.update(Input::Tick, 3 * S);
    let r = KeyEvent::new(KeyCode::Char('r'), KeyModifiers::NONE);
    let saved = Effect::SaveRecording {
        from_ns: 12 * S,
        to_ns: 15 * S,
    };
    assert_eq!(app.update(Input::Key(r), 3 * S), [saved]);
    assert!(!text(&mut app, 80, 24).contains(" REC "));
}

#[test]
fn a_scenario_is_chosen_by_its_name() {
    let mut app = demo_app();
    press(&mut app, "Rmigrate-i\t");
    assert!(text(&mut app, 80, 24).contains(":run migrate-idle"));
    let run = Effect::Run(vec!["run".into(), "migrate-idle".into()]);
    assert_eq!(press(&mut app, "\n"), [run]);
    let config = Config {
        readonly: true,
        ..Config::default()
    };
    let mut app = live(&demo(), &config);
    assert_eq!(press(&mut app, "R:run demo\n"), []);
}

#[test]
fn a_guest_that_is_off_is_exported_beside_the_screen() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "E"), []);
    let shown = text(&mut app, 80, 24);
    assert!(shown.contains("session is running; it can be exported when it is off"));

    let mut story = demo();
    let stopped = Event::VmStopped {
        vm: "session".into(),
        host: "h2".into(),
        reason: "shut down".into(),
    };
    story.say(11_700, "h2", stopped);
    let mut app = live(&story, &Config::default());
    press(&mut app, "E");
    assert!(text(&mut app, 80, 24).contains(":export session session.xva"));
    let words = "export session session.xva --name demo";
    let run = Effect::Run(words.split(' ').map(str::to_owned).collect());
    assert_eq!(press(&mut app, "\n"), [run]);
    let progress = Input::Progress {
        words: words.into(),
        said: "34 % of 1.0 GiB, 0:03 left".into(),
    };
    app.update(progress, 6 * S);
    let shown = text(&mut app, 120, 40);
    assert!(
        shown.contains("elab export session session.xva --name demo: 34 % of 1.0 GiB"),
        "{shown}"
    );
    assert_eq!(press(&mut app, "E\n"), [], "it is under way already");
    let done = Input::Answer {
        words: words.into(),
        result: Ok("session.xva: 412.0 MiB of \"session\", verified".into()),
    };
    app.update(done, 7 * S);
    assert!(text(&mut app, 120, 40).contains("412.0 MiB of \"session\", verified"));
    assert_eq!(app.jobs, []);
}

#[test]
fn a_vm_is_suspended_and_goes_on_elsewhere() {
    let mut story = demo();
    let mut app = live(&story, &Config::default());
    assert_eq!(press(&mut app, "z"), []);
    let vm = || "session".to_owned();
    assert_eq!(
        press(&mut app, "y"),
        [Effect::Send(Command::VmSuspend { vm: vm() })]
    );
    let stopped = Event::VmStopped {
        vm: vm(),
        host: "h2".into(),
        reason: "suspended".into(),
    };
    story.say(11_700, "h2", stopped);
    let mut app = live(&story, &Config::default());
    press(&mut app, "s");
    assert!(text(&mut app, 80, 24).contains("session is suspended; z lets it go on"));
    let resume = Command::VmResume {
        vm: vm(),
        host: Some("h1".into()),
    };
    assert_eq!(press(&mut app, "z\n"), [Effect::Send(resume)]);
    let run = |words: &str| Effect::Run(words.split(' ').map(str::to_owned).collect());
    assert_eq!(
        press(&mut app, "S\n"),
        [run("vm snapshot session --name demo")]
    );
    assert_eq!(
        press(&mut app, "C\n"),
        [run("vm clone session session-2 --name demo")]
    );
}

#[test]
fn a_disks_fault_is_chosen_and_shown() {
    let mut story = demo();
    let mut app = live(&story, &Config::default());
    press(&mut app, "5D");
    assert_snapshot!(text(&mut app, 80, 24));
    let fault = |fault| Effect::Send(Command::StorageFault { fault });
    assert_eq!(press(&mut app, "j\n"), [fault(DiskFault::EioWrite)]);
    assert_eq!(
        press(&mut app, ":sr fault clear\n"),
        [fault(DiskFault::Clear)]
    );
    let state = Event::StorageState {
        state: "disk: eio-write".into(),
    };
    story.say(11_500, "storage", state);
    let mut app = live(&story, &Config::default());
    assert!(text(&mut app, 80, 24).contains("its disk: eio-write"));
    press(&mut app, "5");
    let terminal = screen(&mut app, 80, 24);
    let cells = terminal.backend().buffer().content();
    assert!(cells.iter().any(|cell| cell.fg == Color::LightRed));
}

#[test]
fn one_types_in_the_guest_and_sees_ones_own_latency() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "i"), []);
    assert!(text(&mut app, 80, 24).contains("the way into the guest by SSH opens when it is up"));
    app.joinable = true;
    let open = Effect::OpenShell {
        rows: 13,
        columns: 78,
    };
    assert_eq!(press(&mut app, "i"), [open]);
    let printed = |text: &str, at_ms: u64| Input::ShellPrinted {
        bytes: text.as_bytes().to_vec(),
        at_ns: at_ms * 1_000_000,
    };
    app.update(printed("root@session:~# ", 900), S);
    let key = |c| Input::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE));
    for (number, letter) in (0..).zip("uptime".chars()) {
        let typed = Effect::TypeShell(vec![letter as u8]);
        assert_eq!(app.update(key(letter), S + number * S), [typed]);
        let answer = if letter == 'i' { 180 } else { 5 };
        app.update(
            printed(&letter.to_string(), 1000 + number * 1000 + answer),
            S + number * S + S / 2,
        );
    }
    app.update(key('q'), 9 * S);
    app.update(Input::Tick, 9 * S + S / 2);
    assert_snapshot!(text(&mut app, 80, 24));

    let detach = KeyEvent::new(KeyCode::Char('5'), KeyModifiers::CONTROL);
    assert_eq!(app.update(Input::Key(detach), 10 * S), []);
    assert_eq!(app.overlay, None);
    assert_eq!(press(&mut app, "i"), [], "the same shell");
    app.update(Input::ShellEnded("the guest is gone".into()), 11 * S);
    let shown = text(&mut app, 80, 24);
    assert!(shown.contains("your session: the guest is gone"), "{shown}");
    assert_eq!(app.overlay, None);
}

#[test]
fn what_the_pool_can_bear_is_on_the_overview() {
    let story = demo();
    assert!(text(&mut live(&story, &Config::default()), 80, 24).contains("elab ha enable"));
    for (words, colour) in [
        ("the pool can bear 1 host failure", Color::Green),
        ("the pool can bear 0 host failures", Color::Yellow),
        (
            "the pool can bear 1 host failure; with 2, there is no room",
            Color::Yellow,
        ),
    ] {
        let mut story = demo();
        let event = Event::Pool {
            host: "h1".into(),
            mark: PoolMark::Protection,
            vm: None,
            about: None,
            text: words.into(),
        };
        story.say(11_600, "h1", event);
        let mut app = live(&story, &Config::default());
        let terminal = screen(&mut app, 80, 24);
        let buffer = terminal.backend().buffer();
        let shown = buffer.content().chunks(80).map(|row| {
            let text: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            (text, row)
        });
        let at = |(text, row): (String, &[ratatui::buffer::Cell])| {
            let cells = text.find(words)?;
            (text.starts_with("  pool")).then(|| row[cells].fg)
        };
        assert_eq!(
            shown.filter_map(at).collect::<Vec<_>>(),
            [colour],
            "{words}"
        );
    }
}

#[test]
fn what_disks_take_stands_beside_who_holds_them() {
    let mut story = demo();
    let released = Event::Lease {
        path: "sr/2f3d8a41-0000.vhd".into(),
        epoch: 2,
        owner: "h2".into(),
        change: "released".into(),
    };
    let mut app = live(&story, &Config::default());
    press(&mut app, "5");
    let shown = text(&mut app, 80, 24);
    for words in [
        "2 disks use 445 MiB of 2.0 GiB, longest chain 2, 54.0 GiB free",
        "base copy",
        "session@before",
        "acquired",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    story.say(11_700, "storage", released);
    let mut app = live(&story, &Config::default());
    press(&mut app, "5");
    assert!(text(&mut app, 80, 24).contains("2 h2     released"));
}

#[test]
fn what_runs_beside_the_screen_can_be_cancelled() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "X"), []);
    assert!(text(&mut app, 80, 24).contains("no command runs beside this screen"));
    press(&mut app, "Rdemo\n");
    app.update(Input::Tick, 6 * S);
    assert!(text(&mut app, 80, 24).contains("elab run demo: under way  X cancels"));
    assert_eq!(press(&mut app, "X"), []);
    assert!(text(&mut app, 80, 24).contains("Cancel elab run demo?"));
    let cancel = |words: &str| Effect::CancelRun(words.into());
    assert_eq!(press(&mut app, "n"), []);
    assert_eq!(press(&mut app, "Xy"), [cancel("run demo")]);
    assert!(text(&mut app, 80, 24).contains("elab run demo: ending"));
    assert_eq!(press(&mut app, "Xy"), [cancel("run demo")], "now at once");

    press(&mut app, "Rquiet\n");
    press(&mut app, "X");
    assert_eq!(press(&mut app, "j\n"), [cancel("run quiet")]);
    for words in ["run demo", "run quiet"] {
        let result = Ok("cancelled".into());
        let words = words.to_owned();
        app.update(Input::Answer { words, result }, 7 * S);
    }
    assert!(text(&mut app, 80, 24).contains("elab run quiet: cancelled"));
    assert_eq!(app.jobs, []);
}

#[test]
fn events_are_filtered_and_lead_to_their_time() {
    let mut app = demo_app();
    press(&mut app, "/FIRST-INSTR");
    assert_snapshot!(text(&mut app, 120, 40));
    press(&mut app, "\n\n");
    assert_eq!(app.view, View::Session);
    assert_eq!(app.pinned_ns, Some(9_010_000_000));
    press(&mut app, "\x1b");
    assert_eq!(app.pinned_ns, None);
}

#[test]
fn a_frozen_display_stands_still_while_the_log_goes_on() {
    let mut app = demo_app();
    press(&mut app, "f");
    let before = text(&mut app, 120, 40);
    app.update(Input::Tick, 3 * S);
    assert_eq!(text(&mut app, 120, 40), before);
    assert!(before.contains("FROZEN"));
    press(&mut app, "f");
    assert!(!text(&mut app, 120, 40).contains("FROZEN"));
}

#[test]
fn a_replay_shows_the_run_as_it_was() {
    let log = Log::from_bytes(demo().bytes());
    let mode = Mode::Replay {
        at_ns: 8_500_000_000,
        playing: false,
    };
    let mut app = App::new(&Config::default(), log, mode).unwrap();
    app.update(Input::Tick, 0);
    assert_snapshot!(text(&mut app, 80, 24));
    let vm = |app: &App| app.lab().vms["session"].host.clone();
    assert_eq!(vm(&app), "h1");
    press(&mut app, "ll");
    assert_eq!(vm(&app), "h2");
    press(&mut app, "hhh");
    assert_eq!(vm(&app), "h1");
    // It plays as time passes, and stops at its end.
    press(&mut app, " ");
    app.update(Input::Tick, 100 * S);
    assert_eq!(app.lab().document, Some((true, String::new())));
    assert_eq!(press(&mut app, "m"), []);
    assert!(text(&mut app, 80, 24).contains("finished run"));
}

#[test]
fn the_help_is_the_table() {
    let mut app = demo_app();
    press(&mut app, "?");
    assert_snapshot!(text(&mut app, 80, 80));
    assert_snapshot!("help_in_two_columns", text(&mut app, 120, 40));
    press(&mut app, "?");
    assert_eq!(app.overlay, None);
}

#[test]
fn leaving_a_lab_asks_whether_it_stays() {
    let mut app = demo_app();
    assert_eq!(press(&mut app, "q"), []);
    assert_snapshot!(text(&mut app, 80, 24));
    assert_eq!(press(&mut app, "\x1b"), []);
    assert_eq!(press(&mut app, "qe"), [Effect::Leave { down: true }]);
    assert_eq!(press(&mut app, "qs"), [Effect::Leave { down: false }]);
}

#[test]
fn a_console_takes_the_keyboard_until_it_is_detached() {
    let mut app = demo_app();
    press(&mut app, "o");
    app.screens
        .add_console_output("session", b"session login: ");
    assert!(text(&mut app, 80, 24).contains("session login:"));
    let input = |text: &str| {
        Effect::Send(Command::ConsoleInput {
            vm: "session".into(),
            text: text.into(),
        })
    };
    assert_eq!(press(&mut app, "q\n"), [input("q"), input("\r")]);
    let detach = KeyEvent::new(KeyCode::Char(']'), KeyModifiers::CONTROL);
    app.update(Input::Key(detach), 0);
    assert_eq!(app.overlay, None);
}
