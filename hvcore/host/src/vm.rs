//! A VM on this host, from its configuration to its end.

use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use guest_memory::GuestMemory;
use host_protocol::{StopReason, VmConfig, VmState};
use machine::{DiskModel, Machine, MachineConfig, NicModel};
use vdi::{DiskId, DiskInfo, Storage, Token};

use crate::{console::Console, control::ConnectionId, migrate::Rehearsal};

/// Largest packet on the session network.
const GUEST_MTU: u16 = 1500;

/// Frames that wait for a guest's buffer; what comes on top is dropped, as on a wire. As many as a destination of a migration
/// keeps: a guest that stands still for seconds, as while its memory is hashed, loses none at a few hundred a second.
const MAX_WAITING_FRAMES: usize = 4096;

/// Most of each a VM may have. A machine's PCI bus has room for more; these bound what one
/// configuration can ask of a host.
const MAX_DISKS: usize = 8;
const MAX_NICS: usize = 4;
const MAX_VCPUS: u8 = 8;
const MIN_MEMORY_MIB: u32 = 1;
const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Who asked for something, and the number to answer with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub connection: ConnectionId,
    pub number: u32,
}

/// What a running VM consists of.
pub(crate) struct Guest<H> {
    pub hardware: H,
    pub machine: Machine,
}

/// Something that is being read from storage for a VM that is being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Kernel,
    Initrd,
    Disk(usize),
}

/// A VM whose memory is reserved and whose parts are arriving.
pub(crate) struct Building<H> {
    pub hardware: H,
    pub memory: GuestMemory,
    pub awaited: Vec<(Token, Part)>,
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
}

/// A VM that is being taken down: its disks are being closed.
pub(crate) struct Closing {
    /// What it had asked of storage when it ended.
    pub awaited: Vec<(Token, Part)>,
    /// It was to arrive from another host, and nothing of it was ever here.
    pub never_arrived: bool,
    /// What to report; `None` for a VM that never ran.
    pub reason: Option<StopReason>,
    /// What to answer to who asked for it.
    pub answer: Result<(), String>,
    /// Then the disks are left to their leases' end.
    pub deadline_ns: u64,
}

impl Default for Closing {
    fn default() -> Self {
        Self {
            awaited: Vec::new(),
            never_arrived: false,
            reason: None,
            answer: Ok(()),
            deadline_ns: u64::MAX,
        }
    }
}

/// What a VM is doing.
pub(crate) enum Stage<H> {
    /// It will boot here.
    Building(Building<H>),
    /// It will arrive from another host.
    Preparing(Building<H>),
    /// It is arriving from another host: whole, but its vCPUs may not run yet.
    Arriving(Guest<H>),
    /// Its vCPUs may run.
    Running(Guest<H>),
    /// Its vCPUs are stopped for a while.
    Paused(Guest<H>),
    /// It is being taken down.
    Closing(Closing),
}

/// Frames that wait for a buffer of the guest, on one of its cards.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Forwarded by the host the guest came from: older than the others.
    forwarded: VecDeque<Vec<u8>>,
    direct: VecDeque<Vec<u8>>,
    /// More forwarded frames may come, so the others wait.
    pub held: bool,
}

impl Inbox {
    /// The frames that came over the network, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.direct.iter().map(Vec::as_slice)
    }

    fn keep(queue: &mut VecDeque<Vec<u8>>, frame: &[u8]) {
        if queue.len() < MAX_WAITING_FRAMES {
            queue.push_back(frame.to_vec());
        }
    }

    /// The frame to deliver next.
    fn front(&self) -> Option<&[u8]> {
        let direct = if self.held { None } else { self.direct.front() };
        self.forwarded.front().or(direct).map(Vec::as_slice)
    }

    fn pop(&mut self) {
        if self.forwarded.pop_front().is_none() {
            self.direct.pop_front();
        }
    }
}

/// A VM.
pub(crate) struct Vm<H> {
    /// Its number on this host; never used again for another.
    pub number: u32,
    pub config: VmConfig,
    pub stage: Stage<H>,
    /// Its open disks; `None` for one that is not open yet.
    pub disks: Vec<Option<(DiskId, DiskInfo)>>,
    /// A copy of it that runs before it arrives.
    pub rehearsal: Option<Rehearsal>,
    /// While a copy of it runs at its destination: what it receives, with the card's number, to be handed to the copy.
    pub copies: Option<Vec<(usize, Vec<u8>)>>,
    /// Leases that remain to be taken from the host the VM comes from, with their epochs there.
    pub leases_to_take: VecDeque<(DiskId, u64)>,
    /// Frames that wait, for each of its cards.
    pub inbox: Vec<Inbox>,
    pub console: Console,
    /// Time its vCPUs have run.
    pub cpu_ns: u64,
    /// Who waits for the end of its start or of its end.
    pub asker: Option<Asker>,
    /// It has not run on this host yet.
    pub awaits_first_instruction: bool,
    /// Its first frame on this host has not been seen yet.
    pub awaits_first_frame: bool,
    /// It has not idled since its first frame on this host.
    pub awaits_catch_up: bool,
}

impl<H> Vm<H> {
    pub fn new(number: u32, config: VmConfig, stage: Stage<H>, asker: Option<Asker>) -> Self {
        Self {
            number,
            disks: vec![None; config.disks.len()],
            rehearsal: None,
            copies: None,
            leases_to_take: VecDeque::new(),
            inbox: config.nics.iter().map(|_| Inbox::default()).collect(),
            config,
            stage,
            console: Console::default(),
            cpu_ns: 0,
            asker,
            awaits_first_instruction: true,
            awaits_first_frame: true,
            awaits_catch_up: true,
        }
    }

    /// The guest, in any stage in which there is a whole one.
    pub fn guest(&mut self) -> Option<&mut Guest<H>> {
        match &mut self.stage {
            Stage::Arriving(guest) | Stage::Running(guest) | Stage::Paused(guest) => Some(guest),
            Stage::Building(_) | Stage::Preparing(_) | Stage::Closing(_) => None,
        }
    }

    /// The guest, if its devices are at work.
    pub fn running(&mut self) -> Option<&mut Guest<H>> {
        match &mut self.stage {
            Stage::Running(guest) => Some(guest),
            _ => None,
        }
    }

    /// Stops its vCPUs and devices. False when they were not running.
    pub fn pause(&mut self) -> bool {
        let placeholder = Stage::Closing(Closing::default());
        let (stage, done) = match core::mem::replace(&mut self.stage, placeholder) {
            Stage::Running(guest) => (Stage::Paused(guest), true),
            other => (other, false),
        };
        self.stage = stage;
        done
    }

    /// Lets vCPUs and devices go on.
    pub fn resume(&mut self) {
        let placeholder = Stage::Closing(Closing::default());
        self.stage = match core::mem::replace(&mut self.stage, placeholder) {
            Stage::Paused(guest) => Stage::Running(guest),
            other => other,
        };
    }

    /// The state to report.
    pub fn state(&self) -> VmState {
        match self.stage {
            Stage::Building(_) | Stage::Preparing(_) | Stage::Arriving(_) => VmState::Starting,
            Stage::Running(_) => VmState::Running,
            Stage::Paused(_) => VmState::Paused,
            Stage::Closing(_) => VmState::Halted,
        }
    }

    /// Which of its disks this is.
    pub fn disk_index(&self, id: DiskId) -> Option<usize> {
        self.disks
            .iter()
            .position(|disk| disk.is_some_and(|(open, _)| open == id))
    }

    /// Its open disks.
    pub fn open_disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.disks.iter().flatten().map(|(id, _)| *id)
    }

    /// Whether its vCPUs may run as far as its disks are concerned. A lease that was not renewed in time may be another
    /// host's by now, so the guest stands still until the server has answered.
    pub fn holds_leases(&self, storage: &Storage, now_ns: u64) -> bool {
        self.open_disks()
            .filter_map(|disk| storage.lease_expires_ns(disk))
            .all(|expires_ns| now_ns < expires_ns)
    }

    /// Hands the guest a frame, or keeps it until the guest has a buffer.
    pub fn deliver(&mut self, nic: usize, frame: &[u8]) {
        if let Some(copies) = &mut self.copies
            && copies.len() < MAX_WAITING_FRAMES
        {
            copies.push((nic, frame.to_vec()));
        }
        let inbox = &mut self.inbox[nic];
        if let Stage::Running(guest) = &mut self.stage
            && inbox.front().is_none()
            && !inbox.held
            && guest.machine.deliver_frame(nic, frame)
        {
            return;
        }
        Inbox::keep(&mut inbox.direct, frame);
    }

    /// Hands the guest a frame that went by way of the host it came from.
    pub fn deliver_forwarded(&mut self, nic: usize, frame: &[u8]) {
        if let Some(inbox) = self.inbox.get_mut(nic) {
            Inbox::keep(&mut inbox.forwarded, frame);
            self.deliver_waiting();
        }
    }

    /// Hands the guest the frames that wait, as far as it has buffers.
    pub fn deliver_waiting(&mut self) {
        let Stage::Running(guest) = &mut self.stage else {
            return;
        };
        for (nic, inbox) in self.inbox.iter_mut().enumerate() {
            while let Some(frame) = inbox.front() {
                if !guest.machine.deliver_frame(nic, frame) {
                    break;
                }
                inbox.pop();
            }
        }
    }

    /// The machine of this VM, when all its disks are open.
    pub fn machine_config(&self) -> Option<MachineConfig> {
        let disks = self
            .disks
            .iter()
            .zip(&self.config.disks)
            .map(|(open, config)| {
                open.map(|(_, info)| DiskModel {
                    sectors: info.bytes / 512,
                    read_only: info.read_only,
                    serial: serial_of(&config.path),
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let nics = self
            .config
            .nics
            .iter()
            .map(|mac| NicModel {
                mac: *mac,
                mtu: GUEST_MTU,
            })
            .collect();
        Some(MachineConfig {
            vcpus: self.config.vcpus,
            disks,
            nics,
            balloon: false,
        })
    }
}

/// A disk's serial number: the name of its file.
fn serial_of(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".vhd").unwrap_or(name).to_string()
}

/// Bytes of RAM of a configuration.
pub(crate) fn memory_bytes(config: &VmConfig) -> u64 {
    u64::from(config.memory_mib) << 20
}

/// Checks a configuration before anything is done for it.
///
/// # Errors
/// A sentence for people.
pub(crate) fn check(config: &VmConfig) -> Result<(), String> {
    let name = &config.name;
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(format!(
            "VM {name}: {} vCPUs were asked for; 1 to {MAX_VCPUS} are possible",
            config.vcpus
        ));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&config.memory_mib) {
        return Err(format!(
            "VM {name}: {} MiB of memory were asked for; {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are possible",
            config.memory_mib
        ));
    }
    if config.disks.len() > MAX_DISKS || config.nics.len() > MAX_NICS {
        return Err(format!(
            "VM {name}: at most {MAX_DISKS} disks and {MAX_NICS} network cards are possible"
        ));
    }
    if let Some(mac) = config.nics.iter().find(|mac| mac[0] & 1 != 0) {
        return Err(format!(
            "VM {name}: {mac:02x?} is a group address, not one of a network card"
        ));
    }
    for (index, mac) in config.nics.iter().enumerate() {
        if config.nics[..index].contains(mac) {
            return Err(format!(
                "VM {name}: {mac:02x?} is given to two of its cards"
            ));
        }
    }
    Ok(())
}
