//! Serving the guests' devices: disk requests to storage, frames through the bridge, console output to
//! whoever is attached.

use host_protocol::{HostEvent, Notice};
use machine::DiskOp;
use vdi::Op;

use crate::{
    Host,
    net::bridge::{Port, Route, Vif},
    platform::{Nic, Platform},
};

/// When the session card's ring is full, the guests' frames wait in their own rings for about this
/// time.
const RING_FULL_RETRY_NS: u64 = 100_000;

/// Console output is passed on in pieces, each far below the longest message.
const CONSOLE_PIECE: usize = 32 << 10;

impl<P: Platform> Host<P> {
    pub(crate) fn serve_backends(&mut self) {
        let now = self.platform.now_ns();
        self.uplink_retry_ns = None;
        for index in 0..self.vms.len() {
            self.submit_disk_requests(index, now);
            self.send_frames(index, now);
            self.vms[index].deliver_waiting();
            self.take_console_output(index);
        }
    }

    pub(crate) fn submit_disk_requests(&mut self, index: usize, now: u64) {
        let vm = &mut self.vms[index];
        let disks = &vm.disks;
        let crate::vm::Stage::Running(guest) = &mut vm.stage else {
            return;
        };
        while let Some(request) = guest.machine.next_disk_request() {
            let op = match request.op {
                DiskOp::Read { offset, len } => Op::Read { offset, len },
                DiskOp::Write { offset, data } => Op::Write { offset, data },
                DiskOp::Flush => Op::Flush,
            };
            let (disk, _) = disks[request.disk].expect("a running guest's disks are open");
            self.storage.storage().submit(disk, request.id, op, now);
        }
    }

    /// Passes on what the guest sends, until there is no more or the uplink's ring is full.
    pub(crate) fn send_frames(&mut self, index: usize, now: u64) {
        let number = self.vms[index].number;
        loop {
            if self.vms[index].running().is_none() {
                return;
            }
            if self.platform.transmit_room(Nic::Session) == 0 {
                self.uplink_retry_ns = Some(now + RING_FULL_RETRY_NS);
                return;
            }
            let vm = &mut self.vms[index];
            let Some((nic, frame)) = vm.running().and_then(|guest| guest.machine.next_frame())
            else {
                return;
            };
            // What had been in the ring when the guest was stopped elsewhere is no sign of life from here.
            if vm.awaits_first_frame && !vm.awaits_first_instruction {
                vm.awaits_first_frame = false;
                let id = vm.config.id;
                self.report(HostEvent::FirstFrame { vm: id });
            }
            self.switch_frame(Port::Guest(Vif { vm: number, nic }), &frame);
        }
    }

    /// Sends a frame where it belongs.
    pub(crate) fn switch_frame(&mut self, from: Port, frame: &[u8]) {
        match self.bridge.route(from, frame, self.platform.now_ns()) {
            Route::Drop => {}
            Route::To(Port::Uplink) => self.platform.transmit(Nic::Session, frame),
            Route::To(Port::Guest(vif)) => self.deliver(vif, frame),
            Route::Flood => {
                if from != Port::Uplink {
                    self.platform.transmit(Nic::Session, frame);
                }
                let others: alloc::vec::Vec<_> = self
                    .bridge
                    .guests()
                    .filter(|vif| Port::Guest(*vif) != from)
                    .collect();
                for vif in others {
                    self.deliver(vif, frame);
                }
            }
        }
    }

    fn deliver(&mut self, vif: Vif, frame: &[u8]) {
        if let Some(vm) = self.vms.iter_mut().find(|vm| vm.number == vif.vm) {
            vm.deliver(vif.nic, frame);
        }
    }

    pub(crate) fn take_console_output(&mut self, index: usize) {
        let vm = &mut self.vms[index];
        let Some(guest) = vm.guest() else {
            return;
        };
        let output = guest.machine.take_console_output();
        if output.is_empty() {
            return;
        }
        let mut position = vm.console.push(&output);
        let (id, stay) = (vm.config.id, vm.number);
        for piece in output.chunks(CONSOLE_PIECE) {
            let notice = Notice::Console {
                vm: id,
                stay,
                position,
                bytes: piece.to_vec(),
            };
            self.control.console(id, &notice);
            position += piece.len() as u64;
        }
    }

    pub(crate) fn backends_deadline_ns(&self) -> Option<u64> {
        self.uplink_retry_ns
    }
}
