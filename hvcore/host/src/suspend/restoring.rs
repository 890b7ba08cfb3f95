//! Going on from a checkpoint.
//!
//! The VM is built as one that arrives from another host, and becomes this host's in the same way: by taking its leases
//! at the epochs that the checkpoint names. One that is restarted because its host has failed gets back the disk of that
//! moment before ([`super::recalling`]), and its lease is taken at the epoch that this has led to.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};

use host_protocol::{Reply, VmConfig, VmId, pool::RestartPoint};
use migration::{CheckpointReader, CheckpointStep, DestinationVm as _, FinalState};
use vdi::{Access, Op, StorageError};

use super::{CHUNK, HEADER, Medium, Parent, length_in, parents_in, recalling::Recall};
use crate::{Host, migrate::ArrivingVm, platform::Platform, vm::Asker};

#[derive(Debug)]
enum State {
    Opening,
    ReadingHeader,
    /// Its disk gets back what it held.
    Recalling(Recall),
    /// What has been read is being taken in, if there is something.
    Loading,
    /// The next piece is being read.
    Reading,
    /// The VM is being built.
    Building,
    Taking(FinalState),
    /// It is over; the disk is being closed.
    Closing(Result<(), String>),
}

/// Whom the VM is restored for.
#[derive(Clone, Debug)]
pub(crate) enum For {
    /// Who asked for it by command.
    Client(Asker),
    /// The pool, whose VM this is.
    Pool(Box<VmConfig>, RestartPoint),
}

/// A VM that is being restored.
pub(crate) struct Restoration {
    whom: For,
    /// The epoch at which its disk's lease is to be taken, if it is not the one in the checkpoint.
    epoch: Option<u64>,
    pub(super) medium: Medium,
    vm: Option<u32>,
    state: State,
    reader: CheckpointReader,
    /// What its disks must have been made from, if they are new.
    parents: Vec<Parent>,
    /// Bytes of the checkpoint, and how many have been read.
    length: u64,
    read: u64,
}

impl Restoration {
    /// Whether it is about this VM.
    pub fn is_of(&self, vm: u32) -> bool {
        self.vm == Some(vm)
    }

    fn is_for_pool(&self, vm: VmId) -> bool {
        matches!(&self.whom, For::Pool(config, _) if config.id == vm)
    }

    pub(super) fn recall(&mut self) -> Option<&mut Recall> {
        match &mut self.state {
            State::Recalling(recall) => Some(recall),
            _ => None,
        }
    }

    fn guest<'a, P: Platform>(&'a mut self, host: &'a mut Host<P>) -> ArrivingVm<'a, P> {
        ArrivingVm {
            host,
            vm: &mut self.vm,
        }
    }

    fn read<P: Platform>(&mut self, host: &mut Host<P>, offset: u64, bytes: u64, next: State) {
        let now = host.platform.now_ns();
        // Disks are read in sectors; what is too much is cut off.
        let len = u32::try_from(bytes.next_multiple_of(512)).expect("a chunk at most");
        self.state = next;
        let op = Op::Read { offset, len };
        self.medium.submit(host.storage.storage(), op, now);
    }

    pub(super) fn on_opened<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: Result<(), String>,
    ) -> bool {
        match result {
            Ok(()) => self.read(host, 0, HEADER as u64, State::ReadingHeader),
            Err(why) => self.close(host, Err(why)),
        }
        self.advance(host)
    }

    pub(super) fn on_io<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: Result<Vec<u8>, String>,
    ) -> bool {
        match (&self.state, result) {
            (State::ReadingHeader, Ok(bytes)) => match length_in(&bytes, self.medium.bytes()) {
                Ok(length) => {
                    self.length = length;
                    self.parents = parents_in(&bytes);
                    self.state = match &self.whom {
                        For::Client(_) => State::Loading,
                        For::Pool(config, point) => {
                            let disk = config.disks.iter().find(|disk| !disk.read_only);
                            let path = disk.map_or("", |disk| disk.path.as_str());
                            State::Recalling(Recall::begin(host, path, point))
                        }
                    };
                }
                Err(why) => self.close(host, Err(why)),
            },
            (State::Reading, Ok(bytes)) => {
                let left = self.length - self.read;
                let wanted = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.reader.push(&bytes[..wanted]);
                self.read += wanted as u64;
                self.state = State::Loading;
            }
            (State::ReadingHeader | State::Reading, Err(why)) => self.close(host, Err(why)),
            _ => {}
        }
        true
    }

    /// Takes in what has been read. False when there is nothing to do.
    pub(super) fn work<P: Platform>(&mut self, host: &mut Host<P>, until_ns: u64) -> bool {
        let mut worked = false;
        while matches!(self.state, State::Loading) && host.platform.now_ns() < until_ns {
            worked = true;
            if let Err(why) = self.load(host) {
                self.close(host, Err(why));
            }
        }
        worked
    }

    fn load<P: Platform>(&mut self, host: &mut Host<P>) -> Result<(), String> {
        let step = match self.vm {
            None => self.reader.step(None)?,
            Some(number) => {
                let index = host.index_of(number).ok_or("the VM was destroyed")?;
                let guest = host.vms[index].guest().ok_or("the VM was destroyed")?;
                self.reader.step(Some(guest.machine.memory()))?
            }
        };
        match step {
            CheckpointStep::Hungry => {
                let left = self.length - self.read;
                if left == 0 {
                    return Err("it ends before its end".to_string());
                }
                let offset = HEADER as u64 + self.read;
                self.read(host, offset, left.min(CHUNK as u64), State::Reading);
            }
            CheckpointStep::Vm(config) => {
                if let For::Pool(wanted, _) = &self.whom
                    && (config.id != wanted.id || config.disks != wanted.disks)
                {
                    return Err("it is another VM's".to_string());
                }
                self.guest(host).build(&config)?;
                self.state = State::Building;
            }
            CheckpointStep::Loaded => {}
            CheckpointStep::End(mut state) => {
                self.check_parents(host)?;
                if let Some(epoch) = self.epoch {
                    let disks = state.disks.iter_mut().flatten();
                    disks.for_each(|disk| disk.epoch = epoch);
                }
                let mut guest = self.guest(host);
                guest.restore(&state.snapshot, &state.disks)?;
                if !guest.take_lease() {
                    return Err("it names no lease that could be taken".to_string());
                }
                self.state = State::Taking(state);
            }
        }
        Ok(())
    }

    /// Memory goes on with the disks of its moment only.
    fn check_parents<P: Platform>(&mut self, host: &mut Host<P>) -> Result<(), String> {
        let index = self.vm.and_then(|number| host.index_of(number));
        let vm = &host.vms[index.ok_or("the VM was destroyed")?];
        let storage = host.storage.peek();
        let writable = vm
            .disks
            .iter()
            .flatten()
            .filter(|(_, info)| !info.read_only);
        let found: Vec<Parent> = writable.map(|(disk, _)| storage.parent_of(*disk)).collect();
        match self.parents.is_empty() || self.parents == found {
            true => Ok(()),
            false => Err("its disks are not made from what they were then, so the guest's memory does not fit them; revert the VM to that moment first".to_string()),
        }
    }

    /// Looks at what no answer tells.
    pub(super) fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        match &mut self.state {
            State::Recalling(recall) => match recall.advance(host) {
                Some(Ok(epoch)) => {
                    self.epoch = Some(epoch);
                    self.state = State::Loading;
                }
                Some(Err(why)) => self.close(host, Err(why)),
                None => {}
            },
            State::Building => match self.guest(host).is_built() {
                Ok(true) => self.state = State::Loading,
                Ok(false) => {}
                Err(why) => self.close(host, Err(why)),
            },
            State::Closing(result) if self.medium.is_closed() => {
                let path = &self.medium.path;
                let result = result
                    .clone()
                    .map_err(|why| format!("no VM was resumed from {path}: {why}"));
                match &self.whom {
                    For::Client(asker) => host.answer(*asker, result.map(|()| Reply::Ok)),
                    For::Pool(config, _) => host.resumed_for_pool = Some((config.id, result)),
                }
                return false;
            }
            _ => {}
        }
        true
    }

    /// The answer to taking a lease.
    pub(super) fn on_taken<P: Platform>(
        &mut self,
        host: &mut Host<P>,
        result: &Result<u64, StorageError>,
    ) -> bool {
        let State::Taking(state) = &self.state else {
            return true;
        };
        if let Err(error) = result {
            let why = format!(
                "its disk cannot be had as it was then, so the guest's memory does not fit it any more: {error}"
            );
            self.close(host, Err(why));
            return true;
        }
        let snapshot = state.snapshot.clone();
        let mut guest = self.guest(host);
        if !guest.take_lease() {
            // The guest's time has stood still.
            guest.resume(&snapshot, 0, true);
            guest.release_direct_frames();
            self.close(host, Ok(()));
        }
        true
    }

    fn close<P: Platform>(&mut self, host: &mut Host<P>, result: Result<(), String>) {
        if result.is_err() {
            self.guest(host).discard();
        }
        if let State::Recalling(recall) = &mut self.state {
            recall.let_go(host);
        }
        let now = host.platform.now_ns();
        self.state = State::Closing(result);
        self.medium.close(host.storage.storage(), now);
    }
}

impl<P: Platform> Host<P> {
    /// Begins to restore a VM.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn restore(&mut self, path: String, asker: Asker) -> Result<(), String> {
        if self.is_restoring() {
            return Err(
                "this host is resuming a VM already; ask again when that is done".to_string(),
            );
        }
        self.begin_restoration(path, For::Client(asker));
        Ok(())
    }

    /// Begins to restore a VM of the pool; nothing else is being restored. What came of it is in `resumed_for_pool`.
    pub(crate) fn restore_for_pool(&mut self, config: VmConfig, point: RestartPoint) {
        let path = point.memory.clone();
        self.begin_restoration(path, For::Pool(Box::new(config), point));
    }

    /// Whether a VM is being restored.
    pub(crate) fn is_restoring(&self) -> bool {
        self.restoration.is_some()
    }

    /// Another host may run this VM: it is not restored here.
    pub(crate) fn give_up_restoring(&mut self, vm: VmId) {
        self.with_restoration(|one, host| {
            if one.is_for_pool(vm) && !matches!(one.state, State::Closing(_)) {
                one.close(host, Err("the pool wants it no more".to_string()));
            }
            true
        });
    }

    fn begin_restoration(&mut self, path: String, whom: For) {
        let now = self.platform.now_ns();
        // Not shared with other readers: that lease would outlast this.
        let token = self
            .storage
            .storage()
            .open_disk(&path, Access::ReadWrite, now);
        self.restoration = Some(Restoration {
            whom,
            epoch: None,
            medium: Medium::new(path, token),
            vm: None,
            state: State::Opening,
            reader: CheckpointReader::default(),
            parents: Vec::new(),
            length: 0,
            read: 0,
        });
    }
}
