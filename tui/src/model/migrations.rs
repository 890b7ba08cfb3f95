//! The migrations of a lab, measured as reports measure them.

use lab_protocol::{Event, Phase, Record, Role};
use scenarios::evidence::cast;
use scenarios::measure::Window;
use scenarios::measure::migration::Migration;

/// Migrations so far. The records that speak of them are kept, and figures come from `scenarios::measure` alone, so that
/// screen and report cannot disagree.
#[derive(Clone, Debug, Default)]
pub struct Migrations {
    all: Vec<Migration>,
    /// Records of the last migration, which is the only one that still changes.
    recent: Vec<Record>,
}

impl Migrations {
    /// Takes the next record.
    pub fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::MigrationRequested { migration, .. } => {
                // Several VMs may move at once: forget only what is over.
                if self.all.iter().all(|one| one.ended_ns.is_some()) {
                    self.recent.clear();
                }
                self.recent.retain(|old| !matches!(&old.event, Event::MigrationRequested { migration: number, .. } if number == migration));
            }
            Event::MigrationPhase { .. }
            | Event::MigrationRound { .. }
            | Event::MemoryHash { .. }
            | Event::MigrationEnded { .. }
            | Event::FirstInstruction { .. }
            | Event::FirstFrame { .. }
            | Event::CaughtUp { .. }
            | Event::MacMoved { .. } => {
                if self.recent.is_empty() {
                    return;
                }
            }
            _ => return,
        }
        self.recent.push(record.clone());
        for changed in Migration::all(&self.recent) {
            match self.all.iter_mut().find(|one| one.number == changed.number) {
                Some(one) => *one = changed,
                None => self.all.push(changed),
            }
        }
    }

    /// All, by number.
    #[must_use]
    pub fn all(&self) -> &[Migration] {
        &self.all
    }

    /// The latest.
    #[must_use]
    pub fn last(&self) -> Option<&Migration> {
        self.all.last()
    }

    /// The one under way of a VM.
    #[must_use]
    pub fn under_way(&self, vm: &str) -> Option<&Migration> {
        self.all
            .iter()
            .rev()
            .find(|one| one.vm == vm && one.ended_ns.is_none())
    }

    /// Whether the last migration of a VM is just leaving this host, so that its end there is the end of a copy. Once that is over,
    /// the VM may have come back, and an end there is its own.
    #[must_use]
    pub fn is_leaving(&self, vm: &str, host: &str) -> bool {
        self.all
            .iter()
            .rev()
            .find(|one| one.vm == vm)
            .is_some_and(|one| {
                one.from == host
                    && one.ended_ns.is_none()
                    && one.error.is_empty()
                    && one.mark(Role::Source, Phase::Drain).is_some()
            })
    }

    /// The current phase of a migration in words.
    #[must_use]
    pub fn phase_word(migration: &Migration) -> &'static str {
        if migration.ended_ns.is_some() {
            return if migration.error.is_empty() {
                "done"
            } else {
                "failed"
            };
        }
        migration
            .marks
            .iter()
            .max_by_key(|mark| mark.t_ns)
            .map_or("asked for", |mark| cast::name(mark.phase))
    }

    /// Stretches in which guests were slowed by copying, and in which they stood still.
    #[must_use]
    pub fn shades(&self) -> Vec<(Window, Shade)> {
        let mut shades = Vec::new();
        for one in &self.all {
            let start = |phase| one.mark(Role::Source, phase).map(|mark| mark.t_ns);
            let end = one.ended_ns.unwrap_or(u64::MAX);
            if let Some(copy) = start(Phase::PreCopy) {
                let end_ns = start(Phase::Drain).unwrap_or(end);
                shades.push((
                    Window {
                        start_ns: copy,
                        end_ns,
                    },
                    Shade::Brownout,
                ));
            }
            if let Some(pause) = one.pause() {
                shades.push((pause, Shade::Blackout));
            } else if let Some(stop) = start(Phase::Drain) {
                shades.push((
                    Window {
                        start_ns: stop,
                        end_ns: end,
                    },
                    Shade::Blackout,
                ));
            }
            if let (Some((first, _)), Some(caught_up)) = (one.first_instruction, one.caught_up_ns) {
                let window = Window {
                    start_ns: first,
                    end_ns: caught_up.max(first),
                };
                shades.push((window, Shade::CatchUp));
            }
        }
        shades
    }
}

/// What a stretch of time means for a guest's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shade {
    /// The guest runs, slowed by the copying of its memory.
    Brownout,
    /// The guest runs at the destination with cold caches.
    CatchUp,
    /// The guest does not run.
    Blackout,
}
