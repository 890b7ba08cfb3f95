//! Writing a checkpoint of a VM.

use alloc::{
    format,
    string::{String, ToString},
    vec,
};

use host_protocol::{Reply, StopReason};
use migration::{CheckpointWriter, FinalState, SourceVm as _};
use vdi::{Access, Op, StorageError};

use super::{CHUNK, HEADER, Medium, STRIDE, header};
use crate::{
    Host,
    migrate::DepartingVm,
    platform::Platform,
    vm::{Asker, Stage},
};

/// The guest's disk I/O must end within this time, or it runs on.
const DRAIN_TIMEOUT_NS: u64 = 3_000_000_000;

#[derive(Debug)]
enum State {
    Opening,
    /// The header of what was there is being overwritten.
    Wiping,
    FlushingWipe,
    /// The guest stands still, and its disks end what they have begun.
    Draining {
        deadline_ns: u64,
    },
    /// Pages are looked at, until there are enough for a write.
    Gathering,
    Writing,
    FlushingPages,
    WritingHeader,
    FlushingHeader,
    /// The disk is closed, and the guest ends here or takes its lease again.
    Closing,
    /// The lease is being taken again.
    Reclaiming,
    /// It has failed, and the disk is being closed.
    Failing,
}

/// A VM that is being suspended.
pub(crate) struct Suspension {
    vm: u32,
    keep_running: bool,
    asker: Asker,
    pub(super) medium: Medium,
    state: State,
    writer: Option<CheckpointWriter>,
    /// Bytes of the checkpoint that are written.
    written: u64,
    draining: bool,
    failure: Option<String>,
}

impl Suspension {
    /// Whether it is about this VM.
    pub fn is_of(&self, vm: u32) -> bool {
        self.vm == vm
    }

    /// The guest as the source of a migration sees it, if it is still whole.
    fn guest<'a, P: Platform>(&'a mut self, host: &'a mut Host<P>) -> Option<DepartingVm<'a, P>> {
        let index = host.index_of(self.vm)?;
        host.vms[index].guest()?;
        Some(DepartingVm {
            host,
            vm: self.vm,
            draining: &mut self.draining,
        })
    }

    fn submit<P: Platform>(&mut self, host: &mut Host<P>, op: Op, next: State) {
        let now = host.platform.now_ns();
        self.state = next;
        self.medium.submit(host.storage.storage(), op, now);
    }

    pub(super) fn on_opened<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: Result<(), String>,
    ) -> bool {
        if let Err(why) = result {
            return self.fail(host, why);
        }
        let wipe = Op::Write {
            offset: 0,
            data: vec![0; HEADER],
        };
        self.submit(host, wipe, State::Wiping);
        true
    }

    pub(super) fn on_io<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: Result<(), String>,
    ) -> bool {
        if let Err(why) = result {
            return self.fail(host, why);
        }
        match self.state {
            State::Wiping => self.submit(host, Op::Flush, State::FlushingWipe),
            State::FlushingWipe => return self.stop_guest(host),
            State::Writing if self.writer.as_ref().is_some_and(CheckpointWriter::is_done) => {
                self.submit(host, Op::Flush, State::FlushingPages);
            }
            State::Writing => self.state = State::Gathering,
            State::FlushingPages => {
                let data = header(self.written);
                self.submit(host, Op::Write { offset: 0, data }, State::WritingHeader);
            }
            State::WritingHeader => self.submit(host, Op::Flush, State::FlushingHeader),
            State::FlushingHeader => {
                let now = host.platform.now_ns();
                self.state = State::Closing;
                self.medium.close(host.storage.storage(), now);
            }
            _ => {}
        }
        true
    }

    fn stop_guest<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let Some(index) = host.index_of(self.vm) else {
            return self.fail(host, "the VM is gone".to_string());
        };
        if !host.vms[index].pause() {
            return self.fail(host, "the VM is not running any more".to_string());
        }
        host.report_state(index);
        self.state = State::Draining {
            deadline_ns: host.platform.now_ns() + DRAIN_TIMEOUT_NS,
        };
        self.writer = Some(CheckpointWriter::new(&host.vms[index].config));
        self.advance(host)
    }

    /// Looks at what no answer tells.
    pub(super) fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let now = host.platform.now_ns();
        match self.state {
            State::Draining { deadline_ns } => {
                let Some(mut guest) = self.guest(host) else {
                    return self.fail(host, "the VM was ended".to_string());
                };
                if guest.drain() {
                    self.state = State::Gathering;
                } else if deadline_ns <= now {
                    return self.fail(host, "its disk I/O did not end in time".to_string());
                }
            }
            State::Closing if self.medium.is_closed() => return self.end(host),
            State::Failing if self.medium.is_closed() => {
                let why = self.failure.take().unwrap_or_default();
                host.answer(self.asker, Err(format!("not suspended: {why}")));
                return false;
            }
            _ => {}
        }
        true
    }

    /// Gathers pages for the next write. False when there is nothing to do.
    pub(super) fn work<P: Platform>(&mut self, host: &mut Host<P>, until_ns: u64) -> bool {
        if !matches!(self.state, State::Gathering) {
            return false;
        }
        let Some(mut writer) = self.writer.take() else {
            return false;
        };
        let Some(mut guest) = self.guest(host) else {
            self.fail(host, "the VM was ended".to_string());
            return true;
        };
        let chunk = loop {
            if let Some(chunk) = writer.take(CHUNK) {
                break Some(chunk);
            }
            if writer.add_pages(guest.memory(), STRIDE) {
                match guest.disks() {
                    Ok(disks) => writer.end(FinalState {
                        snapshot: guest.snapshot(),
                        disks,
                        transit_ns: 0,
                        hash: None,
                    }),
                    Err(why) => {
                        self.fail(host, why);
                        return true;
                    }
                }
            }
            if guest.now_ns() >= until_ns {
                break None;
            }
        };
        self.writer = Some(writer);
        if let Some(mut data) = chunk {
            let offset = HEADER as u64 + self.written;
            self.written += data.len() as u64;
            // Disks are written in sectors.
            data.resize(data.len().next_multiple_of(512), 0);
            if offset + data.len() as u64 > self.medium.bytes() {
                let why = format!(
                    "{} is too small: a checkpoint takes as much as the guest's memory that is not zero, and a little more",
                    self.medium.path
                );
                self.fail(host, why);
                return true;
            }
            self.submit(host, Op::Write { offset, data }, State::Writing);
        }
        true
    }

    /// The checkpoint is whole.
    fn end<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let keep_running = self.keep_running;
        let Some(mut guest) = self.guest(host) else {
            host.answer(self.asker, Err("the VM was ended".to_string()));
            return false;
        };
        if keep_running {
            guest.reclaim();
            self.state = State::Reclaiming;
            return true;
        }
        if let Some(index) = host.index_of(self.vm) {
            host.vms[index].asker = Some(self.asker);
            host.close(index, Some(StopReason::Suspended), Ok(()));
        }
        false
    }

    /// The answer to taking the lease again. True when it was asked for here.
    pub(super) fn on_taken<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: &Result<u64, StorageError>,
    ) -> bool {
        if !matches!(self.state, State::Reclaiming) {
            return true;
        }
        let answer = match result {
            Ok(_) => {
                self.resume_guest(host);
                Ok(Reply::Ok)
            }
            // The disk itself reports that its lease is lost, and the VM ends with that.
            Err(error) => Err(format!("the guest's disk could not be kept: {error}")),
        };
        host.answer(self.asker, answer);
        false
    }

    fn resume_guest<P: Platform>(&mut self, host: &mut Host<P>) {
        let Some(index) = host.index_of(self.vm) else {
            return;
        };
        if matches!(host.vms[index].stage, Stage::Paused(_)) {
            host.vms[index].resume();
            host.report_state(index);
        }
    }

    /// Gives up; the guest runs on.
    fn fail<P: Platform>(&mut self, host: &mut Host<P>, why: String) -> bool {
        self.resume_guest(host);
        self.failure.get_or_insert(why);
        let now = host.platform.now_ns();
        self.medium.close(host.storage.storage(), now);
        self.state = State::Failing;
        self.writer = None;
        self.advance(host)
    }
}

impl<P: Platform> Host<P> {
    /// Begins to suspend a VM.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn suspend(
        &mut self,
        index: usize,
        path: String,
        keep_running: bool,
        asker: Asker,
    ) -> Result<(), String> {
        let vm = &self.vms[index];
        let name = &vm.config.name;
        if !matches!(vm.stage, Stage::Running(_)) {
            return Err(format!(
                "VM {name} is not running, and only a running VM can be suspended"
            ));
        }
        if self.is_departing(vm.number) {
            return Err(format!(
                "VM {name} is being migrated; suspend it before or after"
            ));
        }
        if self.suspension.is_some() {
            return Err(format!(
                "VM {name}: this host is suspending a VM already; ask again when that is done"
            ));
        }
        if !vm.config.disks.iter().any(|disk| !disk.read_only) {
            return Err(format!(
                "VM {name} has no writable disk, and so no lease that could tell whether it has run on since"
            ));
        }
        let number = vm.number;
        let now = self.platform.now_ns();
        let token = self
            .storage
            .storage()
            .open_disk(&path, Access::ReadWrite, now);
        self.suspension = Some(Suspension {
            vm: number,
            keep_running,
            asker,
            medium: Medium::new(path, token),
            state: State::Opening,
            writer: None,
            written: 0,
            draining: false,
            failure: None,
        });
        Ok(())
    }

    /// Whether a VM is being suspended.
    pub(crate) fn is_being_suspended(&self, number: u32) -> bool {
        self.suspension
            .as_ref()
            .is_some_and(|suspension| suspension.is_of(number))
    }
}
