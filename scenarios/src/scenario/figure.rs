//! The figures that a scenario can set limits to.

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FigureName {
    /// As scenario files write it.
    pub name: &'static str,
    /// As reports print it.
    pub title: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it is.
    pub meaning: &'static str,
}

const fn figure(
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    meaning: &'static str,
) -> FigureName {
    FigureName {
        name,
        title,
        unit,
        meaning,
    }
}

/// All figures. Those of a migration have one value each migration, the others one value each run.
pub const ALL: [FigureName; 29] = [
    figure(
        "vcpu-pause",
        "vCPU pause",
        "ms",
        "from the guest's last instruction at the source to its first at the destination",
    ),
    figure(
        "udp-gap",
        "UDP gap",
        "ms",
        "longest time without an answer to the UDP probe, from a migration's request until a second after its end",
    ),
    figure(
        "udp-gap-switch-over",
        "UDP gap, switch-over",
        "ms",
        "the longest such time that touches the pause",
    ),
    figure(
        "udp-gap-quiet",
        "UDP gap, quiet",
        "ms",
        "the same probe's longest gap in a quiet stretch of the same length",
    ),
    figure(
        "tcp-gap",
        "TCP gap",
        "ms",
        "longest time without an answer to the TCP probe",
    ),
    figure(
        "longest-echo",
        "longest echo",
        "ms",
        "from when a key was due until its echo was on the screen, the worst key of a migration",
    ),
    figure(
        "total",
        "total",
        "ms",
        "from a migration's request to its end",
    ),
    figure("wire", "on the wire", "MB", "what a migration sent"),
    figure(
        "unattributed",
        "unattributed",
        "%",
        "share of the UDP gap that no phase explains",
    ),
    figure(
        "precopy-echo-p95",
        "echo during pre-copy, p95",
        "ms",
        "95th percentile of the echoes while memory is copied",
    ),
    figure(
        "run-echo-worst",
        "longest echo of the run",
        "ms",
        "the worst key of the whole session",
    ),
    figure(
        "run-echo-p95",
        "echo of the run, p95",
        "ms",
        "95th percentile of all echoes of the session",
    ),
    figure(
        "run-udp-gap",
        "longest UDP gap of the run",
        "ms",
        "longest time without an answer to the UDP probe in the whole session",
    ),
    figure(
        "run-tcp-gap",
        "longest TCP gap of the run",
        "ms",
        "longest time without an answer to the TCP probe in the whole session",
    ),
    figure(
        "run-disk-gap",
        "longest disk gap of the run",
        "ms",
        "longest time between two synced records of the disk probe",
    ),
    figure(
        "evacuation",
        "evacuation",
        "ms",
        "from the first request of an evacuation to the end of the last migration of it",
    ),
    figure(
        "outage-detect",
        "failure detected",
        "ms",
        "from the pull of a host's plug until another declares it dead",
    ),
    figure(
        "outage-fence",
        "agreed and fenced",
        "ms",
        "from then until the leases of a VM's disks are taken for the host that is to start it",
    ),
    figure(
        "outage-decide",
        "restart decided",
        "ms",
        "from then until it is decided that it starts",
    ),
    figure(
        "outage-start",
        "guest started",
        "ms",
        "from then until its first instruction",
    ),
    figure(
        "outage-boot",
        "guest boot",
        "ms",
        "from its first instruction until its service accepts a connection of its user",
    ),
    figure(
        "outage-session",
        "log-in and first key",
        "ms",
        "from then until the echo of the first key of the next session",
    ),
    figure(
        "outage-echo",
        "first echo",
        "ms",
        "from the pull until the echo of the first key of the next session",
    ),
    figure(
        "outage-without-boot",
        "first echo, without the boot",
        "ms",
        "the same less the guest's boot",
    ),
    figure(
        "keys-lost-with-host",
        "keys lost with the host",
        "",
        "keys typed into the lost session since its last saved document, their echo seen or not",
    ),
    figure(
        "restarts",
        "restarts",
        "",
        "guests that the pool decided to start anew",
    ),
    figure(
        "suspicions",
        "suspicions",
        "",
        "times that a host found another silent for half the time after which it is dead",
    ),
    figure(
        "standstills",
        "standstills",
        "",
        "times that a host's guests stood still because others might not know that it lives",
    ),
    figure(
        "self-fences",
        "self-fences",
        "",
        "times that a host stopped its guests by itself",
    ),
];

/// The figure of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static FigureName> {
    ALL.iter().find(|one| one.name == name)
}
