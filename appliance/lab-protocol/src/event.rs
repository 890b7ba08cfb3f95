//! The event log.

use serde::{Deserialize, Serialize};

/// One line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Position in the log, from 0, without holes.
    pub seq: u64,
    /// When it happened.
    pub t_ns: u64,
    /// How far `t_ns` may be wrong: 0 for what the lab itself saw, the bound of the clock mapping for
    /// what a host stamped.
    #[serde(default)]
    pub error_ns: u64,
    /// Who says it: `lab`, `switch`, `storage`, `session` (the one that is measured; that of another VM is
    /// `session/<vm>`), `scenario`, or a host's name.
    pub source: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Which end of a migration speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Role {
    Source,
    Destination,
}

/// Phases of a live migration; see `host_protocol::Phase`, which these mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Phase {
    SetUp,
    PreCopy,
    Drain,
    LastPages,
    DeviceState,
    LeaseHandOver,
    Resume,
    Forward,
    Finished,
    Aborted,
}

/// The probes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum ProbeKind {
    Typist,
    Udp,
    Tcp,
    Ping,
    Disk,
    Clock,
}

/// What has happened in a pool of hosts; see `host_protocol::pool::PoolMark`, which these mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum PoolMark {
    Suspected,
    DeclaredDead,
    Liveset,
    Fenced,
    Restart,
    Restarted,
    NotRestarted,
    Protection,
    SelfFenced,
    PermitLapsed,
    PermitBack,
    Note,
}

/// What a port of the switch has counted since the lab began. A port sends into the switch and receives from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PortCounters {
    pub network: String,
    pub port: String,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    pub received_frames: u64,
    pub received_bytes: u64,
    /// Frames lost in either direction.
    pub dropped: u64,
}

/// The calls of one kind that the storage server has answered since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounters {
    /// `Read`, `Write`, `Commit`, `Renew`, ...
    pub name: String,
    /// How many.
    pub calls: u64,
    /// Microseconds from each call's arrival to its reply, all of them together.
    pub time_us: u64,
}

/// A file of the storage repository that holds a disk, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Below the export, as in `Lease`.
    pub path: String,
    /// What it is for: `vm`, `vm@snapshot`, either followed by ` memory`, or `name template`; empty if no machine names it.
    pub of: String,
    /// Bytes that a guest sees.
    pub virtual_bytes: u64,
    /// Bytes that the file takes.
    pub used_bytes: u64,
    /// Files from this one to the end of its chain: 1 if it has no parent.
    pub depth: u32,
    /// Nobody's disk, but the parent of some.
    pub base: bool,
}

/// What can happen in a lab. `kind` names the variant in kebab-case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Event {
    /// First record: the lab's name and machine.
    LabStarted {
        name: String,
        version: String,
        accelerator: String,
        qemu: String,
        cpu: String,
        unix_ns: u64,
    },
    /// Last record.
    LabStopped { reason: String },
    /// A host's QEMU process was started (`power-on`), ended by us (`power-off`, `pulled`, `frozen`, `thawed`) or by
    /// itself (`died`).
    HostPower { host: String, state: String },
    /// The image is up on a host.
    HostBooted { host: String, version: String },
    /// Memory and storage of a host, about once a second.
    HostStatus {
        host: String,
        memory_total: u64,
        memory_free: u64,
        storage_up: bool,
    },
    /// A VM changed state (`starting`, `running`, `paused`, `halted`).
    VmState {
        vm: String,
        host: String,
        state: String,
    },
    /// CPU time and exits of a VM, about once a second.
    VmStatus {
        vm: String,
        host: String,
        cpu_ns: u64,
        exits: u64,
    },
    /// A VM no longer runs on a host, and why.
    VmStopped {
        vm: String,
        host: String,
        reason: String,
    },
    /// A guest rebooted.
    VmRebooted {
        vm: String,
        host: String,
        cause: String,
    },
    /// A VM's first instruction on a host.
    FirstInstruction { vm: String, host: String },
    /// A migration was asked for; `migration` counts from 1 in this lab.
    MigrationRequested {
        vm: String,
        migration: u32,
        from: String,
        to: String,
    },
    /// A phase of a migration begins at one end.
    MigrationPhase {
        vm: String,
        migration: u32,
        host: String,
        role: Role,
        phase: Phase,
        detail: String,
    },
    /// A pre-copy round, or the last pass, has ended.
    MigrationRound {
        vm: String,
        migration: u32,
        round: u32,
        pages: u32,
        zero_pages: u32,
        bytes: u64,
        duration_ns: u64,
        dirty_after: u32,
    },
    /// SHA-256 of guest RAM at the commit point, in hexadecimal.
    MemoryHash {
        vm: String,
        migration: u32,
        role: Role,
        hash: String,
    },
    /// A migration ended; `error` is empty on success.
    MigrationEnded {
        vm: String,
        migration: u32,
        error: String,
    },
    /// The hosts' own doing when one of them fails: `host` says it, `vm` and `about` (a host) are what it is about, `text` is
    /// the sentence for people.
    Pool {
        host: String,
        mark: PoolMark,
        vm: Option<String>,
        about: Option<String>,
        text: String,
    },
    /// The storage server's process was started, ended or died, or a host lost or regained it.
    StorageState { state: String },
    /// Counters of the switch's ports, about once a second: those that have changed. None has when it is quiet, which is
    /// told once.
    PortStatistics { ports: Vec<PortCounters> },
    /// Counters of the storage server, about once a second while they change, and once more.
    StorageStatistics {
        operations: Vec<OperationCounters>,
        read_bytes: u64,
        written_bytes: u64,
    },
    /// Every disk of a storage repository, when what they take has changed; at most every two seconds. `free_bytes` is what the
    /// file system below has left.
    RepositoryUse {
        repository: String,
        free_bytes: u64,
        disks: Vec<DiskUse>,
    },
    /// A lease changed: `acquired`, `transferred`, `released`, `expired`, `broken`, `refused`. Or how the storage server
    /// found it when it started, since its predecessor may have died with a change unreported: `held`, `shared`, `free`.
    Lease {
        path: String,
        epoch: u64,
        owner: String,
        change: String,
    },
    /// The switch learnt a MAC address on another port.
    MacMoved {
        mac: String,
        from: String,
        to: String,
    },
    /// The guest's own first frame after its first instruction on a host (announcements are the hypervisor's
    /// and do not count).
    FirstFrame { vm: String, host: String },
    /// The guest idles for the first time after its first frame: it has caught up with what had waited for it.
    CaughtUp { vm: String, host: String },
    /// A fault was put on a link or taken off.
    LinkFault { link: String, fault: String },
    /// The session with the guest is open.
    SessionOpen { vm: String },
    /// The session was lost, and why. `unsaved` keys had been typed since the document that was saved last: whether their
    /// echo was seen or not, they are lost with the program.
    SessionLost {
        vm: String,
        reason: String,
        #[serde(default)]
        unsaved: u32,
    },
    /// A key of the typist: scheduled, sent, and when its echo was on the screen.
    Key {
        index: u32,
        text: String,
        due_ns: u64,
        sent_ns: u64,
        echo_ns: Option<u64>,
    },
    /// A stretch of a probe's requests, in the order of their schedule: request `first + i` was due at
    /// `due_ns + i * interval_ns`. `answers_ns[i]` is the time from *due* to its first answer, `None` where none
    /// came. `late_max_ns` is the worst lateness of the probe's own sending; `duplicated` counts further answers to an
    /// answered request, `reordered` answers that came after the answer to a later request.
    ProbeSamples {
        probe: ProbeKind,
        first: u64,
        due_ns: u64,
        interval_ns: u64,
        late_max_ns: u64,
        duplicated: u64,
        reordered: u64,
        answers_ns: Vec<Option<u64>>,
    },
    /// The document was fetched and compared.
    DocumentChecked {
        equal: bool,
        bytes: u64,
        detail: String,
    },
    /// A person or a scenario marked this moment.
    Mark { text: String },
    /// A step of a scenario, counted from 1: `waiting` for its moment, `started`, `done`, `failed`, or `missed` when the
    /// event it waits for did not come in time. `detail` says why, or what came of it.
    Step {
        step: u32,
        name: String,
        state: String,
        detail: String,
    },
    /// Whether a guest's service answers a health check; reported when that changes.
    Health {
        vm: String,
        healthy: bool,
        detail: String,
    },
    /// A guest read its own clocks: `CLOCK_REALTIME` and `CLOCK_MONOTONIC`, in nanoseconds.
    GuestClock {
        vm: String,
        number: u64,
        realtime_ns: u64,
        monotonic_ns: u64,
    },
    /// A guest reports that its record of this number is on its disk.
    DiskRecord { vm: String, number: u64 },
    /// The records on a guest's disk were compared with what it had reported, and with their checksums.
    DiskChecked {
        vm: String,
        equal: bool,
        records: u64,
        detail: String,
    },
    /// Something people should read.
    Message { level: String, text: String },
}
