//! The event log, line by line.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use serde_json::Value;

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
    let style = match kind.as_str() {
        "host-power" | "vm-stopped" | "link-fault" | "session-lost" => app.look.bad(),
        kind if kind.starts_with("migration") => app.look.warn(),
        "message" | "mark" => app.look.accent(),
        _ => ratatui::style::Style::new(),
    };
    let mut details = String::new();
    for (name, value) in &fields {
        // A host that speaks of itself, and what is empty, need no words.
        let empty = value.as_str().is_some_and(str::is_empty);
        if COMMON.contains(&name.as_str())
            || empty
            || (name == "host" && value == &fields["source"])
        {
            continue;
        }
        if !details.is_empty() {
            details.push(' ');
        }
        let value = match value {
            Value::String(text) => text.clone(),
            // Samples are many; the strip shows them.
            Value::Array(values) => format!("[{}]", values.len()),
            other => other.to_string(),
        };
        details.push_str(&format!("{name}={value}"));
    }
    let t_ns = fields.get("t_ns").and_then(Value::as_u64).unwrap_or(0);
    Line::from(vec![
        Span::raw(format!("{:>10}  ", super::seconds(t_ns))),
        Span::styled(format!("{:<8} ", text("source")), app.look.accent()),
        Span::styled(format!("{kind:<20} "), style),
        Span::raw(details),
    ])
}
