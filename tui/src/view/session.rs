//! The guest's real screen, and under it what its user notices.

use lab_protocol::ProbeKind;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Widget};

use super::strip::{self, Strip};
use crate::app::App;
use crate::model::probe_name;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let kinds = app.lab().probes.kinds();
    let strip_height = strip::height(kinds.len().max(1)) + 1;
    let [screen, figures, strip] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Length(1),
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
    frame.render_widget(big_figures(app), figures);
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

/// The last migration's gaps, the three numbers always together.
fn big_figures(app: &App) -> Line<'static> {
    let (lab, look) = (app.lab(), app.look);
    let Some(migration) = lab.migrations.last() else {
        return Line::styled("  no migration yet", look.dim());
    };
    let mut spans = vec![Span::styled(
        format!("  migration {}: ", migration.number),
        look.dim(),
    )];
    let pause = migration.pause();
    let figure =
        |ns: Option<u64>| ns.map_or_else(|| "-".into(), |ns| format!("{} ms", super::ms(ns)));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    spans.push(Span::raw("vCPU pause "));
    spans.push(Span::styled(figure(migration.pause_ns()), bold));
    let gap = |kind: ProbeKind| {
        let series = lab.probes.series(kind)?;
        let silence = series.longest_silence_touching(migration.window(), pause?)?;
        Some(silence.len_ns())
    };
    spans.push(Span::raw("   network gap "));
    spans.push(Span::styled(figure(gap(ProbeKind::Udp)), bold));
    let echo = lab
        .probes
        .series(ProbeKind::Typist)
        .and_then(|series| series.longest_latency_ns(migration.window()));
    spans.push(Span::raw("   longest echo "));
    spans.push(Span::styled(figure(echo), bold));
    for kind in [ProbeKind::Udp, ProbeKind::Typist] {
        if let Some(median) = lab.probes.median_ns(kind, app.window()) {
            spans.push(Span::styled(
                format!("   {} median {} ms", probe_name(kind), super::ms(median)),
                look.dim(),
            ));
        }
    }
    Line::from(spans)
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
