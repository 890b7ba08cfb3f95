//! The storage server, who reaches it, and who holds which disk.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::app::App;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (lab, look) = (app.lab(), app.look);
    let height = lab.hosts.len() as u16 + 3;
    let [top, rest] =
        Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(area);
    let state = match lab.storage.as_str() {
        "" => Span::styled("not started", look.dim()),
        word @ ("started" | "ready" | "resumed" | "reached") => {
            Span::styled(word.to_owned(), look.good())
        }
        word => Span::styled(word.to_owned(), look.bad()),
    };
    let mut lines = vec![
        Line::from(vec![Span::styled("  storage server  ", look.dim()), state]),
        Line::raw(""),
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
    frame.render_widget(Paragraph::new(lines), top);
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
