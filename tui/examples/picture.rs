//! A screen of the terminal interface as an SVG picture, from a real run:
//!
//! `cargo run --package tui --example picture -- RUN-FOLDER VIEW SECONDS > picture.svg`
//!
//! VIEW is a view's number, SECONDS the moment of the run.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
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

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |name: &str| {
        arguments
            .next()
            .with_context(|| format!("{name} is missing"))
    };
    let folder = PathBuf::from(argument("RUN-FOLDER")?);
    let view: usize = argument("VIEW")?.parse().context("VIEW is a number")?;
    let seconds: f64 = argument("SECONDS")?
        .parse()
        .context("SECONDS is a number")?;

    let log = Log::open(&folder.join("events.jsonl"))?;
    let mode = Mode::Replay {
        at_ns: (seconds * 1e9) as u64,
        playing: false,
    };
    let mut app = App::new(&Config::default(), log, mode)?;
    Recordings::new(&folder).follow(&mut app.screens)?;
    // Each tick folds a part of the log.
    for _ in 0..1000 {
        app.update(Input::Tick, 0);
    }
    app.show(
        *View::ALL
            .get(view.wrapping_sub(1))
            .context("VIEW is from 1 to 7")?,
    );
    let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1))?;
    terminal.draw(|frame| tui::view::draw(&mut app, frame))?;
    print!("{}", svg(terminal.backend().buffer()));
    Ok(())
}

fn svg(buffer: &Buffer) -> String {
    let (width, height) = (
        f64::from(SIZE.0) * CELL.0 + 16.0,
        f64::from(SIZE.1) * CELL.1 + 16.0,
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    for y in 0..SIZE.1 {
        for x in 0..SIZE.0 {
            let (_, paper) = colours(&buffer[(x, y)]);
            if paper != PAPER {
                let (left, top) = (8.0 + f64::from(x) * CELL.0, 8.0 + f64::from(y) * CELL.1);
                // Writing to a string cannot fail.
                let _ = writeln!(
                    out,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{paper}\"/>",
                    CELL.0 + 0.2,
                    CELL.1
                );
            }
        }
        row(buffer, y, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

/// A row's text, in stretches of one style; each says its length, so that every font keeps the columns.
fn row(buffer: &Buffer, y: u16, out: &mut String) {
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
