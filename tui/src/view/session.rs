//! The guest's real screen, and under it what its user notices.

use lab_protocol::ProbeKind;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Widget};

use super::big;
use super::strip::{self, Strip};
use crate::app::App;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let kinds = app.lab().probes.kinds();
    let strip_height = strip::height(kinds.len().max(1)) + 1;
    // A session's terminal of 24 lines comes first.
    let roomy = !app.look.ascii && area.height >= 24 + big::HEIGHT + 1 + strip_height;
    let [screen, figures, strip] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Length(if roomy { big::HEIGHT } else { 1 }),
        Constraint::Length(strip_height),
    ])
    .areas(area);

    let title = if app.pinned_ns.is_some() {
        " the guest's screen (now; the strip below shows another time) "
    } else {
        " the guest's screen "
    };
    let block = Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(title, app.look.title()));
    let inner = block.inner(screen);
    frame.render_widget(block, screen);
    if app.screens.has_session() {
        frame.render_widget(Screen(app.screens.session()), inner);
    } else {
        let words = match &app.lab().session {
            Some(Ok(_)) => typed_text(app, usize::from(inner.width)),
            Some(Err(reason)) => format!("The session was lost: {reason}"),
            None => {
                "No session is open. `elab demo` opens one that types; o joins the VM's console."
                    .into()
            }
        };
        frame.render_widget(
            Paragraph::new(words).wrap(ratatui::widgets::Wrap { trim: false }),
            inner,
        );
    }
    if roomy {
        large_figures(app, frame, figures);
    } else {
        frame.render_widget(small_figures(app), figures);
    }
    let block = Block::new().borders(Borders::TOP).title(Span::styled(
        " latency, the worst in each column ",
        app.look.title(),
    ));
    let inner = block.inner(strip);
    frame.render_widget(block, strip);
    frame.render_widget(Strip { app, kinds: &kinds }, inner);
}

/// Without a recording of the screen: the keys, as they were typed.
fn typed_text(app: &App, width: usize) -> String {
    let keys = &app.lab().probes.keys;
    let from = keys.len().saturating_sub(width * 6);
    let typed: String = keys[from..].iter().map(|key| key.text.as_str()).collect();
    format!("(this run keeps no recording of the screen; the keys typed so far)\n\n{typed}")
}

/// A figure's name, and its nanoseconds once they are known.
type Figure = (&'static str, Option<u64>);

/// The last migration's number and what it cost, always these three together.
fn interruption(app: &App) -> Option<(u32, [Figure; 3])> {
    let lab = app.lab();
    let migration = lab.migrations.last()?;
    let pause = migration.pause();
    let gap = || {
        let series = lab.probes.series(ProbeKind::Udp)?;
        let silence = series.longest_silence_touching(migration.window(), pause?)?;
        Some(silence.len_ns())
    };
    let echo = lab
        .probes
        .series(ProbeKind::Typist)
        .and_then(|series| series.longest_latency_ns(migration.window()));
    let figures = [
        ("vCPU pause", migration.pause_ns()),
        ("network gap", gap()),
        ("longest echo", echo),
    ];
    Some((migration.number, figures))
}

fn small_figures(app: &App) -> Line<'static> {
    let look = app.look;
    let Some((number, figures)) = interruption(app) else {
        return Line::styled("  no migration yet", look.dim());
    };
    let mut spans = vec![Span::styled(format!("  migration {number}:"), look.dim())];
    for (name, ns) in figures {
        let value = ns.map_or_else(|| "-".into(), |ns| format!("{} ms", super::ms(ns)));
        spans.push(Span::raw(format!(" {name} ")));
        spans.push(Span::styled(
            format!("{value}  "),
            Style::new().add_modifier(Modifier::BOLD),
        ));
    }
    Line::from(spans)
}

fn large_figures(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let look = app.look;
    let Some((number, figures)) = interruption(app) else {
        frame.render_widget(small_figures(app), area);
        return;
    };
    let [label, columns] =
        Layout::horizontal([Constraint::Length(16), Constraint::Fill(1)]).areas(area);
    let lines = vec![
        Line::raw(""),
        Line::styled(format!("  migration {number}"), look.dim()),
    ];
    frame.render_widget(Paragraph::new(lines), label);
    let cells: [Rect; 3] = Layout::horizontal([Constraint::Fill(1); 3]).areas(columns);
    for ((name, ns), cell) in figures.into_iter().zip(cells) {
        let value = ns.map_or_else(|| "-".into(), super::ms);
        // What a user makes of it: see the strip's colours.
        let style = ns.map_or(look.dim(), |ns| strip::colour(app, ns));
        let [digits, words] = Layout::horizontal([
            Constraint::Length(big::width(&value) + 1),
            Constraint::Fill(1),
        ])
        .areas(cell);
        let rows = big::rows(&value);
        let rows: Vec<Line<'_>> = rows
            .into_iter()
            .map(|row| Line::styled(row, style))
            .collect();
        frame.render_widget(Paragraph::new(rows), digits);
        let words_of = vec![
            Line::raw(""),
            Line::styled("ms", look.dim()),
            Line::styled(name, look.dim()),
        ];
        frame.render_widget(Paragraph::new(words_of), words);
    }
}

/// A terminal's screen, its lower left part where there is no room for all of it.
pub(super) struct Screen<'a>(pub(super) &'a vt100::Screen);

impl Widget for Screen<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let (rows, columns) = self.0.size();
        let (cursor_row, cursor_column) = self.0.cursor_position();
        // The line that is worked at must be in sight.
        let skipped = (cursor_row + 1)
            .saturating_sub(area.height)
            .min(rows.saturating_sub(area.height));
        for row in skipped..rows.min(skipped + area.height) {
            for column in 0..columns.min(area.width) {
                let Some(cell) = self.0.cell(row, column) else {
                    continue;
                };
                if cell.is_wide_continuation() {
                    continue;
                }
                let mut style = Style::new()
                    .fg(colour(cell.fgcolor()))
                    .bg(colour(cell.bgcolor()));
                if cell.bold() {
                    style = style.add_modifier(Modifier::BOLD);
                }
                if cell.underline() {
                    style = style.add_modifier(Modifier::UNDERLINED);
                }
                let cursor = (row, column) == (cursor_row, cursor_column) && !self.0.hide_cursor();
                if cell.inverse() != cursor {
                    style = style.add_modifier(Modifier::REVERSED);
                }
                let text = if cell.has_contents() {
                    cell.contents()
                } else {
                    " "
                };
                buffer.set_string(area.x + column, area.y + row - skipped, text, style);
            }
        }
    }
}

fn colour(colour: vt100::Color) -> Color {
    match colour {
        vt100::Color::Default => Color::Reset,
        vt100::Color::Idx(index) => Color::Indexed(index),
        vt100::Color::Rgb(red, green, blue) => Color::Rgb(red, green, blue),
    }
}
