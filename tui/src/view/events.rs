//! The event log, line by line.

use lab_protocol::{Event, Role};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use scenarios::evidence::cast;
use serde_json::{Map, Value};

use crate::app::App;
use crate::model::probe_name;

/// Fields that every record has, and which stand in columns of their own.
const COMMON: [&str; 6] = ["schema", "seq", "t_ns", "error_ns", "source", "kind"];

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.events();
    let heading = if app.filter.is_empty() {
        format!(
            "      TIME s  SOURCE   EVENT   {rows} in all; {} filters",
            app.keys.hint(crate::keys::Action::Filter)
        )
    } else {
        format!(
            "      TIME s  SOURCE   EVENT   {rows} with \"{}\"; esc shows all",
            app.filter
        )
    };
    let heading = Line::styled(heading, app.look.dim());
    if rows == 0 {
        frame.render_widget(heading, area);
        return;
    }
    super::list(app, frame, area, heading, app.selected(), rows, |row| {
        app.event_line(row)
            .map_or_else(Line::default, |line| event(app, line))
    });
}

/// A line of the log, in columns.
pub(super) fn event(app: &App, line: usize) -> Line<'static> {
    let bytes = app.log.line(line).unwrap_or_default();
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(bytes) else {
        let text = String::from_utf8_lossy(bytes);
        return Line::styled(format!("not a record: {}", text.trim_end()), app.look.bad());
    };
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let kind = text("kind");
    let style = match kind.as_str() {
        "host-power" | "link-fault" | "session-lost" | "pool" => app.look.bad(),
        kind if kind.starts_with("migration") => app.look.warn(),
        "message" | "mark" => app.look.accent(),
        _ => ratatui::style::Style::new(),
    };
    let record = app.log.record(line);
    let details = record
        .as_ref()
        .and_then(|record| in_words(&record.event))
        .unwrap_or_else(|| named(&fields));
    let t_ns = fields.get("t_ns").and_then(Value::as_u64).unwrap_or(0);
    Line::from(vec![
        Span::raw(format!("{:>10}  ", super::seconds(t_ns))),
        Span::styled(format!("{:<8} ", text("source")), app.look.accent()),
        Span::styled(format!("{kind:<20} "), style),
        Span::raw(details),
    ])
}

/// What an event says, for those that fill most of a log; figures in the units that reports print.
fn in_words(event: &Event) -> Option<String> {
    let words = match event {
        Event::Key {
            text,
            due_ns,
            echo_ns,
            ..
        } => match echo_ns {
            Some(echo_ns) => format!(
                "{text:?} echoed after {} ms",
                super::ms(echo_ns.saturating_sub(*due_ns))
            ),
            None => format!("{text:?} not echoed"),
        },
        Event::ProbeSamples {
            probe, answers_ns, ..
        } => {
            let answers = answers_ns.iter().flatten();
            let lost = answers_ns.len() - answers.clone().count();
            let worst = answers
                .max()
                .map_or_else(|| "-".into(), |ns| super::ms(*ns));
            format!(
                "{}: {} requests, {lost} unanswered, worst {worst} ms",
                probe_name(*probe),
                answers_ns.len()
            )
        }
        Event::MigrationRound {
            vm,
            round,
            pages,
            bytes,
            duration_ns,
            dirty_after,
            ..
        } => format!(
            "{vm}: round {round}, {pages} pages, {} MB in {} ms; {dirty_after} dirty after it",
            super::megabytes(*bytes),
            super::ms(*duration_ns)
        ),
        Event::MigrationPhase {
            vm,
            role,
            phase,
            detail,
            ..
        } => {
            let side = match role {
                Role::Source => "source",
                Role::Destination => "destination",
            };
            format!("{vm}: {} at the {side} {detail}", cast::name(*phase))
        }
        Event::MigrationRequested { vm, from, to, .. } => format!("{vm}: {from} to {to}"),
        Event::MigrationEnded { vm, error, .. } if error.is_empty() => format!("{vm}: done"),
        Event::MigrationEnded { vm, error, .. } => format!("{vm}: {error}"),
        Event::HostStatus {
            host,
            memory_total,
            memory_free,
            storage_up,
        } => format!(
            "{host}: {} of {} MiB free, {} its storage",
            memory_free >> 20,
            memory_total >> 20,
            if *storage_up {
                "reaches"
            } else {
                "does not reach"
            }
        ),
        Event::VmStatus {
            vm, cpu_ns, exits, ..
        } => format!(
            "{vm}: {:.1} s of CPU, {exits} exits so far",
            *cpu_ns as f64 / 1e9
        ),
        Event::PortStatistics { ports } => {
            let names = ports
                .iter()
                .map(|port| format!("{}:{}", port.port, port.network));
            format!("busy: {}", names.collect::<Vec<_>>().join(" "))
        }
        Event::StorageStatistics {
            operations,
            read_bytes,
            written_bytes,
        } => format!(
            "{} calls so far, {} MB read, {} MB written",
            operations.iter().map(|one| one.calls).sum::<u64>(),
            super::megabytes(*read_bytes),
            super::megabytes(*written_bytes)
        ),
        Event::Lease {
            path,
            epoch,
            owner,
            change,
        } => {
            let disk = path.rsplit('/').next().unwrap_or(path);
            format!("{change}: {owner}, epoch {epoch}, {disk}")
        }
        Event::Pool { text, .. } | Event::Mark { text } | Event::Message { text, .. } => {
            text.clone()
        }
        _ => return None,
    };
    Some(words)
}

/// Any other event's fields by their names.
fn named(fields: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (name, value) in fields {
        // A host that speaks of itself, and what is empty, need no words.
        let empty = value.as_str().is_some_and(str::is_empty);
        if COMMON.contains(&name.as_str())
            || empty
            || (name == "host" && value == &fields["source"])
        {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        let value = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        out.push_str(&format!("{name}={value}"));
    }
    out
}
