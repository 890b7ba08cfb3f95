//! Where the time went between the pull of a host and the next key that its user saw.

use super::book::ScenarioReport;
use super::terminal::bar;

/// The steps, in order: figure, and what it is called here.
const STEPS: [(&str, &str); 6] = [
    ("outage-detect", "detected"),
    ("outage-fence", "agreed, fenced"),
    ("outage-decide", "decided"),
    ("outage-start", "guest started"),
    ("outage-boot", "guest boot"),
    ("outage-session", "log-in, first key"),
];

/// A line for each step, by medians; empty when no host was pulled.
pub(super) fn lines(scenario: &ScenarioReport) -> Vec<String> {
    let Some(echo) = scenario.figures.get("outage-echo") else {
        return Vec::new();
    };
    let whole = echo.spread.median.max(0.001);
    let mut lines = vec![format!(
        "From the pull to the next echo (medians of {}):",
        echo.samples.len()
    )];
    for (figure, name) in STEPS {
        if let Some(values) = scenario.figures.get(figure) {
            lines.push(bar(name, values.spread.median, whole));
        }
    }
    if let Some(keys) = scenario.figures.get("keys-lost-with-host") {
        lines.push(format!(
            "  lost with the host: {:.0} keys typed since the last saved document (median)",
            keys.spread.median
        ));
    }
    lines
}
