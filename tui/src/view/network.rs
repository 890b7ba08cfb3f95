//! Links of the hosts: what passes them, and their faults.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use crate::app::App;
use crate::model::Port;

/// Width from which there is room for each link's last minute.
const ROOMY: u16 = 116;
/// Cells of the last minute.
const HISTORY: usize = 30;
/// A full bar, in bits a second; the scale is logarithmic, from the least on.
const FULL_BPS: f64 = 1e9;
const LEAST_BPS: f64 = 1e3;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let links = app.links();
    if links.is_empty() {
        frame.render_widget(Line::raw("  no host has been switched on yet"), area);
        return;
    }
    let roomy = area.width >= ROOMY;
    let minute = if roomy {
        format!("{:<HISTORY$}  ", "LAST MINUTE")
    } else {
        String::new()
    };
    let heading = Line::styled(
        format!(
            "  {:<13} {:<6} {:>9} {:>7} {:>9} {:>7} {:>5}  {minute}FAULTS",
            "LINK", "WIRE", "SENDS", "frame/s", "RECEIVES", "frame/s", "LOST"
        ),
        app.look.dim(),
    );
    let faults = |arrow: &str| {
        let (host, network) = &links[app.selected()];
        let link = format!("{host}:{network}{arrow}");
        let fault = app.lab().links.get(&link)?;
        let words = if arrow == ">" { "sends" } else { "receives" };
        Some(Line::from(vec![
            Span::styled(format!("  {host}:{network} {words}: "), app.look.accent()),
            Span::styled(fault.clone(), app.look.bad()),
        ]))
    };
    // In full, for a column cuts what is long.
    let faults: Vec<_> = [">", "<"].into_iter().filter_map(faults).collect();
    let [table, below] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(faults.len() as u16)])
            .areas(area);
    frame.render_widget(Paragraph::new(faults), below);
    super::list(
        app,
        frame,
        table,
        heading,
        app.selected(),
        links.len(),
        |row| {
            let (host, network) = &links[row];
            link(app, host, network, roomy)
        },
    );
}

fn link(app: &App, host: &str, network: &str, roomy: bool) -> Line<'static> {
    let (lab, look) = (app.lab(), app.look);
    let sends = lab.links.get(&format!("{host}:{network}>"));
    let receives = lab.links.get(&format!("{host}:{network}<"));
    let running = lab
        .hosts
        .get(host)
        .is_some_and(crate::model::Host::is_running);
    let (wire, style) = match (sends, receives) {
        _ if !running => (" ".repeat(6), look.dim()),
        (None, None) => (look.wire(6), look.good()),
        (Some(fault), _) | (_, Some(fault)) if fault == "cut" => (look.broken_wire(6), look.bad()),
        _ => (look.wire(6), look.warn()),
    };
    let mut spans = vec![
        Span::styled(
            format!("{:<13} ", format!("{host}:{network}")),
            look.accent(),
        ),
        Span::styled(format!("{wire:<6} "), style),
    ];
    let port = lab.statistics.port(network, host);
    spans.extend(rates(port, look.dim()));
    let lost = port.map_or(0, |port| port.dropped);
    let style = if lost > 0 { look.warn() } else { look.dim() };
    spans.push(Span::styled(format!("{lost:>5}  "), style));
    if roomy {
        let bars = port.map_or_else(String::new, |port| bars(&port.history, look.levels()));
        spans.push(Span::styled(format!("{bars:>HISTORY$}  "), look.good()));
    }
    spans.push(match (sends, receives) {
        _ if !running => Span::styled("no power", look.dim()),
        (None, None) => Span::styled("none", look.good()),
        (Some(one), Some(other)) if one == other => Span::styled(one.clone(), look.bad()),
        (Some(one), Some(other)) => {
            Span::styled(format!("sends: {one}; receives: {other}"), look.bad())
        }
        (Some(fault), None) => Span::styled(format!("sends: {fault}"), look.bad()),
        (None, Some(fault)) => Span::styled(format!("receives: {fault}"), look.bad()),
    });
    Line::from(spans)
}

fn rates(port: Option<&Port>, dim: Style) -> [Span<'static>; 2] {
    let pair = |bps: f64, fps: f64| {
        let style = if fps > 0.0 { Style::new() } else { dim };
        Span::styled(format!("{:>9} {fps:>7.0} ", bits(bps)), style)
    };
    match port {
        Some(port) => [
            pair(port.sent_bps, port.sent_fps),
            pair(port.received_bps, port.received_fps),
        ],
        None => [0, 1].map(|_| Span::styled(format!("{:>9} {:>7} ", "-", "-"), dim)),
    }
}

/// Bits a second, in a unit that fits.
fn bits(bps: f64) -> String {
    let (value, unit) = match bps {
        _ if bps >= 1e9 => (bps / 1e9, "Gb/s"),
        _ if bps >= 1e6 => (bps / 1e6, "Mb/s"),
        _ if bps >= 1e3 => (bps / 1e3, "kb/s"),
        _ => return format!("{bps:.0} b/s"),
    };
    if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A cell for two seconds, the higher of them.
fn bars(history: &VecDeque<f64>, levels: &[&'static str]) -> String {
    let newest_first: Vec<f64> = history.iter().rev().copied().collect();
    let cell = |pair: &[f64]| {
        let bps = pair.iter().copied().fold(0.0, f64::max);
        if bps < LEAST_BPS {
            return levels[usize::from(bps > 0.0)];
        }
        let share = (bps / LEAST_BPS).ln() / (FULL_BPS / LEAST_BPS).ln();
        levels[(1 + (share * 7.0) as usize).min(levels.len() - 1)]
    };
    let mut cells: Vec<&str> = newest_first.chunks(2).map(cell).take(HISTORY).collect();
    cells.reverse();
    cells.concat()
}
