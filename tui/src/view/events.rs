//! The event log, line by line.

use lab_protocol::{Event, PoolMark};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use serde_json::{Map, Value};

use super::words::in_words;
use crate::app::App;

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
    let record = app.log.record(line);
    let style = record
        .as_ref()
        .map_or_else(Style::new, |record| style(app, &record.event));
    let details = record
        .as_ref()
        .map_or_else(|| named(&fields), |record| in_words(&record.event));
    let t_ns = fields.get("t_ns").and_then(Value::as_u64).unwrap_or(0);
    Line::from(vec![
        Span::raw(format!("{:>10}  ", super::seconds(t_ns))),
        Span::styled(format!("{:<8} ", text("source")), app.look.accent()),
        Span::styled(format!("{kind:<20} "), style),
        Span::raw(details),
    ])
}

/// What an event means: whether something is broken, under way or well again.
fn style(app: &App, event: &Event) -> Style {
    let look = app.look;
    match event {
        Event::HostPower { state, .. } => match state.as_str() {
            "pulled" | "died" => look.bad(),
            "frozen" => look.warn(),
            _ => look.good(),
        },
        Event::LinkFault { fault, .. } if fault == "healed" => look.good(),
        Event::LinkFault { fault, .. } if fault != "cut" => look.warn(),
        Event::LinkFault { .. } | Event::SessionLost { .. } => look.bad(),
        Event::StorageState { state } => match state.as_str() {
            "started" | "ready" | "resumed" | "disk: clear" => look.good(),
            words if words.contains("regained") => look.good(),
            "paused" => look.warn(),
            _ => look.bad(),
        },
        Event::Pool { mark, .. } => match mark {
            PoolMark::Restarted | PoolMark::PermitBack => look.good(),
            PoolMark::DeclaredDead
            | PoolMark::NotRestarted
            | PoolMark::SelfFenced
            | PoolMark::PermitLapsed => look.bad(),
            PoolMark::Suspected | PoolMark::Fenced | PoolMark::Restart => look.warn(),
            PoolMark::Protection | PoolMark::Liveset | PoolMark::Note => look.accent(),
        },
        Event::MigrationEnded { error, .. } if error.is_empty() => look.good(),
        Event::MigrationEnded { .. } => look.bad(),
        Event::MigrationRequested { .. }
        | Event::MigrationPhase { .. }
        | Event::MigrationRound { .. } => look.warn(),
        Event::Message { level, .. } => match level.as_str() {
            "error" => look.bad(),
            "warning" => look.warn(),
            _ => look.accent(),
        },
        Event::DocumentChecked { equal, .. } | Event::DiskChecked { equal, .. } => {
            if *equal {
                look.good()
            } else {
                look.bad()
            }
        }
        Event::Mark { .. } => look.accent(),
        _ => Style::new(),
    }
}

/// The fields of an event that this program does not know, by their names.
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
