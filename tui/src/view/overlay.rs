//! What lies over a view.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::session::Screen;
use crate::app::{App, Effect, Overlay, Pick, Run, shown};
use crate::keys::{Action, Group, Key, TABLE};

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    match &app.overlay {
        Some(Overlay::Help { from }) => help(app, frame, area, *from),
        Some(Overlay::Confirm { question, effect }) => question_box(
            app,
            frame,
            area,
            question,
            &[
                Line::styled(echo(effect), app.look.dim()),
                Line::raw(""),
                Line::raw("y  yes      n  no"),
            ],
        ),
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

/// What one would type in a shell for it.
fn echo(effect: &Effect) -> String {
    match effect {
        Effect::Send(command) => format!("elab {}", crate::command::words(command)),
        Effect::CancelRun(_) => "as Ctrl-C does; it cleans up, and nothing is left of it".into(),
        _ => String::new(),
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
            let style = if pick.effect.is_ok() {
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
    lines.push(match picks.get(at).map(|pick| &pick.effect) {
        Some(Ok(effect)) => Line::styled(echo(effect), app.look.dim()),
        _ => Line::raw(""),
    });
    question_box(app, frame, area, title, &lines);
}

/// Width of a column of the help, and of what it is in.
const HELP: u16 = 72;
const TWO_HELPS: u16 = 116;

/// The keys, from the same table that binds them: what can be done here first. In two columns where there is room.
fn help(app: &App, frame: &mut Frame<'_>, area: Rect, from: usize) {
    let mut looking = can_be_done_here(app);
    looking.extend(help_of(app, Group::Look));
    looking.extend(help_of(app, Group::Move));
    let acting = help_of(app, Group::Act);
    let two = area.width >= TWO_HELPS;
    let cell = centred(
        area,
        if two { TWO_HELPS } else { HELP.min(area.width) },
        area.height,
    );
    frame.render_widget(Clear, cell);
    let block = boxed(app, "keys (up and down scroll, any other key closes)");
    let inner = block.inner(cell);
    frame.render_widget(block, cell);
    let columns = if two {
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(51), Constraint::Fill(1)]).areas(inner);
        vec![(looking, left), (acting, right)]
    } else {
        looking.extend(acting);
        vec![(looking, inner)]
    };
    for (lines, place) in columns {
        let last = lines.len().saturating_sub(usize::from(place.height));
        let from = u16::try_from(from.min(last)).unwrap_or(u16::MAX);
        frame.render_widget(Paragraph::new(lines).scroll((from, 0)), place);
    }
}

fn help_of(app: &App, group: Group) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(group.title(), app.look.title())];
    let rows = || TABLE.iter().filter(|row| row.group == group);
    let widest = rows().map(|row| keys_of(app, row.action).len()).max();
    let keys = widest.unwrap_or(0);
    lines.extend(rows().map(|row| {
        Line::from(vec![
            Span::styled(
                format!("  {:<keys$}  ", keys_of(app, row.action)),
                app.look.accent(),
            ),
            Span::raw(row.help),
        ])
    }));
    lines.push(Line::raw(""));
    lines
}

fn keys_of(app: &App, action: Action) -> String {
    let keys = app.keys.keys(action);
    let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
    keys.join(" ")
}

/// The actions of this view, and of those that are impossible now, why.
fn can_be_done_here(app: &App) -> Vec<Line<'static>> {
    let title = format!("Here, in {}", app.view.name().to_lowercase());
    let mut lines = vec![Line::styled(title, app.look.title())];
    for action in shown(app.view) {
        let words = TABLE
            .iter()
            .find(|row| row.action == *action)
            .map_or("", |row| row.help);
        let key = format!("  {:<2} ", keys_of(app, *action));
        let key = Span::styled(key, app.look.accent());
        lines.push(match app.plan(*action) {
            Ok(_) => Line::from(vec![key, Span::raw(words)]),
            Err(reason) => {
                let why = format!("not now: {reason}");
                Line::from(vec![key, Span::styled(why, app.look.dim())])
            }
        });
    }
    lines.push(Line::raw(""));
    lines
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
