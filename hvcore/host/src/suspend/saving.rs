//! Writing a checkpoint of a VM.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use host_protocol::{Reply, StopReason};
use migration::{CheckpointWriter, FinalState, SourceVm as _};
use vdi::{Access, Op};

use super::{CHUNK, HEADER, Medium, Parent, STRIDE, branching::Branching, header};
use crate::{
    Host,
    migrate::DepartingVm,
    platform::Platform,
    vm::{Asker, Stage},
};

/// The guest's disk I/O must end within this time, or it runs on.
const DRAIN_TIMEOUT_NS: u64 = 3_000_000_000;
/// The children of its disks must be open within this time.
const OPEN_TIMEOUT_NS: u64 = 10_000_000_000;

#[derive(Debug)]
enum State {
    Opening,
    /// The header of what was there is being overwritten.
    Wiping,
    FlushingWipe,
    /// Children of the guest's disks are being opened.
    AwaitingChildren {
        deadline_ns: u64,
    },
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
    /// The disk is being closed; then the guest ends here, unless it has run on since.
    Closing,
    /// It has failed, and the disk is being closed.
    Failing,
}

/// A VM that is being suspended.
pub(crate) struct Suspension {
    vm: u32,
    asker: Asker,
    pub(super) medium: Medium,
    /// The guest's disks, if it is to run on.
    pub(super) branching: Option<Branching>,
    parents: Vec<Parent>,
    stopped_ns: u64,
    pause_ns: u64,
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
            State::FlushingWipe => {
                self.state = State::AwaitingChildren {
                    deadline_ns: host.platform.now_ns() + OPEN_TIMEOUT_NS,
                };
                return self.advance(host);
            }
            State::Writing if self.writer.as_ref().is_some_and(CheckpointWriter::is_done) => {
                self.submit(host, Op::Flush, State::FlushingPages);
            }
            State::Writing => self.state = State::Gathering,
            State::FlushingPages => {
                let data = header(self.written, &self.parents);
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
        self.stopped_ns = host.platform.now_ns();
        self.state = State::Draining {
            deadline_ns: self.stopped_ns + DRAIN_TIMEOUT_NS,
        };
        self.writer = Some(CheckpointWriter::new(&host.vms[index].config));
        self.advance(host)
    }

    /// Looks at what no answer tells.
    pub(super) fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let now = host.platform.now_ns();
        match self.state {
            State::AwaitingChildren { deadline_ns } => {
                let branching = self.branching.as_ref();
                if let Some(why) = branching.and_then(Branching::failure).cloned() {
                    return self.fail(host, why);
                }
                if branching.is_none_or(|branching| branching.is_ready(host)) {
                    return self.stop_guest(host);
                }
                if deadline_ns <= now {
                    let why = "children of its disks could not be opened in time";
                    return self.fail(host, why.to_string());
                }
            }
            State::Draining { deadline_ns } => {
                if self.guest(host).is_none() {
                    return self.fail(host, "the VM was ended".to_string());
                }
                let branching = self.branching.as_ref();
                if let Some(why) = branching.and_then(Branching::failure).cloned() {
                    return self.fail(host, why);
                }
                // Once the server was asked, only its answer counts.
                let asked = branching.is_some_and(Branching::is_asked);
                if self.is_drained(host) {
                    self.state = State::Gathering;
                } else if deadline_ns <= now && !asked {
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

    /// Whether the guest's disks are where they are to be.
    fn is_drained<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let Some(mut branching) = self.branching.take() else {
            return self.guest(host).is_some_and(|mut guest| guest.drain());
        };
        let branched = branching.advance(host);
        self.parents = branching.parents(host);
        self.branching = Some(branching);
        // A request whose end the guest does not know yet would never end for the copy of it.
        let index = host.index_of(self.vm);
        let guest = index.and_then(|index| host.vms[index].guest());
        branched && guest.is_some_and(|guest| guest.machine.disk_in_flight() == 0)
    }

    /// Gathers pages for the next write. False when there is nothing to do.
    pub(super) fn work<P: Platform>(&mut self, host: &mut Host<P>, until_ns: u64) -> bool {
        if !matches!(self.state, State::Gathering) {
            return false;
        }
        let Some(mut writer) = self.writer.take() else {
            return false;
        };
        let keeps_running = self.branching.is_some();
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
                    Ok(mut disks) => {
                        if keeps_running {
                            // Those that it will find were made for it, and nobody has opened them.
                            disks.iter_mut().flatten().for_each(|disk| disk.epoch = 0);
                        }
                        writer.end(FinalState {
                            snapshot: guest.snapshot(),
                            disks,
                            transit_ns: 0,
                            hash: None,
                        });
                    }
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
        let is_done = writer.is_done();
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
        if is_done && keeps_running {
            self.resume_guest(host);
            self.pause_ns = host.platform.now_ns() - self.stopped_ns;
        }
        true
    }

    /// The checkpoint is whole.
    fn end<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        if self.branching.is_some() {
            let pause_ns = self.pause_ns;
            host.answer(self.asker, Ok(Reply::Snapshot { pause_ns }));
            return false;
        }
        if self.guest(host).is_none() {
            host.answer(self.asker, Err("the VM was ended".to_string()));
            return false;
        }
        if let Some(index) = host.index_of(self.vm) {
            host.vms[index].asker = Some(self.asker);
            host.close(index, Some(StopReason::Suspended), Ok(()));
        }
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
        if let Some(branching) = &mut self.branching {
            branching.discard(host);
        }
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
        self.may_be_branched(index)?;
        let vm = &self.vms[index];
        let number = vm.number;
        let now = self.platform.now_ns();
        let token = self
            .storage
            .storage()
            .open_disk(&path, Access::ReadWrite, now);
        self.suspension = Some(Suspension {
            vm: number,
            asker,
            medium: Medium::new(path, token),
            branching: keep_running.then(|| Branching::begin(self, index)),
            parents: Vec::new(),
            stopped_ns: 0,
            pause_ns: 0,
            state: State::Opening,
            writer: None,
            written: 0,
            draining: false,
            failure: None,
        });
        Ok(())
    }

    /// Whether a VM is being suspended, or a snapshot of it taken.
    pub(crate) fn is_being_suspended(&self, number: u32) -> bool {
        let suspended = self
            .suspension
            .as_ref()
            .is_some_and(|one| one.is_of(number));
        suspended || self.snapshot.as_ref().is_some_and(|one| one.is_of(number))
    }
}
