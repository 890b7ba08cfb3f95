//! A hypervisor host without its hardware: VMs, their scheduling, their storage and networks, the control
//! service, and live migration.
//!
//! [`Host`] is sans-IO: frames and clock readings come in through [`Host::on_frame`] and
//! [`Platform`], frames and a next deadline go out. So the same code runs on bare metal and, many hosts at once, in
//! a deterministic simulation. It never waits: whatever takes long is a state that
//! [`Host::poll`] moves on.
//!
//! ```text
//! loop {
//!     for each frame in the cards' rings { host.on_frame(nic, frame) }
//!     host.poll();
//!     if !host.run_slice() { arm the timer for host.next_deadline_ns(); sti; hlt }
//! }
//! ```
//!
//! A physical interrupt makes a running guest exit, so the loop turns when something has arrived.
//!
//! Rejected: an async runtime. The host has one thing to run at a time, must always know what it is,
//! and must stop it at any point; tasks would hide all three.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod backends;
mod commands;
mod console;
mod control;
mod ha;
mod lifecycle;
mod migrate;
mod net;
pub mod platform;
mod scheduler;
mod storage;
mod suspend;
mod vm;

use alloc::{collections::VecDeque, string::String, vec::Vec};
use core::net::Ipv4Addr;

use host_protocol::{HostEvent, VmId, auth::PoolKey};
use machine::{Clock, Outcome, ResetCause};

use crate::{
    commands::Hashing,
    control::Control,
    ha::Availability,
    migrate::{Announcement, Arrival, Departure},
    net::{
        bridge::{Bridge, Port},
        stack::Stack,
    },
    platform::{Nic, Platform, VmHardware},
    scheduler::{SLICE_NS, Scheduler, VcpuId},
    storage::StorageLink,
    suspend::{Reopening, Restoration, Snapshotting, Suspension},
    vm::{Guest, Stage, Vm},
};

/// How long a vCPU may run when nobody else wants the CPU.
const LONE_SLICE_NS: u64 = 10_000_000;

/// Longest time without a look around, even if nothing is due.
const IDLE_NS: u64 = 1_000_000_000;

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Its name, which is also the owner of its leases.
    pub name: String,
    /// Version of the image, for reports.
    pub version: String,
    /// Address and prefix length on the management network.
    pub management: (Ipv4Addr, u8),
    /// Address and prefix length on the storage network.
    pub storage: (Ipv4Addr, u8),
    /// The storage server.
    pub nfs: (Ipv4Addr, u16),
    /// The storage server's export.
    pub export: String,
    /// The pool's key.
    pub key: PoolKey,
    /// Largest packet on the management and storage networks.
    pub mtu: usize,
}

/// A hypervisor host.
pub struct Host<P: Platform> {
    platform: P,
    config: HostConfig,
    management: Stack,
    storage: StorageLink,
    control: Control,
    bridge: Bridge,
    scheduler: Scheduler,
    vms: Vec<Vm<P::Vm>>,
    next_number: u32,
    storage_was_up: bool,
    /// When guests' frames that did not fit the session card's ring are tried again.
    uplink_retry_ns: Option<u64>,
    departures: Vec<Departure>,
    arrivals: Vec<Arrival>,
    /// An arrival has more to load than it was given time for.
    arrivals_busy: bool,
    announcements: VecDeque<Announcement>,
    hashing: Option<Hashing>,
    suspension: Option<Suspension>,
    snapshot: Option<Snapshotting>,
    reopening: Option<Reopening>,
    restoration: Option<Restoration>,
    /// What came of a VM that was restored for the pool.
    resumed_for_pool: Option<(VmId, Result<(), String>)>,
    /// Its part in a pool, once it is told of one.
    availability: Option<Availability>,
    /// What guests have run since a migration last got CPU time.
    guests_ran_ns: u64,
    /// The host is to be switched off when its last VM is gone, and who asked for it.
    power_off: Option<vm::Asker>,
}

/// The platform's clocks, as a machine reads them.
struct HostClock<'a, P>(&'a P);

impl<P: Platform> Clock for HostClock<'_, P> {
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn tsc_hz(&self) -> u64 {
        self.0.tsc_hz()
    }
    fn unix_ns(&self) -> u64 {
        self.0.unix_ns()
    }
    fn random(&self, buf: &mut [u8]) {
        self.0.random(buf);
    }
}

impl<P: Platform> Host<P> {
    /// A host without VMs.
    pub fn new(config: HostConfig, mut platform: P) -> Self {
        let booted_ns = platform.now_ns();
        let mut management = Stack::new(
            &mut platform,
            Nic::Management,
            config.management,
            config.mtu,
        );
        let storage = StorageLink::new(&mut platform, &config);
        let booted = HostEvent::Booted {
            host: config.name.clone(),
            version: config.version.clone(),
        };
        let control = Control::new(
            &mut management,
            config.key.clone(),
            config.name.clone(),
            (booted_ns, booted),
        );
        let mut host = Self {
            platform,
            config,
            management,
            storage,
            control,
            bridge: Bridge::default(),
            scheduler: Scheduler::default(),
            vms: Vec::new(),
            next_number: 1,
            storage_was_up: false,
            uplink_retry_ns: None,
            departures: Vec::new(),
            arrivals: Vec::new(),
            arrivals_busy: false,
            announcements: VecDeque::new(),
            hashing: None,
            suspension: None,
            snapshot: None,
            reopening: None,
            restoration: None,
            resumed_for_pool: None,
            availability: None,
            guests_ran_ns: 0,
            power_off: None,
        };
        host.open_arrivals();
        host
    }

    /// What the host runs on.
    pub fn platform_mut(&mut self) -> &mut P {
        &mut self.platform
    }

    /// Takes in a frame from a card.
    pub fn on_frame(&mut self, nic: Nic, frame: &[u8]) {
        match nic {
            Nic::Management => self.management.receive(&mut self.platform, frame),
            Nic::Storage => self.storage.stack.receive(&mut self.platform, frame),
            Nic::Session => {
                self.switch_frame(Port::Uplink, frame);
                self.notice_announcement(frame);
            }
        }
    }

    /// Does all that is due and does not take long.
    pub fn poll(&mut self) {
        self.storage.poll(&mut self.platform);
        self.take_completions();
        self.take_requests();
        self.advance_lifecycles();
        self.advance_availability();
        self.arrivals_busy = false;
        self.advance_migrations();
        self.advance_suspensions();
        self.serve_backends();
        self.storage.poll(&mut self.platform);
        self.management.poll(&mut self.platform);
    }

    /// Runs one vCPU for a slice at most. False when none is runnable: the CPU may halt.
    pub fn run_slice(&mut self) -> bool {
        let now = self.platform.now_ns();
        let (vms, platform, storage) = (&self.vms, &self.platform, self.storage.peek());
        let availability = self.availability.as_ref();
        let picked = self.scheduler.pick(|vcpu| {
            vms.iter().any(|vm| {
                vm.number == vcpu.vm
                    && matches!(&vm.stage, Stage::Running(guest)
                        if guest.machine.runnable(vcpu.index, &HostClock(platform)))
                    && vm.holds_leases(storage, now)
                    && availability.is_none_or(|pool| pool.may_run(vm.config.id, now))
            })
        });
        let Some((vcpu, contended)) = picked else {
            return self.run_background() || self.run_hash() || self.arrivals_busy;
        };
        // Guests first: the rest gets its turn after a whole slice of theirs.
        if self.guests_ran_ns >= SLICE_NS {
            self.guests_ran_ns = 0;
            if self.run_background() || self.run_hash() {
                return true;
            }
        }
        let contended = contended || !self.departures.is_empty() || self.hashing.is_some();
        let slice_end = now + if contended { SLICE_NS } else { LONE_SLICE_NS };
        let outcome = self.run_vcpu(vcpu, slice_end);
        let ran_ns = self.platform.now_ns() - now;
        self.guests_ran_ns += ran_ns;
        self.scheduler.charge(vcpu, ran_ns);
        let Some(index) = self.vms.iter().position(|vm| vm.number == vcpu.vm) else {
            return true;
        };
        self.vms[index].cpu_ns += ran_ns;
        match outcome {
            Outcome::Interrupted | Outcome::Work | Outcome::TimerSet => {}
            Outcome::Halted => self.report_catch_up(index),
            Outcome::Yield => self.scheduler.yield_now(vcpu),
            Outcome::PowerOff => self.guest_powered_off(index),
            Outcome::Reset { cause } => {
                let cause = match cause {
                    ResetCause::Requested => "the guest asked for it",
                    ResetCause::TripleFault => "triple fault",
                };
                self.reboot(index, cause);
            }
            Outcome::Misbehaved(what) => self.guest_misbehaved(index, what),
        }
        true
    }

    fn report_catch_up(&mut self, index: usize) {
        let vm = &mut self.vms[index];
        if vm.awaits_catch_up && !vm.awaits_first_frame {
            vm.awaits_catch_up = false;
            let event = HostEvent::CaughtUp { vm: vm.config.id };
            self.report(event);
        }
    }

    fn run_vcpu(&mut self, vcpu: VcpuId, slice_end_ns: u64) -> Outcome {
        loop {
            // A timer that is due already makes its vCPU runnable; its turn comes after this slice.
            let now = self.platform.now_ns();
            let timers = self.guest_timers().filter(|at| *at > now);
            let deadline = timers.chain(self.own_deadline_ns()).min();
            self.platform
                .interrupt_at(deadline.unwrap_or(u64::MAX).min(slice_end_ns));
            let Some(vm) = self.vms.iter_mut().find(|vm| vm.number == vcpu.vm) else {
                return Outcome::Halted;
            };
            if vm.awaits_first_instruction {
                vm.awaits_first_instruction = false;
                let event = HostEvent::FirstInstruction { vm: vm.config.id };
                self.control.report(self.platform.now_ns(), event);
            }
            let Some(Guest { hardware, machine }) = vm.running() else {
                return Outcome::Halted;
            };
            let outcome = machine.run(
                vcpu.index,
                hardware.vcpu(vcpu.index),
                &HostClock(&self.platform),
            );
            if outcome != Outcome::TimerSet {
                return outcome;
            }
        }
    }

    /// When [`Self::poll`] must be called at the latest, by [`Platform::now_ns`]. `None` stands for "when a
    /// frame arrives".
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.guest_timers().chain(self.own_deadline_ns()).min()
    }

    fn guest_timers(&self) -> impl Iterator<Item = u64> {
        self.vms.iter().filter_map(|vm| match &vm.stage {
            Stage::Running(guest) => guest.machine.next_deadline_ns(),
            _ => None,
        })
    }

    /// As [`Self::next_deadline_ns`], without the guests' timers.
    fn own_deadline_ns(&self) -> Option<u64> {
        let closing = self.vms.iter().filter_map(|vm| match &vm.stage {
            Stage::Closing(closing) => Some(closing.deadline_ns),
            _ => None,
        });
        [
            self.management.next_deadline_ns(),
            self.storage.next_deadline_ns(),
            self.control.next_deadline_ns(),
            self.backends_deadline_ns(),
            self.migrations_deadline_ns(),
            self.availability_deadline_ns(),
            Some(self.platform.now_ns() + IDLE_NS),
        ]
        .into_iter()
        .flatten()
        .chain(closing)
        .min()
    }

    fn report(&mut self, event: HostEvent) {
        self.control.report(self.platform.now_ns(), event);
    }
}
