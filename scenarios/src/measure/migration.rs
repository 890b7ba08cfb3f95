//! The migrations of a run, each with its marks.

use lab_protocol::{Event, Phase, Record, Role};

use super::Window;

/// The beginning of a phase at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub t_ns: u64,
    /// How far that may be wrong.
    pub error_ns: u64,
    /// Which end.
    pub role: Role,
    /// Which phase.
    pub phase: Phase,
}

/// A pre-copy round, or the last pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Pages sent with content.
    pub pages: u32,
    /// Pages sent as "zero".
    pub zero_pages: u32,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// Pages dirty at its end.
    pub dirty_after: u32,
}

/// What the log says of one migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Number in the run, from 1.
    pub number: u32,
    /// Name of the VM.
    pub vm: String,
    /// Host it left.
    pub from: String,
    /// Host it went to.
    pub to: String,
    /// When it was asked for.
    pub requested_ns: u64,
    /// When it had ended; `None` when the log ends before.
    pub ended_ns: Option<u64>,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// Marks of both ends by time.
    pub marks: Vec<Mark>,
    /// The guest's first instruction at the destination, with its error.
    pub first_instruction: Option<(u64, u64)>,
    /// The guest's own first frame from the destination.
    pub first_frame_ns: Option<u64>,
    /// When the guest had caught up at the destination: the first time it idled.
    pub caught_up_ns: Option<u64>,
    /// When the switch had learnt that the guest is behind the destination's port.
    pub relearnt_ns: Option<u64>,
    /// Rounds in order.
    pub rounds: Vec<Round>,
    /// Hashes of guest RAM at source and destination, where they were asked for.
    pub hashes: [Option<String>; 2],
}

impl Migration {
    /// The migrations in a log by number.
    #[must_use]
    pub fn all(records: &[Record]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for record in records {
            if let Event::MigrationRequested {
                vm,
                migration,
                from,
                to,
            } = &record.event
            {
                all.push(Self {
                    number: *migration,
                    vm: vm.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    requested_ns: record.t_ns,
                    ended_ns: None,
                    error: String::new(),
                    marks: Vec::new(),
                    first_instruction: None,
                    first_frame_ns: None,
                    relearnt_ns: None,
                    caught_up_ns: None,
                    rounds: Vec::new(),
                    hashes: [None, None],
                });
            }
        }
        for record in records {
            let number = match &record.event {
                Event::MigrationPhase { migration, .. }
                | Event::MigrationRound { migration, .. }
                | Event::MemoryHash { migration, .. }
                | Event::MigrationEnded { migration, .. } => Some(*migration),
                _ => None,
            };
            if let Some(one) = all.iter_mut().find(|one| Some(one.number) == number) {
                one.take(record);
            }
        }
        for one in &mut all {
            one.marks.sort_by_key(|mark| mark.t_ns);
            one.find_first_signs(records);
        }
        all.sort_by_key(|one| one.number);
        all
    }

    fn take(&mut self, record: &Record) {
        match &record.event {
            Event::MigrationPhase { role, phase, .. } => self.marks.push(Mark {
                t_ns: record.t_ns,
                error_ns: record.error_ns,
                role: *role,
                phase: *phase,
            }),
            Event::MigrationRound {
                pages,
                zero_pages,
                bytes,
                duration_ns,
                dirty_after,
                ..
            } => {
                self.rounds.push(Round {
                    pages: *pages,
                    zero_pages: *zero_pages,
                    bytes: *bytes,
                    duration_ns: *duration_ns,
                    dirty_after: *dirty_after,
                });
            }
            Event::MemoryHash { role, hash, .. } => {
                self.hashes[usize::from(*role == Role::Destination)] = Some(hash.clone());
            }
            Event::MigrationEnded { error, .. } => {
                self.ended_ns = Some(record.t_ns);
                self.error.clone_from(error);
            }
            _ => {}
        }
    }

    /// First instruction and first frame at the destination: these events do not name a migration.
    fn find_first_signs(&mut self, records: &[Record]) {
        let Some(stopped) = self.mark(Role::Source, Phase::Drain) else {
            return;
        };
        // A host's stamp may be early by its error, and its record may stand before others in the log.
        let after = stopped.t_ns.saturating_sub(stopped.error_ns);
        let before = self.ended_ns.map_or(u64::MAX, |t| t + SIGNS_NS);
        let signs = || {
            records
                .iter()
                .filter(|record| (after..before).contains(&record.t_ns))
        };
        self.first_instruction = signs()
            .filter(|record| matches!(&record.event, Event::FirstInstruction { vm, host } if *vm == self.vm && *host == self.to))
            .map(|record| (record.t_ns, record.error_ns))
            .min();
        self.first_frame_ns = signs()
            .filter(|record| matches!(&record.event, Event::FirstFrame { vm, host } if *vm == self.vm && *host == self.to))
            .map(|record| record.t_ns)
            .min();
        self.caught_up_ns = signs()
            .filter(|record| matches!(&record.event, Event::CaughtUp { vm, host } if *vm == self.vm && *host == self.to))
            .map(|record| record.t_ns)
            .min();
        self.relearnt_ns = signs()
            .filter(|record| matches!(&record.event, Event::MacMoved { to, .. } if port_is_of(to, &self.to)))
            .map(|record| record.t_ns)
            .min();
    }

    /// The first mark of a phase at one end.
    #[must_use]
    pub fn mark(&self, role: Role, phase: Phase) -> Option<Mark> {
        self.marks
            .iter()
            .copied()
            .find(|mark| mark.role == role && mark.phase == phase)
    }

    /// From the request until the end, and the time in which a user can still feel it.
    #[must_use]
    pub fn window(&self) -> Window {
        let end = self.ended_ns.unwrap_or(self.requested_ns);
        Window {
            start_ns: self.requested_ns,
            end_ns: end + AFTERMATH_NS,
        }
    }

    /// From the request until the vCPUs stop.
    #[must_use]
    pub fn precopy(&self) -> Option<Window> {
        let stop = self.mark(Role::Source, Phase::Drain)?;
        Some(Window {
            start_ns: self.requested_ns,
            end_ns: stop.t_ns,
        })
    }

    /// From the stop of the vCPUs until the first instruction at the destination.
    #[must_use]
    pub fn pause_ns(&self) -> Option<u64> {
        let stop = self.mark(Role::Source, Phase::Drain)?;
        Some(self.first_instruction?.0.saturating_sub(stop.t_ns))
    }

    /// The same stretch of time.
    #[must_use]
    pub fn pause(&self) -> Option<Window> {
        let stop = self.mark(Role::Source, Phase::Drain)?;
        // Never empty, so that a silence can touch it.
        Some(Window {
            start_ns: stop.t_ns,
            end_ns: self.first_instruction?.0.max(stop.t_ns + 1),
        })
    }

    /// Whether it ended, and without error.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.ended_ns.is_some() && self.error.is_empty()
    }
}

/// Whether a switch port belongs to a host: ports are named `<host>` or `<host>:<network>`.
fn port_is_of(port: &str, host: &str) -> bool {
    port.strip_prefix(host)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/', '-']))
}

/// How long after the end of a migration its effects are looked for: a TCP retransmission that was due in the pause falls into
/// it (RFC 6298 has a least timeout of 1 s; Linux uses 200 ms).
const AFTERMATH_NS: u64 = 1_000_000_000;
/// How long after the end the first frame may come.
const SIGNS_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::port_is_of;

    #[test]
    fn a_port_belongs_to_the_host_it_names() {
        assert!(port_is_of("h1", "h1"));
        assert!(port_is_of("h1:session", "h1"));
        assert!(!port_is_of("h11:session", "h1"));
        assert!(!port_is_of("h2", "h1"));
    }
}
