//! The page of a results folder, rendered by a browser: it must be whole without scripts and without anything from elsewhere, at the
//! width of a desk and of a phone.
//!
//! Chromium is among the packages that `cargo xtask setup` installs.

use std::path::Path;
use std::process::Command;

use lab_protocol::{Event, ProbeKind, Record, SCHEMA};
use scenarios::evidence::cast::Recorder;
use scenarios::evidence::fingerprint::Fingerprint;
use scenarios::report::book::{Book, SCHEMA as BOOK, ScenarioReport};
use scenarios::report::run::{RunReport, figures_of, steps_of};
use scenarios::report::{Limits, Run, markdown};
use scenarios::scenario::{self, library};
use scenarios::verdict::{Check, Verdict};

const MS: u64 = 1_000_000;

fn record(seq: u64, t_ns: u64, source: &str, event: Event) -> Record {
    Record {
        schema: SCHEMA,
        seq,
        t_ns,
        error_ns: 0,
        source: source.into(),
        event,
    }
}

/// A session of twenty seconds, whose keys take a few milliseconds and one a long time.
fn records(slow_ms: u64) -> Vec<Record> {
    let mut all = vec![record(
        0,
        0,
        "session",
        Event::SessionOpen {
            vm: "session".into(),
        },
    )];
    for index in 0..200_u32 {
        let due_ns = u64::from(index) * 100 * MS;
        let latency = if index == 120 {
            slow_ms
        } else {
            3 + u64::from(index % 7)
        };
        let key = Event::Key {
            index,
            text: "x".into(),
            due_ns,
            sent_ns: due_ns,
            echo_ns: Some(due_ns + latency * MS),
        };
        all.push(record(u64::from(index) + 1, due_ns, "session", key));
    }
    let samples = Event::ProbeSamples {
        probe: ProbeKind::Udp,
        first: 0,
        due_ns: 0,
        interval_ns: 4 * MS,
        late_max_ns: 0,
        duplicated: 0,
        reordered: 0,
        answers_ns: vec![Some(2 * MS); 5000],
    };
    all.push(record(201, 20_000 * MS, "session", samples));
    let step = |state: &str| Event::Step {
        step: 1,
        name: "step 1 \"pause\": pause the storage server <&>".into(),
        state: state.into(),
        detail: String::new(),
    };
    all.push(record(202, 12_000 * MS, "scenario", step("started")));
    all.push(record(203, 17_000 * MS, "scenario", step("done")));
    all
}

fn run(number: u32, verdict: Verdict) -> RunReport {
    let records = records(100 + u64::from(number) * 40);
    let measured = Run::of(&records, &Limits::default());
    RunReport {
        schema: BOOK,
        scenario: "storage-pause".into(),
        variant: String::new(),
        settings: Vec::new(),
        number,
        seed: u64::from(number),
        command: format!("elab run storage-pause -n 1 --seed {number}"),
        verdict,
        reasons: match verdict {
            Verdict::Passed => Vec::new(),
            _ => vec!["document: line 3: expected \"<a>\", found nothing".into()],
        },
        checks: vec![Check {
            name: "document".into(),
            passed: verdict == Verdict::Passed,
            detail: "1 compared".into(),
        }],
        figures: figures_of(&measured.report, &records),
        steps: steps_of(&records),
        seconds: 30.0,
        folder: format!("storage-pause-{number}"),
        machine: Fingerprint::default(),
        echoes_ms: measured.echoes_ms(),
        measured: Some(measured.report),
    }
}

/// A book with a run that fails, written with the recording of its session.
fn write(folder: &Path) -> Book {
    let included = library::find("storage-pause").unwrap();
    let scenario = scenario::parse("storage-pause", included.text)
        .unwrap()
        .remove(0)
        .scenario;
    let runs: Vec<RunReport> = (1..=5)
        .map(|number| {
            run(
                number,
                if number == 4 {
                    Verdict::Failed
                } else {
                    Verdict::Passed
                },
            )
        })
        .collect();
    let report = ScenarioReport::new(&scenario, "", runs);
    let book = Book::new("elab run storage-pause -n 5".into(), 0, 150.0, vec![report]);
    let worst = folder.join("storage-pause-4");
    std::fs::create_dir(&worst).unwrap();
    let mut recorder = Recorder::create(&worst.join("session.output.jsonl"), 80, 24).unwrap();
    for index in 0..200_u64 {
        recorder.output(
            index * 100 * MS,
            format!("\x1b[{};1HA Trip to the Moon {index}", index % 24 + 1).as_bytes(),
        );
    }
    let lines: Vec<String> = records(260)
        .iter()
        .map(|one| serde_json::to_string(one).unwrap())
        .collect();
    std::fs::write(worst.join("events.jsonl"), lines.join("\n") + "\n").unwrap();
    book.write(folder).unwrap();
    book
}

#[test]
fn every_form_of_a_report_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let book = write(folder.path());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let again: Book = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(again, book);
    assert_eq!(book.verdict, Verdict::Failed);
    let headline = &book.scenarios[0].headline;
    assert!(headline.contains("1 of 5 runs failed"), "{headline}");
    let text = read("report.md");
    assert!(
        text.len() <= markdown::BYTES_MAX && text.contains("1 of 5 runs failed"),
        "{text}"
    );
    let junit = read("junit.xml");
    assert!(
        junit.contains("tests=\"6\"") && junit.contains("failures=\"2\""),
        "{junit}"
    );
    let page = read("report.html");
    for elsewhere in ["http://", "https://", " src="] {
        assert!(
            !page.contains(elsewhere),
            "the page must need nothing but itself, found {elsewhere}"
        );
    }
    assert!(
        page.contains("&lt;&amp;&gt;"),
        "what comes from the run is text, not markup"
    );
}

#[test]
fn markdown_stays_short_whatever_happens() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = write(folder.path());
    let one = book.scenarios[0].clone();
    book.scenarios = vec![one; 400];
    let text = markdown::text(&book);
    assert!(text.len() <= markdown::BYTES_MAX, "{}", text.len());
}

/// With `ELAB_KEEP_PAGES=FOLDER` the pictures are kept, to be looked at.
#[test]
fn a_browser_shows_it_at_the_width_of_a_desk_and_of_a_phone() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let page = format!("file://{}", folder.path().join("report.html").display());
    let chromium = |arguments: &[&str]| {
        Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .arg(format!(
                "--user-data-dir={}",
                folder.path().join("profile").display()
            ))
            .args(arguments)
            .arg(&page)
            .output()
            .unwrap_or_else(|error| {
                panic!("chromium cannot be run ({error}); cargo xtask setup installs it")
            })
    };
    for (name, size) in [("desk", "1280,2400"), ("phone", "500,2400")] {
        let picture = folder.path().join(format!("{name}.png"));
        let output = chromium(&[
            &format!("--window-size={size}"),
            &format!("--screenshot={}", picture.display()),
        ]);
        let written = std::fs::metadata(&picture).map_or(0, |metadata| metadata.len());
        assert!(
            written > 20_000,
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if let Some(keep) = std::env::var_os("ELAB_KEEP_PAGES") {
            std::fs::copy(&picture, Path::new(&keep).join(format!("{name}.png"))).unwrap();
        }
    }
    // The player has run: it made one entry a marker, and filled the screen from its frames.
    let output = chromium(&["--dump-dom", "--virtual-time-budget=2000"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("<div class=\"controls\">"),
        "the player's script did not run: {shown}"
    );
    assert!(shown.contains("A Trip to the Moon 199"));
}
