//! What lies over a view.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::session::Screen;
use crate::app::{App, Overlay, Pick, Run};
use crate::keys::{Group, Key, TABLE};

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    match &app.overlay {
        Some(Overlay::Help { from }) => help(app, frame, area, *from),
        Some(Overlay::Confirm { question, command }) => {
            let words = crate::command::words(command);
            question_box(
                app,
                frame,
                area,
                question,
                &[
                    Line::styled(format!("elab {words}"), app.look.dim()),
                    Line::raw(""),
                    Line::raw("y  yes      n  no"),
                ],
            );
        }
        Some(Overlay::Leave) => question_box(
            app,
            frame,
            area,
            "Shall the lab stay up?",
            &[
                Line::raw("s  it stays up; elab tui joins it again"),
                Line::raw("e  end it, as elab down does"),
                Line::raw("esc  go on"),
            ],
        ),
        Some(Overlay::Compare(first, second)) => compare(app, frame, area, first, second),
        Some(Overlay::Choose { title, picks, at }) => choose(app, frame, area, title, picks, *at),
        Some(Overlay::Console { vm }) => console(app, frame, area, vm),
        Some(Overlay::Shell) => super::typing::draw(app, frame, area),
        Some(Overlay::CommandLine(_) | Overlay::Filter(_) | Overlay::MarkLine(_)) | None => {}
    }
}

/// Two runs side by side. That a difference is no chance takes more runs: `elab compare` tells.
fn compare(app: &App, frame: &mut Frame<'_>, area: Rect, first: &Run, second: &Run) {
    let number = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "-".into(), |value| format!("{value:.1} {unit}"))
    };
    let count = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    let row = |name: &str, a: String, b: String| Line::raw(format!("{name:<24} {a:>16} {b:>16}"));
    let short = |run: &Run| run.name.chars().take(16).collect::<String>();
    let lines = [
        row("", short(first), short(second)),
        row(
            "migrations",
            count(first.migrations),
            count(second.migrations),
        ),
        row(
            "vCPU pause, median",
            number(first.pause_ms, "ms"),
            number(second.pause_ms, "ms"),
        ),
        row(
            "network gap, median",
            number(first.gap_ms, "ms"),
            number(second.gap_ms, "ms"),
        ),
        row("keys lost", count(first.keys_lost), count(second.keys_lost)),
        Line::raw(""),
        Line::styled(
            "elab compare tells whether that is chance; any key closes",
            app.look.dim(),
        ),
    ];
    question_box(app, frame, area, "two runs", &lines);
}

fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let [row] = Layout::vertical([Constraint::Length(height)])
        .flex(ratatui::layout::Flex::Center)
        .areas(area);
    let [cell] = Layout::horizontal([Constraint::Length(width)])
        .flex(ratatui::layout::Flex::Center)
        .areas(row);
    cell
}

pub(super) fn boxed<'a>(app: &App, title: &'a str) -> Block<'a> {
    let block = Block::bordered().title(Span::styled(format!(" {title} "), app.look.title()));
    if app.look.ascii {
        block.border_set(ASCII_BORDER)
    } else {
        block
    }
}

/// Borders where there are no line characters.
const ASCII_BORDER: ratatui::symbols::border::Set<'_> = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

fn question_box(app: &App, frame: &mut Frame<'_>, area: Rect, title: &str, lines: &[Line<'_>]) {
    let widest = lines
        .iter()
        .map(Line::width)
        .max()
        .unwrap_or(0)
        .max(title.chars().count() + 2);
    let cell = centred(area, widest as u16 + 6, lines.len() as u16 + 2);
    frame.render_widget(Clear, cell);
    let block = boxed(app, title);
    let inner = block.inner(cell);
    frame.render_widget(block, cell);
    let padded = Rect {
        x: inner.x + 2,
        width: inner.width.saturating_sub(2),
        ..inner
    };
    frame.render_widget(Paragraph::new(lines.to_vec()), padded);
}

fn choose(app: &App, frame: &mut Frame<'_>, area: Rect, title: &str, picks: &[Pick], at: usize) {
    let mut lines: Vec<Line<'_>> = picks
        .iter()
        .enumerate()
        .map(|(index, pick)| {
            let pointer = if index == at {
                app.look.pointer()
            } else {
                "  "
            };
            let style = if pick.command.is_ok() {
                ratatui::style::Style::new()
            } else {
                app.look.dim()
            };
            let line = Line::styled(format!("{pointer}{}", pick.label), style);
            if index == at {
                line.patch_style(app.look.selected())
            } else {
                line
            }
        })
        .collect();
    lines.push(Line::raw(""));
    lines.push(match picks.get(at).map(|pick| &pick.command) {
        Some(Ok(command)) => Line::styled(
            format!("elab {}", crate::command::words(command)),
            app.look.dim(),
        ),
        _ => Line::raw(""),
    });
    question_box(app, frame, area, title, &lines);
}

/// The keys, from the same table that binds them.
fn help(app: &App, frame: &mut Frame<'_>, area: Rect, from: usize) {
    let mut lines = Vec::new();
    for group in Group::ALL {
        lines.push(Line::styled(group.title(), app.look.title()));
        for row in TABLE.iter().filter(|row| row.group == group) {
            let keys: Vec<String> = app
                .keys
                .keys(row.action)
                .iter()
                .map(Key::to_string)
                .collect();
            lines.push(Line::from(vec![
                Span::styled(format!("  {:<18}", keys.join(" ")), app.look.accent()),
                Span::raw(row.help),
            ]));
        }
        lines.push(Line::raw(""));
    }
    let cell = centred(area, 72.min(area.width), area.height);
    frame.render_widget(Clear, cell);
    let block = boxed(app, "keys (up and down scroll, any other key closes)");
    let inner = block.inner(cell);
    frame.render_widget(block, cell);
    let last = lines.len().saturating_sub(usize::from(inner.height));
    let from = u16::try_from(from.min(last)).unwrap_or(u16::MAX);
    frame.render_widget(Paragraph::new(lines).scroll((from, 0)), inner);
}

fn console(app: &App, frame: &mut Frame<'_>, area: Rect, vm: &str) {
    frame.render_widget(Clear, area);
    let echo = app.echo.last_ns().map_or_else(String::new, |ns| {
        format!(" (your last key: {} ms)", super::ms(ns))
    });
    let title = format!("console of {vm}{echo}");
    let block = boxed(app, &title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    match app.screens.console(vm) {
        Some(screen) => frame.render_widget(Screen(screen), inner),
        None => frame.render_widget(Line::raw("it has printed nothing yet"), inner),
    }
}
