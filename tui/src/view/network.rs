//! Links of the hosts and their faults.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::app::App;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let links = app.links();
    if links.is_empty() {
        frame.render_widget(Line::raw("  no host has been switched on yet"), area);
        return;
    }
    let heading = Line::styled(
        "  LINK             WIRE          WHAT IT SENDS                 WHAT IT RECEIVES",
        app.look.dim(),
    );
    super::list(
        app,
        frame,
        area,
        heading,
        app.selected(),
        links.len(),
        |row| {
            let (host, network) = &links[row];
            let lab = app.lab();
            let sends = lab.links.get(&format!("{host}:{network}>"));
            let receives = lab.links.get(&format!("{host}:{network}<"));
            let running = lab
                .hosts
                .get(host)
                .is_some_and(crate::model::Host::is_running);
            let (wire, style) = match (sends, receives) {
                _ if !running => ("  (no power)".to_owned(), app.look.dim()),
                (None, None) => (app.look.wire(12), app.look.good()),
                (Some(fault), _) | (_, Some(fault)) if fault == "cut" => {
                    (app.look.broken_wire(12), app.look.bad())
                }
                _ => (app.look.wire(12), app.look.warn()),
            };
            let words = |fault: Option<&String>| match fault {
                Some(fault) => Span::styled(format!("{fault:<29} "), app.look.bad()),
                None => Span::styled(format!("{:<29} ", "fine"), app.look.good()),
            };
            Line::from(vec![
                Span::styled(
                    format!("{:<16} ", format!("{host}:{network}")),
                    app.look.accent(),
                ),
                Span::styled(format!("{wire:<12}  "), style),
                words(sends),
                words(receives),
            ])
        },
    );
}
