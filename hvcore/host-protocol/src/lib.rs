//! What a host can be told over its management network, and what it reports.
//!
//! One TCP connection to port [`PORT`], any number of them at a time. Each message is a
//! big-endian `u32` length and a [`postcard`] body: [`Request`]s go to the host, [`Notice`]s come back. Before
//! anything else both ends prove that they hold the pool's key ([`Request::Hello`]).
//!
//! Times are nanoseconds of the host's own clock; whoever reads them maps them to its own by
//! [`Request::Ping`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod auth;
pub mod codec;
pub mod pool;

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// TCP port of the control service on the management network.
pub const PORT: u16 = 7000;
/// TCP port on which a host takes in migrating VMs.
pub const MIGRATION_PORT: u16 = 7001;
/// Version of this protocol. A host tells its own and refuses another; so the messages of the greeting,
/// [`Request::Hello`] and [`Notice::Welcome`], stay as they are in every version.
pub const VERSION: u32 = 5;
/// Longest message either side accepts.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Names a VM in the pool.
pub type VmId = [u8; 16];

/// A virtual disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Path of the VHD below the NFS export: `<sr-uuid>/<vdi-uuid>.vhd`.
    pub path: String,
    /// The guest may not write.
    pub read_only: bool,
}

/// A VM: all that a host needs to build it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Identity.
    pub id: VmId,
    /// Name for people.
    pub name: String,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs, 1 to 8.
    pub vcpus: u8,
    /// Share of CPU time against other VMs; 256 is usual.
    pub weight: u16,
    /// Path of the bzImage below the NFS export.
    pub kernel: String,
    /// Path of the initial RAM disk below the NFS export.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks, in the order in which the guest finds them (`vda`, `vdb`, ...).
    pub disks: Vec<DiskConfig>,
    /// One network card each, with its MAC address.
    pub nics: Vec<[u8; 6]>,
}

/// How a live migration shall run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationConfig {
    /// Stop the guest when so many pages or fewer are left dirty.
    pub stop_pages: u32,
    /// Stop the guest after so many rounds whatever is left.
    pub max_rounds: u32,
    /// Give up, with the guest running on at the source, after so many milliseconds.
    pub timeout_ms: u32,
    /// Run a copy of the guest on the destination for a moment before the stop, with everything it
    /// sends or writes thrown away, so that its code is warm there.
    pub rehearse: bool,
    /// Hash all guest RAM on both sides, after the last page and before the guest runs again.
    pub verify: bool,
    /// What a test leaves out.
    pub controls: NegativeControls,
}

/// Protections that a migration goes without, so that a test shows what they protect from. For tests
/// only: by default all of them are in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegativeControls {
    /// The destination does not announce the guest's MAC address.
    pub no_announce: bool,
    /// Frames that reach the source after the stop are not handed to the destination.
    pub no_forward: bool,
    /// The hypervisor's own writes to guest memory do not count as dirty.
    pub no_device_marks: bool,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            stop_pages: 160,
            max_rounds: 30,
            timeout_ms: 60_000,
            rehearse: true,
            verify: false,
            controls: NegativeControls::default(),
        }
    }
}

/// From the lab to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First message: protocol version and a nonce of the client.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Random.
        nonce: [u8; 16],
    },
    /// Second message: HMAC-SHA-256 with the pool's key over `"client"`, the client's and the host's nonce.
    Prove {
        /// The digest.
        mac: [u8; 32],
        /// The highest number of an event that was heard from this host since it booted; 0 for none. Those after it that the
        /// host has kept are told once more.
        heard: u64,
    },
    /// For the clock's offset: answered at once with [`Notice::Pong`].
    Ping {
        /// Returned as it is.
        token: u64,
    },
    /// A command; answered by [`Notice::Done`] with the same number, perhaps much later.
    Command {
        /// Chosen by the client, increasing.
        number: u32,
        /// What to do.
        command: Command,
    },
    /// Bytes typed at a VM's console.
    ConsoleInput {
        /// Which VM.
        vm: VmId,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// What a host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Create a VM and start it. Refused when it does not fit.
    Start(VmConfig),
    /// Press the guest's power button.
    Shutdown(VmId),
    /// Pull the guest's plug.
    Destroy(VmId),
    /// Move a running VM to another host; done when the VM runs there or has gone on here.
    Migrate {
        /// Which VM.
        vm: VmId,
        /// The destination's address on the management network.
        destination: [u8; 4],
        /// How.
        config: MigrationConfig,
    },
    /// Write a running VM's memory and state to a virtual disk, which loses what it had: done when all of it is on stable
    /// storage and the VM has ended here.
    Suspend {
        /// Which VM.
        vm: VmId,
        /// Path of the VHD below the NFS export.
        path: String,
        /// The VM runs on here instead, and its disks are branched at that moment, as by [`Self::Snapshot`]. What was
        /// written then fits disks that were made from these parents and that nobody has opened.
        keep_running: bool,
    },
    /// Branch the writable disks of a running VM at one moment: what they hold now stays as it is, and what is written from
    /// now on goes to an empty child of each. The children were made before, each beside its disk and with `.new` behind
    /// its name; and each names its parent by another name that the disk has.
    Snapshot(VmId),
    /// Have a VM run on here from what [`Self::Suspend`] has written. Refused when its disks have been opened
    /// since, by whomever.
    Resume {
        /// Path of the VHD below the NFS export.
        path: String,
    },
    /// Stop a migration before its commit point; the guest runs on here.
    CancelMigration(VmId),
    /// Report the state of the host and its VMs.
    Status,
    /// Send a VM's console output as [`Notice::Console`] on this connection, beginning with what is
    /// still in the buffer.
    AttachConsole(VmId),
    /// Stop sending it.
    DetachConsole(VmId),
    /// Hash a VM's RAM (a running VM is stopped meanwhile).
    HashMemory(VmId),
    /// Stop all guests, release leases and power off.
    PowerOff,
    /// Be a host of this pool. Said again after each boot, and when a VM is added or is to be restarted in another way.
    Protect(pool::PoolSetup),
    /// Report the pool as this host sees it.
    PoolStatus,
    /// Open the chains of a running VM's disks anew, since base copies were merged. The files that were open before are not
    /// read any more when this is done.
    Reopen(VmId),
}

/// From a host to the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Answer to [`Request::Hello`]: the host's nonce, and HMAC-SHA-256 over `"host"`, the client's and the
    /// host's nonce.
    Welcome {
        /// [`VERSION`].
        version: u32,
        /// Random.
        nonce: [u8; 16],
        /// The digest.
        mac: [u8; 32],
        /// The host's name.
        host: String,
    },
    /// Answer to [`Request::Ping`].
    Pong {
        /// The request's token.
        token: u64,
        /// The host's clock when it answered.
        host_ns: u64,
    },
    /// A command has ended.
    Done {
        /// The command's number.
        number: u32,
        /// What came of it; an error is a sentence for people.
        result: Result<Reply, String>,
    },
    /// Something happened. Sent on every proved connection, from the moment of the proof.
    Event {
        /// Numbers those that a host keeps for clients that come back, from 1 after its boot; 0 for others.
        number: u64,
        /// When, by the host's clock.
        host_ns: u64,
        /// What.
        event: HostEvent,
    },
    /// Console output of a VM. Who attaches anew gets what is kept once more; `stay` and `position` tell what of it is
    /// known already.
    Console {
        /// Which VM.
        vm: VmId,
        /// Numbers the VM's stay on this host; each start and each arrival is another.
        stay: u32,
        /// Position of the first byte in all that it has printed during that stay.
        position: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// Result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Ok,
    /// Of [`Command::Status`].
    Status(HostStatus),
    /// Of [`Command::Snapshot`] and of a [`Command::Suspend`] that keeps the VM running: how long the VM stood still.
    Snapshot {
        /// In nanoseconds.
        pause_ns: u64,
    },
    /// Of [`Command::HashMemory`]: SHA-256 over the SHA-256 digests of all pages in order.
    Hash([u8; 32]),
    /// Of [`Command::PoolStatus`].
    Pool(pool::PoolStatus),
}

/// State of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Bytes of RAM for VMs.
    pub memory_total: u64,
    /// Bytes of it that are free.
    pub memory_free: u64,
    /// Whether the storage server answers.
    pub storage_up: bool,
    /// The VMs.
    pub vms: Vec<VmStatus>,
}

/// State of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Identity.
    pub id: VmId,
    /// Name for people.
    pub name: String,
    /// State.
    pub state: VmState,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Nanoseconds of CPU time used.
    pub cpu_ns: u64,
    /// Exits since the VM started here.
    pub exits: u64,
}

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Being built: the kernel is being read, or it is arriving from another host.
    Starting,
    /// Running.
    Running,
    /// Stopped for the end of a migration, or while it is being suspended.
    Paused,
    /// Off.
    Halted,
}

/// Why a VM is no longer running here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// Destroyed by command.
    Destroyed,
    /// Moved to another host.
    Migrated,
    /// Written to a disk, to be resumed from there.
    Suspended,
    /// The guest did something its machine cannot answer for; the text says what and where.
    Misbehaved(String),
    /// Its disk's lease is no longer ours.
    LeaseLost(String),
}

/// Which end of a migration speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The guest came from here.
    Source,
    /// The guest goes here.
    Destination,
}

/// Phases of a live migration. Each mark is the *beginning* of a phase at one end; the
/// interruption is cut by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Connecting, agreeing on versions, building the VM at the destination.
    SetUp,
    /// Pre-copy rounds, the guest running.
    PreCopy,
    /// vCPUs are stopped; devices finish the I/O they have begun.
    Drain,
    /// The last dirty pages travel.
    LastPages,
    /// vCPU and device state travels and is loaded.
    DeviceState,
    /// The disks' leases move: the commit point.
    LeaseHandOver,
    /// The destination sets the clock, rings the queues, announces, and enters the guest.
    Resume,
    /// The guest runs at the destination; the source forwards what still reaches it.
    Forward,
    /// Over. At the source: the VM is gone.
    Finished,
    /// Given up; the guest runs on at the source.
    Aborted,
}

/// One pre-copy round, or the last pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// From 0.
    pub number: u32,
    /// Pages sent with content.
    pub pages: u32,
    /// Pages sent as "zero".
    pub zero_pages: u32,
    /// Bytes put on the wire.
    pub bytes: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// Pages that were dirty at its end.
    pub dirty_after: u32,
}

/// What a host reports by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostEvent {
    /// The host is up; its name and version.
    Booted {
        /// Name.
        host: String,
        /// Version of the image.
        version: String,
    },
    /// A VM's state changed.
    Vm {
        /// Which VM.
        vm: VmId,
        /// Its state now.
        state: VmState,
    },
    /// A VM no longer runs here.
    Stopped {
        /// Which VM.
        vm: VmId,
        /// Why.
        reason: StopReason,
    },
    /// The guest rebooted.
    Rebooted {
        /// Which VM.
        vm: VmId,
        /// By what: its own reset, a triple fault.
        cause: String,
    },
    /// The guest's first instruction on this host, after a start or a migration.
    FirstInstruction {
        /// Which VM.
        vm: VmId,
    },
    /// The first Ethernet frame of the guest after [`Self::FirstInstruction`]: what lies between
    /// the two is the cold start of the guest's code on this host.
    FirstFrame {
        /// Which VM.
        vm: VmId,
    },
    /// The guest idles for the first time after [`Self::FirstFrame`]: it has caught up with what waited for it while
    /// it was stopped.
    CaughtUp {
        /// Which VM.
        vm: VmId,
    },
    /// A migration's phase begins.
    Migration {
        /// Which VM.
        vm: VmId,
        /// Which end.
        role: Role,
        /// The phase.
        phase: Phase,
        /// For [`Phase::Aborted`], why; else empty.
        detail: String,
    },
    /// A pre-copy round or the last pass has ended (source only).
    Round {
        /// Which VM.
        vm: VmId,
        /// The round.
        round: Round,
    },
    /// Hash of the guest's RAM at the commit point ([`MigrationConfig::verify`]).
    MemoryHash {
        /// Which VM.
        vm: VmId,
        /// Which end.
        role: Role,
        /// SHA-256 over the SHA-256 digests of all pages in order.
        hash: [u8; 32],
    },
    /// The storage server answers again, or no longer does.
    Storage {
        /// Whether it does.
        up: bool,
    },
    /// Something has happened in the pool.
    Pool {
        /// What kind of thing.
        mark: pool::PoolMark,
        /// Which VM it is about.
        vm: Option<VmId>,
        /// Name of the host it is about.
        about: Option<String>,
        /// A sentence for people.
        text: String,
    },
}
