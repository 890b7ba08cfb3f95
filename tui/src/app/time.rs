//! Which moment and which stretch of time are shown: now, a moment that was jumped to, a replay's, or the frozen one.

use scenarios::measure::Window;

use super::{App, Level, Mode};

/// Stretches of the strip, in seconds.
const ZOOMS_S: [u64; 8] = [1, 2, 5, 10, 30, 60, 300, 1800];
/// A replay goes on or back by so much.
const STEP_NS: u64 = 1_000_000_000;

impl App {
    /// The lab's time that is shown as now.
    #[must_use]
    pub fn lab_now_ns(&self) -> u64 {
        if let Some(frozen) = &self.frozen {
            return frozen.1;
        }
        match self.mode {
            Mode::Replay { at_ns, .. } => at_ns,
            Mode::Live { .. } if self.lab.stopped.is_some() => self.lab.now_ns,
            Mode::Live { ahead_ns } => {
                let now = u64::try_from(i128::from(self.now_ns) + ahead_ns).unwrap_or(0);
                now.max(self.lab.now_ns)
            }
        }
    }

    /// The stretch of time that strips show: up to now, or around the moment that was jumped to.
    #[must_use]
    pub fn window(&self) -> Window {
        let span = ZOOMS_S[self.zoom] * 1_000_000_000;
        let end_ns = match self.pinned_ns {
            Some(moment) => moment.saturating_add(span / 2).max(span),
            // Probes report once a second: the newest second of a live strip would always be empty.
            None if matches!(self.mode, Mode::Live { .. }) => {
                self.lab_now_ns().saturating_sub(1_000_000_000).max(span)
            }
            None => self.lab_now_ns().max(span),
        };
        Window {
            start_ns: end_ns - span,
            end_ns,
        }
    }

    /// Length of the strip in seconds.
    #[must_use]
    pub fn zoom_s(&self) -> u64 {
        ZOOMS_S[self.zoom]
    }

    pub(super) fn freeze(&mut self) {
        self.frozen = match self.frozen.take() {
            Some(_) => None,
            None => Some(Box::new((self.lab.clone(), self.lab_now_ns()))),
        };
    }

    pub(super) fn shift(&mut self, on: bool) {
        match &mut self.mode {
            Mode::Replay { at_ns, playing } => {
                *playing = false;
                let last = self.end_ns;
                if on {
                    *at_ns = at_ns.saturating_add(STEP_NS).min(last);
                    while self.fold() && self.folded < self.log.len() {}
                } else {
                    *at_ns = at_ns.saturating_sub(STEP_NS);
                    self.refold();
                }
            }
            Mode::Live { .. } => {
                let span = ZOOMS_S[self.zoom] * 1_000_000_000;
                let middle = self.window().start_ns + span / 2;
                let moved = if on {
                    middle.saturating_add(span / 4)
                } else {
                    middle.saturating_sub(span / 4)
                };
                let live = self.lab_now_ns().saturating_sub(span / 2);
                self.pinned_ns = (moved < live).then_some(moved);
            }
        }
    }

    pub(super) fn play(&mut self) {
        let last = self.end_ns;
        match &mut self.mode {
            Mode::Replay { at_ns, playing } => {
                let at_end = *at_ns >= last;
                *playing = !*playing;
                if at_end {
                    *at_ns = 0;
                    *playing = true;
                    self.refold();
                }
            }
            Mode::Live { .. } => self.say(
                Level::Note,
                "this lab is live; f freezes the display, ← → look back",
            ),
        }
    }

    /// Shows a shorter or longer stretch.
    pub fn zoom(&mut self, longer: bool) {
        self.zoom = if longer {
            (self.zoom + 1).min(ZOOMS_S.len() - 1)
        } else {
            self.zoom.saturating_sub(1)
        };
    }
}
