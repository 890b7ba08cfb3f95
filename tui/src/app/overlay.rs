//! What lies over a view: questions, lists, lines to type, the help, a console.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use lab_protocol::Command;

use super::{App, Effect, Job, Level, Run, View};
use crate::command::{self, Typed};
use crate::keys::{Action, Key};

/// A line that is being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineEdit {
    /// What it holds; the cursor is at its end.
    pub text: String,
    /// What Tab offers.
    pub offers: Vec<String>,
}

impl LineEdit {
    /// Begins with a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            offers: Vec::new(),
        }
    }

    /// Takes a key; `true` when it was of use.
    fn key(&mut self, event: KeyEvent) -> bool {
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        match event.code {
            KeyCode::Char('u') if ctrl => self.text.clear(),
            KeyCode::Char('w') if ctrl => {
                let kept = self.text.trim_end().rfind(' ').map_or(0, |at| at + 1);
                self.text.truncate(kept);
            }
            KeyCode::Char(c) if !ctrl && self.text.len() < 500 => self.text.push(c),
            KeyCode::Backspace => {
                self.text.pop();
            }
            _ => return false,
        }
        self.offers.clear();
        true
    }

    /// Completes the last word.
    fn complete(&mut self, offers: Vec<String>) {
        let start = self.text.rfind(' ').map_or(0, |at| at + 1);
        match offers.as_slice() {
            [] => {}
            [only] => {
                self.text.truncate(start);
                self.text.push_str(only);
                self.text.push(' ');
            }
            [first, rest @ ..] => {
                let common = rest.iter().fold(first.len(), |common, other| {
                    let same = first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b);
                    common.min(same.count())
                });
                self.text.truncate(start);
                self.text.push_str(&first[..common]);
            }
        }
        self.offers = if offers.len() > 1 { offers } else { Vec::new() };
    }
}

/// One of several things to choose from.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// What it says.
    pub label: String,
    /// What is done, or why it cannot be.
    pub effect: Result<Effect, String>,
}

/// What lies over the view.
#[derive(Clone, Debug, PartialEq)]
pub enum Overlay {
    /// The keys, from this line on.
    Help {
        /// First line shown.
        from: usize,
    },
    /// A question before something that cannot be undone.
    Confirm {
        /// What will happen.
        question: String,
        /// What is done on "yes".
        effect: Effect,
    },
    /// Several possibilities.
    Choose {
        /// What for.
        title: String,
        /// The possibilities.
        picks: Vec<Pick>,
        /// The selected one.
        at: usize,
    },
    /// A command that is being typed.
    CommandLine(LineEdit),
    /// A filter that is being typed.
    Filter(LineEdit),
    /// A mark that is being typed.
    MarkLine(LineEdit),
    /// Whether the lab shall stay up.
    Leave,
    /// Two runs beside one another.
    Compare(Box<Run>, Box<Run>),
    /// A shell of one's own in the guest has the keyboard.
    Shell,
    /// A VM's console has the keyboard.
    Console {
        /// Which VM.
        vm: String,
    },
}

impl App {
    pub(super) fn overlay_key(&mut self, event: KeyEvent) -> Vec<Effect> {
        let Some(overlay) = self.overlay.take() else {
            return Vec::new();
        };
        match overlay {
            Overlay::Console { vm } => return self.console_key(vm, event),
            Overlay::Shell => return self.shell_key(event),
            _ => {}
        }
        let action = self.keys.action(Key::of(event));
        if event.code == KeyCode::Esc
            || (event.code == KeyCode::Char('c') && event.modifiers.contains(KeyModifiers::CONTROL))
        {
            if matches!(overlay, Overlay::Filter(_)) {
                self.set_filter("");
            }
            return Vec::new();
        }
        match overlay {
            Overlay::Help { from } => {
                let from = match action {
                    Some(Action::Down) => from + 1,
                    Some(Action::Up) => from.saturating_sub(1),
                    Some(Action::PageDown) => from + self.page,
                    Some(Action::PageUp) => from.saturating_sub(self.page),
                    _ => return Vec::new(),
                };
                self.overlay = Some(Overlay::Help { from });
            }
            Overlay::Confirm { question, effect } => match event.code {
                KeyCode::Char('y' | 'Y') => return self.perform(effect),
                KeyCode::Char('n' | 'N') => {}
                _ => self.overlay = Some(Overlay::Confirm { question, effect }),
            },
            Overlay::Leave => match event.code {
                KeyCode::Char('s' | 'S') | KeyCode::Enter => {
                    return vec![Effect::Leave { down: false }];
                }
                KeyCode::Char('e' | 'E') => return vec![Effect::Leave { down: true }],
                _ => self.overlay = Some(Overlay::Leave),
            },
            Overlay::Choose { title, picks, at } => {
                return self.choose_key(title, picks, at, event, action);
            }
            Overlay::CommandLine(line) => return self.command_key(line, event),
            Overlay::Filter(mut line) => {
                if event.code != KeyCode::Enter {
                    line.key(event);
                    self.set_filter(&line.text);
                    self.overlay = Some(Overlay::Filter(line));
                }
            }
            Overlay::MarkLine(mut line) => {
                if event.code == KeyCode::Enter {
                    let text = line.text.trim().to_owned();
                    if !text.is_empty() {
                        return self.send(Command::Mark { text });
                    }
                } else {
                    line.key(event);
                    self.overlay = Some(Overlay::MarkLine(line));
                }
            }
            // Any key closes.
            Overlay::Compare(..) | Overlay::Console { .. } | Overlay::Shell => {}
        }
        Vec::new()
    }

    fn choose_key(
        &mut self,
        title: String,
        picks: Vec<Pick>,
        at: usize,
        event: KeyEvent,
        action: Option<Action>,
    ) -> Vec<Effect> {
        let at = match (event.code, action) {
            (KeyCode::Enter, _) => {
                return match picks.into_iter().nth(at).map(|pick| pick.effect) {
                    Some(Ok(effect)) => self.perform(effect),
                    Some(Err(reason)) => {
                        self.say(Level::Note, reason);
                        Vec::new()
                    }
                    None => Vec::new(),
                };
            }
            (_, Some(Action::Down)) => (at + 1).min(picks.len().saturating_sub(1)),
            (_, Some(Action::Up)) => at.saturating_sub(1),
            _ => at,
        };
        self.overlay = Some(Overlay::Choose { title, picks, at });
        Vec::new()
    }

    fn command_key(&mut self, mut line: LineEdit, event: KeyEvent) -> Vec<Effect> {
        match event.code {
            KeyCode::Enter => {
                return match command::parse(&line.text) {
                    Ok(Typed::Lab(command)) => self.send(command),
                    Ok(Typed::Program(words)) => self.run_program(words),
                    Ok(Typed::Quit) => self.ask_to_leave(),
                    Ok(Typed::Help) => {
                        self.overlay = Some(Overlay::Help { from: 0 });
                        Vec::new()
                    }
                    Ok(Typed::View(name)) => {
                        let view = View::ALL
                            .into_iter()
                            .find(|view| view.name().eq_ignore_ascii_case(&name));
                        view.map_or_else(Vec::new, |view| self.show(view))
                    }
                    Err(words) => {
                        self.say(Level::Failed, words);
                        self.overlay = Some(Overlay::CommandLine(line));
                        Vec::new()
                    }
                };
            }
            KeyCode::Tab => {
                let vms: Vec<&str> = self.lab().vms.keys().map(String::as_str).collect();
                let offers = command::complete(&line.text, &self.lab().host_names(), &vms);
                line.complete(offers);
            }
            KeyCode::Backspace if line.text.is_empty() => return Vec::new(),
            _ => {
                line.key(event);
            }
        }
        self.overlay = Some(Overlay::CommandLine(line));
        Vec::new()
    }

    /// Has this program run anew with these words, beside this screen.
    fn run_program(&mut self, mut words: Vec<String>) -> Vec<Effect> {
        if self.readonly {
            self.say(Level::Note, "this screen is read-only (--readonly)");
            return Vec::new();
        }
        command::complete_program(&mut words, &self.lab().name);
        let words_of_job = words.join(" ");
        if self.jobs.iter().any(|job| job.words == words_of_job) {
            self.say(Level::Note, "that is under way already");
            return Vec::new();
        }
        self.say(Level::Note, format!("elab {words_of_job}: started"));
        self.jobs.push(Job {
            words: words_of_job,
            said: String::new(),
            ending: false,
        });
        vec![Effect::Run(words)]
    }

    /// Does what was asked about.
    fn perform(&mut self, effect: Effect) -> Vec<Effect> {
        match effect {
            Effect::Send(command) => self.send(command),
            Effect::CancelRun(words) => {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.words == words) {
                    job.ending = true;
                }
                vec![Effect::CancelRun(words)]
            }
            other => vec![other],
        }
    }

    /// Sends a command, if that is allowed.
    pub(super) fn send(&mut self, command: Command) -> Vec<Effect> {
        if let Err(reason) = self.may_command() {
            self.say(Level::Note, reason);
            return Vec::new();
        }
        vec![Effect::Send(command)]
    }
}
