//! Runs one migration with one fault, and checks what must hold at every moment and at the end.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use guest_memory::PAGE_SIZE;
use host_protocol::{MigrationConfig, VmConfig, auth::PoolKey};
use migration::{Destination, DestinationOutcome, Source, SourceOutcome};
use vdi::StorageError;

use super::guest::{Guest, PAGES, Shared};

/// Steps of time while something is under way, and while everyone waits.
const BUSY_NS: u64 = 100_000;
const QUIET_NS: u64 = 5_000_000;
/// Nothing takes longer than the longest of the engines' own time-outs.
const END_NS: u64 = 100_000_000_000;
const SOURCE: usize = 0;
const DESTINATION: usize = 1;

/// What goes wrong, at the moment when the byte with this number is about to leave the source (or, for the way back,
/// the destination).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    KillSource(usize),
    KillDestination(usize),
    /// The link dies.
    Cut(usize),
    /// The link's way back dies.
    CutBack(usize),
    /// The lease server is away for two seconds.
    ServerDown(usize),
    /// The migration is cancelled.
    Cancel(usize),
    /// The byte is changed on the way.
    Damage(usize),
}

impl Fault {
    fn on_way_forth(self) -> Option<usize> {
        match self {
            Self::KillSource(at)
            | Self::KillDestination(at)
            | Self::Cut(at)
            | Self::ServerDown(at)
            | Self::Cancel(at) => Some(at),
            Self::None | Self::CutBack(_) | Self::Damage(_) => None,
        }
    }

    fn on_way_back(self) -> Option<usize> {
        match self {
            Self::CutBack(at) => Some(at),
            _ => None,
        }
    }
}

/// How the run is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub writes_per_tick: usize,
    pub config: MigrationConfig,
    pub fault: Fault,
    pub enforce_lease: bool,
    pub lease_latency_ns: u64,
    pub destination_key: [u8; 32],
    pub fail_rehearsal: bool,
    pub conceal_spoilt: bool,
}

impl Setup {
    pub fn new(seed: u64, fault: Fault) -> Self {
        Self {
            seed,
            writes_per_tick: 1,
            config: MigrationConfig {
                stop_pages: 8,
                max_rounds: 6,
                verify: seed.is_multiple_of(4),
                ..MigrationConfig::default()
            },
            fault,
            enforce_lease: true,
            lease_latency_ns: 200_000,
            destination_key: [1; 32],
            fail_rehearsal: false,
            conceal_spoilt: false,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub source: Option<SourceOutcome>,
    pub destination: Option<DestinationOutcome>,
    /// Where each message of the source began.
    pub boundaries: Vec<usize>,
    /// Where each message of the destination began.
    pub answers: Vec<usize>,
    /// When the source stopped its guest, in bytes sent.
    pub stopped_at: Option<usize>,
    /// What the copy in the rehearsal received.
    pub copy_received: Vec<u64>,
}

/// One direction of the link.
struct Link {
    queue: VecDeque<(u64, Vec<u8>)>,
    cut: bool,
    stream: Vec<u8>,
    /// The fault happens before this byte is sent.
    fault_at: Option<usize>,
}

impl Link {
    fn new(fault_at: Option<usize>) -> Self {
        Self {
            queue: VecDeque::new(),
            cut: false,
            stream: Vec::new(),
            fault_at,
        }
    }

    /// How many bytes may be sent before the fault.
    fn room(&self) -> usize {
        let sent = self.stream.len();
        match self.fault_at {
            Some(at) if at > sent => (at - sent).min(3000),
            _ => 3000,
        }
    }

    /// Whether the fault happens now that something is to be sent.
    fn faults_now(&mut self) -> bool {
        let now = self.fault_at.is_some_and(|at| at <= self.stream.len());
        if now {
            self.fault_at = None;
        }
        now
    }
}

/// Where messages begin in a stream: 16 bytes of header, the length at 8.
fn boundaries(stream: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + 16 <= stream.len() {
        found.push(at);
        let length = u32::from_le_bytes(stream[at + 8..at + 12].try_into().unwrap());
        at += 16 + length as usize;
    }
    found
}

/// The two ends of a migration before their first word.
pub fn ends(setup: &Setup) -> (Source, Destination) {
    let vm = VmConfig {
        id: [9; 16],
        name: String::from("guest"),
        memory_mib: 1,
        vcpus: 1,
        weight: 256,
        kernel: String::new(),
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        nics: vec![[2, 0, 0, 0, 0, 1]],
    };
    let source = Source::new(
        PoolKey::new([1; 32]),
        [3; 16],
        vm,
        setup.config.clone(),
        PAGES,
        0,
    );
    let destination = Destination::new(PoolKey::new(setup.destination_key), [4; 16], 0);
    (source, destination)
}

/// Runs it. `Err` says which promise was broken.
#[allow(clippy::too_many_lines)]
pub fn run(setup: &Setup) -> Result<Ended, String> {
    let mut rng = fastrand::Rng::with_seed(setup.seed);
    let shared = Rc::new(RefCell::new(Shared::default()));
    shared.borrow_mut().lease.enforced = setup.enforce_lease;
    shared.borrow_mut().lease.latency_ns = setup.lease_latency_ns;
    let mut guests = [
        Guest::new(SOURCE, &shared),
        Guest::new(DESTINATION, &shared),
    ];
    // Pages that are equal, which travel once.
    for page in 0..PAGES / 2 {
        let content = [1 + (page % 5) as u8; PAGE_SIZE];
        guests[SOURCE].memory.load_page(page, &content);
    }
    guests[SOURCE].running = true;
    guests[SOURCE].pending_epoch = Some(7);
    guests[DESTINATION].fail_rehearsal = setup.fail_rehearsal;
    guests[DESTINATION].conceal_spoilt = setup.conceal_spoilt;
    let (mut source, mut destination) = ends(setup);
    source.on_connected();
    let mut alive = [true, true];
    let mut forth = Link::new(setup.fault.on_way_forth());
    let mut back = Link::new(setup.fault.on_way_back());
    let mut stopped_at = None;
    let mut next_frame = 0;
    let mut next_frame_ns = 0;
    let mut forwarded = 0;
    let mut server_back_ns = None;
    let mut resumed_checked = false;
    let mut cut_noticed_ns = None;
    let mut now = 0;
    while now < END_NS {
        let busy = source.wants_cpu()
            || guests[DESTINATION].copy_runs()
            || !forth.queue.is_empty()
            || !back.queue.is_empty()
            || !shared.borrow().lease.requests.is_empty() && shared.borrow().lease.up;
        now += if busy { BUSY_NS } else { QUIET_NS };
        shared.borrow_mut().now_ns = now;
        if server_back_ns.is_some_and(|at| at <= now) {
            shared.borrow_mut().lease.up = true;
        }
        // TCP notices a cut, and a dead peer, only after a time-out.
        let broken = forth.cut || back.cut || !alive[SOURCE] || !alive[DESTINATION];
        if broken && cut_noticed_ns.is_none() {
            forth.cut = true;
            back.cut = true;
            cut_noticed_ns = Some(now + rng.u64(..40) * 100_000_000);
        }
        if cut_noticed_ns.is_some_and(|at| at <= now) {
            source.on_disconnected();
            destination.on_disconnected();
        }
        // The session network. Nobody tells it that one end has done with the migration.
        let under_way = source.outcome().is_none() || destination.outcome().is_none();
        if next_frame_ns <= now && under_way {
            next_frame_ns = now + 500_000;
            let route = shared.borrow().route;
            if guests[route].running || route == SOURCE {
                guests[route].inbox.push_back(next_frame);
                next_frame += 1;
            }
        }
        // Guests run.
        for host in [SOURCE, DESTINATION] {
            if alive[host] && guests[host].running {
                guests[host].run(&mut rng, setup.writes_per_tick);
            }
        }
        // The lease server.
        let due: Vec<_> = {
            let mut shared = shared.borrow_mut();
            if shared.lease.up {
                let (due, later) = shared
                    .lease
                    .requests
                    .drain(..)
                    .partition(|(at, ..)| *at <= now);
                shared.lease.requests = later;
                due
            } else {
                Vec::new()
            }
        };
        for (_, host, expected) in due {
            let result = {
                let lease = &mut shared.borrow_mut().lease;
                if lease.epoch == expected || !lease.enforced {
                    lease.epoch += 1;
                    lease.owner = host;
                    Ok(lease.epoch)
                } else {
                    Err(StorageError::Stale {
                        path: String::from("disk"),
                        holder: String::new(),
                        epoch: lease.epoch,
                        expected,
                    })
                }
            };
            if alive[host] {
                if host == SOURCE {
                    source.on_taken(&mut guests[SOURCE], &result);
                } else {
                    destination.on_taken(&mut guests[DESTINATION], &result);
                }
            }
        }
        // The ends.
        if alive[SOURCE] && source.outcome().is_none() {
            let was_running = guests[SOURCE].running;
            source.advance(&mut guests[SOURCE]);
            source.copy(&mut guests[SOURCE], now);
            if was_running && !guests[SOURCE].running {
                stopped_at = Some(forth.stream.len());
            }
            if source.takes_frames() {
                for frame in guests[SOURCE].inbox.iter().skip(forwarded) {
                    source.forward(0, &frame.to_le_bytes());
                    forwarded += 1;
                }
            }
            if source.takes_copies() {
                for frame in guests[SOURCE]
                    .copies
                    .iter_mut()
                    .flat_map(|all| all.drain(..))
                {
                    source.forward(0, &frame.to_le_bytes());
                }
            }
            let route = shared.borrow().route;
            if route == DESTINATION {
                source.announce_seen();
            }
        }
        if alive[DESTINATION] && destination.outcome().is_none() {
            destination.advance(&mut guests[DESTINATION], now);
        }
        if guests[DESTINATION].running && !resumed_checked {
            resumed_checked = true;
            if guests[DESTINATION].content() != guests[SOURCE].content() {
                return Err(String::from("the guest is not what it was when it stopped"));
            }
        }
        // The link, in both directions.
        let mut room = [0; 3000];
        for _ in 0..40 {
            if !alive[SOURCE] {
                break;
            }
            let length = source.transmit(&mut room[..forth.room()]);
            if length == 0 {
                break;
            }
            if forth.faults_now() {
                match setup.fault {
                    Fault::KillSource(_) => alive[SOURCE] = false,
                    Fault::KillDestination(_) => alive[DESTINATION] = false,
                    Fault::Cut(_) => forth.cut = true,
                    Fault::ServerDown(_) => {
                        shared.borrow_mut().lease.up = false;
                        server_back_ns = Some(now + 2_000_000_000);
                    }
                    Fault::Cancel(_) => source.cancel(String::from("cancelled")),
                    Fault::None | Fault::CutBack(_) | Fault::Damage(_) => {}
                }
            }
            let sent = forth.stream.len();
            let mut piece = room[..length].to_vec();
            forth.stream.extend_from_slice(&piece);
            if let Fault::Damage(at) = setup.fault
                && (sent..sent + length).contains(&at)
            {
                piece[at - sent] ^= 0x10;
            }
            if !forth.cut && alive[SOURCE] {
                forth.queue.push_back((now + 200_000, piece));
            }
        }
        if alive[DESTINATION] {
            let length = destination.transmit(&mut room[..back.room()]);
            if length > 0 {
                back.cut |= back.faults_now();
                back.stream.extend_from_slice(&room[..length]);
                if !back.cut {
                    back.queue
                        .push_back((now + 200_000, room[..length].to_vec()));
                }
            }
        }
        while let Some((at, piece)) = forth.queue.front() {
            if *at > now || alive[DESTINATION] && destination.receive(piece) != piece.len() {
                break;
            }
            forth.queue.pop_front();
        }
        while let Some((at, piece)) = back.queue.front() {
            if *at > now {
                break;
            }
            if alive[SOURCE] {
                source.receive(piece);
            }
            back.queue.pop_front();
        }
        // What must always hold.
        let running = [SOURCE, DESTINATION].map(|host| alive[host] && guests[host].running);
        if running == [true, true] {
            return Err(format!("two running copies at {now} ns"));
        }
        let done = [
            !alive[SOURCE] || source.outcome().is_some(),
            !alive[DESTINATION] || destination.outcome().is_some(),
        ];
        let quiet = shared.borrow().lease.requests.is_empty();
        if done == [true, true] && quiet {
            break;
        }
    }
    let ended = Ended {
        source: source.outcome().cloned(),
        destination: destination.outcome().cloned(),
        boundaries: boundaries(&forth.stream),
        answers: boundaries(&back.stream),
        stopped_at,
        copy_received: std::mem::take(&mut guests[DESTINATION].copy_received),
    };
    check_end(
        setup,
        &ended,
        &mut guests,
        alive,
        next_frame,
        &shared.borrow(),
    )?;
    Ok(ended)
}

fn check_end(
    setup: &Setup,
    ended: &Ended,
    guests: &mut [Guest; 2],
    alive: [bool; 2],
    frames: u64,
    shared: &Shared,
) -> Result<(), String> {
    let owner = shared.lease.owner;
    let running = [SOURCE, DESTINATION].map(|host| alive[host] && guests[host].running);
    if alive[SOURCE] && ended.source.is_none() {
        return Err(String::from("the source never ended"));
    }
    if alive[DESTINATION] && ended.destination.is_none() {
        return Err(String::from("the destination never ended"));
    }
    if alive[owner] && !running[owner] {
        return Err(format!(
            "host {owner} has the lease and does not run the guest"
        ));
    }
    if running[1 - owner] {
        return Err(format!(
            "host {} runs the guest without the lease",
            1 - owner
        ));
    }
    if alive == [true, true] {
        for guest in guests.iter_mut() {
            guest.take_frames();
        }
        let all: Vec<u64> = match owner {
            SOURCE => guests[SOURCE].received.clone(),
            _ => [
                &guests[SOURCE].received[..],
                &guests[DESTINATION].received[..],
            ]
            .concat(),
        };
        let in_order = all.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order {
            return Err(format!("frames out of order: {all:?}"));
        }
        let link_held = matches!(
            setup.fault,
            Fault::None | Fault::Cancel(_) | Fault::ServerDown(_)
        );
        if link_held && all.len() as u64 != frames {
            return Err(format!("{} of {frames} frames arrived", all.len()));
        }
    }
    Ok(())
}
