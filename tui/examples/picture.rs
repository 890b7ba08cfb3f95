//! The README's picture: the session's view of a real run around its first migration, as an SVG that plays.
//!
//! `cargo run --package tui --example picture` runs a demo with one migration and draws it to `tui/session.svg`;
//! `... picture -- RUN-FOLDER` draws a run that is there. It is drawn by the code of `elab tui --replay`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use tui::app::{App, Input, Mode, View};
use tui::config::Config;
use tui::log::Log;
use tui::run_folder::Recordings;

/// Cells of the screen.
const SIZE: (u16, u16) = (110, 42);
/// Size of a cell, in pixels.
const CELL: (f64, f64) = (8.4, 17.0);
const PAPER: &str = "#11151c";
const INK: &str = "#d6dde6";
/// Time between two pictures, and from the last until it begins anew.
const STEP_NS: u64 = 250_000_000;
const REST_S: f64 = 3.0;
/// It begins and ends so long before and after the migration.
const BEFORE_NS: u64 = 1_500_000_000;
const AFTER_NS: u64 = 2_500_000_000;

fn main() -> Result<()> {
    let folder = match std::env::args().nth(1) {
        Some(folder) => PathBuf::from(folder),
        None => run_demo()?,
    };
    let pictures = pictures(&folder)?;
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("session.svg");
    let bytes = svg(&pictures);
    std::fs::write(&target, &bytes)
        .with_context(|| format!("cannot write {}", target.display()))?;
    println!(
        "{}: {} pictures of {}, {} KiB",
        target.display(),
        pictures.len(),
        folder.display(),
        bytes.len() >> 10
    );
    Ok(())
}

/// Runs a demo; gives its folder.
fn run_demo() -> Result<PathBuf> {
    let words = "run --release --package elab -- demo --name picture --migrations 1";
    let ended = Command::new(env!("CARGO"))
        .args(words.split(' '))
        .status()
        .context("cannot run a demo")?;
    ensure!(ended.success(), "the demo failed");
    Ok(PathBuf::from(".elab/run/picture"))
}

/// The screen at each step.
fn pictures(folder: &Path) -> Result<Vec<Buffer>> {
    let log = || Log::open(&folder.join("events.jsonl"));
    let at = |at_ns: u64| Mode::Replay {
        at_ns,
        playing: false,
    };
    let mut whole = App::new(&Config::default(), log()?, at(u64::MAX))?;
    catch_up(&mut whole);
    let first = whole.lab().migrations.all().first();
    let (from_ns, to_ns) = first
        .and_then(|first| Some((first.requested_ns, first.ended_ns?)))
        .context("no VM moved in this run")?;
    let mut pictures = Vec::new();
    let mut at_ns = from_ns.saturating_sub(BEFORE_NS);
    let mut app = App::new(&Config::default(), log()?, at(at_ns))?;
    Recordings::new(folder).follow(&mut app.screens)?;
    app.show(View::Session);
    app.zoom(false);
    while at_ns <= to_ns + AFTER_NS {
        app.mode = at(at_ns);
        catch_up(&mut app);
        let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1))?;
        terminal.draw(|frame| tui::view::draw(&mut app, frame))?;
        pictures.push(terminal.backend().buffer().clone());
        at_ns += STEP_NS;
    }
    Ok(pictures)
}

/// Each tick folds a part of the log.
fn catch_up(app: &mut App) {
    app.update(Input::Tick, 0);
    while app.is_behind() {
        app.update(Input::Tick, 0);
    }
}

/// Each row is drawn as often as it changes, and shown while it was so.
fn svg(pictures: &[Buffer]) -> String {
    let (width, height) = (
        f64::from(SIZE.0) * CELL.0 + 16.0,
        f64::from(SIZE.1) * CELL.1 + 16.0,
    );
    let step_s = STEP_NS as f64 / 1e9;
    let whole_s = pictures.len() as f64 * step_s + REST_S;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    for y in 0..SIZE.1 {
        let rows: Vec<String> = pictures.iter().map(|picture| row(picture, y)).collect();
        let mut first = 0;
        while first < rows.len() {
            let same = rows[first..].iter().take_while(|row| **row == rows[first]);
            let end = first + same.count();
            let at = |step: usize| step as f64 * step_s / whole_s;
            let (from, until) = (at(first), at(end));
            // Where nothing plays, the last picture is seen.
            let last = end == rows.len();
            let hidden = if last { "" } else { " visibility=\"hidden\"" };
            let played = match (first, last) {
                (0, true) => None,
                (0, false) => Some(("visible;hidden", format!("0;{until:.4}"))),
                (_, true) => Some(("hidden;visible", format!("0;{from:.4}"))),
                (_, false) => Some(("hidden;visible;hidden", format!("0;{from:.4};{until:.4}"))),
            };
            if !rows[first].is_empty() {
                // Writing to a string cannot fail.
                let _ = write!(out, "<g{hidden}>");
                if let Some((values, times)) = played {
                    let _ = writeln!(
                        out,
                        "<animate attributeName=\"visibility\" calcMode=\"discrete\" dur=\"{whole_s}s\" repeatCount=\"indefinite\" values=\"{values}\" keyTimes=\"{times}\"/>"
                    );
                }
                out.push_str(&rows[first]);
                out.push_str("</g>\n");
            }
            first = end;
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Paper and text of a row.
fn row(buffer: &Buffer, y: u16) -> String {
    let mut out = String::new();
    papers(buffer, y, &mut out);
    texts(buffer, y, &mut out);
    out
}

/// What is behind the text, in stretches of one colour.
fn papers(buffer: &Buffer, y: u16, out: &mut String) {
    let mut x = 0;
    while x < SIZE.0 {
        let (_, paper) = colours(&buffer[(x, y)]);
        let end = (x..SIZE.0)
            .find(|at| colours(&buffer[(*at, y)]).1 != paper)
            .unwrap_or(SIZE.0);
        if paper != PAPER {
            let (left, top) = (8.0 + f64::from(x) * CELL.0, 8.0 + f64::from(y) * CELL.1);
            let wide = f64::from(end - x) * CELL.0 + 0.2;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{:.1}\" fill=\"{paper}\"/>",
                CELL.1
            );
        }
        x = end;
    }
}

/// A row's text, in stretches of one style; each says its length, so that every font keeps the columns.
fn texts(buffer: &Buffer, y: u16, out: &mut String) {
    let mut x = 0;
    while x < SIZE.0 {
        let first = &buffer[(x, y)];
        let style = |cell: &Cell| (colours(cell).0, cell.modifier.contains(Modifier::BOLD));
        let end = (x..SIZE.0)
            .find(|at| style(&buffer[(*at, y)]) != style(first))
            .unwrap_or(SIZE.0);
        let text: String = (x..end).map(|at| buffer[(at, y)].symbol()).collect();
        if !text.trim().is_empty() {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let (ink, bold) = style(first);
            let (left, base) = (
                8.0 + f64::from(x) * CELL.0,
                8.0 + f64::from(y) * CELL.1 + 13.0,
            );
            let length = f64::from(end - x) * CELL.0;
            let weight = if bold { " font-weight=\"bold\"" } else { "" };
            let _ = writeln!(
                out,
                "<text xml:space=\"preserve\" x=\"{left:.1}\" y=\"{base:.1}\" textLength=\"{length:.1}\" fill=\"{ink}\"{weight}>{text}</text>"
            );
        }
        x = end;
    }
}

fn colours(cell: &Cell) -> (String, String) {
    let ink = name(cell.fg, INK);
    let paper = name(cell.bg, PAPER);
    if cell.modifier.contains(Modifier::REVERSED) {
        (paper, ink)
    } else {
        (ink, paper)
    }
}

fn name(colour: Color, otherwise: &str) -> String {
    match colour {
        Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
        Color::Green | Color::Indexed(2) => "#5fd38d".into(),
        Color::Yellow | Color::Indexed(3) => "#e8c15a".into(),
        Color::LightRed | Color::Red | Color::Indexed(1) => "#ff6b6b".into(),
        Color::Cyan | Color::Indexed(6) => "#63c7e6".into(),
        Color::Blue | Color::Indexed(4) => "#6f9ff5".into(),
        Color::DarkGray => "#76828f".into(),
        _ => otherwise.into(),
    }
}
