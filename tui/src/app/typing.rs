//! Typing into the guest: what a terminal sends for a key, and how long the guest took to answer.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use lab_protocol::Command;

use super::{App, Effect, Level, Overlay};

/// So many answers are kept.
const RECENT: usize = 200;
/// Rows and columns of most terminals, and all that a shell here is given.
const SHELL_MOST: (u16, u16) = (24, 80);

/// How long answers to keys took: from a key to the next that is printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    waiting_since_ns: Option<u64>,
    recent: VecDeque<u64>,
}

impl Echo {
    fn typed(&mut self, now_ns: u64) {
        // While an answer is outstanding, the oldest key counts.
        self.waiting_since_ns.get_or_insert(now_ns);
    }

    fn printed(&mut self, at_ns: u64) {
        if let Some(since) = self.waiting_since_ns.take() {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(at_ns.saturating_sub(since));
        }
    }

    /// Whether a key waits for its answer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting_since_ns.is_some()
    }

    /// How long the key that waits has waited.
    #[must_use]
    pub fn waited_ns(&self, now_ns: u64) -> Option<u64> {
        Some(now_ns.saturating_sub(self.waiting_since_ns?))
    }

    /// The last answers, the newest last.
    #[must_use]
    pub fn recent(&self) -> &VecDeque<u64> {
        &self.recent
    }

    /// The last answer.
    #[must_use]
    pub fn last_ns(&self) -> Option<u64> {
        self.recent.back().copied()
    }

    /// The median of the last answers.
    #[must_use]
    pub fn median_ns(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// The worst of the last answers.
    #[must_use]
    pub fn worst_ns(&self) -> Option<u64> {
        self.recent.iter().max().copied()
    }
}

/// A shell of one's own in the guest.
pub struct Shell {
    /// What it shows.
    pub terminal: vt100::Parser,
    /// How it answers.
    pub echo: Echo,
    /// Whether it has shown anything.
    pub printed: bool,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell")
            .field("echo", &self.echo)
            .finish_non_exhaustive()
    }
}

impl App {
    /// Types into a shell of one's own: the one that is open, or a new one.
    pub(super) fn type_into_session(&mut self) -> Vec<Effect> {
        self.overlay = Some(Overlay::Shell);
        if self.shell.is_some() {
            return Vec::new();
        }
        // Under it are the figures and the strip; see `view::typing`.
        let (width, height) = self.body;
        let rows = height.saturating_sub(7).clamp(10, SHELL_MOST.0);
        let columns = width.saturating_sub(2).clamp(20, SHELL_MOST.1);
        self.shell = Some(Shell {
            terminal: vt100::Parser::new(rows, columns, 0),
            echo: Echo::default(),
            printed: false,
        });
        vec![Effect::OpenShell { rows, columns }]
    }

    pub(super) fn shell_key(&mut self, event: KeyEvent) -> Vec<Effect> {
        if detaches(event) {
            self.say(
                Level::Note,
                format!(
                    "your shell stays open; {} goes back to it",
                    self.keys.hint(crate::keys::Action::TypeSession)
                ),
            );
            return Vec::new();
        }
        self.overlay = Some(Overlay::Shell);
        let text = terminal_bytes(event);
        let Some(shell) = self.shell.as_mut().filter(|_| !text.is_empty()) else {
            return Vec::new();
        };
        shell.echo.typed(self.now_ns);
        vec![Effect::TypeShell(text.into_bytes())]
    }

    pub(super) fn shell_printed(&mut self, bytes: &[u8], at_ns: u64) {
        if let Some(shell) = &mut self.shell {
            shell.printed = true;
            shell.terminal.process(bytes);
            shell.echo.printed(at_ns);
        }
    }

    pub(super) fn shell_ended(&mut self, reason: &str) {
        if self.shell.take().is_none() {
            return;
        }
        if self.overlay == Some(Overlay::Shell) {
            self.overlay = None;
        }
        self.say(Level::Note, format!("your session: {reason}"));
    }

    /// How long the key in one's own shell that waits has waited.
    #[must_use]
    pub fn shell_waits_ns(&self) -> Option<u64> {
        self.shell.as_ref()?.echo.waited_ns(self.now_ns)
    }

    pub(super) fn console_key(&mut self, vm: String, event: KeyEvent) -> Vec<Effect> {
        if detaches(event) {
            self.say(Level::Note, format!("detached from the console of {vm}"));
            return Vec::new();
        }
        let text = terminal_bytes(event);
        self.overlay = Some(Overlay::Console { vm: vm.clone() });
        if text.is_empty() {
            return Vec::new();
        }
        self.echo.typed(self.now_ns);
        vec![Effect::Send(Command::ConsoleInput { vm, text })]
    }

    /// Notes that a console has printed.
    pub fn console_printed(&mut self) {
        self.echo.printed(self.now_ns);
    }
}

/// Terminals send Ctrl-] as 0x1d, which crossterm reads as Ctrl-5.
fn detaches(event: KeyEvent) -> bool {
    event.modifiers.contains(KeyModifiers::CONTROL)
        && matches!(event.code, KeyCode::Char(']' | '5'))
}

/// What a terminal sends for a key (xterm's sequences).
fn terminal_bytes(event: KeyEvent) -> String {
    let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
    match event.code {
        KeyCode::Char(c) if ctrl && c.is_ascii_alphabetic() => {
            char::from(c.to_ascii_lowercase() as u8 & 0x1f).to_string()
        }
        KeyCode::Char(c) => c.to_string(),
        KeyCode::Enter => "\r".into(),
        KeyCode::Tab => "\t".into(),
        KeyCode::Backspace => "\x7f".into(),
        KeyCode::Esc => "\x1b".into(),
        KeyCode::Up => "\x1b[A".into(),
        KeyCode::Down => "\x1b[B".into(),
        KeyCode::Right => "\x1b[C".into(),
        KeyCode::Left => "\x1b[D".into(),
        KeyCode::Home => "\x1b[H".into(),
        KeyCode::End => "\x1b[F".into(),
        KeyCode::PageUp => "\x1b[5~".into(),
        KeyCode::PageDown => "\x1b[6~".into(),
        KeyCode::Delete => "\x1b[3~".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_from_the_oldest_key_that_waits() {
        let mut echo = Echo::default();
        echo.printed(5);
        assert_eq!(echo.last_ns(), None, "nobody had typed");
        echo.typed(10);
        echo.typed(20);
        assert_eq!(echo.waited_ns(25), Some(15));
        echo.printed(40);
        echo.printed(50);
        echo.typed(60);
        echo.printed(61);
        assert!(!echo.is_waiting());
        assert_eq!(echo.recent(), &[30, 1]);
        assert_eq!((echo.last_ns(), echo.worst_ns()), (Some(1), Some(30)));
    }
}
