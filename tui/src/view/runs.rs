//! Earlier runs.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::app::App;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    if app.runs.is_empty() {
        frame.render_widget(
            Line::raw("  There are no run folders here. `elab demo` makes one."),
            area,
        );
        return;
    }
    let heading = Line::styled(
        "  RUN                  AGE         MIGRATIONS  UDP GAP median  KEYS LOST",
        app.look.dim(),
    );
    super::list(
        app,
        frame,
        area,
        heading,
        app.selected(),
        app.runs.len(),
        |row| {
            let run = &app.runs[row];
            let dash = || "-".to_owned();
            let lost = run.keys_lost.map_or_else(dash, |lost| lost.to_string());
            Line::from(vec![
                Span::styled(format!("{:<20} ", run.name), app.look.accent()),
                if run.running {
                    Span::styled(format!("{:<11} ", "running"), app.look.good())
                } else {
                    Span::raw(format!("{:<11} ", age(run.age_s)))
                },
                Span::raw(format!(
                    "{:>10}  ",
                    run.migrations.map_or_else(dash, |count| count.to_string())
                )),
                Span::raw(format!(
                    "{:>14}  ",
                    run.gap_ms.map_or_else(dash, |gap| format!("{gap:.1} ms"))
                )),
                Span::styled(
                    format!("{lost:>9}"),
                    if run.keys_lost.unwrap_or(0) == 0 {
                        app.look.good()
                    } else {
                        app.look.bad()
                    },
                ),
            ])
        },
    );
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
