//! Figures large enough to be read from the other end of a room: three by three cells a digit.

/// Rows of a figure.
pub(super) const HEIGHT: u16 = 3;

/// The cells of a character that are filled, row by row.
fn cells(character: char) -> [&'static str; 3] {
    match character {
        '0' => ["▛▀▜", "▌ ▐", "▙▄▟"],
        '1' => ["▗▌ ", " ▌ ", "▄▙▖"],
        '2' => ["▀▀▜", "▛▀▀", "▙▄▄"],
        '3' => ["▀▀▜", " ▀▜", "▄▄▟"],
        '4' => ["▌ ▐", "▀▀▜", "  ▐"],
        '5' => ["▛▀▀", "▀▀▜", "▄▄▟"],
        '6' => ["▛▀▀", "▛▀▜", "▙▄▟"],
        '7' => ["▀▀▜", "  ▞", " ▐ "],
        '8' => ["▛▀▜", "▛▀▜", "▙▄▟"],
        '9' => ["▛▀▜", "▀▀▜", "▄▄▟"],
        '.' => ["   ", "   ", " ▖ "],
        _ => ["   ", "▀▀▀", "   "],
    }
}

/// Columns that a figure takes.
pub(super) fn width(text: &str) -> u16 {
    u16::try_from(text.chars().count() * 4).unwrap_or(u16::MAX)
}

/// A figure's rows.
pub(super) fn rows(text: &str) -> [String; 3] {
    let mut rows: [String; 3] = Default::default();
    for character in text.chars() {
        for (row, cells) in rows.iter_mut().zip(cells(character)) {
            row.push_str(cells);
            row.push(' ');
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_its_width() {
        let text = "0123456789.-";
        for row in rows(text) {
            assert_eq!(row.chars().count(), usize::from(width(text)), "{row}");
        }
    }
}
