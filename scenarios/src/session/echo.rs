//! Which keys have arrived, judged by the screen alone.
//!
//! Echoes may come in bursts: after a stall one update of the screen can show the work of many keys. A key counts
//! as seen when the screen shows its echo or that of a later key of the same entry, which contains it. A key
//! whose entry was passed over in one step is only presumed to have arrived: the saved document decides. An Enter
//! needs no document, if the text before it was seen: had it not arrived, the line would still be open.

use std::collections::VecDeque;

use super::script::{Echo, Key};

/// A key on its way.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Counts from 0.
    pub index: u32,
    /// The key.
    pub key: Key,
    /// When it was to be sent.
    pub due_ns: u64,
    /// When it was sent.
    pub sent_ns: u64,
}

/// A key that is no longer waited for.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The key.
    pub sent: Sent,
    /// When its echo, or a later one, was on the screen.
    pub echo_ns: u64,
    /// The screen has proven it.
    pub proven: bool,
}

/// Follows the screen.
#[derive(Debug, Default)]
pub struct Tracker {
    pending: VecDeque<Sent>,
    shown: Option<Echo>,
}

impl Tracker {
    /// A key is sent.
    pub fn sent(&mut self, sent: Sent) {
        self.pending.push_back(sent);
    }

    /// Keys that wait for their echo.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// When the oldest key that waits was sent.
    #[must_use]
    pub fn oldest_sent_ns(&self) -> Option<u64> {
        self.pending.front().map(|sent| sent.sent_ns)
    }

    /// The screen has changed: gives the keys that arrived.
    ///
    /// Of several pending keys with the same echo the earliest is taken, so a latency may come out too long after a
    /// stall of seconds, never too short.
    pub fn screen_changed(&mut self, screen: &vt100::Screen, now_ns: u64) -> Vec<Arrival> {
        if self.shown.as_ref().is_some_and(|echo| shows(screen, echo)) {
            return Vec::new();
        }
        let Some(last) = self
            .pending
            .iter()
            .position(|sent| shows(screen, &sent.key.echo))
        else {
            return Vec::new();
        };
        let entry = self.pending[last].key.entry;
        self.shown = Some(self.pending[last].key.echo.clone());
        self.pending
            .drain(..=last)
            .enumerate()
            .map(|(position, sent)| {
                let enter_after_seen_text = position == 0 && sent.key.byte == b'\r';
                let proven = sent.key.entry == entry || enter_after_seen_text;
                Arrival {
                    sent,
                    echo_ns: now_ns,
                    proven,
                }
            })
            .collect()
    }

    /// Gives up on the keys that still wait.
    pub fn abandon(&mut self) -> Vec<Sent> {
        self.pending.drain(..).collect()
    }
}

fn shows(screen: &vt100::Screen, echo: &Echo) -> bool {
    let (_, columns) = screen.size();
    let mut rows = screen.rows(0, columns);
    let mut is_next = |expected: &str| rows.next().is_some_and(|row| row.trim_end() == expected);
    is_next(&echo.line)
        && echo
            .column
            .is_none_or(|column| screen.cursor_position() == (0, column))
        && echo.message.as_ref().is_none_or(|message| is_next(message))
}

#[cfg(test)]
mod tests {
    use super::super::script::Script;
    use super::*;

    /// A terminal that is told what `sc` would draw for a key.
    struct Fixture {
        parser: vt100::Parser,
        tracker: Tracker,
        keys: Vec<Key>,
        next: usize,
    }

    impl Fixture {
        fn new() -> Self {
            let mut script = Script::new(1);
            let keys = std::iter::from_fn(|| script.next_key()).take(60).collect();
            Self {
                parser: vt100::Parser::new(24, 80, 0),
                tracker: Tracker::default(),
                keys,
                next: 0,
            }
        }

        fn send(&mut self, count: usize) {
            for _ in 0..count {
                let index = self.next as u32;
                let key = self.keys[self.next].clone();
                self.next += 1;
                self.tracker.sent(Sent {
                    index,
                    key,
                    due_ns: 0,
                    sent_ns: u64::from(index),
                });
            }
        }

        fn show(&mut self, echo: &Echo) {
            let message = echo.message.clone().unwrap_or_default();
            let column = echo.column.map_or(80, |column| column + 1);
            let row = if echo.column.is_some() { 1 } else { 24 };
            let text = format!(
                "\x1b[H\x1b[2J{}\r\n{message}\x1b[{row};{column}H",
                echo.line
            );
            self.parser.process(text.as_bytes());
        }

        fn arrivals(&mut self, now_ns: u64) -> Vec<(u32, bool)> {
            let arrivals = self.tracker.screen_changed(self.parser.screen(), now_ns);
            arrivals
                .iter()
                .map(|arrival| (arrival.sent.index, arrival.proven))
                .collect()
        }

        fn show_key(&mut self, index: usize) -> Vec<(u32, bool)> {
            let echo = self.keys[index].echo.clone();
            self.show(&echo);
            self.arrivals(1)
        }
    }

    #[test]
    fn each_echo_is_seen_once() {
        let mut fixture = Fixture::new();
        fixture.send(1);
        assert_eq!(fixture.arrivals(0), []);
        assert_eq!(fixture.show_key(0), [(0, true)]);
        assert_eq!(fixture.arrivals(2), []);
        fixture.send(2);
        assert_eq!(fixture.show_key(1), [(1, true)]);
        assert_eq!(fixture.show_key(2), [(2, true)]);
        assert_eq!(fixture.tracker.pending(), 0);
    }

    #[test]
    fn a_later_echo_of_the_entry_proves_the_earlier_keys() {
        let mut fixture = Fixture::new();
        fixture.send(5);
        assert_eq!(
            fixture.show_key(3),
            [(0, true), (1, true), (2, true), (3, true)]
        );
        assert_eq!(fixture.tracker.pending(), 1);
    }

    #[test]
    fn a_passed_entry_is_only_presumed() {
        let mut fixture = Fixture::new();
        // "<A Trip to the Moon", Enter, "l"
        fixture.send(21);
        let arrivals = fixture.show_key(20);
        assert_eq!(arrivals.len(), 21);
        assert!(arrivals[..20].iter().all(|(_, proven)| !proven));
        assert!(arrivals[20].1);
    }

    #[test]
    fn an_enter_after_seen_text_is_proven_by_what_follows() {
        let mut fixture = Fixture::new();
        fixture.send(19);
        assert_eq!(fixture.show_key(18).len(), 19);
        // Enter, "l", "<": only the last is seen.
        fixture.send(3);
        assert_eq!(fixture.show_key(21), [(19, true), (20, true), (21, true)]);
    }

    #[test]
    fn a_wrong_line_is_no_echo() {
        let mut fixture = Fixture::new();
        fixture.send(3);
        let mut wrong = fixture.keys[2].echo.clone();
        wrong.line = "i> leftstring A0 = \"AA".to_owned();
        fixture.show(&wrong);
        assert_eq!(fixture.arrivals(1), []);
        // A space that was not typed: right text, cursor one short.
        let mut short = fixture.keys[2].echo.clone();
        short.column = short.column.map(|column| column - 2);
        fixture.show(&short);
        assert_eq!(fixture.arrivals(1), []);
    }

    #[test]
    fn an_unchanged_look_proves_nothing_new() {
        let mut fixture = Fixture::new();
        fixture.send(1);
        assert_eq!(fixture.show_key(0).len(), 1);
        // A pending key with the very echo that is shown already.
        let key = fixture.keys[0].clone();
        fixture.tracker.sent(Sent {
            index: 9,
            key,
            due_ns: 0,
            sent_ns: 0,
        });
        assert_eq!(fixture.arrivals(5), []);
    }
}
