//! Drawing: pure functions from the application's state to cells.

mod big;
mod events;
mod frame;
mod migration;
mod network;
mod overlay;
mod overview;
mod runs;
mod session;
mod storage;
mod strip;
mod typing;
mod words;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::app::{App, View};

/// The least screen on which the views make sense.
pub const LEAST: (u16, u16) = (80, 24);

/// Draws everything.
pub fn draw(app: &mut App, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let words = format!(
            "elab needs a terminal of {} by {} cells; this one has {} by {}.",
            LEAST.0, LEAST.1, area.width, area.height
        );
        let paragraph = Paragraph::new(words).wrap(ratatui::widgets::Wrap { trim: true });
        frame.render_widget(paragraph, area);
        return;
    }
    let [header, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(2),
    ])
    .areas(area);
    app.body = (body.width, body.height);
    app.page = usize::from(body.height.saturating_sub(4)).max(1);
    frame::header(app, frame, header);
    frame::tabs(app, frame, tabs);
    match app.view {
        View::Overview => overview::draw(app, frame, body),
        View::Session => session::draw(app, frame, body),
        View::Migration => migration::draw(app, frame, body),
        View::Network => network::draw(app, frame, body),
        View::Storage => storage::draw(app, frame, body),
        View::Events => events::draw(app, frame, body),
        View::Runs => runs::draw(app, frame, body),
    }
    frame::foot(app, frame, foot);
    overlay::draw(app, frame, body);
}

/// Draws lines, the selected one marked, so that it is always in sight. `first` is a heading that does not scroll.
fn list(
    app: &App,
    frame: &mut Frame<'_>,
    area: Rect,
    heading: Line<'_>,
    selected: usize,
    rows: usize,
    mut line: impl FnMut(usize) -> Line<'static>,
) {
    let [top, rest] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    frame.render_widget(heading, top);
    let height = usize::from(rest.height);
    if height == 0 {
        return;
    }
    let first = (selected + 1)
        .saturating_sub(height)
        .min(rows.saturating_sub(height));
    let lines: Vec<Line<'_>> = (first..rows.min(first + height))
        .map(|row| {
            let mut line = line(row);
            let pointer = if row == selected {
                app.look.pointer()
            } else {
                "  "
            };
            line.spans.insert(0, Span::raw(pointer));
            if row == selected {
                line = line.patch_style(app.look.selected());
            }
            line
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), rest);
}

/// A time of the lab's clock, in seconds.
fn seconds(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e9)
}

/// A length of time in milliseconds, as reports print it.
fn ms(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    if ms >= 100.0 {
        format!("{ms:.0}")
    } else {
        format!("{ms:.1}")
    }
}

/// Bytes of memory or of a disk, in a unit that fits.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "0".into(),
        1..0x0010_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        0x0010_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Bytes in MB, as reports print them.
fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
