//! The scenarios that come with the program: `elab run demo` needs no file.

/// A scenario that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Included {
    /// Its name, and that of its file in `scenarios/`.
    pub name: &'static str,
    /// Its file.
    pub text: &'static str,
}

macro_rules! included {
    ($($name:literal),* $(,)?) => {
        &[$(Included {
            name: $name,
            text: include_str!(concat!("../../", $name, ".toml")),
        }),*]
    };
}

/// All of them.
pub const ALL: &[Included] = included![
    "demo",
    "cancel",
    "crossing",
    "evacuate",
    "faster-than-link",
    "guest-hang",
    "ha-checkpoint",
    "ha-flapping-link",
    "ha-host-freeze",
    "ha-no-room",
    "ha-one-way-link",
    "ha-soak",
    "ha-soak-short",
    "ha-storage-outage",
    "health-moves",
    "host-freeze",
    "host-mgmt-cut",
    "host-pull",
    "host-storage-cut",
    "link-cut",
    "link-faults",
    "migrate-dirty",
    "migrate-disk",
    "migrate-idle",
    "migrate-network",
    "migrate-storage-restart",
    "power-cut",
    "power-off-while-moving",
    "pull-and-return",
    "pull-coordinator",
    "pull-moving",
    "pull-two",
    "reboot-while-moving",
    "slow-link",
    "storage-eio",
    "storage-eio-read",
    "storage-eio-sync",
    "storage-full",
    "storage-pause",
    "storage-restart",
    "ten-moves",
];

/// The one of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Included> {
    ALL.iter().find(|one| one.name == name)
}
