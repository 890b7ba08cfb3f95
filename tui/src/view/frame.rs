//! What surrounds every view: header, tabs, hints and messages.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use crate::app::{App, Level, Mode, Overlay, View};
use crate::keys::{Action, TABLE};
use crate::model::Migrations;

pub(super) fn header(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (lab, look) = (app.lab(), app.look);
    let now = super::seconds(app.lab_now_ns());
    let mut left = vec![Span::styled(" elab ", look.title())];
    if !lab.name.is_empty() {
        left.push(Span::raw(format!("{}  {now} s  ", lab.name)));
        left.push(Span::styled(
            format!(
                "{}, QEMU {}",
                lab.accelerator,
                lab.qemu.split(' ').next().unwrap_or("")
            ),
            look.dim(),
        ));
    }
    frame.render_widget(Line::from(left), area);

    let mut right = Vec::new();
    for (number, word, vm) in lab
        .migrations
        .all()
        .iter()
        .filter(|one| one.ended_ns.is_none())
        .map(|one| (one.number, Migrations::phase_word(one), &one.vm))
    {
        right.push(Span::styled(
            format!("{vm} #{number}: {word} "),
            look.warn(),
        ));
    }
    if let Some(share) = app.loading() {
        right.push(Span::styled(
            format!("reading {:.0} % ", share * 100.0),
            look.warn(),
        ));
    }
    if app.recording_since_ns.is_some() {
        right.push(Span::styled(
            " REC ",
            look.bad().add_modifier(Modifier::REVERSED),
        ));
    }
    if app.is_frozen() {
        right.push(Span::styled(
            " FROZEN ",
            look.warn().add_modifier(Modifier::REVERSED),
        ));
    }
    right.push(match (app.mode, &lab.stopped) {
        (Mode::Replay { playing: true, .. }, _) => Span::styled(" REPLAY playing ", look.accent()),
        (Mode::Replay { .. }, _) => Span::styled(" REPLAY ", look.accent()),
        (Mode::Live { .. }, Some(_)) => Span::styled(" ENDED ", look.bad()),
        (Mode::Live { .. }, None) => Span::styled(" LIVE ", look.good()),
    });
    frame.render_widget(Line::from(right).right_aligned(), area);
}

pub(super) fn tabs(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let mut spans = vec![Span::raw(" ")];
    for (index, view) in View::ALL.into_iter().enumerate() {
        let style = if view == app.view {
            app.look.title().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        spans.push(Span::styled(
            format!(" {} {} ", index + 1, view.name()),
            style,
        ));
    }
    frame.render_widget(Line::from(spans), area);
}

pub(super) fn foot(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let [first, second] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(area);
    let message = message(app);
    if message.width() > usize::from(area.width) && app.overlay.is_none() {
        // What is said now matters more than what can be done.
        let whole = Paragraph::new(message).wrap(Wrap { trim: true });
        frame.render_widget(whole, area);
        return;
    }
    frame.render_widget(hints(app), first);
    frame.render_widget(message, second);
}

/// What can be done here; what cannot be done now is dim.
fn hints(app: &App) -> Line<'static> {
    if matches!(app.overlay, Some(Overlay::Shell | Overlay::Console { .. })) {
        return Line::default();
    }
    let mut spans = Vec::new();
    if let Mode::Replay { at_ns, .. } = app.mode
        && app.view != View::Runs
    {
        return scrubber(app, at_ns);
    }
    for action in crate::app::shown(app.view) {
        let short = short(*action);
        let style = if app.plan(*action).is_ok() {
            Style::new()
        } else {
            app.look.dim()
        };
        spans.push(Span::styled(
            format!(" {}", app.keys.hint(*action)),
            app.look.accent().patch(style),
        ));
        spans.push(Span::styled(format!(" {short} "), style));
    }
    Line::from(spans)
}

fn short(action: Action) -> &'static str {
    match action {
        Action::Migrate => "migrate",
        Action::Cancel => "cancel",
        Action::StartVm => "start",
        Action::Console => "console",
        Action::Pull => "pull",
        Action::FreezeHost => "freeze",
        Action::PowerOn => "power",
        Action::Suspend => "suspend",
        Action::Cut => "cut",
        Action::Delay => "delay",
        Action::Loss => "loss",
        Action::Heal => "heal",
        Action::StoragePause => "pause",
        Action::StorageKill => "kill",
        Action::TypeSession => "type",
        Action::DiskFault => "disk fault",
        Action::RunScenario => "run a scenario",
        Action::OpenReport => "open report",
        other => TABLE
            .iter()
            .find(|row| row.action == other)
            .map_or("", |row| row.name),
    }
}

/// Where in a finished run one is.
fn scrubber(app: &App, at_ns: u64) -> Line<'static> {
    const WIDTH: usize = 24;
    let last = app.end_ns.max(1);
    let at = (at_ns as f64 / last as f64 * (WIDTH - 1) as f64).round() as usize;
    let line = app.look.wire(WIDTH);
    let before: String = line.chars().take(at).collect();
    let after: String = line.chars().skip(at + 1).collect();
    Line::from(vec![
        Span::raw(" "),
        Span::styled(before, app.look.accent()),
        Span::styled(app.look.block(), app.look.title()),
        Span::styled(after, app.look.dim()),
        Span::raw(format!(
            "  {:.1} of {:.1} s   {} play or pause   {} {} a second back or on",
            at_ns as f64 / 1e9,
            last as f64 / 1e9,
            app.keys.hint(Action::Play),
            app.keys.hint(Action::Left),
            app.keys.hint(Action::Right),
        )),
    ])
}

fn message(app: &App) -> Line<'static> {
    let look = app.look;
    match &app.overlay {
        Some(Overlay::CommandLine(line)) => {
            let mut spans = vec![
                Span::styled(":", look.title()),
                Span::raw(line.text.clone()),
                Span::styled(" ", look.selected()),
            ];
            if !line.offers.is_empty() {
                spans.push(Span::styled(
                    format!("  {}", line.offers.join("  ")),
                    look.dim(),
                ));
            } else if let Some(toast) = &app.toast {
                spans.push(Span::styled(format!("  {}", toast.text), look.bad()));
            }
            return Line::from(spans);
        }
        Some(Overlay::Filter(line)) => return typed("filter: ", &line.text, app),
        Some(Overlay::MarkLine(line)) => return typed("mark: ", &line.text, app),
        Some(Overlay::Shell) => {
            return Line::from(vec![
                Span::styled(
                    " the keyboard is the guest's ",
                    look.warn().add_modifier(Modifier::REVERSED),
                ),
                Span::raw(" ctrl-] detaches"),
            ]);
        }
        Some(Overlay::Console { vm }) => {
            return Line::from(vec![
                Span::styled(
                    format!(" the keyboard is {vm}'s "),
                    look.warn().add_modifier(Modifier::REVERSED),
                ),
                Span::raw(" ctrl-] detaches"),
            ]);
        }
        _ => {}
    }
    match &app.toast {
        Some(toast) => {
            let style = match toast.level {
                Level::Done => look.good(),
                Level::Failed => look.bad(),
                Level::Note => look.warn(),
            };
            Line::styled(format!(" {}", toast.text), style)
        }
        None if app.jobs.is_empty() => general(app),
        None => jobs(app),
    }
}

/// What runs beside this screen, and how far it is.
fn jobs(app: &App) -> Line<'static> {
    let mut spans = Vec::new();
    for job in &app.jobs {
        let words = format!(" elab {}", job.words);
        spans.push(Span::styled(words, app.look.accent()));
        let said = match job.said.as_str() {
            _ if job.ending => ": ending ".to_owned(),
            "" => ": under way ".to_owned(),
            said => format!(": {said} "),
        };
        spans.push(Span::raw(said));
    }
    spans.push(Span::styled(
        format!(" {} cancels", app.keys.hint(Action::CancelRun)),
        app.look.dim(),
    ));
    Line::from(spans)
}

/// What can be done anywhere.
fn general(app: &App) -> Line<'static> {
    let mut spans = Vec::new();
    for (action, word) in [
        (Action::NextView, "next view"),
        (Action::CommandLine, "command"),
        (Action::Filter, "filter events"),
        (Action::Freeze, "freeze display"),
        (Action::Help, "keys"),
        (Action::Quit, "quit"),
    ] {
        spans.push(Span::styled(
            format!(" {}", app.keys.hint(action)),
            app.look.dim(),
        ));
        spans.push(Span::styled(format!(" {word} "), app.look.dim()));
    }
    Line::from(spans)
}

fn typed(label: &'static str, text: &str, app: &App) -> Line<'static> {
    Line::from(vec![
        Span::styled(label, app.look.title()),
        Span::raw(text.to_owned()),
        Span::styled(" ", app.look.selected()),
    ])
}
