//! Checks what serde cannot: that names refer to something, that a step does one thing, that limits make sense.

use std::ops::Range;

use toml::Spanned;

use super::diagnostic::{Diagnostic, suggest};
use super::figure;
use super::file::{Expect, Pattern, Scenario};
use super::place::Places;
use super::step::{
    GuestFault, GuestFaultKind, HostFault, HostFaultKind, Link, OTHER, Step, StorageFault,
};

/// Networks of a lab.
pub const NETWORKS: [&str; 3] = ["mgmt", "storage", "session"];
/// The storage server's port on the storage network.
pub const STORAGE_PORT: &str = "nfs";
/// Kinds of events that a pattern may name.
pub const EVENTS: [&str; 20] = [
    "host-power",
    "host-booted",
    "vm-state",
    "vm-stopped",
    "vm-rebooted",
    "first-instruction",
    "first-frame",
    "caught-up",
    "migration-requested",
    "migration-phase",
    "migration-round",
    "migration-ended",
    "pool",
    "storage-state",
    "lease",
    "link-fault",
    "session-open",
    "session-lost",
    "health",
    "mark",
];
/// Longest name: it becomes part of the paths of sockets.
const NAME_MAX: usize = 24;
const MAX_HOSTS: u8 = 16;
const MAX_GUESTS: usize = 16;
/// Of a host's memory, what the hypervisor keeps for itself.
const HYPERVISOR_MIB: u64 = 64;
const MIB: u64 = 1 << 20;

pub(super) fn check(scenario: &Scenario, text: &str) -> Vec<Diagnostic> {
    let mut checker = Checker {
        scenario,
        places: Places::of(text),
        found: Vec::new(),
    };
    checker.whole();
    checker.guests();
    checker.sessions();
    for (index, step) in scenario.steps.get_ref().iter().enumerate() {
        checker.step(index, step);
    }
    for one in &scenario.sometimes {
        checker.pattern(&one.event);
    }
    for one in &scenario.expect {
        checker.expect(one);
    }
    checker.found.sort_by_key(|one| one.span.start);
    checker.found
}

struct Checker<'a> {
    scenario: &'a Scenario,
    places: Places<'a>,
    found: Vec<Diagnostic>,
}

/// Whether a text is a name for files and folders.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

impl Checker<'_> {
    fn say(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.found.push(Diagnostic::new(span, message));
    }

    fn whole(&mut self) {
        let scenario = self.scenario;
        let name = &scenario.name;
        if !is_name(name.get_ref()) {
            self.say(
                name.span(),
                format!("a name is 1 to {NAME_MAX} lower-case letters, digits and hyphens"),
            );
        }
        if scenario.why.get_ref().trim().is_empty() {
            self.say(scenario.why.span(), "say why this scenario exists");
        }
        if !(1..=1000).contains(&scenario.repetitions) {
            let place = self.places.find(&["repetitions"]);
            self.say(place, "repetitions must be 1 to 1000");
        }
        let pool = &scenario.pool;
        if !(1..=MAX_HOSTS).contains(pool.hosts.get_ref()) {
            self.say(
                pool.hosts.span(),
                format!("a pool has 1 to {MAX_HOSTS} hosts"),
            );
        }
        if let Some(failures) = &pool.protect
            && *failures.get_ref() >= *pool.hosts.get_ref()
        {
            self.say(
                failures.span(),
                "at least one host must be left when the others fail",
            );
        }
        if *pool.cpus.get_ref() != 1 {
            self.say(
                pool.cpus.span(),
                "the hypervisor uses one CPU; more would idle",
            );
        }
        for link in &pool.links {
            self.link(link);
        }
    }

    fn guests(&mut self) {
        let scenario = self.scenario;
        let guests = scenario.guests.get_ref();
        if guests.is_empty() || guests.len() > MAX_GUESTS {
            self.say(
                scenario.guests.span(),
                format!("1 to {MAX_GUESTS} guests are needed"),
            );
        }
        for (index, guest) in guests.iter().enumerate() {
            if !is_name(guest.name.get_ref()) {
                self.say(
                    guest.name.span(),
                    format!("a name is 1 to {NAME_MAX} lower-case letters, digits and hyphens"),
                );
            }
            if guests[..index]
                .iter()
                .any(|other| other.name.get_ref() == guest.name.get_ref())
            {
                self.say(guest.name.span(), "another guest has this name");
            }
            self.host(&guest.host);
            let mib = guest.memory.get_ref().bytes / MIB;
            if !(128..=4096).contains(&mib) {
                self.say(guest.memory.span(), "a guest has 128MiB to 4096MiB");
            }
        }
        let on_one = |host: &str| -> u64 {
            let there = guests.iter().filter(|guest| guest.host.get_ref() == host);
            there.map(|guest| guest.memory.get_ref().bytes / MIB).sum()
        };
        let memory = scenario.pool.memory.get_ref().bytes / MIB;
        for host in self.hosts() {
            let wanted = on_one(&host);
            if wanted + HYPERVISOR_MIB > memory {
                // A pool that says nothing has the default: then the last of the guests is one too many.
                let last = guests.iter().rfind(|guest| *guest.host.get_ref() == host);
                let place = match (scenario.pool.memory.span(), last) {
                    (span, Some(guest)) if span.is_empty() => guest.name.span(),
                    (span, _) => span,
                };
                self.say(
                    place,
                    format!(
                        "{host} has {memory} MiB, but its guests need {wanted} MiB and the hypervisor {HYPERVISOR_MIB} MiB"
                    ),
                );
            }
        }
    }

    fn sessions(&mut self) {
        let scenario = self.scenario;
        let first = scenario
            .guests
            .get_ref()
            .first()
            .map(|guest| guest.name.get_ref().as_str());
        for session in &scenario.sessions {
            self.guest(&session.guest);
            let probes = &session.probes;
            let measured = [probes.udp_hz, probes.tcp_hz, probes.ping_hz];
            if measured != [0; 3] && Some(session.guest.get_ref().as_str()) != first {
                self.say(
                    session.guest.span(),
                    "network probes can watch the first guest only",
                );
            }
            let rates = [probes.udp_hz, probes.tcp_hz, probes.ping_hz];
            if rates.iter().any(|hz| *hz > 1000) {
                self.say(
                    session.guest.span(),
                    "a probe asks at most 1000 times a second",
                );
            }
            if probes.disk_hz > 50 || probes.clock_hz > 100 {
                self.say(
                    session.guest.span(),
                    "the guest writes at most 50 records and reads its clocks at most 100 times a second",
                );
            }
        }
    }

    fn step(&mut self, index: usize, step: &Step) {
        let number = (index + 1).to_string();
        let at = |path: &[&'static str]| [&["steps", number.as_str()], path].concat();
        let name = step.name.as_ref().map_or_else(
            || format!("step {number}"),
            |name| format!("step {number} ({name})"),
        );
        let actions = actions_of(step);
        if actions.len() != 1 {
            let (what, place) = if actions.is_empty() {
                ("has no action".to_owned(), self.places.find(&at(&[])))
            } else {
                let paths: Vec<_> = actions.iter().map(|action| at(&[action])).collect();
                let what = format!("has {} actions: {}", actions.len(), actions.join(", "));
                (what, self.places.last(&paths))
            };
            let known = "a step has one of wait, migrate, cancel, evacuate, link, heal, host, storage, guest, snapshot, checkpoint, run, mark";
            self.found
                .push(Diagnostic::new(place, format!("{name} {what}")).help(Some(known.into())));
        }
        if step.after.is_some() && step.when.is_some() {
            let place = self.places.last(&[at(&["after"]), at(&["when"])]);
            let message = format!("{name} has both `after` and `when`: one of them decides");
            self.say(place, message);
        }
        if let Some(pattern) = &step.when {
            self.pattern(pattern);
        }
        if let Some(migrate) = &step.migrate {
            self.guest(&migrate.guest);
            self.destination(&migrate.to);
            if migrate.times == 0 || (migrate.times > 1 && migrate.to.get_ref() != OTHER) {
                self.say(
                    migrate.to.span(),
                    "to move several times, from 1 on, the destination must be \"other\"",
                );
            }
        }
        if let Some(guest) = &step.cancel {
            self.guest(guest);
        }
        if let Some(guest) = step.snapshot.as_ref().or(step.checkpoint.as_ref()) {
            self.guest(guest);
        }
        if let Some(evacuate) = &step.evacuate {
            self.host(&evacuate.host);
            self.destination(&evacuate.to);
        }
        if let Some(link) = &step.link {
            self.link(link);
        }
        if let Some(link) = &step.heal {
            self.link_name(link);
        }
        if let Some(HostFault { host, fault, lasts }) = &step.host {
            self.host(host);
            if lasts.is_some() && *fault != HostFaultKind::Freeze {
                let place = self.places.find(&at(&["host", "for"]));
                self.say(place, "only a freeze can have `for`");
            }
        }
        if let Some(StorageFault { fault, lasts }) = &step.storage
            && lasts.is_some()
            && !fault.can_last()
        {
            let place = self.places.find(&at(&["storage", "for"]));
            self.say(
                place,
                format!("{name}: of the storage server, only a pause, a kill or a fault of its disk can have `for`"),
            );
        }
        if let Some(GuestFault { guest, fault, host }) = &step.guest {
            self.guest(guest);
            if let Some(host) = host {
                self.host(host);
                if *fault != GuestFaultKind::Start {
                    let place = self.places.find(&at(&["guest", "host"]));
                    self.say(place, "only a start can have `host`");
                }
            }
        }
        if let Some(run) = &step.run {
            self.guest(&run.guest);
        }
    }

    fn link(&mut self, link: &Link) {
        self.link_name(&link.link);
        if let Err(words) = link.quality().fault().check() {
            self.say(link.link.span(), words);
        }
    }

    fn link_name(&mut self, link: &Spanned<String>) {
        let text = link.get_ref();
        let name = text.strip_suffix(['<', '>']).unwrap_or(text);
        let Some((port, network)) = name.split_once(':') else {
            self.found.push(
                Diagnostic::new(link.span(), format!("\"{text}\" is no link")).help(Some(
                    "write <host>:<network>, then > for what it sends, < for what it receives, nothing for both".into(),
                )),
            );
            return;
        };
        if !NETWORKS.contains(&network) {
            self.found.push(
                Diagnostic::new(link.span(), format!("there is no network \"{network}\""))
                    .help(Some(suggest(network, NETWORKS))),
            );
        }
        let hosts = self.hosts();
        let known: Vec<&str> = hosts
            .iter()
            .map(String::as_str)
            .chain([STORAGE_PORT])
            .collect();
        if !known.contains(&port) {
            self.found.push(
                Diagnostic::new(link.span(), format!("nothing is called \"{port}\""))
                    .help(Some(suggest(port, known))),
            );
        }
    }

    fn hosts(&self) -> Vec<String> {
        (1..=*self.scenario.pool.hosts.get_ref())
            .map(|number| format!("h{number}"))
            .collect()
    }

    fn destination(&mut self, to: &Spanned<String>) {
        if to.get_ref() != OTHER {
            self.host(to);
        }
    }

    fn host(&mut self, host: &Spanned<String>) {
        let hosts = self.hosts();
        if !hosts.contains(host.get_ref()) {
            let help = suggest(host.get_ref(), hosts.iter().map(String::as_str));
            let message = format!("there is no host \"{}\"", host.get_ref());
            self.found
                .push(Diagnostic::new(host.span(), message).help(Some(help)));
        }
    }

    fn guest(&mut self, guest: &Spanned<String>) {
        let known: Vec<&str> = self
            .scenario
            .guests
            .get_ref()
            .iter()
            .map(|guest| guest.name.get_ref().as_str())
            .collect();
        if !known.contains(&guest.get_ref().as_str()) {
            let help = suggest(guest.get_ref(), known);
            let message = format!("there is no guest \"{}\"", guest.get_ref());
            self.found
                .push(Diagnostic::new(guest.span(), message).help(Some(help)));
        }
    }

    fn pattern(&mut self, pattern: &Pattern) {
        let kind = pattern.event.get_ref().as_str();
        if !EVENTS.contains(&kind) {
            self.found.push(
                Diagnostic::new(
                    pattern.event.span(),
                    format!("there is no event \"{kind}\""),
                )
                .help(Some(suggest(kind, EVENTS))),
            );
            return;
        }
        let belongs: [(&str, bool, &[&str]); 7] = [
            ("phase", pattern.phase.is_some(), &["migration-phase"]),
            ("role", pattern.role.is_some(), &["migration-phase"]),
            ("round", pattern.round.is_some(), &["migration-round"]),
            (
                "state",
                pattern.state.is_some(),
                &["host-power", "vm-state", "storage-state"],
            ),
            ("change", pattern.change.is_some(), &["lease"]),
            ("healthy", pattern.healthy.is_some(), &["health"]),
            ("text", pattern.text.is_some(), &["mark"]),
        ];
        for (field, given, kinds) in belongs {
            if given && !kinds.contains(&kind) {
                self.say(
                    pattern.event.span(),
                    format!(
                        "an event \"{kind}\" has no `{field}`; {} has",
                        kinds.join(", ")
                    ),
                );
            }
        }
        if let Some(guest) = &pattern.guest {
            self.guest(guest);
        }
        if let Some(host) = &pattern.host {
            self.host(host);
        }
    }

    fn expect(&mut self, expect: &Expect) {
        let name = expect.figure.get_ref();
        if figure::find(name).is_none() {
            self.found.push(
                Diagnostic::new(
                    expect.figure.span(),
                    format!("there is no figure \"{name}\""),
                )
                .help(Some(suggest(name, figure::ALL.iter().map(|one| one.name)))),
            );
        }
        if expect.at_most.is_none() && expect.at_least.is_none() {
            self.say(expect.figure.span(), "give `at_most` or `at_least`");
        }
    }
}

fn actions_of(step: &Step) -> Vec<&'static str> {
    [
        ("wait", step.wait.is_some()),
        ("migrate", step.migrate.is_some()),
        ("cancel", step.cancel.is_some()),
        ("evacuate", step.evacuate.is_some()),
        ("link", step.link.is_some()),
        ("heal", step.heal.is_some()),
        ("host", step.host.is_some()),
        ("storage", step.storage.is_some()),
        ("guest", step.guest.is_some()),
        ("snapshot", step.snapshot.is_some()),
        ("checkpoint", step.checkpoint.is_some()),
        ("run", step.run.is_some()),
        ("mark", step.mark.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect()
}
