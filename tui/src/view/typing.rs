//! A shell of one's own in the guest, under it how long the guest took to answer, and what happened to it meanwhile.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};

use super::session::Screen;
use super::strip::{self, Strip};
use crate::app::App;

/// Probes whose strips are shown: those that answer most often come first.
const PROBES: usize = 2;
/// From here on one notices that nothing comes.
const STALL_NS: u64 = 100_000_000;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    frame.render_widget(Clear, area);
    let Some(shell) = &app.shell else { return };
    let kinds = app.lab().probes.kinds();
    let kinds = &kinds[..kinds.len().min(PROBES)];
    let strip_height = if kinds.is_empty() {
        0
    } else {
        strip::height(kinds.len())
    };
    let [screen, keys, strip] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Length(2),
        Constraint::Length(strip_height),
    ])
    .areas(area);
    let block = super::overlay::boxed(app, "your own session with the guest");
    let inner = block.inner(screen);
    frame.render_widget(block, screen);
    if shell.printed {
        Screen(shell.terminal.screen()).render(inner, frame.buffer_mut());
    } else {
        frame.render_widget(Line::raw("logging in ..."), inner);
    }
    draw_answers(app, frame, keys);
    if strip_height > 0 {
        frame.render_widget(Strip { app, kinds }, strip);
    }
}

/// A bar for each of the last answers, and their figures.
fn draw_answers(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let Some(shell) = &app.shell else { return };
    let (echo, look) = (&shell.echo, app.look);
    let [bars, figures] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    let label = " your keys ";
    let room = usize::from(bars.width).saturating_sub(label.len() + 1);
    let first = echo.recent().len().saturating_sub(room);
    let mut spans = vec![Span::styled(label, look.accent())];
    spans.extend(
        echo.recent()
            .iter()
            .skip(first)
            .map(|ns| Span::styled(look.levels()[strip::level(*ns)], strip::colour(app, *ns))),
    );
    frame.render_widget(Line::from(spans), bars);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut spans = Vec::new();
    for (name, ns) in [
        (" last ", echo.last_ns()),
        ("  median ", echo.median_ns()),
        ("  worst ", echo.worst_ns()),
    ] {
        spans.push(Span::styled(name, look.dim()));
        spans.push(match ns {
            Some(ns) => Span::styled(
                format!("{} ms", super::ms(ns)),
                bold.patch(strip::colour(app, ns)),
            ),
            None => Span::styled("-", look.dim()),
        });
    }
    // A stall shows while it lasts, and not only when it is over.
    spans.push(match app.shell_waits_ns().filter(|ns| *ns > STALL_NS) {
        Some(waited) => Span::styled(
            format!("  no answer for {} ms", super::ms(waited)),
            look.bad(),
        ),
        None => Span::styled(
            format!("  of the last {} keys", echo.recent().len()),
            look.dim(),
        ),
    });
    frame.render_widget(Line::from(spans), figures);
}
