//! A snapshot of a guest's disks while it runs.

use alloc::{
    format,
    string::{String, ToString},
};

use host_protocol::Reply;

use super::branching::Branching;
use crate::{
    Host,
    platform::Platform,
    vm::{Asker, Stage},
};

/// The children must be open within this time.
const OPEN_TIMEOUT_NS: u64 = 10_000_000_000;
/// What is in flight must end within this time, or the guest runs on.
const SETTLE_TIMEOUT_NS: u64 = 3_000_000_000;

/// A VM of whose disks a snapshot is taken.
pub(crate) struct Snapshotting {
    vm: u32,
    asker: Asker,
    pub(super) branching: Branching,
    /// When the guest was stopped.
    stopped_ns: Option<u64>,
    deadline_ns: u64,
}

impl Snapshotting {
    /// Whether it is about this VM.
    pub fn is_of(&self, vm: u32) -> bool {
        self.vm == vm
    }

    /// False when it is over.
    pub(super) fn advance<P: Platform>(&mut self, host: &mut Host<P>) -> bool {
        let now = host.platform.now_ns();
        let Some(index) = host.index_of(self.vm) else {
            return self.end(host, Err("the VM was ended".to_string()));
        };
        if let Some(why) = self.branching.failure() {
            let why = why.clone();
            return self.end(host, Err(why));
        }
        let Some(stopped_ns) = self.stopped_ns else {
            if self.branching.is_ready(host) {
                if !host.vms[index].pause() {
                    return self.end(host, Err("the VM is not running any more".to_string()));
                }
                host.report_state(index);
                self.stopped_ns = Some(now);
                self.deadline_ns = now + SETTLE_TIMEOUT_NS;
                return self.advance(host);
            }
            let why = "its disks' children could not be opened in time";
            return self.deadline_ns > now || self.end(host, Err(why.to_string()));
        };
        if self.branching.advance(host) {
            let pause_ns = host.platform.now_ns() - stopped_ns;
            return self.end(host, Ok(Reply::Snapshot { pause_ns }));
        }
        // Once the server was asked, only its answer counts.
        let waits = self.branching.is_asked() || self.deadline_ns > now;
        waits || self.end(host, Err("its disk I/O did not end in time".to_string()))
    }

    fn end<P: Platform>(&mut self, host: &mut Host<P>, result: Result<Reply, String>) -> bool {
        self.branching.discard(host);
        if self.stopped_ns.is_some()
            && let Some(index) = host.index_of(self.vm)
            && matches!(host.vms[index].stage, Stage::Paused(_))
        {
            host.vms[index].resume();
            host.report_state(index);
        }
        let result = result.map_err(|why| format!("no snapshot was taken: {why}"));
        host.answer(self.asker, result);
        false
    }
}

impl<P: Platform> Host<P> {
    /// Begins to take a snapshot.
    ///
    /// # Errors
    /// A sentence for people; nothing has changed then.
    pub(crate) fn snapshot(&mut self, index: usize, asker: Asker) -> Result<(), String> {
        self.may_be_branched(index)?;
        let branching = Branching::begin(self, index);
        self.snapshot = Some(Snapshotting {
            vm: self.vms[index].number,
            asker,
            branching,
            stopped_ns: None,
            deadline_ns: self.platform.now_ns() + OPEN_TIMEOUT_NS,
        });
        Ok(())
    }

    /// Refuses a VM that does not run, or whose disks are about to change hands.
    pub(super) fn may_be_branched(&self, index: usize) -> Result<(), String> {
        let vm = &self.vms[index];
        let name = &vm.config.name;
        if !matches!(vm.stage, Stage::Running(_)) {
            return Err(format!("VM {name} is not running"));
        }
        if self.is_departing(vm.number) {
            return Err(format!(
                "VM {name} is being migrated; ask again before or after"
            ));
        }
        if self.suspension.is_some() || self.snapshot.is_some() {
            return Err(format!(
                "VM {name}: this host is taking a snapshot or suspending a VM already; ask again when that is done"
            ));
        }
        if !vm.config.disks.iter().any(|disk| !disk.read_only) {
            return Err(format!("VM {name} has no writable disk"));
        }
        Ok(())
    }

    pub(super) fn with_snapshot(&mut self, act: impl FnOnce(&mut Snapshotting, &mut Self) -> bool) {
        if let Some(mut snapshot) = self.snapshot.take()
            && act(&mut snapshot, self)
        {
            self.snapshot = Some(snapshot);
        }
    }
}
