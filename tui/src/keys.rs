//! Keys and what they do: one table, from which help, the configuration file and its check are made.

use std::fmt;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Back out one level, or leave.
    Back,
    /// Leave.
    Quit,
    /// Show the keys.
    Help,
    /// Type a command.
    CommandLine,
    /// Type a filter.
    Filter,
    /// Stop redrawing figures; recording goes on.
    Freeze,
    /// Next view.
    NextView,
    /// Previous view.
    PreviousView,
    /// The view of this number, from 1.
    View(u8),
    /// Up one line.
    Up,
    /// Down one line.
    Down,
    /// Up a screen.
    PageUp,
    /// Down a screen.
    PageDown,
    /// First line.
    Top,
    /// Last line.
    Bottom,
    /// Back in time, or left.
    Left,
    /// Forward in time, or right.
    Right,
    /// Do what is meant by Enter here.
    Enter,
    /// Shorter stretch of time.
    ZoomIn,
    /// Longer stretch of time.
    ZoomOut,
    /// Play or pause a replay.
    Play,
    /// Move the selected VM.
    Migrate,
    /// Cancel the selected VM's migration.
    Cancel,
    /// Pull a host.
    Pull,
    /// Freeze or thaw a host.
    FreezeHost,
    /// Switch a host on.
    PowerOn,
    /// Start a VM.
    StartVm,
    /// Suspend a VM, or let it go on.
    Suspend,
    /// Cut a link.
    Cut,
    /// Delay a link.
    Delay,
    /// Make a link lossy.
    Loss,
    /// Heal a link.
    Heal,
    /// Pause or resume storage.
    StoragePause,
    /// Kill or start storage.
    StorageKill,
    /// Let the storage server's disk fail, or be well.
    DiskFault,
    /// Type at the VM's console.
    Console,
    /// Mark this moment.
    Mark,
    /// Type into the session.
    TypeSession,
    /// Start or stop a recording of the session.
    Record,
    /// Run a scenario.
    RunScenario,
    /// End a command that runs beside this screen.
    CancelRun,
    /// Compare two runs.
    Compare,
    /// Open a run's report.
    OpenReport,
    /// Write a VM's disks out.
    Export,
    /// Read a VM's disks in.
    Import,
    /// Keep a disk as it is now.
    Snapshot,
    /// Make a second disk like this one.
    Clone,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is asked for.
    pub action: Action,
    /// Its name in the configuration file.
    pub name: &'static str,
    /// Its keys, unless configured.
    pub keys: &'static [&'static str],
    /// What it does, in words.
    pub help: &'static str,
    /// Under which title help shows it.
    pub group: Group,
}

/// Titles of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Views and what is shown.
    Look,
    /// Moving about.
    Move,
    /// What is done to the lab.
    Act,
}

impl Group {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Look, Self::Move, Self::Act];

    /// The title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Look => "Look",
            Self::Move => "Move about",
            Self::Act => "Act on the lab",
        }
    }
}

const fn row(
    action: Action,
    name: &'static str,
    keys: &'static [&'static str],
    help: &'static str,
    group: Group,
) -> Row {
    Row {
        action,
        name,
        keys,
        help,
        group,
    }
}

/// The table.
pub const TABLE: &[Row] = &[
    row(
        Action::Help,
        "help",
        &["?", "f1"],
        "show the keys",
        Group::Look,
    ),
    row(
        Action::View(1),
        "overview",
        &["1"],
        "overview of the pool",
        Group::Look,
    ),
    row(
        Action::View(2),
        "session",
        &["2"],
        "the session: its screen and latency",
        Group::Look,
    ),
    row(
        Action::View(3),
        "migration",
        &["3"],
        "migrations: rounds, phases, pauses",
        Group::Look,
    ),
    row(
        Action::View(4),
        "network",
        &["4"],
        "links and their faults",
        Group::Look,
    ),
    row(
        Action::View(5),
        "storage",
        &["5"],
        "storage server and leases",
        Group::Look,
    ),
    row(
        Action::View(6),
        "events",
        &["6"],
        "the event log",
        Group::Look,
    ),
    row(Action::View(7), "runs", &["7"], "earlier runs", Group::Look),
    row(
        Action::NextView,
        "next-view",
        &["tab", "]"],
        "next view",
        Group::Look,
    ),
    row(
        Action::PreviousView,
        "previous-view",
        &["backtab", "["],
        "previous view",
        Group::Look,
    ),
    row(
        Action::Freeze,
        "freeze-display",
        &["f"],
        "freeze the display; recording goes on",
        Group::Look,
    ),
    row(
        Action::ZoomIn,
        "zoom-in",
        &["+", "="],
        "shorter stretch of time",
        Group::Look,
    ),
    row(
        Action::ZoomOut,
        "zoom-out",
        &["-"],
        "longer stretch of time",
        Group::Look,
    ),
    row(
        Action::Filter,
        "filter",
        &["/"],
        "filter the events",
        Group::Look,
    ),
    row(
        Action::CommandLine,
        "command-line",
        &[":"],
        "type a command, as after elab",
        Group::Look,
    ),
    row(
        Action::Back,
        "back",
        &["esc"],
        "back out one level",
        Group::Look,
    ),
    row(Action::Quit, "quit", &["q", "ctrl-c"], "leave", Group::Look),
    row(Action::Up, "up", &["up", "k"], "up", Group::Move),
    row(Action::Down, "down", &["down", "j"], "down", Group::Move),
    row(
        Action::Left,
        "left",
        &["left", "h"],
        "left; in a replay: back in time",
        Group::Move,
    ),
    row(
        Action::Right,
        "right",
        &["right", "l"],
        "right; in a replay: on in time",
        Group::Move,
    ),
    row(
        Action::PageUp,
        "page-up",
        &["pageup", "ctrl-u"],
        "up a screen",
        Group::Move,
    ),
    row(
        Action::PageDown,
        "page-down",
        &["pagedown", "ctrl-d"],
        "down a screen",
        Group::Move,
    ),
    row(Action::Top, "top", &["home", "g"], "first", Group::Move),
    row(
        Action::Bottom,
        "bottom",
        &["end", "G"],
        "last; follow what comes",
        Group::Move,
    ),
    row(
        Action::Enter,
        "enter",
        &["enter"],
        "open; from an event: show its time",
        Group::Move,
    ),
    row(
        Action::Play,
        "play",
        &["space"],
        "play or pause a replay",
        Group::Move,
    ),
    row(
        Action::Migrate,
        "migrate",
        &["m"],
        "migrate the VM",
        Group::Act,
    ),
    row(
        Action::Cancel,
        "cancel-migration",
        &["c"],
        "cancel its migration",
        Group::Act,
    ),
    row(
        Action::StartVm,
        "start-vm",
        &["s"],
        "start the VM on a host",
        Group::Act,
    ),
    row(
        Action::Suspend,
        "suspend",
        &["z"],
        "suspend the VM, or let it go on",
        Group::Act,
    ),
    row(
        Action::Console,
        "console",
        &["o"],
        "type at the VM's console; ctrl-] detaches",
        Group::Act,
    ),
    row(
        Action::Pull,
        "pull",
        &["P"],
        "pull a host's plug",
        Group::Act,
    ),
    row(
        Action::FreezeHost,
        "freeze-host",
        &["F"],
        "freeze or thaw a host",
        Group::Act,
    ),
    row(
        Action::PowerOn,
        "power-on",
        &["O"],
        "switch a host on",
        Group::Act,
    ),
    row(Action::Cut, "cut", &["x"], "cut a link", Group::Act),
    row(
        Action::Delay,
        "delay",
        &["d"],
        "delay a link by 20 ms",
        Group::Act,
    ),
    row(
        Action::Loss,
        "loss",
        &["L"],
        "let a link lose 1 %",
        Group::Act,
    ),
    row(Action::Heal, "heal", &["0"], "heal a link", Group::Act),
    row(
        Action::StoragePause,
        "storage-pause",
        &["p"],
        "pause or resume the storage server",
        Group::Act,
    ),
    row(
        Action::StorageKill,
        "storage-kill",
        &["K"],
        "kill or start the storage server",
        Group::Act,
    ),
    row(
        Action::DiskFault,
        "disk-fault",
        &["D"],
        "let the storage server's disk fail, or be well",
        Group::Act,
    ),
    row(
        Action::Mark,
        "mark",
        &["M"],
        "mark this moment in the log",
        Group::Act,
    ),
    row(
        Action::TypeSession,
        "type-session",
        &["i"],
        "type in the guest over SSH; ctrl-] detaches",
        Group::Act,
    ),
    row(
        Action::Record,
        "record",
        &["r"],
        "start or stop a recording of the session",
        Group::Act,
    ),
    row(
        Action::RunScenario,
        "run-scenario",
        &["R"],
        "run a scenario in a lab of its own",
        Group::Act,
    ),
    row(
        Action::CancelRun,
        "cancel-run",
        &["X"],
        "cancel what was begun here and runs beside",
        Group::Act,
    ),
    row(
        Action::Compare,
        "compare",
        &["v"],
        "in the runs: compare two",
        Group::Act,
    ),
    row(
        Action::OpenReport,
        "open-report",
        &["w"],
        "in the runs: open the report",
        Group::Act,
    ),
    row(
        Action::Export,
        "export",
        &["E"],
        "export the VM",
        Group::Act,
    ),
    row(Action::Import, "import", &["I"], "import a VM", Group::Act),
    row(
        Action::Snapshot,
        "snapshot",
        &["S"],
        "keep what the VM's disks hold now",
        Group::Act,
    ),
    row(Action::Clone, "clone", &["C"], "clone the VM", Group::Act),
];

/// A key, as one writes it: `m`, `P`, `ctrl-d`, `f1`, `pageup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    code: KeyCode,
    ctrl: bool,
}

/// Names of the keys that are no single character.
const NAMED: &[(&str, KeyCode)] = &[
    ("esc", KeyCode::Esc),
    ("enter", KeyCode::Enter),
    ("tab", KeyCode::Tab),
    ("backtab", KeyCode::BackTab),
    ("space", KeyCode::Char(' ')),
    ("up", KeyCode::Up),
    ("down", KeyCode::Down),
    ("left", KeyCode::Left),
    ("right", KeyCode::Right),
    ("home", KeyCode::Home),
    ("end", KeyCode::End),
    ("pageup", KeyCode::PageUp),
    ("pagedown", KeyCode::PageDown),
    ("f1", KeyCode::F(1)),
    ("f2", KeyCode::F(2)),
    ("f3", KeyCode::F(3)),
    ("f4", KeyCode::F(4)),
    ("f5", KeyCode::F(5)),
];

impl Key {
    /// Reads a key's name.
    ///
    /// # Errors
    /// A sentence that says how keys are written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (ctrl, rest) = match text.strip_prefix("ctrl-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut characters = rest.chars();
        let code = match (characters.next(), characters.next()) {
            (Some(one), None) if !one.is_control() => KeyCode::Char(one),
            _ => NAMED
                .iter()
                .find(|(name, _)| *name == rest)
                .map(|(_, code)| *code)
                .ok_or_else(|| {
                    format!("\"{text}\" is no key: a character, ctrl-d, or one of esc, enter, tab, space, pageup, f1 ...")
                })?,
        };
        Ok(Self { code, ctrl })
    }

    /// The key of a terminal's event.
    #[must_use]
    pub fn of(event: KeyEvent) -> Self {
        Self {
            code: event.code,
            ctrl: event.modifiers.contains(KeyModifiers::CONTROL),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ctrl {
            f.write_str("ctrl-")?;
        }
        match NAMED.iter().find(|(_, code)| *code == self.code) {
            Some((name, _)) => f.write_str(name),
            None => match self.code {
                KeyCode::Char(c) => write!(f, "{c}"),
                other => write!(f, "{other}"),
            },
        }
    }
}

/// Which key does what now.
#[derive(Clone, Debug)]
pub struct Keys {
    bound: Vec<(Key, Action)>,
}

impl Default for Keys {
    fn default() -> Self {
        let bound = TABLE.iter().flat_map(|row| {
            row.keys.iter().map(|key| {
                let key = Key::parse(key).expect("the table's keys are checked by a test");
                (key, row.action)
            })
        });
        Self {
            bound: bound.collect(),
        }
    }
}

impl Keys {
    /// What a key does.
    #[must_use]
    pub fn action(&self, key: Key) -> Option<Action> {
        self.bound
            .iter()
            .find(|(bound, _)| *bound == key)
            .map(|(_, action)| *action)
    }

    /// The keys of an action.
    #[must_use]
    pub fn keys(&self, action: Action) -> Vec<Key> {
        self.bound
            .iter()
            .filter(|(_, bound)| *bound == action)
            .map(|(key, _)| *key)
            .collect()
    }

    /// An action's first key as text, for hints.
    #[must_use]
    pub fn hint(&self, action: Action) -> String {
        self.keys(action)
            .first()
            .map_or_else(String::new, Key::to_string)
    }

    /// Gives an action other keys.
    ///
    /// # Errors
    /// A sentence when there is no such action, a key is none, or it is taken.
    pub fn rebind(&mut self, name: &str, keys: &[String]) -> Result<(), String> {
        let row = TABLE.iter().find(|row| row.name == name).ok_or_else(|| {
            format!("there is no action \"{name}\"; `elab tui --print-config` lists them")
        })?;
        let keys: Vec<Key> = keys
            .iter()
            .map(|key| Key::parse(key))
            .collect::<Result<_, _>>()?;
        self.bound.retain(|(_, action)| *action != row.action);
        self.bound
            .extend(keys.into_iter().map(|key| (key, row.action)));
        Ok(())
    }

    /// Whether a key has two meanings.
    ///
    /// # Errors
    /// A sentence that names the key and both actions.
    pub fn check(&self) -> Result<(), String> {
        for (index, (key, action)) in self.bound.iter().enumerate() {
            if let Some((_, other)) = self.bound[..index]
                .iter()
                .find(|(earlier, _)| earlier == key)
            {
                return Err(format!(
                    "key \"{key}\" is bound to both {} and {}",
                    name(*other),
                    name(*action)
                ));
            }
        }
        Ok(())
    }
}

fn name(action: Action) -> &'static str {
    TABLE
        .iter()
        .find(|row| row.action == action)
        .map_or("", |row| row.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        Keys::default().check().unwrap();
        for row in TABLE {
            for key in row.keys {
                assert_eq!(Key::parse(key).unwrap().to_string(), *key);
            }
        }
    }

    #[test]
    fn a_key_can_be_moved_but_not_shared() {
        let mut keys = Keys::default();
        keys.rebind("migrate", &["f2".into()]).unwrap();
        assert_eq!(keys.action(Key::parse("m").unwrap()), None);
        assert_eq!(
            keys.action(Key::parse("f2").unwrap()),
            Some(Action::Migrate)
        );
        keys.rebind("pull", &["f2".into()]).unwrap();
        assert!(keys.check().unwrap_err().contains("both migrate and pull"));
        assert!(keys.rebind("fly", &[]).unwrap_err().contains("no action"));
        assert!(
            keys.rebind("pull", &["hyper-x".into()])
                .unwrap_err()
                .contains("is no key")
        );
    }
}
