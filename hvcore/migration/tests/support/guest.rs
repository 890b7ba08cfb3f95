//! A model of a guest: RAM, a register, frames received, and the leases that say whether it may run.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use guest_memory::{Gpa, GuestMemory, PAGE_SIZE, PageSet, testing};
use host_protocol::VmConfig;
use machine::{Section, vcpu::VcpuState};
use migration::{DestinationVm, Snapshot, SourceVm};
use vdi::DiskState;

/// Pages of RAM: enough for several batches' worth of rounds, few enough for thousands of runs.
pub const PAGES: usize = 48;

/// How long a copy runs: some frames' time.
const REHEARSAL_NS: u64 = 2_000_000;

/// What all parts of the world share.
#[derive(Default)]
pub struct Shared {
    pub now_ns: u64,
    pub lease: Lease,
    /// Which host's port the session network sends the guest's frames to.
    pub route: usize,
}

/// The lease server: one lease, changed by compare-and-swap.
pub struct Lease {
    pub epoch: u64,
    pub owner: usize,
    /// Off as a negative control: every take succeeds.
    pub enforced: bool,
    /// Answers nothing while it is down.
    pub up: bool,
    /// How long a request is under way.
    pub latency_ns: u64,
    /// Requests under way: when they arrive, by whom, expected epoch.
    pub requests: Vec<(u64, usize, u64)>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            epoch: 7,
            owner: 0,
            enforced: true,
            up: true,
            latency_ns: 200_000,
            requests: Vec::new(),
        }
    }
}

/// A host's copy of the guest.
pub struct Guest {
    pub host: usize,
    pub shared: Rc<RefCell<Shared>>,
    pub memory: GuestMemory,
    pub nested_marks: PageSet,
    pub counter: u64,
    pub running: bool,
    pub io_left: u32,
    pub pending_epoch: Option<u64>,
    pub inbox: VecDeque<u64>,
    pub held: bool,
    pub received: Vec<u64>,
    pub built: bool,
    pub gone: bool,
    pub fail_rehearsal: bool,
    /// Negative control: the pages changed by the rehearsal are not told.
    pub conceal_spoilt: bool,
    spoilt: Vec<u32>,
    /// At the source: what it receives while a copy of it runs elsewhere.
    pub copies: Option<Vec<u64>>,
    /// At the destination: what its copy has received, and when that ends.
    pub copy_received: Vec<u64>,
    copy_until_ns: u64,
}

impl Guest {
    pub fn new(host: usize, shared: &Rc<RefCell<Shared>>) -> Self {
        Self {
            host,
            shared: Rc::clone(shared),
            memory: testing::memory(PAGES * PAGE_SIZE),
            nested_marks: PageSet::new(PAGES),
            counter: 0,
            running: false,
            io_left: 0,
            pending_epoch: None,
            inbox: VecDeque::new(),
            held: false,
            received: Vec::new(),
            built: false,
            gone: false,
            fail_rehearsal: false,
            conceal_spoilt: false,
            spoilt: Vec::new(),
            copies: None,
            copy_received: Vec::new(),
            copy_until_ns: 0,
        }
    }

    /// The guest runs for a moment: it writes, its devices write, it takes frames.
    pub fn run(&mut self, rng: &mut fastrand::Rng, writes: usize) {
        for _ in 0..writes {
            self.counter += 1;
            let page = rng.usize(..PAGES);
            let at = page * PAGE_SIZE + rng.usize(..PAGE_SIZE - 8);
            // Some pages become zero again.
            let value = if rng.u8(..4) == 0 { 0 } else { self.counter };
            if rng.bool() {
                // The guest's own write: the nested tables see it, the software map must not.
                let mut content = [0; PAGE_SIZE];
                self.memory.read_page(page, &mut content);
                if value == 0 {
                    content.fill(0);
                } else {
                    let offset = at % PAGE_SIZE;
                    content[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
                }
                self.memory.load_page(page, &content);
                self.nested_marks.insert(page);
            } else {
                self.memory
                    .write(Gpa(at as u64), &value.to_le_bytes())
                    .unwrap();
            }
        }
        if rng.u8(..8) == 0 {
            self.io_left = rng.u32(..3);
        }
        self.take_frames();
    }

    /// Whether a copy of it runs in a rehearsal.
    pub fn copy_runs(&self) -> bool {
        self.shared.borrow().now_ns < self.copy_until_ns
    }

    pub fn take_frames(&mut self) {
        if self.running && !self.held {
            if let Some(copies) = &mut self.copies {
                copies.extend(&self.inbox);
            }
            self.received.extend(self.inbox.drain(..));
        }
    }

    /// RAM and register, to compare two copies.
    pub fn content(&self) -> (Vec<u8>, u64) {
        let mut ram = vec![0; PAGES * PAGE_SIZE];
        self.memory.read(Gpa(0), &mut ram).unwrap();
        (ram, self.counter)
    }

    fn request_lease(&mut self, epoch: u64) {
        let mut shared = self.shared.borrow_mut();
        let arrives = shared.now_ns + shared.lease.latency_ns;
        let host = self.host;
        shared.lease.requests.push((arrives, host, epoch));
    }
}

impl SourceVm for Guest {
    fn now_ns(&self) -> u64 {
        self.shared.borrow().now_ns
    }
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
    fn harvest_dirty(&mut self, into: &mut PageSet) {
        into.union(&self.nested_marks);
        self.nested_marks = PageSet::new(PAGES);
    }
    fn snapshot(&mut self) -> Snapshot {
        let mut vcpu = VcpuState::default();
        vcpu.gprs[0] = self.counter;
        Snapshot {
            vcpus: vec![vcpu],
            devices: vec![Section {
                kind: 1,
                version: 1,
                bytes: self.counter.to_le_bytes().to_vec(),
            }],
        }
    }
    fn copy_frames(&mut self) {
        self.copies = Some(Vec::new());
    }
    fn settle(&mut self) {}
    fn stop(&mut self) {
        self.running = false;
    }
    fn drain(&mut self) -> bool {
        // A read that ends during the drain writes RAM: a device's write after the stop.
        if self.io_left > 0 {
            self.io_left -= 1;
            self.counter += 1;
            let at = (self.counter as usize % PAGES) * PAGE_SIZE;
            let bytes = self.counter.to_le_bytes();
            self.memory.write(Gpa(at as u64), &bytes).unwrap();
        }
        self.io_left == 0
    }
    fn disks(&mut self) -> Result<Vec<Option<DiskState>>, String> {
        Ok(vec![Some(DiskState {
            version: DiskState::VERSION,
            path: String::from("sr/disk.vhd"),
            epoch: self.shared.borrow().lease.epoch,
            bytes: 1 << 20,
            allocated: Vec::new(),
            uncommitted: Vec::new(),
            not_entered: Vec::new(),
        })])
    }
    fn reclaim(&mut self) {
        // What its last renewal said; it cannot know of another's take.
        let epoch = self.pending_epoch.unwrap_or(7);
        self.request_lease(epoch);
    }
    fn resume(&mut self) {
        self.running = true;
        self.take_frames();
    }
}

impl DestinationVm for Guest {
    fn now_ns(&self) -> u64 {
        self.shared.borrow().now_ns
    }
    fn build(&mut self, _: &VmConfig) -> Result<(), String> {
        self.built = true;
        Ok(())
    }
    fn is_built(&mut self) -> Result<bool, String> {
        Ok(self.built)
    }
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
    fn rehearse(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        if self.fail_rehearsal {
            return Err(String::from("this host does not know the state"));
        }
        assert_eq!(snapshot.devices.len(), 1);
        // What the copy does to RAM.
        self.spoilt = vec![1, 2, 7, PAGES as u32 - 1];
        for page in &self.spoilt {
            self.memory.load_page(*page as usize, &[0xee; PAGE_SIZE]);
        }
        self.copy_until_ns = self.shared.borrow().now_ns + REHEARSAL_NS;
        Ok(())
    }
    fn deliver_to_copy(&mut self, _: usize, frame: &[u8]) {
        self.copy_received
            .push(u64::from_le_bytes(frame.try_into().unwrap()));
    }
    fn rehearsed(&mut self) -> Option<Vec<u32>> {
        if self.copy_runs() {
            return None;
        }
        let all = std::mem::take(&mut self.spoilt);
        Some(if self.conceal_spoilt { Vec::new() } else { all })
    }
    fn restore(&mut self, snapshot: &Snapshot, disks: &[Option<DiskState>]) -> Result<(), String> {
        self.counter = snapshot.vcpus[0].gprs[0];
        self.pending_epoch = disks[0].as_ref().map(|disk| disk.epoch);
        Ok(())
    }
    fn take_lease(&mut self) -> bool {
        match self.pending_epoch.take() {
            Some(epoch) => {
                self.request_lease(epoch);
                true
            }
            None => false,
        }
    }
    fn resume(&mut self, _: &Snapshot, elapsed_ns: u64, announce: bool) {
        assert!(elapsed_ns < 120_000_000_000, "time passed: {elapsed_ns}");
        self.held = true;
        self.running = true;
        if announce {
            self.shared.borrow_mut().route = self.host;
        }
    }
    fn deliver(&mut self, _: usize, frame: &[u8]) {
        self.received
            .push(u64::from_le_bytes(frame.try_into().unwrap()));
    }
    fn release_direct_frames(&mut self) {
        self.held = false;
        self.take_frames();
    }
    fn discard(&mut self) {
        self.gone = true;
        self.running = false;
    }
}
