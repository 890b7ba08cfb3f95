//! The hypervisor from its guests' point of view: the programs of `hvcore/test-guests` on a host that
//! stands alone.

#![allow(missing_docs)]

use std::sync::OnceLock;

use images::standalone::{self, Host};
use rstest::rstest;

/// Programs that end by themselves.
const HARMLESS: [&str; 4] = ["wild-msr", "wild-io", "wild-mmio", "string-io"];
/// Programs that the hypervisor must end, and what it says.
const STOPPED: [(&str, &str); 7] = [
    ("bad-rings", "are not RAM"),
    ("triple-fault", "it restarts again and again (TripleFault)"),
    (
        "jump-device",
        "code at guest address 0xfec00000, which is not RAM",
    ),
    (
        "jump-nowhere",
        "code at guest address 0xe0000000, which is not RAM",
    ),
    (
        "tables-nowhere",
        "page tables at guest address 0xf000000000, which is not RAM",
    ),
    ("stack-device", "on a device register"),
    (
        "exception-storm",
        "it restarts again and again (TripleFault)",
    ),
];

fn host() -> Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host::with_test_guests().unwrap())
        .clone()
}

#[track_caller]
fn expect(said: &str, line: impl Fn(&str) -> bool, what: &str) {
    assert!(said.lines().any(line), "{what} is missing in:\n{said}");
}

#[test]
fn a_guest_finds_its_machine_as_it_should_be() {
    let said = host().run("guest memory=16 -- test=all").unwrap();
    assert!(!said.contains("FAILED"), "{said}");
    expect(&said, |line| line == "ok extended-state", "the last test");
    expect(
        &said,
        |line| line.starts_with("elab: guest 1 switched itself off"),
        "the end",
    );
}

/// All of them at once on one host, and among them two guests that keep their registers full and look
/// whether they stay so.
#[test]
fn misbehaving_guests_harm_only_themselves() {
    let stopped = STOPPED.map(|(program, _)| program);
    let programs: Vec<&str> = ["bystander"]
        .into_iter()
        .chain(HARMLESS)
        .chain(stopped)
        .chain(["bystander"])
        .collect();
    let guests: Vec<String> = programs
        .iter()
        .map(|program| format!("guest memory=16 -- test={program}"))
        .collect();
    let said = host().run(&guests.join(" ")).unwrap();
    for (number, program) in (1..).zip(&programs) {
        match STOPPED.iter().find(|(name, _)| name == program) {
            Some((_, why)) => {
                let beginning = format!("elab: guest {number} was stopped: ");
                expect(
                    &said,
                    |line| line.starts_with(&beginning) && line.contains(why),
                    &format!("why {program} was stopped"),
                );
            }
            None => {
                let ok = format!("{number}> ok {program}");
                expect(&said, |line| line == ok, &ok);
            }
        }
    }
}

/// The harvest names every page that changed; with either half of the dirty log left out it does not.
#[rstest]
#[case::both_maps("both", true)]
#[case::without_the_hypervisors_own_writes("hardware", false)]
#[case::without_the_guests_writes("software", false)]
fn the_dirty_log_is_complete(#[case] maps: &str, #[case] complete: bool) {
    let guest = format!("guest memory=16 audit={maps} -- test=dirty");
    let said = host().run(&guest).unwrap();
    expect(&said, |line| line == "ok dirty", "the guest's own verdict");
    let report = said
        .lines()
        .find(|line| line.starts_with("elab: guest 1 audit"))
        .unwrap_or_else(|| panic!("no audit in:\n{said}"));
    let missed = number_before(report, " missed");
    assert!(number_before(report, " harvests") > 1, "{report}");
    assert!(number_before(report, " pages changed") > 1000, "{report}");
    assert_eq!(missed == 0, complete, "{report}");
}

/// A lost wake-up shows in one of a thousand idle moments, so it gets more of them.
#[test]
fn no_wake_up_is_lost_between_sti_and_hlt() {
    let said = host()
        .run("guest memory=8 -- test=halt-race guest memory=8 -- test=halt-race guest memory=8 vcpus=2 -- test=halt-race")
        .unwrap();
    for number in 1..=3 {
        let ok = format!("{number}> ok halt-race");
        expect(&said, |line| line == ok, &ok);
    }
}

#[rstest]
fn all_vcpus_start_and_take_turns(#[values(1, 2, 8)] vcpus: u32) {
    let guest = format!("guest memory=8 vcpus={vcpus} -- test=smp");
    let said = host().run(&guest).unwrap();
    let others = format!("{} other processors", vcpus - 1);
    expect(&said, |line| line == others, &others);
    expect(&said, |line| line == "ok smp", "the guest's own verdict");
}

/// Every few milliseconds all their state is carried into new VMs, as in a migration.
#[test]
fn guests_do_not_notice_that_they_move() {
    let said = host()
        .run("guest memory=8 moves=10 -- test=all guest memory=8 moves=15 -- test=bystander guest memory=8 moves=10 -- test=halt-race")
        .unwrap();
    assert!(
        !said.contains("FAILED") && !said.contains("does not move"),
        "{said}"
    );
    for (number, program) in [(1, "extended-state"), (2, "bystander"), (3, "halt-race")] {
        let ok = format!("{number}> ok {program}");
        expect(&said, |line| line == ok, &ok);
    }
    let moved = said
        .lines()
        .find(|line| line.starts_with("elab: guest 2 was moved "))
        .unwrap_or_else(|| panic!("guest 2 did not move:\n{said}"));
    assert!(number_before(moved, " times") > 1, "{moved}");
}

/// Between any two slices the host is busy for longer than a slice, with moving: a timer left over from one slice must not
/// end the next.
#[test]
fn guests_get_on_however_long_the_host_works_between_their_slices() {
    let said = host()
        .run("guest memory=16 moves=1 -- test=halt-race guest memory=16 moves=1 -- test=halt-race")
        .unwrap();
    for number in 1..=2 {
        let ok = format!("{number}> ok halt-race");
        expect(&said, |line| line == ok, &ok);
    }
}

#[test]
fn a_guest_too_large_is_refused_with_the_numbers() {
    let said = host()
        .run("guest memory=4096 -- test=cpuid guest memory=8 -- test=cpuid")
        .unwrap();
    expect(
        &said,
        |line| {
            line.starts_with("elab: guest 1 does not start: it needs ")
                && line.ends_with(" are free")
        },
        "the refusal",
    );
    expect(&said, |line| line == "2> ok cpuid", "the other guest");
}

#[test]
fn exits_cost_the_same_in_every_run() {
    let first = standalone::exit_costs().unwrap();
    let second = standalone::exit_costs().unwrap();
    assert_eq!(first.len(), second.len());
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(a.name, b.name);
        let spread = a.ns.abs_diff(b.ns);
        assert!(
            spread * 20 <= a.ns.max(20),
            "{a:?} and {b:?} differ by more than 5 %"
        );
    }
}

fn number_before(text: &str, unit: &str) -> u64 {
    let before = text.split(unit).next().expect("split gives something");
    let digits = before.rsplit(' ').next().expect("as above");
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number before `{unit}` in: {text}"))
}
