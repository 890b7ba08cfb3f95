//! The storage server, who reaches it, what its repository holds, and who holds which disk.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::app::App;
use crate::model::{Disk, Operation, Repository};

/// Rows of the table of operations: those that took the most time.
const OPERATIONS: usize = 6;
/// Width from which there is room for a disk's whole name, and for when its lease changed.
const ROOMY: u16 = 116;
/// Cells of a disk's name, whole and in short.
const NAME: usize = 36;
const SHORT: usize = 8;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (lab, look) = (app.lab(), app.look);
    let height = lab.hosts.len().clamp(OPERATIONS, 12) as u16 + 3;
    let repositories = u16::try_from(lab.repositories.len()).unwrap_or(u16::MAX);
    let [top, takes, rest] = Layout::vertical([
        Constraint::Length(height),
        Constraint::Length(repositories),
        Constraint::Fill(1),
    ])
    .areas(area);
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
    let lines: Vec<_> = lab
        .repositories
        .iter()
        .map(|(name, repository)| usage(app, name, repository))
        .collect();
    frame.render_widget(Paragraph::new(lines), takes);
    draw_disks(app, frame, rest);
}

/// What a repository holds, in a line.
fn usage(app: &App, name: &str, repository: &Repository) -> Line<'static> {
    let short: String = name.chars().take(SHORT).collect();
    let count = repository.visible().count();
    let disks = match count {
        1 => "1 disk uses".to_owned(),
        _ => format!("{count} disks use"),
    };
    Line::from(vec![
        Span::styled("  SR ", app.look.dim()),
        Span::styled(format!("{short}  "), app.look.accent()),
        Span::raw(format!(
            "{disks} {} of {}, longest chain {}",
            super::size(repository.used_bytes()),
            super::size(repository.virtual_bytes()),
            repository.longest_chain(),
        )),
        Span::styled(
            format!(", {} free", super::size(repository.free_bytes)),
            app.look.dim(),
        ),
    ])
}

/// Disks and whatever else is leased, with their owners.
fn draw_disks(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let disks = app.lab().disks();
    if disks.is_empty() {
        frame.render_widget(Line::raw("  no disk is in use"), area);
        return;
    }
    let roomy = area.width >= ROOMY;
    let name = if roomy { NAME } else { SHORT };
    let heading = Line::styled(
        format!(
            "  {:<name$}  {:<18} {:>7} {:>7} {:>5}  {:>5} {:<6} LEASE",
            "DISK", "OF", "SIZE", "TAKES", "CHAIN", "EPOCH", "OWNER"
        ),
        app.look.dim(),
    );
    let selected = app.selected();
    super::list(app, frame, area, heading, selected, disks.len(), |row| {
        disk_line(app, &disks[row], name, roomy)
    });
}

fn disk_line(app: &App, disk: &Disk<'_>, name: usize, roomy: bool) -> Line<'static> {
    let look = app.look;
    let cut = |text: &str, cells: usize| text.chars().take(cells).collect::<String>();
    let figures = match disk.usage {
        Some(usage) => format!(
            " {:>7} {:>7} {:>5}  ",
            super::size(usage.virtual_bytes),
            super::size(usage.used_bytes),
            usage.depth
        ),
        None => format!(" {:>7} {:>7} {:>5}  ", "-", "-", "-"),
    };
    let mut spans = vec![
        Span::styled(format!("{:<name$}  ", cut(disk.name(), name)), look.dim()),
        Span::styled(format!("{:<18}", cut(disk.of(), 18)), look.accent()),
        Span::raw(figures),
    ];
    match disk.lease {
        None => spans.push(Span::styled(format!("{:>5} {:<6}", "-", "-"), look.dim())),
        Some(lease) => {
            let held = lease.is_held();
            let style = match lease.change.as_str() {
                _ if held => ratatui::style::Style::new(),
                "refused" | "broken" | "expired" => look.warn(),
                _ => look.dim(),
            };
            let owner = if held { look.good() } else { look.dim() };
            spans.push(Span::raw(format!("{:>5} ", lease.epoch)));
            spans.push(Span::styled(format!("{:<6} ", cut(&lease.owner, 6)), owner));
            let when = if roomy {
                format!(" at {} s", super::seconds(lease.t_ns))
            } else {
                String::new()
            };
            spans.push(Span::styled(format!("{}{when}", lease.change), style));
        }
    }
    Line::from(spans)
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
