//! What a scenario file holds, field by field. These types are the format: the JSON schema that `elab schema` prints is made
//! of them, comments included.
//!
//! They know only what serde can check; what refers to something else in the file is checked in [`super::check`].
//! Untagged and flattened types were rejected: their errors do not name the place.

use std::collections::BTreeMap;

use lab_protocol::{Phase, PoolMark, RestartFrom, Role};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{
    step::{Link, LinkQuality, Step},
    units::{Size, Time},
};

/// A scenario: what is built, what is done to it, and what is expected.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Short name: lower-case letters, digits and hyphens.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// Why it exists: the question that it answers, in a sentence or two.
    #[schemars(with = "String")]
    pub why: Spanned<String>,
    /// What it belongs to; `elab run --tag TAG` runs all that have it.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Seed of everything that is left to chance; run N of several uses `seed + N - 1`.
    #[serde(default = "one_u64")]
    pub seed: u64,
    /// How often it is run.
    #[serde(default = "one_u32")]
    pub repetitions: u32,
    /// Deadline of a whole run, from power-on to the last check, on a machine of factor 1.
    #[serde(default = "default_timeout")]
    pub timeout: Time,
    /// The hosts and their networks.
    #[serde(default)]
    pub pool: Pool,
    /// The storage server.
    #[serde(default)]
    pub storage: Storage,
    /// The guests. The first one is measured.
    #[schemars(with = "Vec<Guest>")]
    pub guests: Spanned<Vec<Guest>>,
    /// Who works in the guests, and what watches them.
    #[serde(default)]
    pub sessions: Vec<Session>,
    /// What is done, in order.
    #[schemars(with = "Vec<Step>")]
    #[serde(default = "no_steps")]
    pub steps: Spanned<Vec<Step>>,
    /// What must have happened for the run to prove anything; otherwise its verdict is "inconclusive".
    #[serde(default)]
    pub sometimes: Vec<Sometimes>,
    /// Limits of figures.
    #[serde(default)]
    pub expect: Vec<Expect>,
    /// What the checkers look for, apart from the figures.
    #[serde(default)]
    pub checks: Checks,
    /// What evidence is taken.
    #[serde(default)]
    pub evidence: Evidence,
    /// Values to run with, each with each: the key is a path in this file (`steps.move.migrate.times`; an element of a list is
    /// named by its `name`, `guest` or position from 1), the value a list of what it shall be.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Vec<serde_json::Value>>")]
    pub matrix: BTreeMap<String, Vec<toml::Value>>,
}

fn one_u64() -> u64 {
    1
}

pub(super) fn one_u32() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn default_timeout() -> Time {
    Time(std::time::Duration::from_secs(180))
}

fn no_steps() -> Spanned<Vec<Step>> {
    Spanned::new(0..0, Vec::new())
}

/// The hosts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// How many hosts; their names are h1, h2, ...
    #[schemars(with = "u8")]
    pub hosts: Spanned<u8>,
    /// RAM of each.
    #[schemars(with = "Size")]
    pub memory: Spanned<Size>,
    /// CPUs of each; the hypervisor uses one.
    #[schemars(with = "u8")]
    pub cpus: Spanned<u8>,
    /// Links that have a fault from the beginning.
    pub links: Vec<Link>,
    /// The guests are protected: one whose host fails is restarted on another, and so many hosts may fail at once.
    #[schemars(with = "Option<u8>")]
    pub protect: Option<Spanned<u8>>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            hosts: Spanned::new(0..0, 2),
            memory: Spanned::new(0..0, Size { bytes: 768 << 20 }),
            cpus: Spanned::new(0..0, 1),
            links: Vec::new(),
            protect: None,
        }
    }
}

/// The storage server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// A fault of its link from the beginning.
    pub link: Option<LinkQuality>,
}

/// A guest.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// What it is made from.
    #[serde(default)]
    pub template: Template,
    /// The host that it starts on.
    #[schemars(with = "String")]
    #[serde(default = "first_host")]
    pub host: Spanned<String>,
    /// Its RAM.
    #[serde(default = "guest_memory")]
    #[schemars(with = "Size")]
    pub memory: Spanned<Size>,
    /// Who goes first when a host is evacuated: the higher.
    #[serde(default)]
    pub priority: u8,
    /// How it is restarted when its host fails, in a pool that protects it.
    #[serde(default)]
    pub restart: Restart,
    /// What it does by itself, from the opening of the session on.
    #[serde(default)]
    pub load: Load,
}

/// How a guest is restarted when its host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// Who gets memory first when there is not enough for all: the lower.
    pub priority: u8,
    /// Who starts first: a guest waits until those of lower order run.
    pub order: u16,
    /// It waits so long when its turn has come.
    pub delay: Time,
    /// It is restarted if there is room, without a promise.
    pub best_effort: bool,
    /// `boot`; or `checkpoint`: it goes on from its last one, which a step has taken.
    #[schemars(with = "String")]
    pub from: RestartFrom,
}

fn first_host() -> Spanned<String> {
    Spanned::new(0..0, "h1".into())
}

fn guest_memory() -> Spanned<Size> {
    Spanned::new(0..0, Size { bytes: 256 << 20 })
}

/// What a guest is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// Debian's kernel and userland, SSH server, spreadsheet.
    #[default]
    Session,
}

/// What a guest does by itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// MiB of memory that it changes a second, round and round in 8 MiB; 0 for none.
    pub dirty_mib_s: u32,
    /// MiB that it goes round in.
    pub working_set_mib: Option<u32>,
    /// Writes to its disk, as fast as they go.
    pub disk: bool,
    /// Sends itself data over the network, as fast as it goes.
    pub network: bool,
}

/// Who works in a guest, and what watches it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The guest.
    #[schemars(with = "String")]
    pub guest: Spanned<String>,
    /// Someone types a movie library into a spreadsheet over SSH.
    #[serde(default = "yes")]
    pub typist: bool,
    /// What asks the guest for answers meanwhile; for the first guest only.
    #[serde(default)]
    pub probes: Probes,
    /// A health check of its SSH server.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// So long the typist waits for an echo before the session counts as lost.
    #[serde(default = "session_patience")]
    pub patience: Time,
    /// When the session is lost, the typist connects anew, again and again, and begins another document: the guest is
    /// expected to be restarted.
    #[serde(default)]
    pub reconnect: bool,
}

fn session_patience() -> Time {
    Time(std::time::Duration::from_secs(30))
}

/// The probes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Probes {
    /// UDP requests a second.
    #[schemars(with = "u16")]
    pub udp_hz: u16,
    /// TCP requests a second.
    pub tcp_hz: u16,
    /// ICMP echo requests a second.
    pub ping_hz: u16,
    /// Checksummed records a second that the guest writes and syncs to its disk.
    pub disk_hz: u16,
    /// How often a second the guest reads its own clocks.
    pub clock_hz: u16,
}

/// A health check: a TCP connection that must be accepted.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Time between two checks.
    pub every: Time,
    /// A check that takes longer has failed.
    pub timeout: Time,
    /// So many failures in a row make the guest unhealthy.
    pub failures: u32,
    /// Its echo service must answer instead. A kernel accepts connections even after its panic, and an SSH server holds
    /// connections that are given up against whoever makes them.
    #[serde(default)]
    pub echo: bool,
}

/// Records of the event log; every field given must be equal.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// Kind of the event, as in the event log.
    #[schemars(with = "String")]
    pub event: Spanned<String>,
    /// Of a `migration-phase`.
    #[schemars(with = "Option<String>")]
    pub phase: Option<Phase>,
    /// Of a `migration-phase`: which end says so.
    #[schemars(with = "Option<String>")]
    pub role: Option<Role>,
    /// Of a `migration-round`, which is reported at its end: its number from 0.
    pub round: Option<u32>,
    /// Number of the migration, from 1.
    pub migration: Option<u32>,
    /// The guest.
    #[schemars(with = "Option<String>")]
    pub guest: Option<Spanned<String>>,
    /// The host.
    #[schemars(with = "Option<String>")]
    pub host: Option<Spanned<String>>,
    /// `state` of a `host-power`, `vm-state` or `storage-state`.
    pub state: Option<String>,
    /// `change` of a `lease`.
    pub change: Option<String>,
    /// Of a `pool`: what has happened. Its host is whom it is about, or else who says it.
    #[schemars(with = "Option<String>")]
    pub mark: Option<PoolMark>,
    /// Of a `health`.
    pub healthy: Option<bool>,
    /// `text` of a `mark`.
    pub text: Option<String>,
}

/// Something that must have happened for the run to prove anything.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sometimes {
    /// In words: "a link was cut while memory was copied".
    pub what: String,
    /// The event.
    pub event: Pattern,
    /// It must have happened while a migration was under way, at least once.
    #[serde(default)]
    pub during_migration: bool,
}

/// A limit of a figure.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Which figure; `elab list --figures` names them.
    #[schemars(with = "String")]
    pub figure: Spanned<String>,
    /// Of the values of all runs.
    #[serde(default)]
    pub statistic: Statistic,
    /// The limit, in the figure's unit.
    pub at_most: Option<f64>,
    /// The least, in the figure's unit.
    pub at_least: Option<f64>,
}

/// Which of the values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Statistic {
    /// Half of the values are not above it.
    #[default]
    Median,
    /// 95 % of the values are not above it.
    P95,
    /// The largest.
    Worst,
}

/// What the checkers look for. All are on unless switched off; whoever switches one off says why in a comment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Every saved document is, byte by byte, what was typed.
    pub document: bool,
    /// No key is lost, doubled or out of order.
    pub keys: bool,
    /// One connection carries the session from the first key to the last.
    pub session: bool,
    /// At most one copy of a guest runs at any time.
    pub one_copy: bool,
    /// A disk has one writer in each epoch of its lease.
    pub one_writer: bool,
    /// The guests' consoles show no error of their kernels.
    pub console: bool,
    /// The file system on each disk is clean once its journal is replayed.
    pub file_system: bool,
    /// The guest's clocks never run backward, and keep step with the lab's.
    pub clocks: bool,
    /// No answer of a probe is lost or doubled.
    pub probes: bool,
    /// Memory is the same on both sides, where a migration was asked to compare it.
    pub memory: bool,
    /// What the guest's disk was said to hold, it holds.
    pub disk: bool,
    /// Migrations end as their steps say.
    pub outcomes: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            document: true,
            keys: true,
            session: true,
            one_copy: true,
            one_writer: true,
            console: true,
            file_system: true,
            clocks: true,
            probes: true,
            memory: true,
            disk: true,
            outcomes: true,
        }
    }
}

/// What evidence is taken beyond the event log, the consoles, the session and the samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evidence {
    /// Frames of every port of the hosts, as pcapng; kept when the run does not pass. Costs CPU while it measures.
    pub capture: bool,
}
