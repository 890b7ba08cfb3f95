//! Screens of terminals: the session's, from its recording, and the VMs' consoles, from what they print.

use std::collections::BTreeMap;

/// Rows and columns of the session's terminal until its recording tells them.
const SESSION_SIZE: (u16, u16) = (24, 80);
/// So much of a console is read again when one attaches.
const CONSOLE_ROWS: (u16, u16) = (24, 80);

/// A piece of a recording: when, and what was printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// On the lab's clock.
    pub t_ns: u64,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// The screens.
pub struct Screens {
    session: vt100::Parser,
    size: (u16, u16),
    outputs: Vec<Output>,
    shown: usize,
    consoles: BTreeMap<String, vt100::Parser>,
    /// The console that is looked at.
    attached: Option<String>,
}

impl std::fmt::Debug for Screens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screens")
            .field("outputs", &self.outputs.len())
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Default for Screens {
    fn default() -> Self {
        Self {
            session: vt100::Parser::new(SESSION_SIZE.0, SESSION_SIZE.1, 0),
            size: SESSION_SIZE,
            outputs: Vec::new(),
            shown: 0,
            consoles: BTreeMap::new(),
            attached: None,
        }
    }
}

impl Screens {
    /// Whether the session has shown anything.
    #[must_use]
    pub fn has_session(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// The session's screen.
    #[must_use]
    pub fn session(&self) -> &vt100::Screen {
        self.session.screen()
    }

    /// The size of the session's terminal, as its recording tells it.
    pub fn resize_session(&mut self, rows: u16, columns: u16) {
        self.size = (rows.clamp(1, 500), columns.clamp(1, 500));
        self.session.screen_mut().set_size(self.size.0, self.size.1);
    }

    /// Takes more of the recording.
    pub fn add_session_output(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// Shows the session as it was at a moment; `None` is now.
    pub fn show_at(&mut self, moment: Option<u64>) {
        let until = moment.map_or(self.outputs.len(), |t_ns| {
            self.outputs.partition_point(|output| output.t_ns <= t_ns)
        });
        if until < self.shown {
            self.session = vt100::Parser::new(self.size.0, self.size.1, 0);
            self.shown = 0;
        }
        for output in &self.outputs[self.shown..until] {
            self.session.process(&output.bytes);
        }
        self.shown = until;
    }

    /// Looks at a console from now on.
    pub fn attach(&mut self, vm: &str) {
        self.attached = Some(vm.into());
    }

    /// The console that is looked at.
    #[must_use]
    pub fn attached(&self) -> Option<&str> {
        self.attached.as_deref()
    }

    /// Takes what a console has printed.
    pub fn add_console_output(&mut self, vm: &str, bytes: &[u8]) {
        self.consoles
            .entry(vm.into())
            .or_insert_with(|| vt100::Parser::new(CONSOLE_ROWS.0, CONSOLE_ROWS.1, 0))
            .process(bytes);
    }

    /// The screen of a console, once it has printed.
    #[must_use]
    pub fn console(&self, vm: &str) -> Option<&vt100::Screen> {
        self.consoles.get(vm).map(vt100::Parser::screen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_goes_back_as_well_as_on() {
        let mut screens = Screens::default();
        for (t_ns, text) in [(10, "one"), (20, " two")] {
            screens.add_session_output(Output {
                t_ns,
                bytes: text.into(),
            });
        }
        let mut shown = |moment| {
            screens.show_at(moment);
            screens.session().contents()
        };
        assert_eq!(shown(None), "one two");
        assert_eq!(shown(Some(19)), "one");
        assert_eq!(shown(Some(5)), "");
        assert_eq!(shown(Some(20)), "one two");
    }
}
