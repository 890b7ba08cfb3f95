//! The storage server, who reaches it, and who holds which disk.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::app::App;
use crate::model::Operation;

/// Rows of the table of operations: those that took the most time.
const OPERATIONS: usize = 6;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (lab, look) = (app.lab(), app.look);
    let height = lab.hosts.len().clamp(OPERATIONS, 12) as u16 + 3;
    let [top, rest] =
        Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(area);
    let [left, right] =
        Layout::horizontal([Constraint::Length(38), Constraint::Fill(1)]).areas(top);
    draw_operations(app, frame, right);
    let state = match lab.storage.as_str() {
        "" => Span::styled("not started", look.dim()),
        word @ ("started" | "ready" | "resumed" | "reached") => {
            Span::styled(word.to_owned(), look.good())
        }
        word => Span::styled(word.to_owned(), look.bad()),
    };
    let disk = match &lab.disk_fault {
        Some(fault) => Line::from(vec![
            Span::styled("  its disk        ", look.dim()),
            Span::styled(fault.clone(), look.bad()),
        ]),
        None => Line::raw(""),
    };
    let mut lines = vec![
        Line::from(vec![Span::styled("  storage server  ", look.dim()), state]),
        disk,
    ];
    for (name, host) in &lab.hosts {
        let (word, style) = match host.storage_up {
            _ if !host.is_running() => ("-", look.dim()),
            Some(true) => ("reaches it", look.good()),
            Some(false) => ("does not reach it", look.bad()),
            None => ("has not said", look.dim()),
        };
        lines.push(Line::from(vec![
            Span::styled(format!("  {name:<14}  "), look.accent()),
            Span::styled(word, style),
        ]));
    }
    frame.render_widget(Paragraph::new(lines), left);
    if lab.leases.is_empty() {
        frame.render_widget(Line::raw("  no disk is in use"), rest);
        return;
    }
    let heading = Line::styled(
        "  LEASE OF DISK                              EPOCH  OWNER     LAST CHANGE",
        look.dim(),
    );
    let leases: Vec<_> = lab.leases.iter().collect();
    super::list(
        app,
        frame,
        rest,
        heading,
        app.selected(),
        leases.len(),
        |row| {
            let (path, lease) = leases[row];
            let disk = path.rsplit('/').next().unwrap_or(path);
            Line::from(vec![
                Span::raw(format!("{disk:<42} {:>5}  ", lease.epoch)),
                Span::styled(format!("{:<9} ", lease.owner), look.accent()),
                Span::raw(format!(
                    "{} at {} s",
                    lease.change,
                    super::seconds(lease.t_ns)
                )),
            ])
        },
    );
}

/// What the server does, and how long that takes.
fn draw_operations(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (statistics, look) = (&app.lab().statistics, app.look);
    if statistics.operations.is_empty() {
        return;
    }
    let mut times: Vec<u64> = statistics
        .operations
        .iter()
        .map(|one| one.time_us)
        .collect();
    times.sort_unstable_by(|a, b| b.cmp(a));
    let least = times[OPERATIONS.min(times.len()) - 1];
    let heading = format!(
        "{:<10}{:>8}{:>10}{:>12}",
        "OPERATION", "a second", "mean ms", "so far"
    );
    let mut lines = vec![Line::styled(heading, look.dim())];
    let shown = statistics
        .operations
        .iter()
        .filter(|one| one.time_us >= least);
    lines.extend(shown.take(OPERATIONS).map(|one| operation(app, one)));
    lines.push(Line::from(vec![
        Span::styled("read ", look.dim()),
        Span::raw(format!("{:.2} MB/s", statistics.read_per_s / 1e6)),
        Span::styled("   written ", look.dim()),
        Span::raw(format!("{:.2} MB/s", statistics.written_per_s / 1e6)),
    ]));
    frame.render_widget(Paragraph::new(lines), area);
}

fn operation(app: &App, one: &Operation) -> Line<'static> {
    let look = app.look;
    let style = if one.per_s > 0.0 {
        ratatui::style::Style::new()
    } else {
        look.dim()
    };
    let mean = one
        .mean_us
        .map_or_else(|| "-".into(), |us| format!("{:.2}", us / 1e3));
    Line::from(vec![
        Span::styled(format!("{:<10}", one.name), look.accent()),
        Span::styled(
            format!("{:>8.0}{mean:>10}{:>12}", one.per_s, one.calls),
            style,
        ),
    ])
}
