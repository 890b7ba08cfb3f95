//! What a step of a scenario can do, field by field: a part of the format in [`super::file`].
//!
//! It knows nothing of how it is done; [`crate::engine`] does it.

use lab_protocol::{LinkFault, command::DiskFault};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{
    file::{Pattern, one_u32},
    units::{Rate, Time},
};

/// A step. It has one action; the trigger decides when.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// A name for reports and for `matrix`.
    pub name: Option<String>,
    /// So long after the step before it has ended.
    pub after: Option<Time>,
    /// At the next such event since the step before it began.
    pub when: Option<Pattern>,
    /// Deadline for trigger and action together, on a machine of factor 1.
    pub within: Option<Time>,
    /// Go on with the next step at once; the action ends by itself.
    #[serde(default)]
    pub background: bool,
    /// Action: do nothing for so long.
    pub wait: Option<Time>,
    /// Action: move a guest while it runs.
    pub migrate: Option<Migrate>,
    /// Action: cancel a guest's migration.
    #[schemars(with = "Option<String>")]
    pub cancel: Option<Spanned<String>>,
    /// Action: move all guests off a host, by priority.
    pub evacuate: Option<Evacuate>,
    /// Action: put a fault on a link.
    pub link: Option<Link>,
    /// Action: take a link's fault off.
    #[schemars(with = "Option<String>")]
    pub heal: Option<Spanned<String>>,
    /// Action: something happens to a host.
    pub host: Option<HostFault>,
    /// Action: something happens to the storage server.
    pub storage: Option<StorageFault>,
    /// Action: something happens to a guest.
    pub guest: Option<GuestFault>,
    /// Action: keep a guest's disks of this moment; it runs on.
    #[schemars(with = "Option<String>")]
    pub snapshot: Option<Spanned<String>>,
    /// Action: keep a guest's memory and disks of this moment; it runs on.
    #[schemars(with = "Option<String>")]
    pub checkpoint: Option<Spanned<String>>,
    /// Action: run a command in a guest, as root.
    pub run: Option<RunInGuest>,
    /// Action: a note in the event log.
    pub mark: Option<String>,
}

/// A live migration.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The guest.
    #[schemars(with = "String")]
    pub guest: Spanned<String>,
    /// The destination; `other` is the next host after the one it is on.
    #[schemars(with = "String")]
    #[serde(default = "other_host")]
    pub to: Spanned<String>,
    /// Compare its memory on both sides (adds seconds to the pause).
    #[serde(default)]
    pub verify: bool,
    /// How often, back and forth.
    #[serde(default = "one_u32")]
    pub times: u32,
    /// Between two.
    #[serde(default = "migrate_pause")]
    pub pause: Time,
    /// What must come of it.
    #[serde(default)]
    pub outcome: Outcome,
}

fn other_host() -> Spanned<String> {
    Spanned::new(0..0, OTHER.into())
}

fn migrate_pause() -> Time {
    Time(std::time::Duration::from_secs(2))
}

/// The destination that is the next host after the one a guest is on.
pub const OTHER: &str = "other";

/// What must come of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest runs at the destination.
    #[default]
    Moved,
    /// The migration ends with an error and the guest runs where it was.
    Stayed,
    /// Either of the two.
    Either,
}

/// All guests of a host go elsewhere, those of higher priority first.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evacuate {
    /// The host.
    #[schemars(with = "String")]
    pub host: Spanned<String>,
    /// Where to; `other` is the next host.
    #[schemars(with = "String")]
    #[serde(default = "other_host")]
    pub to: Spanned<String>,
}

/// What a link does to frames.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LinkQuality {
    /// Nothing passes.
    pub cut: bool,
    /// Added delay.
    pub delay: Option<Time>,
    /// Variation of the delay, uniformly, either way.
    pub jitter: Option<Time>,
    /// Share of frames lost, 0 to 1.
    pub loss: f64,
    /// Mean length of a burst of loss, in frames; losses are independent without it.
    pub loss_burst: Option<f64>,
    /// Share of frames that come twice.
    pub duplicate: f64,
    /// Share of frames that a later one overtakes.
    pub reorder: f64,
    /// Share of frames with a wrong byte.
    pub corrupt: f64,
    /// Limit.
    pub rate: Option<Rate>,
}

/// A fault on a link.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// `<host>:<network>`, followed by `>` for what the host sends, `<` for what it receives, nothing for both. The
    /// networks are mgmt, storage and session; the storage server's link is `nfs:storage`.
    #[schemars(with = "String")]
    pub link: Spanned<String>,
    /// Nothing passes.
    #[serde(default)]
    pub cut: bool,
    /// Added delay.
    pub delay: Option<Time>,
    /// Variation of the delay, uniformly, either way.
    pub jitter: Option<Time>,
    /// Share of frames lost, 0 to 1.
    #[serde(default)]
    pub loss: f64,
    /// Mean length of a burst of loss, in frames; losses are independent without it.
    pub loss_burst: Option<f64>,
    /// Share of frames that come twice.
    #[serde(default)]
    pub duplicate: f64,
    /// Share of frames that a later one overtakes.
    #[serde(default)]
    pub reorder: f64,
    /// Share of frames with a wrong byte.
    #[serde(default)]
    pub corrupt: f64,
    /// Limit.
    pub rate: Option<Rate>,
    /// Healed after so long; the step ends then.
    #[serde(rename = "for")]
    pub lasts: Option<Time>,
}

impl Link {
    /// What it does to frames.
    #[must_use]
    pub fn quality(&self) -> LinkQuality {
        LinkQuality {
            cut: self.cut,
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            loss_burst: self.loss_burst,
            duplicate: self.duplicate,
            reorder: self.reorder,
            corrupt: self.corrupt,
            rate: self.rate,
        }
    }
}

impl LinkQuality {
    /// As a lab is told.
    #[must_use]
    pub fn fault(&self) -> LinkFault {
        let us = |time: Option<Time>| {
            u64::try_from(time.unwrap_or_default().0.as_micros()).unwrap_or(u64::MAX)
        };
        LinkFault {
            cut: self.cut,
            delay_us: us(self.delay),
            jitter_us: us(self.jitter),
            loss: self.loss,
            loss_burst: self.loss_burst.unwrap_or_default(),
            duplicate: self.duplicate,
            corrupt: self.corrupt,
            reorder: self.reorder,
            rate_bps: self.rate.unwrap_or_default().bps,
        }
    }
}

/// Something happens to a host.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostFault {
    /// The host.
    #[schemars(with = "String")]
    pub host: Spanned<String>,
    /// What.
    pub fault: HostFaultKind,
    /// `freeze` ends after so long; the step ends then.
    #[serde(rename = "for")]
    pub lasts: Option<Time>,
}

/// What can happen to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostFaultKind {
    /// Power cut without warning.
    Pull,
    /// Power cut and switched on again.
    Reset,
    /// Stopped in its tracks.
    Freeze,
    /// Goes on after a freeze.
    Thaw,
    /// Switched on.
    PowerOn,
    /// Switched off in order.
    PowerOff,
}

/// Something happens to the storage server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageFault {
    /// What.
    pub fault: StorageFaultKind,
    /// `pause`, `kill` and the faults of its disk end after so long; the step ends then.
    #[serde(rename = "for")]
    pub lasts: Option<Time>,
}

/// What can happen to the storage server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StorageFaultKind {
    /// It stands still.
    Pause,
    /// It goes on after a pause.
    Resume,
    /// Killed, as by a power cut.
    Kill,
    /// Started again after a kill.
    Start,
    /// Killed and started again at once.
    Restart,
    /// Its disk gives I/O errors when it is read.
    EioRead,
    /// Its disk gives I/O errors when it is written.
    EioWrite,
    /// Its disk gives I/O errors when it is synced; the server then takes no more writes until the disk is well.
    EioFsync,
    /// Its disk is full: what is there can be overwritten, nothing can be added.
    Full,
    /// Its disk is well again.
    Clear,
}

impl StorageFaultKind {
    /// A fault of the disk, as a lab is told.
    #[must_use]
    pub fn of_disk(self) -> Option<DiskFault> {
        match self {
            Self::EioRead => Some(DiskFault::EioRead),
            Self::EioWrite => Some(DiskFault::EioWrite),
            Self::EioFsync => Some(DiskFault::EioFsync),
            Self::Full => Some(DiskFault::Full),
            Self::Clear => Some(DiskFault::Clear),
            Self::Pause | Self::Resume | Self::Kill | Self::Start | Self::Restart => None,
        }
    }

    /// Whether it ends by itself only after a `for`.
    #[must_use]
    pub fn can_last(self) -> bool {
        !matches!(
            self,
            Self::Resume | Self::Start | Self::Restart | Self::Clear
        )
    }
}

/// Something happens to a guest.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestFault {
    /// The guest.
    #[schemars(with = "String")]
    pub guest: Spanned<String>,
    /// What.
    pub fault: GuestFaultKind,
    /// `start` happens here instead of on its first host.
    #[schemars(with = "Option<String>")]
    pub host: Option<Spanned<String>>,
}

/// What can happen to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GuestFaultKind {
    /// Its plug is pulled.
    Kill,
    /// Its kernel crashes and stands still.
    Hang,
    /// It reboots itself.
    Reboot,
    /// It powers itself off.
    PowerOff,
    /// It is started again, on its first host unless told, and waited for.
    Start,
}

/// A command in a guest.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunInGuest {
    /// The guest.
    #[schemars(with = "String")]
    pub guest: Spanned<String>,
    /// A line for its shell.
    pub command: String,
}
