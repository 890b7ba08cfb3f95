use super::*;
use crate::evidence::fingerprint::Fingerprint;
use crate::history::FORM;
use crate::report::run::RunReport;
use crate::scenario::{self, library};

fn run(number: u32, echo: f64) -> RunReport {
    RunReport {
        schema: 1,
        scenario: "demo".into(),
        variant: String::new(),
        settings: Vec::new(),
        number,
        seed: number.into(),
        command: format!("elab run demo -n 1 --seed {number}"),
        verdict: Verdict::Passed,
        reasons: Vec::new(),
        checks: Vec::new(),
        figures: [
            ("longest-echo".to_owned(), vec![echo]),
            ("vcpu-pause".to_owned(), vec![7.0]),
        ]
        .into(),
        steps: Vec::new(),
        seconds: 40.0,
        folder: format!("demo-{number}"),
        machine: machine("a <fast> CPU"),
        measured: None,
        echoes_ms: Vec::new(),
    }
}

fn machine(cpu: &str) -> Fingerprint {
    Fingerprint {
        cpu: cpu.into(),
        accelerator: "tcg".into(),
        image: "9f3a".into(),
        ..Fingerprint::default()
    }
}

fn book() -> Book {
    let text = library::find("demo").unwrap().text;
    let scenario = scenario::parse("demo", text).unwrap().remove(0).scenario;
    let runs = (1..=10)
        .map(|number| run(number, 30.0 + f64::from(number)))
        .collect();
    let report = ScenarioReport::new(&scenario, "", runs);
    Book::new(
        "elab run demo -n 10".into(),
        1_795_279_415,
        400.0,
        vec![report],
    )
}

fn entries(cpu: &str, echo: f64) -> Vec<Entry> {
    let of = |number: u32| Entry {
        history: FORM,
        unix_s: 1,
        commit: "abc".into(),
        scenario: "demo".into(),
        variant: String::new(),
        number,
        seed: 1,
        verdict: Verdict::Passed,
        reasons: Vec::new(),
        seconds: 40.0,
        figures: [("longest-echo".to_owned(), vec![echo + f64::from(number)])].into(),
        machine: machine(cpu),
        command: String::new(),
    };
    (1..=10).map(of).collect()
}

fn release(book: &Book) -> Release<'_> {
    let (slower, elsewhere) = (entries("a <fast> CPU", 90.0), entries("another", 90.0));
    let refs = |all: &'static [Entry]| all.iter().collect::<Vec<_>>();
    Release {
        name: "1.2".into(),
        commit: "0123456789ab".into(),
        book,
        earlier: vec![
            Earlier::of("1.1", &refs(slower.leak()), book),
            Earlier::of("1.0", &refs(elsewhere.leak()), book),
        ],
        quarantined: vec!["link-faults does not count until 2026-12-31".into()],
        hashes: vec![("hypervisor image".into(), "9f3a".into())],
        command: "elab release-report".into(),
    }
}

#[test]
fn both_forms_say_what_became_of_the_last_releases() {
    let book = book();
    let release = release(&book);
    for text in [html::page(&release), markdown::text(&release)] {
        for words in [
            "of 1 scenarios passed",
            "with 1.1: better now (p = 0.00",
            "95.0 ms: better now",
            "not comparable: CPU: another and a",
            "The hosts were emulated",
            "until 2026-12-31",
            "elab run demo -n 10",
            "9f3a",
            "2026-11-21",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

#[test]
fn the_page_needs_nothing_but_itself_and_shows_every_run() {
    let book = book();
    let page = html::page(&release(&book));
    for elsewhere in ["http://", "https://", " src=", "<script"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    assert!(page.contains("a &lt;fast&gt; CPU"));
    // Ten echoes and ten pauses of this release, ten echoes of the one before.
    assert_eq!(page.matches("<circle").count(), 30);
    assert!(page.contains("elab run demo -n 1 --seed 10"));
}

#[test]
fn a_first_release_says_so_and_a_failure_is_the_headline() {
    let mut book = book();
    book.scenarios[0].verdict = Verdict::Failed;
    book.scenarios[0].headline = "3 of 10 runs failed.".into();
    let first = Release {
        earlier: Vec::new(),
        ..release(&book)
    };
    let page = html::page(&first);
    assert!(page.contains("this one is the base of the next"));
    assert!(page.contains("<h1>0 of 1 scenarios passed. 3 of 10 runs failed."));
    assert!(page.contains("demo failed: 3 of 10 runs failed."));
}

#[test]
fn the_text_for_a_forge_is_short_whatever_happens() {
    let mut book = book();
    let one = book.scenarios[0].clone();
    book.scenarios = vec![one; 2000];
    // Nothing to compare with: thousands of comparisons would take minutes.
    let alone = Release {
        earlier: Vec::new(),
        ..release(&book)
    };
    let text = markdown::text(&alone);
    assert!(text.len() <= super::super::markdown::BYTES_MAX);
    assert!(text.contains("the rest is in"));
}

#[test]
fn raw_data_is_hashed_and_what_is_gone_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("report.json"), "{}").unwrap();
    let hashes = hashes(&book(), folder.path()).unwrap();
    assert_eq!(hashes[0], ("hypervisor image".into(), "9f3a".into()));
    let empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(hashes[1], ("report.json".into(), empty_object.into()));
    assert!(hashes.contains(&("demo-10/events.jsonl".into(), "not kept".into())));
}
