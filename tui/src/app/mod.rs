//! What the terminal interface knows and shows, and how a key changes it.
//!
//! `update` takes an input and gives effects; it neither reads nor writes anything, and time comes with the input. So every
//! screen can be made in a test.

mod actions;
mod messages;
mod overlay;
mod time;
mod typing;

use crossterm::event::KeyEvent;
use lab_protocol::Event;
use scenarios::measure::migration::Migration;

pub use actions::{Plan, Target, shown};
pub use messages::{Effect, Input, Job, Run};
pub use overlay::{LineEdit, Overlay, Pick};
pub use typing::{Echo, Shell};

use crate::config::Config;
use crate::keys::{Action, Key, Keys};
use crate::log::Log;
use crate::model::Lab;
use crate::screen::Screens;
use crate::theme::Look;

/// The views, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The pool at a glance.
    Overview,
    /// The guest's screen and what its user notices.
    Session,
    /// Migrations.
    Migration,
    /// Links.
    Network,
    /// Storage server and leases.
    Storage,
    /// The event log.
    Events,
    /// Earlier runs.
    Runs,
}

impl View {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Overview,
        Self::Session,
        Self::Migration,
        Self::Network,
        Self::Storage,
        Self::Events,
        Self::Runs,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Session => "Session",
            Self::Migration => "Migration",
            Self::Network => "Network",
            Self::Storage => "Storage",
            Self::Events => "Events",
            Self::Runs => "Runs",
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|view| *view == self).unwrap_or(0)
    }

    fn step(self, by: usize) -> Self {
        Self::ALL[(self.index() + by) % Self::ALL.len()]
    }
}

/// Where what is shown comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// A lab that runs. `ahead_ns` is its clock's lead over ours.
    Live {
        /// Lab's clock less ours.
        ahead_ns: i128,
    },
    /// A finished run, looked at as it was at `at_ns`.
    Replay {
        /// The moment shown.
        at_ns: u64,
        /// Whether it goes on by itself.
        playing: bool,
    },
}

/// How a message is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It worked.
    Done,
    /// It did not.
    Failed,
    /// So it is.
    Note,
}

/// A message shown for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Toast {
    /// What it says.
    pub text: String,
    /// How it is meant.
    pub level: Level,
    until_ns: u64,
}

/// Lines folded between two inputs: some ten milliseconds of work.
const FOLD_AT_ONCE: usize = 4000;
/// A message is shown for so long.
const TOAST_NS: u64 = 5_000_000_000;
/// Everything.
#[derive(Debug)]
pub struct App {
    /// Key bindings.
    pub keys: Keys,
    /// Colours and characters.
    pub look: Look,
    /// Whether commands may be sent.
    pub readonly: bool,
    /// The log.
    pub log: Log,
    /// Live or replay.
    pub mode: Mode,
    /// Time of the last record of a finished run: its log no longer grows, and finding it parses records.
    pub end_ns: u64,
    /// The lab as far as it was folded.
    lab: Lab,
    /// The lab as it was when the display was frozen.
    frozen: Option<Box<(Lab, u64)>>,
    folded: usize,
    behind: bool,
    /// Lines that say something new, as far as they were folded.
    notable: Vec<usize>,
    /// Screens of the session and the consoles.
    pub screens: Screens,
    /// The view shown.
    pub view: View,
    /// What lies over the view.
    pub overlay: Option<Overlay>,
    /// The message shown.
    pub toast: Option<Toast>,
    /// Line selected in each view.
    selected: [usize; View::ALL.len()],
    /// Filter of the events, in lower case.
    pub filter: String,
    /// Lines of the log that pass the filter, as far as they were looked at.
    passing: Vec<usize>,
    looked_at: usize,
    /// Whether the events follow the end.
    pub follow: bool,
    zoom: usize,
    /// A moment that was jumped to.
    pub pinned_ns: Option<u64>,
    /// Earlier runs.
    pub runs: Vec<Run>,
    /// The run that waits for another to be compared with.
    compared: Option<Box<Run>>,
    /// Since when the session is recorded, on the lab's clock.
    pub recording_since_ns: Option<u64>,
    /// Our clock at the last input.
    now_ns: u64,
    last_tick_ns: u64,
    /// How a console answers.
    pub echo: Echo,
    /// A shell of one's own in the guest.
    pub shell: Option<Shell>,
    /// Whether the run's folder says how to join the guest by SSH.
    pub joinable: bool,
    /// Commands that run beside this screen.
    pub jobs: Vec<Job>,
    /// Height of the last frame's body, for paging.
    pub page: usize,
    /// Width and height of the last frame's body.
    pub body: (u16, u16),
}

impl App {
    /// Starts with a log.
    ///
    /// # Errors
    /// When the configuration binds a key twice or names an unknown action.
    pub fn new(config: &Config, log: Log, mode: Mode) -> anyhow::Result<Self> {
        Ok(Self {
            keys: config.bindings()?,
            look: Look::new(config.theme, config.ascii),
            readonly: config.readonly,
            end_ns: match mode {
                Mode::Replay { .. } => log.last_t_ns(),
                Mode::Live { .. } => 0,
            },
            log,
            mode,
            lab: Lab::default(),
            frozen: None,
            folded: 0,
            behind: false,
            notable: Vec::new(),
            screens: Screens::default(),
            view: View::Overview,
            overlay: None,
            toast: None,
            selected: [0; View::ALL.len()],
            filter: String::new(),
            passing: Vec::new(),
            looked_at: 0,
            follow: true,
            zoom: 4,
            pinned_ns: None,
            runs: Vec::new(),
            compared: None,
            recording_since_ns: None,
            now_ns: 0,
            last_tick_ns: 0,
            echo: Echo::default(),
            shell: None,
            joinable: false,
            jobs: Vec::new(),
            page: 10,
            body: (80, 20),
        })
    }

    /// The lab as it is to be shown.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        self.frozen.as_ref().map_or(&self.lab, |frozen| &frozen.0)
    }

    /// Whether the display stands still.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Whether what there is to fold was more than is folded at once.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Whether records wait to be folded; the share that is done, if it is worth a word.
    #[must_use]
    pub fn loading(&self) -> Option<f64> {
        let behind = self.log.len() - self.folded.min(self.log.len());
        let wanted = matches!(self.mode, Mode::Live { .. }) && behind > FOLD_AT_ONCE;
        wanted.then(|| self.folded as f64 / self.log.len() as f64)
    }

    /// Folds what has come, up to a bound; says whether anything changed.
    pub fn fold(&mut self) -> bool {
        let until = match self.mode {
            Mode::Live { .. } => u64::MAX,
            Mode::Replay { at_ns, .. } => at_ns,
        };
        let before = self.folded;
        while self.folded < self.log.len() && self.folded - before < FOLD_AT_ONCE {
            let record = self.log.record(self.folded);
            // Hosts' stamps stand a little out of order; the order of the log is kept all the same.
            if record.as_ref().is_some_and(|record| record.t_ns > until) {
                break;
            }
            if record
                .as_ref()
                .is_none_or(|record| is_notable(&record.event))
            {
                self.notable.push(self.folded);
            }
            if let Some(record) = record {
                self.lab.apply(&record);
            }
            self.folded += 1;
        }
        self.behind = self.folded - before == FOLD_AT_ONCE;
        let looked = self.filter_events();
        self.folded > before || looked
    }

    fn filter_events(&mut self) -> bool {
        let end = match self.mode {
            Mode::Live { .. } => self.log.len(),
            Mode::Replay { .. } => self.folded,
        };
        let from = self.looked_at;
        // Cheap beside folding, so more of it at once.
        let to = end.min(from.saturating_add(50 * FOLD_AT_ONCE));
        if !self.filter.is_empty() {
            let passing = (from..to).filter(|index| passes(&self.log, &self.filter, *index));
            self.passing.extend(passing);
        }
        self.looked_at = to.max(from);
        to > from
    }

    /// Number of events that pass the filter.
    #[must_use]
    pub fn events(&self) -> usize {
        if self.filter.is_empty() {
            self.looked_at
        } else {
            self.passing.len()
        }
    }

    /// The line in the log of the `row`th event that passes the filter.
    #[must_use]
    pub fn event_line(&self, row: usize) -> Option<usize> {
        if self.filter.is_empty() {
            (row < self.looked_at).then_some(row)
        } else {
            self.passing.get(row).copied()
        }
    }

    /// Lines of the latest events that say something new, the newest last: no samples, keys or regular reports.
    #[must_use]
    pub fn latest(&self, count: usize) -> Vec<usize> {
        let until = if self.is_frozen() {
            self.lab_now_ns()
        } else {
            u64::MAX
        };
        let came_before = |line: &&usize| {
            until == u64::MAX
                || self
                    .log
                    .record(**line)
                    .is_some_and(|record| record.t_ns <= until)
        };
        let newest_first = self.notable.iter().rev().filter(came_before);
        let mut lines: Vec<usize> = newest_first.take(count).copied().collect();
        lines.reverse();
        lines
    }

    fn refold(&mut self) {
        self.lab = Lab::default();
        self.folded = 0;
        self.notable.clear();
        self.passing.clear();
        self.looked_at = 0;
        while self.fold() && self.folded < self.log.len() {}
    }

    /// The selected line of the current view.
    #[must_use]
    pub fn selected(&self) -> usize {
        let index = self.view.index();
        if self.view == View::Events && self.follow {
            return self.events().saturating_sub(1);
        }
        self.selected[index].min(self.rows().saturating_sub(1))
    }

    /// The migration in a row of its view: the newest comes first, so that what is under way is seen.
    #[must_use]
    pub fn migration(&self, row: usize) -> Option<&Migration> {
        self.lab().migrations.all().iter().rev().nth(row)
    }

    /// Number of lines that can be selected in the current view.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self.view {
            View::Overview => self.targets().len(),
            View::Session => 0,
            View::Migration => self.lab().migrations.all().len(),
            View::Network => self.links().len(),
            View::Storage => self.lab().disks().len(),
            View::Events => self.events(),
            View::Runs => self.runs.len(),
        }
    }

    /// Takes an input at time `now_ns` of our clock.
    pub fn update(&mut self, input: Input, now_ns: u64) -> Vec<Effect> {
        self.now_ns = now_ns;
        if self
            .toast
            .as_ref()
            .is_some_and(|toast| toast.until_ns <= now_ns)
        {
            self.toast = None;
        }
        match input {
            Input::Key(event) => self.key(event),
            Input::Click { y, .. } => {
                self.click(y);
                Vec::new()
            }
            Input::Scroll(lines) => {
                self.scroll(lines);
                Vec::new()
            }
            Input::Answer { words, result } => {
                self.answer(&words, result);
                Vec::new()
            }
            Input::Progress { words, said } => {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.words == words) {
                    job.said = said;
                }
                Vec::new()
            }
            Input::ShellPrinted { bytes, at_ns } => {
                self.shell_printed(&bytes, at_ns);
                Vec::new()
            }
            Input::ShellEnded(reason) => {
                self.shell_ended(&reason);
                Vec::new()
            }
            Input::Runs(runs) => {
                self.runs = runs;
                Vec::new()
            }
            Input::Tick => {
                self.tick();
                Vec::new()
            }
        }
    }

    fn tick(&mut self) {
        let passed = self.now_ns.saturating_sub(self.last_tick_ns);
        self.last_tick_ns = self.now_ns;
        if let Mode::Replay { at_ns, playing } = &mut self.mode
            && *playing
            && self.frozen.is_none()
        {
            let last = self.end_ns;
            *at_ns = at_ns.saturating_add(passed).min(last);
            *playing = *at_ns < last;
        }
        self.fold();
        self.screens.show_at(match self.mode {
            Mode::Live { .. } => None,
            Mode::Replay { at_ns, .. } => Some(at_ns),
        });
    }

    fn answer(&mut self, words: &str, result: Result<String, String>) {
        self.jobs.retain(|job| job.words != words);
        match result {
            Ok(value) if value.is_empty() => self.say(Level::Done, format!("elab {words}")),
            Ok(value) => self.say(Level::Done, format!("elab {words}: {value}")),
            Err(error) => self.say(Level::Failed, format!("elab {words}: {error}")),
        }
    }

    /// Shows a message.
    pub fn say(&mut self, level: Level, text: impl Into<String>) {
        self.toast = Some(Toast {
            text: text.into(),
            level,
            until_ns: self.now_ns + TOAST_NS,
        });
    }

    fn key(&mut self, event: KeyEvent) -> Vec<Effect> {
        if self.overlay.is_some() {
            return self.overlay_key(event);
        }
        let Some(action) = self.keys.action(Key::of(event)) else {
            return Vec::new();
        };
        self.act(action)
    }

    fn act(&mut self, action: Action) -> Vec<Effect> {
        match action {
            Action::Quit => return self.ask_to_leave(),
            Action::Help => self.overlay = Some(Overlay::Help { from: 0 }),
            Action::CommandLine => self.overlay = Some(Overlay::CommandLine(LineEdit::default())),
            Action::Filter => {
                self.view = View::Events;
                self.overlay = Some(Overlay::Filter(LineEdit::new(&self.filter)));
            }
            Action::Back => self.back(),
            Action::Freeze => self.freeze(),
            Action::NextView => return self.show(self.view.step(1)),
            Action::PreviousView => return self.show(self.view.step(View::ALL.len() - 1)),
            Action::View(number) => {
                return self.show(View::ALL[usize::from(number - 1).min(View::ALL.len() - 1)]);
            }
            Action::Up => self.scroll(-1),
            Action::Down => self.scroll(1),
            Action::PageUp => self.scroll(-(self.page as i32)),
            Action::PageDown => self.scroll(self.page as i32),
            Action::Top => self.select(0),
            Action::Bottom => {
                self.select(usize::MAX);
                self.follow = true;
            }
            Action::Left => self.shift(false),
            Action::Right => self.shift(true),
            Action::ZoomIn => self.zoom(false),
            Action::ZoomOut => self.zoom(true),
            Action::Play => self.play(),
            Action::Enter => return self.enter(),
            other => return self.plan_and_ask(other),
        }
        Vec::new()
    }

    fn ask_to_leave(&mut self) -> Vec<Effect> {
        let runs = matches!(self.mode, Mode::Live { .. }) && self.lab.stopped.is_none();
        if !runs || self.readonly {
            return vec![Effect::Leave { down: false }];
        }
        self.overlay = Some(Overlay::Leave);
        Vec::new()
    }

    /// Shows a view.
    pub fn show(&mut self, view: View) -> Vec<Effect> {
        self.view = view;
        if view == View::Runs {
            vec![Effect::ListRuns]
        } else {
            Vec::new()
        }
    }

    fn back(&mut self) {
        if self.pinned_ns.take().is_some() {
            return;
        }
        if self.view == View::Events && !self.filter.is_empty() {
            self.set_filter("");
        } else {
            self.view = View::Overview;
        }
    }

    /// Filters the events.
    pub fn set_filter(&mut self, text: &str) {
        self.filter = text.to_lowercase();
        self.passing.clear();
        self.looked_at = 0;
        self.follow = true;
        self.filter_events();
    }

    fn select(&mut self, row: usize) {
        let last = self.rows().saturating_sub(1);
        self.selected[self.view.index()] = row.min(last);
        if self.view == View::Events {
            self.follow = row >= last;
        }
    }

    fn scroll(&mut self, lines: i32) {
        let row = self.selected() as i64 + i64::from(lines);
        self.select(usize::try_from(row.max(0)).unwrap_or(0));
    }

    /// The body begins below the header and the tabs; a list's first line below its title.
    fn click(&mut self, y: u16) {
        const FIRST_LINE: u16 = 4;
        if let Some(row) = y.checked_sub(FIRST_LINE) {
            self.select(usize::from(row));
        }
    }

    fn enter(&mut self) -> Vec<Effect> {
        match self.view {
            View::Events => {
                let record = self
                    .event_line(self.selected())
                    .and_then(|line| self.log.record(line));
                if let Some(record) = record {
                    self.pinned_ns = Some(record.t_ns);
                    self.view = View::Session;
                    self.say(
                        Level::Note,
                        "showing the time of that event; esc goes back to now",
                    );
                }
            }
            View::Migration => {
                let stop = self
                    .migration(self.selected())
                    .map(|one| one.pause().map_or(one.requested_ns, |pause| pause.start_ns));
                if let Some(stop) = stop {
                    self.pinned_ns = Some(stop);
                    self.zoom = self.zoom.min(2);
                    self.view = View::Session;
                }
            }
            View::Runs => {
                if let Some(run) = self.runs.get(self.selected()) {
                    return vec![Effect::Open(run.folder.clone())];
                }
            }
            View::Overview => {
                self.view = match self.targets().get(self.selected()) {
                    Some(Target::Vm(_)) => View::Session,
                    _ => View::Network,
                };
            }
            View::Session | View::Network | View::Storage => {}
        }
        Vec::new()
    }
}

/// Whether an event says something new; samples, keys and regular reports do not.
fn is_notable(event: &Event) -> bool {
    !matches!(
        event,
        Event::ProbeSamples { .. }
            | Event::Key { .. }
            | Event::HostStatus { .. }
            | Event::VmStatus { .. }
            | Event::PortStatistics { .. }
            | Event::StorageStatistics { .. }
            | Event::RepositoryUse { .. }
    )
}

/// Whether a line passes a filter. Regular reports hold the names of everything, so they pass by what they are.
fn passes(log: &Log, filter: &str, line: usize) -> bool {
    let regular: [&[u8]; 3] = [b"storage-statistics", b"port-statistics", b"repository-use"];
    match log.kind(line) {
        Some(kind) if regular.contains(&kind) => String::from_utf8_lossy(kind).contains(filter),
        _ => log.contains(line, filter),
    }
}
