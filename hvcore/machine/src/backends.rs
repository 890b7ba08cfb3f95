//! The devices' backends: what the host takes out of a machine and puts back.
//!
//! The guest's rings are the queues: nothing is taken out of one before the host asks, so a guest never makes the
//! host hold more than the host wants.

use alloc::{format, vec::Vec};

use crate::{
    acpi,
    machine::{DiskError, DiskRequest, Machine},
    virtio::{queue::RingError, transport::Device},
};

impl Machine {
    /// The next request of the guest to any of its disks. Gives none while
    /// the requests in flight hold too much memory; ask again after each completion.
    pub fn next_disk_request(&mut self) -> Option<DiskRequest> {
        for disk in 0..self.config.disks.len() {
            if !self.take_rung(disk) {
                continue;
            }
            let id = self.next_request;
            let next = match self.functions[disk].device_and_queue(0) {
                Some((Device::Block(block), queue)) => block.next_request(queue, &self.memory, id),
                _ => Ok(None),
            };
            if let Ok(Some(op)) = next {
                self.next_request += 1;
                self.ring(disk);
                return Some(DiskRequest { id, disk, op });
            }
            // Some requests may have been answered without the backend.
            self.finish_queue(disk, 0, next.map(|_| ()));
        }
        None
    }

    /// Ends a request: with the data for a read, with anything for the rest. An id that the guest's driver no longer
    /// waits for, because it reset the device, has no effect.
    pub fn complete_disk(&mut self, id: u64, result: Result<Vec<u8>, DiskError>) {
        for disk in 0..self.config.disks.len() {
            let Device::Block(block) = self.functions[disk].device_mut() else {
                continue;
            };
            let Some(request) = block.take(id) else {
                continue;
            };
            // There may be memory for further requests now.
            self.ring(disk);
            if let Some((_, queue)) = self.functions[disk].device_and_queue(0) {
                let finished = request.finish(queue, &self.memory, &result);
                self.finish_queue(disk, 0, finished);
            }
            return;
        }
    }

    /// Requests taken by [`Self::next_disk_request`] and not completed. They are part of the saved state, and
    /// are issued again after a restore, so a host that does not wait for zero must
    /// be sure that the old ones have no effect later.
    #[must_use]
    pub fn disk_in_flight(&self) -> usize {
        self.functions
            .iter()
            .map(|function| match function.device() {
                Device::Block(block) => block.in_flight(),
                _ => 0,
            })
            .sum()
    }

    /// What the guest wrote to its console since the last call.
    pub fn take_console_output(&mut self) -> Vec<u8> {
        self.serial.take_output()
    }

    /// Types into the guest's console.
    pub fn console_input(&mut self, bytes: &[u8]) {
        self.serial.receive(bytes);
        self.update_serial_line();
    }

    /// Asks the guest to keep so many pages out of use, for the host to have; 0 gives all back. False when the guest has
    /// no balloon. It gives them when it likes: see [`Self::balloon_pages`].
    pub fn set_balloon_target(&mut self, pages: u32) -> bool {
        for function in &mut self.functions {
            let live = function.is_live();
            if let Device::Balloon(balloon) = function.device_mut() {
                balloon.target = pages;
                let message = live.then(|| function.config_changed()).flatten();
                self.send(message);
                return true;
            }
        }
        false
    }

    /// Pages that the guest says it has given; none without a balloon. They read as zero and may be used by the guest again
    /// at any time, once it has said so.
    #[must_use]
    pub fn balloon_pages(&self) -> Option<u32> {
        self.functions
            .iter()
            .find_map(|function| match function.device() {
                Device::Balloon(balloon) => Some(balloon.actual),
                _ => None,
            })
    }

    /// Presses the power button, an ACPI device: a guest that listens shuts down cleanly and ends in
    /// [`Outcome::PowerOff`].
    pub fn press_power_button(&mut self) {
        let message = self.io_apic.set_line(acpi::POWER_BUTTON_PIN, true);
        self.send(message);
        let message = self.io_apic.set_line(acpi::POWER_BUTTON_PIN, false);
        self.send(message);
    }

    /// Notes that a function has a queue to look at.
    pub(crate) fn ring(&mut self, function: usize) {
        self.rung |= 1 << function;
    }

    /// Notes that functions, given as bits, have queues to look at.
    pub(crate) fn ring_all_of(&mut self, functions: u64) {
        self.rung |= functions;
    }

    /// Whether a function has a queue to look at; then somebody does now.
    pub(crate) fn take_rung(&mut self, function: usize) -> bool {
        let bit = 1 << function;
        let rung = self.rung & bit != 0;
        self.rung &= !bit;
        rung && self.misbehaviour.is_none()
    }

    /// After work on a queue: interrupts the guest if it wants that, or stops it if its ring was bad.
    pub(crate) fn finish_queue(
        &mut self,
        function: usize,
        queue: usize,
        result: Result<(), RingError>,
    ) {
        let interrupt =
            result.and_then(|()| self.functions[function].interrupt(queue, &self.memory));
        match interrupt {
            Ok(message) => self.send(message),
            Err(error) => {
                let name = self.function_name(function);
                self.misbehaved(format!("{name}, queue {queue}: {error}"));
            }
        }
    }
}
