use super::trend::{Trend, sparkline};
use super::*;

fn entry(unix_s: u64, commit: &str, scenario: &str, echo: &[f64]) -> Entry {
    Entry {
        history: FORM,
        unix_s,
        commit: commit.into(),
        scenario: scenario.into(),
        variant: String::new(),
        number: 1,
        seed: unix_s,
        verdict: Verdict::Passed,
        reasons: Vec::new(),
        seconds: 40.0,
        figures: [("longest-echo".to_owned(), echo.to_vec())].into(),
        machine: Fingerprint {
            cpu: "x".into(),
            image: format!("image of {commit}"),
            ..Fingerprint::default()
        },
        command: format!("elab run {scenario}"),
    }
}

fn read(file: &Path) -> History {
    History::read(&[file.to_owned()]).unwrap()
}

#[test]
fn what_was_appended_is_read_again_in_order_of_time_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("a/one.jsonl"), folder.path().join("two"));
    append(&one, &[entry(20, "b", "demo", &[1.5, 2.0])]).unwrap();
    append(&one, &[entry(30, "c", "demo", &[])]).unwrap();
    append(
        &two,
        &[
            entry(10, "a", "demo", &[3.0]),
            entry(20, "b", "demo", &[1.5, 2.0]),
        ],
    )
    .unwrap();
    let history = History::read(&[one, two]).unwrap();
    let commits: Vec<_> = history.entries.iter().map(|one| &one.commit[..]).collect();
    assert_eq!(commits, ["a", "b", "c"]);
    assert_eq!(history.entries[1], entry(20, "b", "demo", &[1.5, 2.0]));
    assert!(history.left_out.is_empty());
}

#[test]
fn a_torn_line_costs_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    append(&file, &[entry(1, "a", "demo", &[1.0])]).unwrap();
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}{}", &whole[..whole.len() / 2])).unwrap();
    append(&file, &[entry(2, "b", "demo", &[1.0])]).unwrap();
    let history = read(&file);
    assert_eq!(history.entries.len(), 2);
    assert_eq!(history.left_out.len(), 1);
    assert!(
        history.left_out[0].contains("history:2: "),
        "{:?}",
        history.left_out
    );
}

#[test]
fn a_newer_form_is_refused_by_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    append(&file, &[entry(1, "a", "demo", &[1.0])]).unwrap();
    let newer = Entry {
        history: FORM + 1,
        ..entry(2, "b", "demo", &[])
    };
    append(&file, &[newer]).unwrap();
    let error = History::read(std::slice::from_ref(&file)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("history:2: a line of version 2"), "{text}");
    let error = History::read(&[folder.path().join("none")]).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn several_writers_do_not_tear_one_anothers_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let file = &file;
            scope.spawn(move || {
                for one in 0..25 {
                    append(file, &[entry(writer * 100 + one, "a", "demo", &[1.0])]).unwrap();
                }
            });
        }
    });
    let history = read(&file);
    assert_eq!((history.entries.len(), history.left_out.len()), (100, 0));
}

#[test]
fn the_time_a_run_takes_is_that_of_the_latest() {
    let took = |unix_s, seconds| Entry {
        seconds,
        ..entry(unix_s, "a", "demo", &[])
    };
    let mut entries: Vec<Entry> = (0..30).map(|number| took(number, 300.0)).collect();
    entries.extend((30..50).map(|number| took(number, 50.0)));
    // It did not come up: that is no time.
    entries.push(took(50, 0.0));
    let history = History {
        entries,
        left_out: Vec::new(),
    };
    assert_eq!(history.expected("demo", ""), Some(Duration::from_secs(50)));
    assert_eq!(history.expected("other", ""), None);
    assert_eq!(history.expected("demo", "memory 1G"), None);
}

#[test]
fn a_trend_is_of_one_machine_and_each_commit_is_a_point() {
    let elsewhere = Entry {
        machine: Fingerprint {
            cpu: "y".into(),
            ..Fingerprint::default()
        },
        ..entry(4, "a", "demo", &[9.0])
    };
    let failed = Entry {
        verdict: Verdict::Failed,
        ..entry(2, "a", "demo", &[30.0])
    };
    let entries = [
        entry(1, "a", "demo", &[10.0, 20.0]),
        failed,
        entry(3, "b", "demo", &[80.0]),
        elsewhere,
        entry(5, "b", "cancel", &[1.0]),
    ];
    let trends = Trend::all(&entries);
    let titles: Vec<_> = trends
        .iter()
        .map(|one| (one.title(), one.machine.cpu.clone(), one.points.len()))
        .collect();
    let expected = [("cancel", "x", 1), ("demo", "x", 2), ("demo", "y", 1)];
    assert_eq!(
        titles,
        expected.map(|(title, cpu, points)| (title.to_owned(), cpu.to_owned(), points))
    );
    let first = &trends[1].points[0];
    assert_eq!((first.verdicts, first.runs()), ([1, 0, 1], 2));
    let echo = &first.figures["longest-echo"];
    assert_eq!(echo.samples, [10.0, 20.0, 30.0]);
    assert_eq!(echo.spread.median, 20.0);
    assert_eq!(trends[1].sparkline("longest-echo"), "▂█");
}

#[test]
fn small_bars_begin_at_zero() {
    let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
    assert_eq!(sparkline(&some(&[100.0, 99.0, 101.0])), "███");
    assert_eq!(sparkline(&[Some(1.0), None, Some(8.0)]), "▁ █");
    assert_eq!(sparkline(&some(&[0.0, 0.0])), "▁▁");
    assert_eq!(sparkline(&[]), "");
}
