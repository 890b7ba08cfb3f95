//! The end of a live migration that has the guest.
//!
//! What it guarantees: it ends with the guest running here, or never running here again, and the second only
//! if the lease of the guest's disk says that it is another host's. So everything before
//! [`FromSource::Final`] can be undone by just letting the guest run on; from then on the destination *may* have
//! taken the lease, and only the storage server knows. Whoever then changes the lease's epoch first has the
//! guest: the destination by taking it, the source by taking it back.
//!
//! It knows no socket and no hypervisor: bytes go in and out, and the guest is behind [`SourceVm`].

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use guest_memory::GuestMemory;
use host_protocol::{
    HostEvent, MigrationConfig, Phase, Role, VmConfig,
    auth::{Nonce, PoolKey, Purpose},
};
use vdi::StorageError;

use crate::{
    copier::Copier,
    harvest::{Harvest, Tracker},
    hash::MemoryHash,
    outbox::Outbox,
    rounds::Rounds,
    vm::SourceVm,
    wire::{Decoder, FinalState, FromDestination, FromSource, Message},
};

/// Bytes made ready for the socket beyond its own buffer: what is sent between two turns of the guest, about half a
/// millisecond's worth.
const MAX_UNSENT: usize = 64 << 10;

/// The rehearsal comes with the first round of so few pages that they can be copied in one go, in a few milliseconds in
/// which the guest does not run: pages and snapshot are then of one moment. A copy whose stacks are older than its
/// registers would be lost at once.
const REHEARSAL_PAGES: usize = 512;

/// Disk I/O that the guest had begun must end within this time, or the guest runs on.
const DRAIN_TIMEOUT_NS: u64 = 3_000_000_000;

/// An answer of the destination to the final state is awaited so long; then the lease is asked.
const COMMIT_TIMEOUT_NS: u64 = 3_000_000_000;

/// Added where the destination hashes all RAM in between.
const VERIFY_TIMEOUT_NS: u64 = 60_000_000_000;

/// Frames are forwarded until the network has been seen to know better, but no longer than this.
const FORWARD_NS: u64 = 1_000_000_000;

/// Pages hashed in one step.
const HASH_STRIDE: usize = 64;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOutcome {
    /// The guest is the destination's; it must never run here again.
    Moved,
    /// The guest runs on here.
    Kept {
        /// Why.
        why: String,
    },
}

#[derive(Debug)]
enum State {
    Connecting,
    Greeting,
    Preparing,
    Copying { harvest: Harvest, last: bool },
    Confirming,
    Draining { deadline_ns: u64 },
    Hashing(MemoryHash),
    Committing { deadline_ns: u64 },
    Forwarding { deadline_ns: u64 },
    Reclaiming { why: String },
    Ended(SourceOutcome),
}

/// The source's end of one migration.
#[derive(Debug)]
pub struct Source {
    key: PoolKey,
    nonce: Nonce,
    vm: VmConfig,
    config: MigrationConfig,
    state: State,
    tracker: Tracker,
    /// Of the guest's RAM.
    pages: usize,
    copier: Copier,
    rounds: Rounds,
    deadline_ns: u64,
    hash: Option<[u8; 32]>,
    decoder: Decoder,
    outbox: Outbox,
    /// The rehearsal has been sent, and its end is awaited.
    rehearsing: bool,
    rehearsed: bool,
    connected: bool,
    lost: bool,
    cancelled: Option<String>,
    events: Vec<(u64, HostEvent)>,
}

impl Source {
    /// A migration of `vm`, which has `pages` pages of RAM. `nonce` is random.
    #[must_use]
    pub fn new(
        key: PoolKey,
        nonce: Nonce,
        vm: VmConfig,
        config: MigrationConfig,
        pages: usize,
        now_ns: u64,
    ) -> Self {
        let deadline_ns = now_ns + u64::from(config.timeout_ms) * 1_000_000;
        let mut source = Self {
            key,
            nonce,
            vm,
            config,
            state: State::Connecting,
            tracker: Tracker::new(pages),
            pages,
            copier: Copier::new(pages),
            rounds: Rounds::new(pages, now_ns),
            deadline_ns,
            hash: None,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            rehearsing: false,
            rehearsed: false,
            connected: false,
            lost: false,
            cancelled: None,
            events: Vec::new(),
        };
        source.mark(now_ns, Phase::SetUp, String::new());
        source
    }

    /// The connection stands.
    pub fn on_connected(&mut self) {
        if matches!(self.state, State::Connecting) {
            self.connected = true;
            self.send(&FromSource::Hello { nonce: self.nonce });
            self.state = State::Greeting;
        }
    }

    /// The connection is gone, or could not be made.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.lost = true;
    }

    /// Takes bytes from the destination. They are acted on by [`Self::advance`].
    pub fn receive(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// Fills `room` with what is to be sent; gives the number of bytes.
    pub fn transmit(&mut self, room: &mut [u8]) -> usize {
        self.outbox.transmit(room)
    }

    /// Whether all that was said has been handed to the socket.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Asks for the migration to be given up. Too late after the commit point: the guest has moved then, as if nobody had asked.
    pub fn cancel(&mut self, why: String) {
        self.cancelled.get_or_insert(why);
    }

    /// Whether it was given up or has ended, so that the guest's next migration need only wait for the rest of it.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.cancelled.is_some() || matches!(self.state, State::Reclaiming { .. } | State::Ended(_))
    }

    /// Whether frames for the guest shall be given to [`Self::forward`].
    #[must_use]
    pub fn takes_frames(&self) -> bool {
        !self.config.controls.no_forward
            && matches!(
                self.state,
                State::Committing { .. } | State::Forwarding { .. }
            )
    }

    /// Whether a copy of the guest runs at the destination, which is to receive what the guest receives.
    #[must_use]
    pub fn takes_copies(&self) -> bool {
        self.rehearsing
    }

    /// Hands a frame for the guest to the destination.
    pub fn forward(&mut self, nic: u8, frame: &[u8]) {
        self.send(&FromSource::Frame {
            nic,
            frame: frame.to_vec(),
        });
    }

    /// The network has learnt that the guest is elsewhere: no more frames come here.
    pub fn announce_seen(&mut self) {
        if let State::Forwarding { deadline_ns } = &mut self.state {
            *deadline_ns = 0;
        }
    }

    /// Whether the guest stands still, since it is about to be handed over.
    #[must_use]
    pub fn has_stopped_guest(&self) -> bool {
        matches!(
            self.state,
            State::Draining { .. }
                | State::Copying { last: true, .. }
                | State::Hashing(_)
                | State::Committing { .. }
        )
    }

    /// The destination owns the guest.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(
            self.state,
            State::Forwarding { .. } | State::Ended(SourceOutcome::Moved)
        )
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&SourceOutcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// What happened since the last call, with its moment.
    pub fn take_events(&mut self) -> Vec<(u64, HostEvent)> {
        core::mem::take(&mut self.events)
    }

    /// When [`Self::advance`] must be called at the latest.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        match self.state {
            State::Draining { deadline_ns }
            | State::Committing { deadline_ns }
            | State::Forwarding { deadline_ns } => Some(deadline_ns),
            State::Reclaiming { .. } | State::Ended(_) => None,
            _ => Some(self.deadline_ns),
        }
    }

    /// Whether [`Self::copy`] has something to do now.
    #[must_use]
    pub fn wants_cpu(&self) -> bool {
        match self.state {
            State::Copying { .. } => self.outbox.waiting() < MAX_UNSENT,
            State::Hashing(_) => true,
            _ => false,
        }
    }

    /// Acts on messages and on time.
    pub fn advance(&mut self, vm: &mut impl SourceVm) {
        loop {
            match self.decoder.next::<FromDestination>() {
                Ok(Some(Message::Control(message))) => self.on_message(message, vm),
                Ok(Some(Message::Pages(_))) => {
                    self.give_up(vm, "the destination sent pages".to_string());
                }
                Ok(None) => break,
                Err(error) => {
                    self.on_disconnected();
                    self.give_up(vm, error.to_string());
                    break;
                }
            }
            if matches!(self.state, State::Ended(_)) {
                return;
            }
        }
        if let Some(why) = self.cancelled.take() {
            self.give_up(vm, why);
        }
        if self.lost {
            let why = match self.state {
                State::Connecting => "the destination cannot be reached",
                _ => "the connection to the destination was lost",
            };
            self.give_up(vm, why.to_string());
        }
        self.check_time(vm);
        if let State::Draining { .. } = self.state
            && vm.drain()
        {
            self.begin_last_pages(vm);
        }
    }

    fn check_time(&mut self, vm: &mut impl SourceVm) {
        let now = vm.now_ns();
        match self.state {
            State::Draining { deadline_ns } if deadline_ns <= now => {
                self.give_up(vm, "the guest's disk I/O did not end in time".to_string());
            }
            State::Committing { deadline_ns } if deadline_ns <= now => {
                self.give_up(vm, "the destination did not answer in time".to_string());
            }
            State::Forwarding { deadline_ns } if deadline_ns <= now => {
                self.send(&FromSource::EndOfFrames);
                self.end(now, SourceOutcome::Moved);
            }
            State::Draining { .. }
            | State::Committing { .. }
            | State::Forwarding { .. }
            | State::Reclaiming { .. }
            | State::Ended(_) => {}
            _ if self.deadline_ns <= now => {
                let why = format!(
                    "not finished within {} ms; the guest may change its memory faster than the network takes it",
                    self.config.timeout_ms
                );
                self.give_up(vm, why);
            }
            _ => {}
        }
    }

    fn on_message(&mut self, message: FromDestination, vm: &mut impl SourceVm) {
        let now = vm.now_ns();
        match (&self.state, message) {
            (State::Greeting, FromDestination::Welcome { nonce, proof }) => {
                if !self
                    .key
                    .accepts(Purpose::MigrationDestination, &self.nonce, &nonce, &proof)
                {
                    self.give_up(
                        vm,
                        "the destination does not hold this pool's key".to_string(),
                    );
                    return;
                }
                let proof = self
                    .key
                    .prove(Purpose::MigrationSource, &self.nonce, &nonce);
                self.send(&FromSource::Prepare {
                    proof,
                    vm: self.vm.clone(),
                    config: self.config.clone(),
                });
                self.state = State::Preparing;
            }
            (State::Preparing, FromDestination::Ready) => {
                self.mark(now, Phase::PreCopy, String::new());
                let harvest = self.harvest(vm);
                self.begin_round(now, 0, harvest);
            }
            (State::Confirming, FromDestination::RoundApplied { number, spoilt })
                if number == self.rounds.current.number =>
            {
                self.rehearsing = false;
                match self.take_back(&spoilt) {
                    Ok(()) => self.round_ended(vm),
                    Err(why) => self.give_up(vm, why),
                }
            }
            // It may have taken the lease before this end asked for it back.
            (State::Committing { .. } | State::Reclaiming { .. }, FromDestination::Committed) => {
                self.handed_over(now);
            }
            (State::Reclaiming { .. } | State::Forwarding { .. }, _) => {}
            (_, FromDestination::Failed { why }) => {
                self.give_up(vm, format!("the destination gave up: {why}"));
            }
            (_, message) => {
                let why = format!("the destination said {message:?}, which has no place here");
                self.give_up(vm, why);
            }
        }
    }

    /// The destination has the guest. What the network still brings here is the guest's: while the connection stands, it
    /// goes on to the destination.
    fn handed_over(&mut self, now: u64) {
        if !self.connected {
            self.end(now, SourceOutcome::Moved);
            return;
        }
        let long = if self.config.controls.no_forward {
            0
        } else {
            FORWARD_NS
        };
        self.state = State::Forwarding {
            deadline_ns: now + long,
        };
        self.mark(now, Phase::Forward, String::new());
    }

    /// The lease has been found to be another host's. False when that is not the work of this migration.
    pub fn on_lease_lost(&mut self, now_ns: u64) -> bool {
        match self.state {
            State::Committing { .. } | State::Reclaiming { .. } => self.handed_over(now_ns),
            State::Forwarding { .. } | State::Ended(SourceOutcome::Moved) => {}
            _ => return false,
        }
        true
    }

    /// The guest has ended by itself, so there is nothing to move.
    pub fn on_guest_gone(&mut self, now_ns: u64, why: String) {
        self.send(&FromSource::Cancel { why: why.clone() });
        self.keep_running(now_ns, why);
    }

    /// Harvests both kinds of dirty marks.
    fn harvest(&mut self, vm: &mut impl SourceVm) -> Harvest {
        let count_device_writes = !self.config.controls.no_device_marks;
        self.tracker.harvest(|owed| {
            vm.harvest_dirty(owed);
            if count_device_writes {
                vm.memory().harvest_into(owed);
            }
        })
    }

    /// Pages that the destination's rehearsal has changed.
    fn take_back(&mut self, spoilt: &[u32]) -> Result<(), String> {
        for page in spoilt {
            let page = *page as usize;
            if page >= self.pages {
                return Err(format!(
                    "the destination spoke of page {page}, beyond the guest's RAM"
                ));
            }
            self.tracker.owe(page);
            self.copier.spoil(page);
        }
        Ok(())
    }

    fn begin_round(&mut self, now: u64, number: u32, harvest: Harvest) {
        self.rounds.begin(number, now);
        self.state = State::Copying {
            harvest,
            last: false,
        };
    }

    /// The destination has all pages of a round: another one, or the stop?
    fn round_ended(&mut self, vm: &mut impl SourceVm) {
        let now = vm.now_ns();
        self.rounds.confirmed(now);
        let harvest = self.harvest(vm);
        let dirty = harvest.len();
        self.report_round(now, dirty);
        let next = self.rounds.current.number + 1;
        let rehearse = self.config.rehearse && !self.rehearsed && dirty <= REHEARSAL_PAGES;
        if rehearse && next < self.config.max_rounds {
            self.begin_rehearsal(vm, next, harvest);
            return;
        }
        let stalled = self.rounds.have_stalled(dirty);
        let converged = stalled || dirty <= self.config.stop_pages as usize;
        if converged || next >= self.config.max_rounds {
            self.tracker.give_back(harvest);
            vm.stop();
            let now = vm.now_ns();
            self.mark(now, Phase::Drain, String::new());
            #[cfg(feature = "longer-stop")]
            stand_still(vm);
            self.state = State::Draining {
                deadline_ns: now + DRAIN_TIMEOUT_NS,
            };
        } else {
            vm.settle();
            self.begin_round(now, next, harvest);
        }
    }

    /// A round in one go, and the snapshot that belongs to it.
    fn begin_rehearsal(&mut self, vm: &mut impl SourceVm, number: u32, mut harvest: Harvest) {
        vm.settle();
        self.rounds.begin(number, vm.now_ns());
        while !self.copy_pages(vm.memory(), &mut harvest) {}
        harvest.commit();
        self.rehearsed = true;
        self.rehearsing = true;
        let snapshot = vm.snapshot();
        self.send(&FromSource::Rehearsal { snapshot });
        vm.copy_frames();
        self.end_round(vm.now_ns());
    }

    fn begin_last_pages(&mut self, vm: &mut impl SourceVm) {
        let now = vm.now_ns();
        self.mark(now, Phase::LastPages, String::new());
        let harvest = self.harvest(vm);
        self.begin_round(now, self.rounds.current.number + 1, harvest);
        if let State::Copying { last, .. } = &mut self.state {
            *last = true;
        }
        // The guest stands still, so nothing else has a better claim to the CPU. Hashing takes long, and the connection
        // must be looked after meanwhile.
        while matches!(self.state, State::Copying { .. }) && self.wants_cpu() {
            self.copy_some(vm);
        }
    }

    /// Copies pages (or hashes them) until `until_ns`, or until enough is ready to be sent.
    pub fn copy(&mut self, vm: &mut impl SourceVm, until_ns: u64) {
        while self.wants_cpu() {
            self.copy_some(vm);
            if vm.now_ns() >= until_ns {
                break;
            }
        }
    }

    fn copy_some(&mut self, vm: &mut impl SourceVm) {
        match core::mem::replace(&mut self.state, State::Confirming) {
            State::Copying { mut harvest, last } => {
                if self.copy_pages(vm.memory(), &mut harvest) {
                    harvest.commit();
                    self.pages_sent(vm, last);
                } else {
                    self.state = State::Copying { harvest, last };
                }
            }
            State::Hashing(mut hash) => match hash.step(vm.memory(), HASH_STRIDE) {
                Some(result) => self.hashed(vm, result),
                None => self.state = State::Hashing(hash),
            },
            other => self.state = other,
        }
    }

    /// Copies a few pages. True when the harvest is empty.
    fn copy_pages(&mut self, memory: &GuestMemory, harvest: &mut Harvest) -> bool {
        self.copier
            .copy(memory, harvest, &mut self.rounds.current, &mut self.outbox)
    }

    fn pages_sent(&mut self, vm: &mut impl SourceVm, last: bool) {
        let now = vm.now_ns();
        if last {
            self.report_round(now, 0);
            self.mark(now, Phase::DeviceState, String::new());
            if self.config.verify {
                self.state = State::Hashing(MemoryHash::default());
            } else {
                self.send_final(vm);
            }
            return;
        }
        self.copier.end_round();
        self.end_round(now);
    }

    fn end_round(&mut self, now: u64) {
        self.rounds.sent(now);
        self.send(&FromSource::EndOfRound {
            number: self.rounds.current.number,
        });
        self.state = State::Confirming;
    }

    fn hashed(&mut self, vm: &mut impl SourceVm, hash: [u8; 32]) {
        self.hash = Some(hash);
        self.events.push((
            vm.now_ns(),
            HostEvent::MemoryHash {
                vm: self.vm.id,
                role: Role::Source,
                hash,
            },
        ));
        self.send_final(vm);
    }

    fn send_final(&mut self, vm: &mut impl SourceVm) {
        let disks = match vm.disks() {
            Ok(disks) => disks,
            Err(why) => {
                self.keep(vm, why);
                return;
            }
        };
        let snapshot = vm.snapshot();
        self.send(&FromSource::Final(FinalState {
            snapshot,
            disks,
            transit_ns: self.rounds.transit_ns(),
            hash: self.hash,
        }));
        let allowed = if self.config.verify {
            COMMIT_TIMEOUT_NS + VERIFY_TIMEOUT_NS
        } else {
            COMMIT_TIMEOUT_NS
        };
        self.state = State::Committing {
            deadline_ns: vm.now_ns() + allowed,
        };
    }

    fn report_round(&mut self, now: u64, dirty_after: usize) {
        self.events.push((
            now,
            HostEvent::Round {
                vm: self.vm.id,
                round: self.rounds.report(now, dirty_after),
            },
        ));
    }

    /// The answer to [`SourceVm::reclaim`].
    pub fn on_taken(&mut self, vm: &mut impl SourceVm, result: &Result<u64, StorageError>) {
        let State::Reclaiming { why } = &self.state else {
            return;
        };
        let why = why.clone();
        match result {
            Ok(_) => {
                vm.resume();
                self.keep_running(vm.now_ns(), why);
            }
            // Somebody moved the epoch on: the destination has committed.
            Err(_) => self.handed_over(vm.now_ns()),
        }
    }

    /// Something went wrong, or somebody changed their mind.
    fn give_up(&mut self, vm: &mut impl SourceVm, why: String) {
        match self.state {
            // Only the lease knows whether the destination has taken it.
            State::Committing { .. } => {
                self.send(&FromSource::Cancel { why: why.clone() });
                self.state = State::Reclaiming { why };
                vm.reclaim();
            }
            State::Forwarding { .. } => self.end(vm.now_ns(), SourceOutcome::Moved),
            State::Reclaiming { .. } | State::Ended(_) => {}
            _ => self.keep(vm, why),
        }
    }

    /// Before the final state was sent the destination cannot commit: the guest just runs on.
    fn keep(&mut self, vm: &mut impl SourceVm, why: String) {
        self.send(&FromSource::Cancel { why: why.clone() });
        if let State::Copying { harvest, .. } =
            core::mem::replace(&mut self.state, State::Confirming)
        {
            self.tracker.give_back(harvest);
        }
        vm.resume();
        self.keep_running(vm.now_ns(), why);
    }

    fn keep_running(&mut self, now: u64, why: String) {
        self.mark(now, Phase::Aborted, why.clone());
        self.state = State::Ended(SourceOutcome::Kept { why });
    }

    fn end(&mut self, now: u64, outcome: SourceOutcome) {
        self.mark(now, Phase::Finished, String::new());
        self.state = State::Ended(outcome);
    }

    fn mark(&mut self, now: u64, phase: Phase, detail: String) {
        self.events.push((
            now,
            HostEvent::Migration {
                vm: self.vm.id,
                role: Role::Source,
                phase,
                detail,
            },
        ));
    }

    fn send(&mut self, message: &FromSource) {
        if self.connected {
            self.outbox.message(message);
        }
    }
}

/// A hypervisor that takes 30 ms more for its stop: what measures the lab's gate must find it.
#[cfg(feature = "longer-stop")]
fn stand_still(vm: &impl SourceVm) {
    let until_ns = vm.now_ns() + 30_000_000;
    while vm.now_ns() < until_ns {
        core::hint::spin_loop();
    }
}
