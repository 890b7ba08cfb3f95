//! The end of a live migration that gets the guest.
//!
//! The VM is built whole before the first page arrives, so that whatever can fail has failed by then, and nothing is
//! left to build while the guest stands still. It runs here only after the leases of its disks have been
//! taken; if the connection is lost once the final state is here, the lease still decides, and the guest may run here
//! without another word from the source.
//!
//! A source that has lost its connection may come again while this end still holds what had arrived of the guest. The
//! first attempt is then superseded ([`Destination::supersede`]), unless the lease has been asked for.
//!
//! Order: frames that the source forwards were sent before the network knew the new place, so they
//! are delivered before those that arrive here directly, which wait until the source says that none follow.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use host_protocol::{
    HostEvent, MigrationConfig, Phase, Role, VmId,
    auth::{Nonce, PoolKey, Purpose},
};
use vdi::StorageError;

use crate::{
    hash::MemoryHash,
    outbox::Outbox,
    vm::DestinationVm,
    wire::{self, Decoder, FinalState, FromDestination, FromSource, Message},
};

/// Whoever has connected must have proved itself within this time.
const PROOF_TIMEOUT_NS: u64 = 10_000_000_000;

/// Frames that arrive directly wait no longer than this for those that are forwarded.
const HOLD_NS: u64 = 5_000_000;

/// The source may forward frames for so long.
const FORWARD_NS: u64 = 2_000_000_000;

/// Frames kept until the guest runs.
const MAX_FRAMES: usize = 4096;

/// Pages hashed in one step.
const HASH_STRIDE: usize = 64;

/// Messages handled between two looks at the clock.
const STRIDE: usize = 4;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationOutcome {
    /// The guest is here.
    Arrived,
    /// It is not, and will not be.
    Refused {
        /// Why.
        why: String,
    },
}

#[derive(Debug)]
enum State {
    Greeting,
    Proving {
        source: Nonce,
        own: Nonce,
    },
    Building,
    Receiving,
    /// The end of this round is answered when the rehearsal is over.
    Rehearsing {
        round: Option<u32>,
    },
    Hashing {
        hash: MemoryHash,
        state: FinalState,
        arrived_ns: u64,
    },
    Taking {
        state: FinalState,
        arrived_ns: u64,
        committed: bool,
    },
    Arrived {
        hold_until_ns: Option<u64>,
        until_ns: u64,
    },
    Ended(DestinationOutcome),
}

/// The destination's end of one migration.
#[derive(Debug)]
pub struct Destination {
    key: PoolKey,
    own_nonce: Nonce,
    vm: VmId,
    config: MigrationConfig,
    state: State,
    /// Frames that were forwarded before the guest could take them.
    frames: Vec<(u8, Vec<u8>)>,
    frames_ended: bool,
    decoder: Decoder,
    outbox: Outbox,
    connected: bool,
    proof_until_ns: u64,
    events: Vec<(u64, HostEvent)>,
}

impl Destination {
    /// A connection has come in. `nonce` is random.
    #[must_use]
    pub fn new(key: PoolKey, nonce: Nonce, now_ns: u64) -> Self {
        Self {
            key,
            own_nonce: nonce,
            vm: VmId::default(),
            config: MigrationConfig::default(),
            state: State::Greeting,
            frames: Vec::new(),
            frames_ended: false,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            connected: true,
            proof_until_ns: now_ns + PROOF_TIMEOUT_NS,
            events: Vec::new(),
        }
    }

    /// The VM it is about, once that is known.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// Until when the source has to prove itself; `None` once it has.
    #[must_use]
    pub fn unproved_until_ns(&self) -> Option<u64> {
        match self.state {
            State::Greeting | State::Proving { .. } => Some(self.proof_until_ns),
            _ => None,
        }
    }

    /// Takes bytes from the source, and says how many: no more than it can hold. They are acted on by
    /// [`Self::advance`].
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = wire::MAX_MESSAGE.saturating_sub(self.decoder.waiting());
        let taken = bytes.len().min(room);
        self.decoder.push(&bytes[..taken]);
        taken
    }

    /// The connection is gone.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
    }

    /// The same VM comes anew, from a host that has proved itself: this attempt ends, unless the lease has been asked for.
    /// False when it goes on.
    pub fn supersede(&mut self, vm: &mut impl DestinationVm) -> bool {
        match self.state {
            // From here on the lease decides, and nobody's word.
            State::Taking { .. } | State::Arrived { .. } => return false,
            State::Ended(_) => {}
            _ => self.refuse(vm, "it was begun anew".to_string()),
        }
        true
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

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&DestinationOutcome> {
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
            State::Greeting | State::Proving { .. } => Some(self.proof_until_ns),
            State::Arrived {
                hold_until_ns,
                until_ns,
            } => Some(hold_until_ns.unwrap_or(until_ns)),
            // Whether the source lives is TCP's to find out; what it has to say may take long.
            State::Building
            | State::Receiving
            | State::Rehearsing { .. }
            | State::Hashing { .. }
            | State::Taking { .. }
            | State::Ended(_) => None,
        }
    }

    /// Acts on messages and on time, until `until_ns`. True when more is to be done at once.
    pub fn advance(&mut self, vm: &mut impl DestinationVm, until_ns: u64) -> bool {
        self.step(vm);
        loop {
            for _ in 0..STRIDE {
                match self.take_message(vm) {
                    Ok(true) => {}
                    Ok(false) => return self.settle(vm, until_ns),
                    Err(why) => {
                        self.fail(vm, why);
                        return self.settle(vm, until_ns);
                    }
                }
            }
            if vm.now_ns() >= until_ns {
                return true;
            }
        }
    }

    /// Handles one message, if a whole one is there and this is the time for it.
    fn take_message(&mut self, vm: &mut impl DestinationVm) -> Result<bool, String> {
        // Whatever comes now can wait until that is done.
        if matches!(
            self.state,
            State::Building | State::Hashing { .. } | State::Ended(_)
        ) {
            return Ok(false);
        }
        match self.decoder.next::<FromSource>() {
            Ok(Some(Message::Control(message))) => self.on_message(message, vm)?,
            Ok(Some(Message::Pages(batch))) => {
                if !matches!(self.state, State::Receiving) {
                    return Err("the source sent pages at the wrong time".to_string());
                }
                batch.load_into(vm.memory())?;
            }
            Ok(None) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        }
        Ok(true)
    }

    /// No message is left: looks at the clock, the connection and the work that is under way.
    fn settle(&mut self, vm: &mut impl DestinationVm, until_ns: u64) -> bool {
        if !self.connected {
            match self.state {
                // The lease decides now, not the connection.
                State::Hashing { .. } | State::Taking { .. } | State::Ended(_) => {}
                State::Arrived { .. } => self.finish(vm),
                _ => self.refuse(vm, "the connection to the source was lost".to_string()),
            }
        }
        let now = vm.now_ns();
        match &mut self.state {
            State::Arrived {
                hold_until_ns,
                until_ns,
            } => {
                if hold_until_ns.is_some_and(|at| at <= now) {
                    *hold_until_ns = None;
                    vm.release_direct_frames();
                }
                if *until_ns <= now {
                    self.finish(vm);
                }
            }
            State::Greeting | State::Proving { .. } if self.proof_until_ns <= now => {
                self.refuse(vm, "the source has not proved itself in time".to_string());
            }
            State::Hashing { .. } => return self.hash(vm, until_ns),
            _ => {}
        }
        false
    }

    /// Looks whether the VM is built, or the rehearsal over.
    fn step(&mut self, vm: &mut impl DestinationVm) {
        if let State::Rehearsing {
            round: Some(number),
        } = self.state
            && let Some(spoilt) = vm.rehearsed()
        {
            self.send(&FromDestination::RoundApplied { number, spoilt });
            self.state = State::Receiving;
        }
        if matches!(self.state, State::Building) {
            match vm.is_built() {
                Ok(true) => {
                    self.send(&FromDestination::Ready);
                    self.state = State::Receiving;
                }
                Ok(false) => {}
                Err(why) => self.refuse(vm, why),
            }
        }
    }

    fn on_message(
        &mut self,
        message: FromSource,
        vm: &mut impl DestinationVm,
    ) -> Result<(), String> {
        let now = vm.now_ns();
        match (&mut self.state, message) {
            (State::Greeting, FromSource::Hello { nonce }) => {
                let own = self.own_nonce;
                let proof = self.key.prove(Purpose::MigrationDestination, &nonce, &own);
                self.send(&FromDestination::Welcome { nonce: own, proof });
                self.state = State::Proving { source: nonce, own };
            }
            (
                State::Proving { source, own },
                FromSource::Prepare {
                    proof,
                    vm: config,
                    config: how,
                },
            ) => {
                if !self
                    .key
                    .accepts(Purpose::MigrationSource, source, own, &proof)
                {
                    return Err("the source does not hold this pool's key".to_string());
                }
                self.vm = config.id;
                self.config = how;
                self.mark(now, Phase::SetUp, String::new());
                vm.build(&config)?;
                self.state = State::Building;
                self.step(vm);
            }
            (State::Receiving, FromSource::EndOfRound { number }) => {
                let spoilt = Vec::new();
                self.send(&FromDestination::RoundApplied { number, spoilt });
            }
            (State::Receiving, FromSource::Rehearsal { snapshot }) => {
                vm.rehearse(&snapshot)?;
                self.state = State::Rehearsing { round: None };
            }
            (
                State::Rehearsing {
                    round: round @ None,
                },
                FromSource::EndOfRound { number },
            ) => {
                *round = Some(number);
                self.step(vm);
            }
            (State::Rehearsing { .. }, FromSource::Frame { nic, frame }) => {
                vm.deliver_to_copy(usize::from(nic), &frame);
            }
            // It was on its way when the copy ended.
            (State::Receiving, FromSource::Frame { .. }) => {}
            (State::Receiving, FromSource::Final(state)) => {
                self.mark(now, Phase::DeviceState, String::new());
                if self.config.verify {
                    self.state = State::Hashing {
                        hash: MemoryHash::default(),
                        state,
                        arrived_ns: now,
                    };
                } else {
                    self.restore(vm, state, now)?;
                }
            }
            (State::Taking { .. }, FromSource::Frame { nic, frame }) => {
                if self.frames.len() < MAX_FRAMES {
                    self.frames.push((nic, frame));
                }
            }
            (State::Arrived { .. }, FromSource::Frame { nic, frame }) => {
                vm.deliver(usize::from(nic), &frame);
            }
            (State::Taking { .. }, FromSource::EndOfFrames) => self.frames_ended = true,
            (State::Arrived { .. }, FromSource::EndOfFrames) => self.finish(vm),
            (State::Taking { .. } | State::Arrived { .. }, FromSource::Cancel { .. }) => {
                // The lease decides.
            }
            (_, FromSource::Cancel { why }) => {
                return Err(format!("the source called it off: {why}"));
            }
            (_, _) => return Err("the source sent a message that has no place here".to_string()),
        }
        Ok(())
    }

    fn hash(&mut self, vm: &mut impl DestinationVm, until_ns: u64) -> bool {
        let State::Hashing { hash, state, .. } = &mut self.state else {
            return false;
        };
        let result = loop {
            if let Some(result) = hash.step(vm.memory(), HASH_STRIDE) {
                break result;
            }
            if vm.now_ns() >= until_ns {
                return true;
            }
        };
        let equal = state.hash == Some(result);
        self.events.push((
            vm.now_ns(),
            HostEvent::MemoryHash {
                vm: self.vm,
                role: Role::Destination,
                hash: result,
            },
        ));
        if !equal {
            self.refuse(
                vm,
                "the guest's memory differs from the source's".to_string(),
            );
            return false;
        }
        if let State::Hashing {
            state, arrived_ns, ..
        } = core::mem::replace(&mut self.state, State::Receiving)
            && let Err(why) = self.restore(vm, state, arrived_ns)
        {
            self.refuse(vm, why);
        }
        true
    }

    fn restore(
        &mut self,
        vm: &mut impl DestinationVm,
        state: FinalState,
        arrived_ns: u64,
    ) -> Result<(), String> {
        vm.restore(&state.snapshot, &state.disks)?;
        self.mark(vm.now_ns(), Phase::LeaseHandOver, String::new());
        self.state = State::Taking {
            state,
            arrived_ns,
            committed: false,
        };
        if vm.take_lease() {
            Ok(())
        } else {
            Err("the VM has no disk whose lease could decide who has it".to_string())
        }
    }

    /// The answer to [`DestinationVm::take_lease`].
    pub fn on_taken(&mut self, vm: &mut impl DestinationVm, result: &Result<u64, StorageError>) {
        let State::Taking { committed, .. } = &mut self.state else {
            return;
        };
        if let Err(error) = result {
            let why = format!("the disk's lease could not be taken: {error}");
            self.refuse(vm, why);
            return;
        }
        if !*committed {
            *committed = true;
            self.send(&FromDestination::Committed);
        }
        if !vm.take_lease() {
            self.arrive(vm);
        }
    }

    fn arrive(&mut self, vm: &mut impl DestinationVm) {
        let now = vm.now_ns();
        self.mark(now, Phase::Resume, String::new());
        let until_ns = now + FORWARD_NS;
        let arrived = State::Arrived {
            hold_until_ns: Some(now + HOLD_NS),
            until_ns,
        };
        let State::Taking {
            state, arrived_ns, ..
        } = core::mem::replace(&mut self.state, arrived)
        else {
            return;
        };
        let elapsed_ns = state.transit_ns.saturating_add(vm.now_ns() - arrived_ns);
        vm.resume(
            &state.snapshot,
            elapsed_ns,
            !self.config.controls.no_announce,
        );
        for (nic, frame) in core::mem::take(&mut self.frames) {
            vm.deliver(usize::from(nic), &frame);
        }
        if self.frames_ended {
            self.finish(vm);
        }
    }

    /// The guest is here and nothing more comes from the source.
    fn finish(&mut self, vm: &mut impl DestinationVm) {
        vm.release_direct_frames();
        self.mark(vm.now_ns(), Phase::Finished, String::new());
        self.state = State::Ended(DestinationOutcome::Arrived);
    }

    /// The source cannot be understood any more.
    fn fail(&mut self, vm: &mut impl DestinationVm, why: String) {
        // From the moment the lease is asked for, only its answer counts.
        if matches!(self.state, State::Taking { .. } | State::Arrived { .. }) {
            self.connected = false;
        } else {
            self.refuse(vm, why);
        }
    }

    /// Gives up before the commit point.
    fn refuse(&mut self, vm: &mut impl DestinationVm, why: String) {
        self.send(&FromDestination::Failed { why: why.clone() });
        if !matches!(self.state, State::Greeting | State::Proving { .. }) {
            vm.discard();
            self.mark(vm.now_ns(), Phase::Aborted, why.clone());
        }
        self.state = State::Ended(DestinationOutcome::Refused { why });
    }

    fn mark(&mut self, now: u64, phase: Phase, detail: String) {
        self.events.push((
            now,
            HostEvent::Migration {
                vm: self.vm,
                role: Role::Destination,
                phase,
                detail,
            },
        ));
    }

    fn send(&mut self, message: &FromDestination) {
        if self.connected {
            self.outbox.message(message);
        }
    }
}
