//! Commands to a running lab.

use serde::{Deserialize, Serialize};

/// What a directed link does to frames. The default does nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkFault {
    /// No frame passes.
    pub cut: bool,
    /// Microseconds added.
    pub delay_us: u64,
    /// Microseconds by which the delay varies, uniformly, either way.
    pub jitter_us: u64,
    /// Probability of loss, 0 to 1.
    pub loss: f64,
    /// Mean length of a burst of loss, in frames: `loss` stays the share of all frames, but those lost follow one
    /// another. Up to 1, losses are independent.
    pub loss_burst: f64,
    /// Probability of a second copy.
    pub duplicate: f64,
    /// Probability that a byte is changed.
    pub corrupt: f64,
    /// Probability that a frame overtakes the one before.
    pub reorder: f64,
    /// Bits per second; 0 is no limit.
    pub rate_bps: u64,
}

/// Longest delay a link may have: whatever waits for an answer gives up sooner.
const MAX_DELAY_US: u64 = 60_000_000;
/// Longest mean burst of loss.
const MAX_LOSS_BURST: f64 = 10_000.0;

impl LinkFault {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// A sentence that names the number.
    pub fn check(&self) -> Result<(), String> {
        for (name, probability) in [
            ("loss", self.loss),
            ("duplicate", self.duplicate),
            ("corrupt", self.corrupt),
            ("reorder", self.reorder),
        ] {
            if !(0.0..=1.0).contains(&probability) {
                return Err(format!(
                    "{name} is a probability from 0 to 1, not {probability}"
                ));
            }
        }
        if !(0.0..=MAX_LOSS_BURST).contains(&self.loss_burst) {
            return Err(format!(
                "a burst of loss is at most {MAX_LOSS_BURST} frames long, not {}",
                self.loss_burst
            ));
        }
        for (name, us) in [("delay", self.delay_us), ("jitter", self.jitter_us)] {
            if us > MAX_DELAY_US {
                return Err(format!("{name} is at most 60 s, not {us} µs"));
            }
        }
        Ok(())
    }
}

/// How the disk below the storage server fails. Faults add up until all are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFault {
    /// Reading gives an I/O error.
    EioRead,
    /// Writing gives an I/O error.
    EioWrite,
    /// Syncing gives an I/O error; the server then takes no more writes until it is cleared.
    EioFsync,
    /// It is full: what is there can be overwritten, nothing can be added.
    Full,
    /// No fault: it was replaced, and the operator trusts it.
    Clear,
}

impl DiskFault {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::EioRead,
        Self::EioWrite,
        Self::EioFsync,
        Self::Full,
        Self::Clear,
    ];

    /// Its name, as on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EioRead => "eio-read",
            Self::EioWrite => "eio-write",
            Self::EioFsync => "eio-fsync",
            Self::Full => "full",
            Self::Clear => "clear",
        }
    }
}

impl std::str::FromStr for DiskFault {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == word);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("a disk has no fault \"{word}\": {names}")
        })
    }
}

/// What a VM goes on from when its host has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartFrom {
    /// It boots, with all that was on its disk.
    #[default]
    Boot,
    /// Its last checkpoint: memory and disk as they were then. What was written since is kept beside, as a snapshot.
    Checkpoint,
}

impl std::str::FromStr for RestartFrom {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "boot" => Ok(Self::Boot),
            "checkpoint" => Ok(Self::Checkpoint),
            _ => Err("boot or checkpoint".into()),
        }
    }
}

/// How a VM is restarted when its host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// Who gets memory first when there is not enough for all: lower first.
    pub priority: u8,
    /// Who starts first: a VM waits until those of lower order run.
    pub order: u16,
    /// Waits so long when its turn has come.
    pub start_delay_ms: u32,
    /// Restarted if there is room, without a promise.
    pub best_effort: bool,
    /// What it goes on from.
    pub from: RestartFrom,
}

impl Restart {
    /// What differs from the usual; empty if nothing does.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if self.priority > 0 {
            words.push(format!("priority {}", self.priority));
        }
        if self.order > 0 {
            words.push(format!("order {}", self.order));
        }
        if self.start_delay_ms > 0 {
            words.push(format!("delay {} s", f64::from(self.start_delay_ms) / 1e3));
        }
        if self.best_effort {
            words.push("best effort".into());
        }
        if self.from == RestartFrom::Checkpoint {
            words.push("from its last checkpoint".into());
        }
        words.join(", ")
    }
}

/// What a new VM or template has that its origin has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Memory, in MiB.
    pub memory_mib: Option<u32>,
    /// Number of vCPUs.
    pub vcpus: Option<u8>,
    /// Its share of CPU time.
    pub weight: Option<u16>,
    /// A network card on each of these instead of those of its origin.
    pub networks: Vec<String>,
    /// Whether it is started when its host is.
    pub start_on_boot: Option<bool>,
}

/// What a lab can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Command {
    /// State of hosts, VMs, storage and links.
    Status,
    /// End the lab.
    Down,
    HostPowerOn {
        host: String,
    },
    /// Orderly: guests are stopped first.
    HostPowerOff {
        host: String,
    },
    /// Power cut without warning.
    HostPull {
        host: String,
    },
    /// The reset button: power cut and switched on again at once.
    HostReset {
        host: String,
    },
    HostFreeze {
        host: String,
    },
    HostThaw {
        host: String,
    },
    VmStart {
        vm: String,
        host: String,
    },
    VmShutdown {
        vm: String,
    },
    VmDestroy {
        vm: String,
    },
    /// Have a VM restarted in another way when its host fails; what is not given stays.
    VmSet {
        vm: String,
        #[serde(default)]
        priority: Option<u8>,
        #[serde(default)]
        order: Option<u16>,
        #[serde(default)]
        start_delay_ms: Option<u32>,
        #[serde(default)]
        best_effort: Option<bool>,
        #[serde(default)]
        from: Option<RestartFrom>,
    },
    /// Write the memory of a VM to the repository, and end it.
    VmSuspend {
        vm: String,
    },
    /// Keep what the disks of a VM hold now, and its memory if that is wanted.
    VmSnapshot {
        vm: String,
        #[serde(default)]
        snapshot: Option<String>,
        #[serde(default)]
        memory: bool,
    },
    /// The snapshots of a VM, or of all.
    VmSnapshots {
        #[serde(default)]
        vm: Option<String>,
    },
    VmSnapshotDelete {
        vm: String,
        snapshot: String,
    },
    /// Give a VM that is off what it had then; one whose memory was kept goes on from there, unless `cold`.
    VmRevert {
        vm: String,
        snapshot: String,
        #[serde(default)]
        host: Option<String>,
        #[serde(default)]
        cold: bool,
    },
    /// Make a VM, or a template, that begins with what a snapshot, a VM that is off, or a template holds.
    VmClone {
        vm: String,
        #[serde(default)]
        snapshot: Option<String>,
        new: String,
        #[serde(default)]
        template: bool,
        /// Copies the disks, so that it shares nothing with its origin.
        #[serde(default)]
        full: bool,
        #[serde(default)]
        changes: Changes,
    },
    Templates,
    TemplateDelete {
        template: String,
    },
    /// Let a suspended VM go on; where it was, if no host is named.
    VmResume {
        vm: String,
        #[serde(default)]
        host: Option<String>,
    },
    VmMigrate {
        vm: String,
        to: String,
        #[serde(default)]
        verify: bool,
    },
    VmMigrateCancel {
        vm: String,
    },
    /// Type at a VM's console; the text is sent as it is.
    ConsoleInput {
        vm: String,
        text: String,
    },
    /// A directed link is `<from>:<network>-><switch>` or back: `h1:mgmt>` is what host 1 sends on the
    /// management network, `h1:mgmt<` what it receives.
    LinkSet {
        link: String,
        fault: LinkFault,
    },
    LinkHeal {
        link: String,
    },
    /// Make the hosts a pool that restarts the VMs of hosts that fail, and can bear so many failures.
    HaEnable {
        failures: u8,
    },
    /// The pool as each of its hosts sees it.
    HaStatus,
    StoragePause,
    StorageResume,
    StorageKill,
    StorageStart,
    /// Merge base copies that only one other base copy needs, whether VMs run or not.
    StorageCoalesce,
    /// The disk of the storage server fails, or is well again. A server that is started anew has a disk that is well.
    StorageFault {
        fault: DiskFault,
    },
    Mark {
        text: String,
    },
}

/// Answer to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Response {
    Ok {
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        value: serde_json::Value,
    },
    /// A sentence for people: what happened, where, what to do next.
    Error { message: String },
}
