//! A book as JUnit XML: a suite a scenario, a case a run and one for each limit.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::book::Book;
use crate::verdict::Verdict;

/// The XML.
///
/// # Errors
/// In words, when it cannot be written.
pub fn xml(book: &Book) -> Result<String, String> {
    let mut report = Report::new("elab");
    for scenario in &book.scenarios {
        let mut suite = TestSuite::new(scenario.title());
        for run in &scenario.runs {
            let mut status = match run.verdict {
                Verdict::Passed => TestCaseStatus::success(),
                Verdict::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
                // It proves nothing: a reader must neither take it for a pass nor for a defect.
                Verdict::Inconclusive => TestCaseStatus::skipped(),
            };
            if run.verdict != Verdict::Passed {
                let why = run.reasons.join("; ");
                status.set_message(why.clone());
                hold(&mut status, &scenario.quarantined, &why);
                status.set_description(format!("again: {}", run.command));
            }
            let mut case = TestCase::new(format!("run {} (seed {})", run.number, run.seed), status);
            case.set_classname(scenario.title());
            case.set_time(Duration::from_secs_f64(run.seconds.max(0.0)));
            suite.add_test_case(case);
        }
        for limit in &scenario.limits {
            let mut status = if limit.passed {
                TestCaseStatus::success()
            } else {
                TestCaseStatus::non_success(NonSuccessKind::Failure)
            };
            if !limit.passed {
                let why = format!("{}, limit {}", limit.found(), limit.words());
                status.set_message(why.clone());
                for until in [&limit.quarantined, &scenario.quarantined] {
                    hold(&mut status, until, &why);
                }
            }
            let mut case = TestCase::new(format!("limit: {}", limit.title), status);
            case.set_classname(scenario.title());
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    report.to_string().map_err(|error| error.to_string())
}

/// What is in quarantine does not count until a day, and says until which: readers know no such state, but they count what is skipped.
fn hold(status: &mut TestCaseStatus, until: &str, why: &str) {
    if !until.is_empty() {
        *status = TestCaseStatus::skipped();
        status.set_message(format!("in quarantine {until}: {why}"));
    }
}
