//! The pool at a glance: hosts with their links, guests where they are, leases, the phase, what the user notices.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::events;
use super::strip::{self, Strip};
use crate::app::{App, Target};
use crate::model::{Host, Vm};

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let kinds = app.lab().probes.kinds();
    let strip_height = if kinds.is_empty() {
        0
    } else {
        strip::height(kinds.len()) + 1
    };
    let rows = u16::try_from(app.targets().len().max(1)).unwrap_or(u16::MAX);
    let [pool, latest, state, strip] = Layout::vertical([
        Constraint::Length(rows.saturating_add(1)),
        Constraint::Fill(1),
        Constraint::Length(3),
        Constraint::Length(strip_height),
    ])
    .areas(area);
    draw_pool(app, frame, pool);
    draw_latest(app, frame, latest);
    draw_state(app, frame, state);
    if strip_height > 0 {
        let block = Block::new()
            .borders(Borders::TOP)
            .title(Span::styled(" what the user notices ", app.look.title()));
        let inner = block.inner(strip);
        frame.render_widget(block, strip);
        frame.render_widget(Strip { app, kinds: &kinds }, inner);
    }
}

fn draw_pool(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let targets = app.targets();
    let heading = Line::styled(
        "  HOST     STATE     mgmt  storage  session    CPU  MEMORY FREE       GUESTS",
        app.look.dim(),
    );
    if targets.is_empty() {
        frame.render_widget(Line::raw("  nothing has been switched on yet"), area);
        return;
    }
    super::list(
        app,
        frame,
        area,
        heading,
        app.selected(),
        targets.len(),
        |row| match &targets[row] {
            Target::Host(name) => host_line(app, name, &app.lab().hosts[name]),
            Target::Vm(name) => vm_line(app, name, &app.lab().vms[name]),
        },
    );
}

/// The latest events worth a line, the newest last.
fn draw_latest(app: &App, frame: &mut Frame<'_>, area: Rect) {
    if area.height < 3 {
        return;
    }
    let block = Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(" latest events ", app.look.title()));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let lines: Vec<Line<'_>> = app
        .latest(usize::from(inner.height))
        .into_iter()
        .map(|line| {
            let mut line = events::event(app, line);
            line.spans.insert(0, Span::raw("  "));
            line
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
}

fn host_line(app: &App, name: &str, host: &Host) -> Line<'static> {
    let look = app.look;
    let state = match host.word() {
        "up" => look.good(),
        "booting" | "frozen" => look.warn(),
        "off" => look.dim(),
        _ => look.bad(),
    };
    let mut spans = vec![
        Span::styled(format!("{name:<8} "), look.accent()),
        Span::styled(format!("{:<9} ", host.word()), state),
    ];
    for (network, width) in [("mgmt", 4), ("storage", 7), ("session", 7)] {
        let (wire, style) = match app.lab().link_fault(name, network) {
            Some("cut") => (look.broken_wire(width), look.bad()),
            Some(_) => (look.wire(width), look.warn()),
            None if !host.is_running() => (" ".repeat(width), look.dim()),
            None if network == "storage" && host.storage_up == Some(false) => {
                (look.broken_wire(width), look.warn())
            }
            None => (look.wire(width), look.good()),
        };
        spans.push(Span::styled(wire, style));
        spans.push(Span::raw("  "));
    }
    let memory = if host.memory_total == 0 {
        "-".to_owned()
    } else {
        format!(
            "{} of {} MiB",
            host.memory_free >> 20,
            host.memory_total >> 20
        )
    };
    spans.push(Span::raw(format!("{:>5}  {memory:<16}  ", cpu(app, name))));
    let guests: Vec<&str> = app
        .lab()
        .vms
        .iter()
        .filter(|(_, vm)| vm.is_alive() && vm.host == name)
        .map(|(name, _)| name.as_str())
        .collect();
    spans.push(Span::raw(guests.join(" ")));
    Line::from(spans)
}

/// What a host's guests use of its CPU.
fn cpu(app: &App, host: &str) -> String {
    let guests = app.lab().vms.values();
    let shares: Vec<f64> = guests
        .filter(|vm| vm.is_alive() && vm.host == host)
        .filter_map(|vm| vm.cpu_percent)
        .collect();
    if shares.is_empty() {
        return "-".into();
    }
    format!("{:.0} %", shares.iter().sum::<f64>())
}

fn vm_line(app: &App, name: &str, vm: &Vm) -> Line<'static> {
    let look = app.look;
    // One that was stopped in order is off; one whose host failed is missed.
    let in_order = |reason: &str| !(reason.contains("lost") || reason.contains("died"));
    let state = match vm.word() {
        "running" => look.good(),
        "starting" | "paused" | "suspended" => look.warn(),
        _ if vm.stopped.as_deref().is_none_or(in_order) => look.dim(),
        _ => look.bad(),
    };
    let mut spans = vec![
        Span::styled(format!("{name:<8} "), look.accent()),
        Span::styled(format!("{:<9} ", vm.word()), state),
    ];
    if vm.is_alive() {
        let moving = app.lab().migrations.under_way(name);
        let place = match moving {
            Some(moving) => format!("{} {} {}", moving.from, look.arrow(), moving.to),
            None => format!("on {}", vm.host),
        };
        spans.push(Span::styled(
            format!("{place:<14} "),
            if moving.is_some() {
                look.warn()
            } else {
                Style::new()
            },
        ));
        if let Some(cpu) = vm.cpu_percent {
            let cell = ((cpu / 100.0 * 8.0).round() as usize).min(8);
            spans.push(Span::styled(look.levels()[cell].to_owned(), look.good()));
            spans.push(Span::raw(format!(" {cpu:>3.0} % CPU ")));
        }
        if let Some(exits) = vm.exits_per_s {
            spans.push(Span::raw(format!(" {exits:>6.0} exits/s ")));
        }
    } else if vm.is_suspended() {
        spans.push(Span::styled("its memory is in the repository", look.dim()));
    } else if let Some(reason) = &vm.stopped {
        spans.push(Span::styled(reason.clone(), state));
    }
    Line::from(spans)
}

/// What protects the VMs, storage, session, document.
fn draw_state(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (lab, look) = (app.lab(), app.look);
    let [protection, first, second] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    frame.render_widget(protection_line(app), protection);
    let storage = match lab.storage.as_str() {
        "" => ("-", look.dim()),
        word @ ("started" | "ready" | "resumed" | "reached") => (word, look.good()),
        word => (word, look.bad()),
    };
    let mut spans = vec![
        Span::styled("  storage ", look.dim()),
        Span::styled(storage.0.to_owned(), storage.1),
    ];
    if let Some(fault) = &lab.disk_fault {
        spans.push(Span::styled(format!(", its disk: {fault}"), look.bad()));
    }
    spans.extend(leases(app, area.width, &spans));
    frame.render_widget(Line::from(spans), first);

    let mut spans = vec![Span::styled("  session ", look.dim())];
    match &lab.session {
        None => spans.push(Span::styled("not open", look.dim())),
        Some(Ok(_)) => spans.push(Span::styled("open", look.good())),
        Some(Err(reason)) => spans.push(Span::styled(format!("lost: {reason}"), look.bad())),
    }
    if lab.probes.keys_typed > 0 {
        let style = if lab.probes.keys_lost == 0 {
            look.good()
        } else {
            look.bad()
        };
        spans.push(Span::styled(
            format!(
                "   {} keys typed, {} lost",
                lab.probes.keys_typed, lab.probes.keys_lost
            ),
            style,
        ));
    }
    match &lab.document {
        None => {}
        Some((true, _)) => spans.push(Span::styled("   document equal", look.good())),
        Some((false, detail)) => {
            spans.push(Span::styled(
                format!("   document differs: {detail}"),
                look.bad(),
            ));
        }
    }
    frame.render_widget(Line::from(spans), second);
}

/// The leases for which there is room behind what stands there already; the storage view has them all.
fn leases(app: &App, width: u16, before: &[Span<'_>]) -> Vec<Span<'static>> {
    const MORE: usize = 8;
    let mut room = usize::from(width).saturating_sub(before.iter().map(Span::width).sum());
    let disks = app.lab().disks();
    let leased: Vec<_> = disks
        .iter()
        .filter_map(|disk| Some((disk, disk.lease.filter(|lease| lease.is_held())?)))
        .collect();
    let mut spans = Vec::new();
    for (index, (disk, lease)) in leased.iter().enumerate() {
        let of = match disk.of() {
            "" => disk.name().chars().take(8).collect(),
            of => of.to_owned(),
        };
        let words = format!("{of}: {}, epoch {}", lease.owner, lease.epoch);
        let title = if index == 0 { "   leases  " } else { "   " };
        let cells = title.len() + words.chars().count();
        let kept = if index + 1 < leased.len() { MORE } else { 0 };
        if cells + kept > room {
            spans.push(Span::styled(
                format!("   +{}", leased.len() - index),
                app.look.dim(),
            ));
            break;
        }
        room -= cells;
        spans.push(Span::styled(title, app.look.dim()));
        spans.push(Span::raw(words));
    }
    spans
}

/// What failures the pool can bear, and for a while what it said last.
fn protection_line(app: &App) -> Line<'static> {
    const FRESH_NS: u64 = 30_000_000_000;
    let (lab, look) = (app.lab(), app.look);
    let mut spans = vec![Span::styled("  pool    ", look.dim())];
    match &lab.protection {
        None => spans.push(Span::styled(
            "VMs of a host that fails stay off; `elab ha enable` has them restarted",
            look.dim(),
        )),
        Some(words) => {
            let style = match lab.is_protected() {
                Some(true) => look.good(),
                Some(false) => look.warn(),
                None => Style::new(),
            };
            spans.push(Span::styled(words.clone(), style));
        }
    }
    let fresh = lab
        .pool
        .as_ref()
        .filter(|(t_ns, _)| app.lab_now_ns().saturating_sub(*t_ns) < FRESH_NS);
    if let Some((_, said)) = fresh.filter(|(_, said)| Some(said) != lab.protection.as_ref()) {
        spans.push(Span::styled(format!("   {said}"), look.warn()));
    }
    Line::from(spans)
}
