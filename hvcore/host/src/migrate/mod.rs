//! Live migration on this host: the engines of [`migration`] between sockets and VMs.
//!
//! Which end knows what, and who has the guest when something fails, is decided there. This module gives the engines
//! the connection, the guest, and CPU time that no guest needs: pages are copied when the guests
//! sleep, or for [`COPY_NS`] after a guest's slice.

mod announcing;
mod arrival;
mod departure;
mod rehearsal;

use migration::Destination;
use vdi::{DiskId, StorageError};

use crate::{Host, platform::Platform, vm::Stage};

pub(crate) use announcing::Announcement;
pub(crate) use arrival::{Arrival, ArrivingVm};
pub(crate) use departure::{DepartingVm, Departure, Request as MigrationRequest};
pub(crate) use rehearsal::Rehearsal;

/// Longest stretch of copying or loading pages while a guest may want the CPU.
const COPY_NS: u64 = 500_000;

/// How long an ended connection may take to deliver its last words.
const LINGER_NS: u64 = 2_000_000_000;

/// A peer that acknowledges nothing for so long is gone.
const LINK_TIMEOUT_MS: u64 = 4_000;

/// As [`LINK_TIMEOUT_MS`], while the guest stands still: its user waits, and giving up too early costs no more than this
/// migration, since the lease decides who has the guest.
const STOPPED_TIMEOUT_MS: u64 = 300;

impl<P: Platform> Host<P> {
    /// Moves all migrations on.
    pub(crate) fn advance_migrations(&mut self) {
        for mut departure in core::mem::take(&mut self.departures) {
            if self.advance_departure(&mut departure) {
                self.departures.push(departure);
            }
        }
        // Each in turn, with the others in their places: one may supersede another.
        for _ in 0..self.arrivals.len() {
            let mut arrival = self.arrivals.remove(0);
            self.advance_arrival(&mut arrival);
            self.arrivals.push(arrival);
        }
        self.keep_a_place_free();
        self.send_announcements();
    }

    /// Does a piece of the work that only needs CPU time. False when there is none.
    pub(crate) fn run_background(&mut self) -> bool {
        let until_ns = self.platform.now_ns() + COPY_NS;
        let mut worked = false;
        let mut departures = core::mem::take(&mut self.departures);
        for departure in &mut departures {
            if departure.source.wants_cpu() && departure.linger_until_ns.is_none() {
                worked = true;
                let mut vm = DepartingVm {
                    host: self,
                    vm: departure.vm,
                    draining: &mut departure.draining,
                };
                departure.source.copy(&mut vm, until_ns);
            }
        }
        self.departures = departures;
        worked |= self.run_suspensions(until_ns);
        for vm in &mut self.vms {
            if let (Some(rehearsal), Stage::Arriving(guest)) = (&mut vm.rehearsal, &mut vm.stage) {
                worked |= rehearsal.run(&mut self.platform, guest, until_ns);
            }
        }
        worked
    }

    /// Routes the answer about a lease to the migration that asked for it.
    pub(crate) fn on_taken(&mut self, disk: DiskId, result: &Result<u64, StorageError>) {
        let Some(number) = self
            .vms
            .iter()
            .find(|vm| vm.disk_index(disk).is_some())
            .map(|vm| vm.number)
        else {
            return;
        };
        self.on_suspension_taken(number, result);
        let mut departures = core::mem::take(&mut self.departures);
        for departure in departures.iter_mut().filter(|one| one.vm == number) {
            let mut vm = DepartingVm {
                host: self,
                vm: number,
                draining: &mut departure.draining,
            };
            departure.source.on_taken(&mut vm, result);
        }
        self.departures = departures;
        let mut arrivals = core::mem::take(&mut self.arrivals);
        for arrival in arrivals.iter_mut().filter(|one| one.vm == Some(number)) {
            if let Some(destination) = &mut arrival.destination {
                let mut vm = ArrivingVm {
                    host: self,
                    vm: &mut arrival.vm,
                };
                destination.on_taken(&mut vm, result);
            }
        }
        self.arrivals = arrivals;
    }

    /// When [`Self::advance_migrations`] must be called at the latest.
    pub(crate) fn migrations_deadline_ns(&self) -> Option<u64> {
        let departures = self.departures.iter().map(|departure| {
            departure
                .linger_until_ns
                .or(departure.source.next_deadline_ns())
        });
        let arrivals = self.arrivals.iter().map(|arrival| {
            let destination = arrival.destination.as_ref();
            arrival
                .linger_until_ns
                .or(destination.and_then(Destination::next_deadline_ns))
        });
        let rehearsals = self.vms.iter().map(|vm| match (&vm.rehearsal, &vm.stage) {
            (Some(rehearsal), Stage::Arriving(guest)) => Some(rehearsal.next_deadline_ns(guest)),
            _ => None,
        });
        departures
            .chain(arrivals)
            .chain(rehearsals)
            .flatten()
            .chain(self.announcements.front().map(|next| next.at_ns))
            .min()
    }
}
