use super::quarantine::Quarantine;
use super::*;
use crate::compare::Compared;

const TODAY: (u64, u64, u64) = (2026, 11, 22);

fn trial(outcomes: &[(&str, Outcome)], failed: [usize; 2]) -> Trial {
    let figure = |(title, outcome): &(&str, Outcome)| Compared {
        title: format!("demo: {title}"),
        unit: "ms".into(),
        a: (80.0, 10),
        b: (120.0, 10),
        interval: [30.0, 50.0],
        least: 10.0,
        p: 0.001,
        outcome: *outcome,
    };
    let figures: Vec<Compared> = outcomes.iter().map(figure).collect();
    Trial {
        failed: failed.map(|failed| (failed, 10)),
        comparison: Comparison {
            outcome: figures
                .iter()
                .map(|one| one.outcome)
                .max()
                .unwrap_or(Outcome::NotComparable),
            reason: "CPU: x and y".into(),
            figures,
        },
    }
}

fn of(first: &Trial, second: Option<&Trial>) -> Decision {
    decide("demo", first, second, &Quarantine::default())
}

#[test]
fn worse_must_be_found_twice_in_the_same_figure() {
    let worse = trial(&[("longest echo", Outcome::Worse)], [0, 0]);
    let equal = trial(&[("longest echo", Outcome::Equivalent)], [0, 0]);
    let other = trial(
        &[
            ("longest echo", Outcome::Equivalent),
            ("UDP gap", Outcome::Worse),
        ],
        [0, 0],
    );
    assert!(worse.needs_confirming("demo", &Quarantine::default()));
    assert!(!equal.needs_confirming("demo", &Quarantine::default()));
    assert_eq!(of(&worse, Some(&worse)).outcome, Outcome::Worse);
    for second in [&equal, &other] {
        let decision = of(&worse, Some(second));
        assert_eq!(decision.outcome, Outcome::Inconclusive);
        assert!(decision.reasons[0].contains("once"), "{decision:?}");
    }
    assert_eq!(of(&equal, None).outcome, Outcome::Equivalent);
    let better = trial(&[("longest echo", Outcome::Better)], [0, 0]);
    assert_eq!(of(&better, None).outcome.exit_code(), 0);
}

#[test]
fn what_cannot_tell_is_neither_red_nor_green() {
    let unclear = trial(&[("UDP gap", Outcome::Inconclusive)], [0, 0]);
    assert_eq!(of(&unclear, None).outcome.exit_code(), 4);
    let elsewhere = trial(&[], [0, 0]);
    let decision = of(&elsewhere, None);
    assert_eq!(decision.outcome, Outcome::Inconclusive);
    assert_eq!(decision.reasons, ["CPU: x and y"]);
    assert_eq!(outcome(&[]), Outcome::Inconclusive);
}

#[test]
fn a_failed_run_fails_at_once_unless_the_base_fails_too() {
    let equal = [("longest echo", Outcome::Equivalent)];
    let fails = trial(&equal, [0, 1]);
    assert!(!fails.needs_confirming("demo", &Quarantine::default()));
    let decision = of(&fails, None);
    assert_eq!(decision.outcome, Outcome::Worse);
    assert!(decision.reasons[0].starts_with("1 of 10 runs failed"));
    assert_eq!(
        of(&trial(&equal, [1, 1]), None).outcome,
        Outcome::Inconclusive
    );
    assert_eq!(
        of(&trial(&equal, [1, 0]), None).outcome,
        Outcome::Equivalent
    );
    // One that fails only in the confirming trial has failed.
    let worse = trial(&[("longest echo", Outcome::Worse)], [0, 0]);
    assert_eq!(of(&worse, Some(&fails)).outcome, Outcome::Worse);
}

fn list(entry: &str) -> Result<Quarantine, crate::scenario::ScenarioError> {
    Quarantine::parse("list.toml", entry, TODAY)
}

const ENTRY: &str = r#"[[quarantine]]
scenario = "demo"
figure = "udp-gap"
owner = "Ada"
link = "https://example.org/7"
expires = 2026-11-22
"#;

#[test]
fn quarantine_takes_what_it_names_out_of_the_verdict_and_says_so() {
    let both = trial(
        &[
            ("UDP gap", Outcome::Worse),
            ("longest echo", Outcome::Worse),
        ],
        [0, 0],
    );
    let udp = trial(&[("UDP gap", Outcome::Worse)], [0, 0]);
    let quarantine = list(ENTRY).unwrap();
    assert!(!udp.needs_confirming("demo", &quarantine));
    assert!(both.needs_confirming("demo", &quarantine));
    let decision = decide("demo", &udp, None, &quarantine);
    assert_eq!(decision.outcome, Outcome::Equivalent);
    let text = summary(&[decision]);
    assert!(
        text.contains("until 2026-11-22 (Ada, https://example.org/7)"),
        "{text}"
    );
    // Another scenario, another figure and failures still count.
    assert!(udp.needs_confirming("cancel", &quarantine));
    let fails = trial(&[], [0, 3]);
    assert_eq!(
        decide("demo", &fails, None, &quarantine).outcome,
        Outcome::Worse
    );
    let whole = list(&ENTRY.replace("figure = \"udp-gap\"\n", "")).unwrap();
    let fails = trial(&[("UDP gap", Outcome::Equivalent)], [0, 3]);
    let decision = decide("demo", &fails, None, &whole);
    assert_eq!(decision.outcome, Outcome::Equivalent);
    assert_eq!(decision.quarantined.len(), 1);
}

/// A demo whose one run failed and whose one figure is beyond its limit, in all forms of its report.
fn reported(quarantine: &Quarantine) -> (Verdict, String) {
    use crate::report::book::{Book, ScenarioReport};
    use crate::report::run::RunReport;
    use crate::report::screen;
    use crate::scenario::{self, library};
    let text = library::find("demo").unwrap().text;
    let scenario = scenario::parse("demo", text).unwrap().remove(0).scenario;
    let run = RunReport {
        schema: 1,
        scenario: "demo".into(),
        variant: String::new(),
        settings: Vec::new(),
        number: 1,
        seed: 1,
        command: String::new(),
        verdict: Verdict::Failed,
        reasons: vec!["a key was lost".into()],
        checks: Vec::new(),
        figures: [("udp-gap".to_owned(), vec![900.0])].into(),
        steps: Vec::new(),
        seconds: 1.0,
        folder: String::new(),
        machine: Default::default(),
        measured: None,
        echoes_ms: Vec::new(),
    };
    let report = ScenarioReport::new(&scenario, "", vec![run]);
    let mut book = Book::new(String::new(), 0, 0.0, vec![report]);
    quarantine.mark(&mut book);
    let folder = tempfile::tempdir().unwrap();
    book.write(folder.path()).unwrap();
    let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let all = ["junit.xml", "report.md", "report.html"].map(read).join("");
    (book.counted(), all + &screen::summary(&book))
}

#[test]
fn every_form_of_a_report_says_until_when_something_does_not_count() {
    let whole = list(&ENTRY.replace("figure = \"udp-gap\"\n", "")).unwrap();
    let until = "in quarantine until 2026-11-22 (Ada, https://example.org/7)";
    let (counted, said) = reported(&whole);
    assert_eq!(counted, Verdict::Passed);
    assert!(said.contains("failures=\"0\""), "{said}");
    // The run and its limits in JUnit, and once in each other form.
    assert!(said.contains(&format!("{until}: a key was lost")), "{said}");
    assert!(said.matches(until).count() > 4, "{said}");
    // A figure in quarantine excuses no failed run.
    let (counted, said) = reported(&list(ENTRY).unwrap());
    assert_eq!(counted, Verdict::Failed);
    assert!(said.contains(&format!("UDP gap is {until}")), "{said}");
    let (counted, said) = reported(&Quarantine::default());
    assert_eq!(counted, Verdict::Failed);
    assert!(!said.contains("quarantine"), "{said}");
}

#[test]
fn a_list_that_is_wrong_or_past_its_day_is_refused_by_its_place() {
    for (entry, message) in [
        (
            ENTRY.replace("2026-11-22", "2026-11-21"),
            "list.toml:6:11: past its day",
        ),
        (
            ENTRY.replace("owner", "ownre"),
            "list.toml:4:1: unknown field `ownre`",
        ),
        (
            ENTRY.replace("\"Ada\"", "\" \""),
            "list.toml:4:9: an entry needs an owner",
        ),
        (
            ENTRY.replace("https://example.org/7", "soon"),
            "list.toml:5:8: the link",
        ),
        (
            ENTRY.replace("udp-gap", "udp-gab"),
            "list.toml:3:10: no figure `udp-gab`",
        ),
        (
            ENTRY.replace("2026-11-22", "07:32:00"),
            "list.toml:6:11: a day is wanted",
        ),
        (ENTRY.replace("link =", "# link ="), "missing field `link`"),
        (
            ENTRY.replace("[[quarantine]]", "[[quarantined]]"),
            "unknown field",
        ),
    ] {
        let error = list(&entry).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(list("").unwrap().entries().is_empty());
}

/// Values as real labs give them: of one run of twenty migrations on a busy machine, ms. They are drawn from again and again, as base and
/// as candidate.
const ECHOES: [f64; 20] = [
    27.6, 21.0, 75.7, 24.4, 30.1, 26.9, 33.2, 22.8, 28.4, 61.3, 25.5, 29.7, 82.8, 23.9, 27.1, 31.6,
    44.0, 26.2, 38.5, 24.9,
];

/// How many of so many gates, of twenty runs on either side, call the candidate worse.
fn alarms(gates: u64, extra_ms: f64) -> usize {
    let mut random = fastrand::Rng::with_seed(42);
    let mut draw = |extra: f64| -> Vec<f64> {
        (0..20)
            .map(|_| ECHOES[random.usize(..ECHOES.len())] + extra)
            .collect()
    };
    let mut trial = || {
        let (a, b) = (draw(0.0), draw(extra_ms));
        Trial {
            failed: [(0, 20); 2],
            comparison: crate::compare::of_values([(
                "demo: longest echo".into(),
                "ms",
                &a[..],
                &b[..],
            )]),
        }
    };
    (0..gates)
        .filter(|_| {
            let first = trial();
            let second = first
                .needs_confirming("demo", &Quarantine::default())
                .then(&mut trial);
            of(&first, second.as_ref()).outcome == Outcome::Worse
        })
        .count()
}

#[test]
fn no_change_raises_no_alarm_and_30_ms_more_are_found() {
    // A few: `cargo bench --bench gate` asks a hundred times.
    assert_eq!(alarms(3, 0.0), 0);
    assert_eq!(alarms(3, 30.0), 3);
}
