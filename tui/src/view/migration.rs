//! Migrations: the list, and of the selected one its rounds and where its time went.

use lab_protocol::ProbeKind;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use scenarios::measure::Window;
use scenarios::measure::attribution::attribute;
use scenarios::measure::migration::Migration;

use crate::app::App;
use crate::model::Migrations;

/// Pages have 4 KiB.
const PAGE_BYTES: u64 = 4096;
/// Quiet time before a migration against which its gap is held.
const QUIET_NS: u64 = 5_000_000_000;
/// Width from which there is room for every column.
const ROOMY: u16 = 100;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let all = app.lab().migrations.all();
    if all.is_empty() {
        let words = format!(
            "  No VM has moved yet. {} moves one, {} takes a command such as vm migrate session h2.",
            app.keys.hint(crate::keys::Action::Migrate),
            app.keys.hint(crate::keys::Action::CommandLine),
        );
        frame.render_widget(Line::raw(words), area);
        return;
    }
    let list_height = (all.len() as u16 + 1).min(area.height / 3).max(3);
    let [top, rest] =
        Layout::vertical([Constraint::Length(list_height), Constraint::Fill(1)]).areas(area);
    let roomy = area.width >= ROOMY;
    let (name, rounds_title) = if roomy { (16, "  ROUNDS") } else { (9, "") };
    let heading = format!(
        "     # {:<name$} FROM TO   {:<15} TOTAL ms PAUSE ms  GAP ms{rounds_title}      MB",
        "VM", "PHASE"
    );
    let heading = Line::styled(heading, app.look.dim());
    super::list(app, frame, top, heading, app.selected(), all.len(), |row| {
        app.migration(row)
            .map_or_else(Line::default, |one| row_line(app, one, name, roomy))
    });
    let Some(migration) = app.migration(app.selected()) else {
        return;
    };
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(rest);
    rounds(app, frame, left, migration);
    waterfall(app, frame, right, migration);
}

fn row_line(app: &App, one: &Migration, name: usize, roomy: bool) -> Line<'static> {
    let figure = |ns: Option<u64>| ns.map_or_else(|| "-".into(), super::ms);
    let end = one.ended_ns.unwrap_or(app.lab_now_ns());
    let total = Some(end.saturating_sub(one.requested_ns));
    let gap = silence(app, one).map(Window::len_ns);
    let bytes: u64 = one.rounds.iter().map(|round| round.bytes).sum();
    let word = Migrations::phase_word(one);
    let style = match word {
        "done" => app.look.good(),
        "failed" => app.look.bad(),
        _ => app.look.warn(),
    };
    Line::from(vec![
        Span::raw(format!(
            "{:>4} {:<name$} {:<4} {:<4} ",
            one.number,
            one.vm.chars().take(name).collect::<String>(),
            one.from,
            one.to
        )),
        Span::styled(format!("{word:<15}"), style),
        Span::raw(format!(
            " {:>8} {:>8} {:>7}{} {:>7}",
            figure(total),
            figure(one.pause_ns()),
            figure(gap),
            if roomy {
                format!("  {:>6}", one.rounds.len())
            } else {
                String::new()
            },
            super::megabytes(bytes),
        )),
    ])
}

fn silence(app: &App, one: &Migration) -> Option<Window> {
    let series = app.lab().probes.series(ProbeKind::Udp)?;
    series.longest_silence_touching(one.window(), one.pause()?)
}

fn block(app: &App, title: &str) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(format!(" {title} "), app.look.title()))
}

fn rounds(app: &App, frame: &mut Frame<'_>, area: Rect, one: &Migration) {
    let block = block(app, "rounds");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut lines = vec![Line::styled(
        "  #  pages   zero     MB   MB/s  dirty",
        app.look.dim(),
    )];
    let most = one
        .rounds
        .iter()
        .map(|round| round.dirty_after)
        .max()
        .unwrap_or(0)
        .max(1);
    for (index, round) in one.rounds.iter().enumerate() {
        let rate = round.bytes as f64 / (round.duration_ns.max(1) as f64 / 1e9) / 1e6;
        let cells = (f64::from(round.dirty_after) / f64::from(most) * 10.0).round() as usize;
        lines.push(Line::from(vec![
            Span::raw(format!(
                "{:>3} {:>6} {:>6} {:>6} {rate:>6.1} {:>6} ",
                index + 1,
                round.pages,
                round.zero_pages,
                super::megabytes(round.bytes),
                round.dirty_after,
            )),
            Span::styled(app.look.block().repeat(cells), app.look.warn()),
        ]));
    }
    if let Some(estimate) = time_left(app, one) {
        lines.push(Line::styled(estimate, app.look.warn()));
    }
    let height = usize::from(inner.height);
    // The latest rounds matter most.
    let excess = lines.len().saturating_sub(height);
    if excess > 0 {
        lines.drain(1..=excess.min(lines.len() - 1));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

/// How long the pages that are dirty now take at the last round's speed: a lower bound, for the guest goes on writing.
fn time_left(app: &App, one: &Migration) -> Option<String> {
    if one.ended_ns.is_some() {
        return (!one.error.is_empty()).then(|| format!("   {}", one.error));
    }
    let round = one.rounds.last()?;
    let per_second = round.bytes as f64 / (round.duration_ns.max(1) as f64 / 1e9);
    let left = u64::from(round.dirty_after) * PAGE_BYTES;
    let dash = if app.look.ascii { "at least" } else { "≥" };
    (per_second > 0.0).then(|| format!("   {dash} {:.1} s left", left as f64 / per_second))
}

fn waterfall(app: &App, frame: &mut Frame<'_>, area: Rect, one: &Migration) {
    let block = block(app, "where the gap went");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let lines = pieces(app, one, inner.width).unwrap_or_else(|| {
        vec![Line::styled(
            match &one.ended_ns {
                None => "  known when the guest runs at the destination",
                Some(_) if one.error.is_empty() => "  no probe asked while it moved",
                Some(_) => "  it did not move",
            },
            app.look.dim(),
        )]
    });
    frame.render_widget(Paragraph::new(lines), inner);
}

fn pieces(app: &App, one: &Migration, width: u16) -> Option<Vec<Line<'static>>> {
    const LABEL: usize = 28;
    let series = app.lab().probes.series(ProbeKind::Udp)?;
    let silence = silence(app, one)?;
    let quiet = Window {
        start_ns: one.requested_ns.saturating_sub(QUIET_NS),
        end_ns: one.requested_ns,
    };
    let usual = series.longest_silence(quiet).map_or(0, Window::len_ns);
    let attribution = attribute(silence, one, usual)?;
    let room = usize::from(width).saturating_sub(LABEL + 1);
    let whole = silence.len_ns().max(1);
    let mut before = 0;
    let mut lines = Vec::new();
    let unattributed = ("unattributed", attribution.unattributed_ns);
    for (name, ns) in attribution
        .pieces
        .iter()
        .map(|piece| (piece.name, piece.ns))
        .chain([unattributed])
    {
        let cells = |ns: u64| (u128::from(ns) * room as u128 / u128::from(whole)) as usize;
        let length = cells(before + ns)
            .saturating_sub(cells(before))
            .max(usize::from(ns > 0));
        let style = if name == "unattributed" && ns > 0 {
            app.look.bad()
        } else {
            Style::new()
        };
        lines.push(Line::from(vec![
            Span::styled(format!("  {name:<15} {:>6} ms ", super::ms(ns)), style),
            Span::raw(" ".repeat(cells(before).min(room.saturating_sub(length)))),
            Span::styled(app.look.block().repeat(length.min(room)), app.look.warn()),
        ]));
        before += ns;
    }
    let figure = |name: &str, ns| format!("  {name:<15} {:>6} ms", super::ms(ns));
    lines.push(Line::styled(
        figure("UDP gap", silence.len_ns()),
        app.look.title(),
    ));
    lines.push(Line::styled(figure("when quiet", usual), app.look.dim()));
    Some(lines)
}
