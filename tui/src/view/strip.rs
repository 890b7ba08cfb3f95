//! The latency strip: for each probe a row of bars, one column a stretch of time, shaded by what happened to the guest then.

use lab_protocol::ProbeKind;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::Widget;
use scenarios::measure::Window;

use crate::app::App;
use crate::model::{Column, Shade, probe_name};

/// Cells before the bars: the probe's name and its worst.
const LABEL: u16 = 18;
/// Latency of a full bar, in nanoseconds; the scale is logarithmic, from a millisecond on.
const FULL_NS: f64 = 1e9;
const LEAST_NS: f64 = 1e6;

/// Rows that the strip of these probes takes, the time axis included.
pub(super) fn height(kinds: usize) -> u16 {
    u16::try_from(kinds).unwrap_or(u16::MAX).saturating_add(1)
}

/// The strip of some probes over the application's window.
pub(super) struct Strip<'a> {
    pub(super) app: &'a App,
    pub(super) kinds: &'a [ProbeKind],
}

impl Widget for Strip<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let look = self.app.look;
        let width = area.width.saturating_sub(LABEL);
        if width == 0 || area.height < 2 {
            return;
        }
        let window = self.app.window();
        let shades = column_shades(self.app, window, usize::from(width));
        let rows = usize::from(area.height - 1).min(self.kinds.len());
        for (row, kind) in self.kinds.iter().take(rows).enumerate() {
            let y = area.y + row as u16;
            let strip = self
                .app
                .lab()
                .probes
                .strip(*kind, window, usize::from(width));
            let worst = worst(&strip);
            buffer.set_string(
                area.x,
                y,
                format!(" {:<7}", probe_name(*kind)),
                look.accent(),
            );
            buffer.set_string(area.x + 8, y, format!("{worst:>8} "), Style::new());
            for (column, (cell, shade)) in strip.iter().zip(&shades).enumerate() {
                let (symbol, style) = match cell {
                    Column::Empty => (" ", Style::new()),
                    Column::Worst(ns) => (look.levels()[level(*ns)], colour(self.app, *ns)),
                    Column::Lost => (if look.ascii { "x" } else { "×" }, look.bad()),
                };
                let style = match shade {
                    Some(Shade::Brownout) => style.patch(look.brownout()),
                    Some(Shade::CatchUp) => style.patch(look.catch_up()),
                    Some(Shade::Blackout) => style.patch(look.blackout()),
                    None => style,
                };
                buffer.set_string(area.x + LABEL + column as u16, y, symbol, style);
            }
        }
        axis(self.app, window, area, rows as u16, buffer);
    }
}

fn worst(strip: &[Column]) -> String {
    if strip.contains(&Column::Lost) {
        return "lost".into();
    }
    let worst = strip.iter().filter_map(|column| match column {
        Column::Worst(ns) => Some(*ns),
        _ => None,
    });
    worst
        .max()
        .map_or_else(|| "-".into(), |ns| format!("{} ms", super::ms(ns)))
}

/// The bar for a latency: 1 to 8.
pub(super) fn level(ns: u64) -> usize {
    let share = (ns as f64 / LEAST_NS).max(1.0).log10() / (FULL_NS / LEAST_NS).log10();
    1 + (share.min(1.0) * 7.0).round() as usize
}

/// What a user makes of a latency: below 50 ms he sees nothing, above 150 ms he stops typing.
pub(super) fn colour(app: &App, ns: u64) -> Style {
    match ns {
        0..50_000_000 => app.look.good(),
        50_000_000..150_000_000 => app.look.warn(),
        _ => app.look.bad(),
    }
}

fn column_shades(app: &App, window: Window, columns: usize) -> Vec<Option<Shade>> {
    let mut shades = vec![None; columns];
    let span = window.len_ns().max(1);
    for (stretch, shade) in app.lab().migrations.shades() {
        if !stretch.overlaps(window) {
            continue;
        }
        let column = |t: u64| {
            let within = t.clamp(window.start_ns, window.end_ns) - window.start_ns;
            (u128::from(within) * columns as u128 / u128::from(span)) as usize
        };
        let last = column(stretch.end_ns.saturating_sub(1)).min(columns - 1);
        for cell in &mut shades[column(stretch.start_ns).min(last)..=last] {
            *cell = (*cell).max(Some(shade));
        }
    }
    shades
}

fn axis(app: &App, window: Window, area: Rect, row: u16, buffer: &mut Buffer) {
    let y = area.y + row;
    let start = format!("{} s", super::seconds(window.start_ns));
    let end = format!("{} s", super::seconds(window.end_ns));
    let legend = format!("{} s shown", app.zoom_s());
    let x = area.x + LABEL;
    let width = area.width - LABEL;
    buffer.set_string(x, y, &start, app.look.dim());
    let right = width.saturating_sub(end.len() as u16);
    buffer.set_string(x + right, y, &end, app.look.dim());
    let middle = width.saturating_sub(legend.len() as u16) / 2;
    if middle > start.len() as u16 + 2 {
        buffer.set_string(x + middle, y, legend, app.look.dim());
    }
    // Marks of people stand on the axis.
    for (t_ns, _) in &app.lab().marks {
        if window.contains(*t_ns) {
            let at = u128::from(t_ns - window.start_ns) * u128::from(width)
                / u128::from(window.len_ns().max(1));
            buffer.set_string(
                x + at as u16,
                y,
                if app.look.ascii { "^" } else { "▲" },
                app.look.accent(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::level;

    #[test]
    fn bars_grow_with_the_logarithm() {
        assert_eq!(level(0), 1);
        assert_eq!(level(1_000_000), 1);
        assert!(level(10_000_000) < level(100_000_000));
        assert_eq!(level(1_000_000_000), 8);
        assert_eq!(level(u64::MAX), 8);
    }
}
