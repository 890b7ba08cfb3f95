//! Colours and characters. Whatever a colour says, a word or a character says too, so that nothing is lost without colour.

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

/// Which colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Theme {
    /// For dark terminals.
    #[default]
    Dark,
    /// For light terminals.
    Light,
    /// No colour at all, as `NO_COLOR` asks for.
    Mono,
}

/// Styles and characters in use.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    theme: Theme,
    /// Only ASCII characters.
    pub ascii: bool,
}

impl Look {
    /// The look of a theme.
    #[must_use]
    pub fn new(theme: Theme, ascii: bool) -> Self {
        Self { theme, ascii }
    }

    fn colour(self, dark: Color, light: Color) -> Style {
        match self.theme {
            Theme::Dark => Style::new().fg(dark),
            Theme::Light => Style::new().fg(light),
            Theme::Mono => Style::new(),
        }
    }

    /// All is well.
    #[must_use]
    pub fn good(self) -> Style {
        self.colour(Color::Green, Color::Rgb(0, 110, 50))
    }

    /// Slowed, under way, changed.
    #[must_use]
    pub fn warn(self) -> Style {
        self.colour(Color::Yellow, Color::Rgb(150, 95, 0))
    }

    /// Broken, stopped, lost.
    #[must_use]
    pub fn bad(self) -> Style {
        self.colour(Color::LightRed, Color::Red)
            .add_modifier(Modifier::BOLD)
    }

    /// What is less important.
    #[must_use]
    pub fn dim(self) -> Style {
        match self.theme {
            Theme::Mono => Style::new().add_modifier(Modifier::DIM),
            _ => self.colour(Color::DarkGray, Color::Gray),
        }
    }

    /// Names of things.
    #[must_use]
    pub fn accent(self) -> Style {
        self.colour(Color::Cyan, Color::Blue)
    }

    /// Titles.
    #[must_use]
    pub fn title(self) -> Style {
        self.accent().add_modifier(Modifier::BOLD)
    }

    /// What is selected.
    #[must_use]
    pub fn selected(self) -> Style {
        match self.theme {
            Theme::Dark => Style::new().bg(Color::Rgb(45, 62, 84)),
            Theme::Light => Style::new().bg(Color::Rgb(205, 222, 245)),
            Theme::Mono => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// Behind a stretch in which a guest is slowed.
    #[must_use]
    pub fn brownout(self) -> Style {
        match self.theme {
            Theme::Dark => Style::new().bg(Color::Rgb(60, 50, 10)),
            Theme::Light => Style::new().bg(Color::Rgb(255, 240, 200)),
            Theme::Mono => Style::new(),
        }
    }

    /// Behind a stretch in which a guest stands still.
    #[must_use]
    pub fn blackout(self) -> Style {
        match self.theme {
            Theme::Dark => Style::new().bg(Color::Rgb(95, 20, 20)),
            Theme::Light => Style::new().bg(Color::Rgb(255, 205, 205)),
            Theme::Mono => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// Behind a stretch in which a guest catches up.
    #[must_use]
    pub fn catch_up(self) -> Style {
        match self.theme {
            Theme::Dark => Style::new().bg(Color::Rgb(20, 45, 80)),
            Theme::Light => Style::new().bg(Color::Rgb(215, 230, 255)),
            Theme::Mono => Style::new().add_modifier(Modifier::UNDERLINED),
        }
    }

    /// Characters of a bar, from nothing to full.
    #[must_use]
    pub fn levels(self) -> &'static [&'static str] {
        if self.ascii {
            &[" ", ".", ":", "-", "=", "+", "*", "#", "@"]
        } else {
            &[" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"]
        }
    }

    /// A link in good order, `width` cells long.
    #[must_use]
    pub fn wire(self, width: usize) -> String {
        if self.ascii { "-" } else { "─" }.repeat(width)
    }

    /// A broken link.
    #[must_use]
    pub fn broken_wire(self, width: usize) -> String {
        let (dash, cross) = if self.ascii {
            ("-", "X")
        } else {
            ("╌", "✕")
        };
        let half = width.saturating_sub(1) / 2;
        format!(
            "{}{cross}{}",
            dash.repeat(half),
            dash.repeat(width.saturating_sub(half + 1))
        )
    }

    /// A full cell of a bar.
    #[must_use]
    pub fn block(self) -> &'static str {
        if self.ascii { "#" } else { "█" }
    }

    /// What stands before the selected line.
    #[must_use]
    pub fn pointer(self) -> &'static str {
        if self.ascii { "> " } else { "▸ " }
    }

    /// An arrow to the right.
    #[must_use]
    pub fn arrow(self) -> &'static str {
        if self.ascii { "->" } else { "→" }
    }
}
