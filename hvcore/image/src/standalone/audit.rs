//! Proof of the dirty log: whatever changed in a guest's RAM must be in the harvest.
//!
//! A copy of all RAM is kept and compared page by page at every harvest. Harvesting only one of
//! the two maps must be found out; that is the control that the comparison can fail.

use alloc::{vec, vec::Vec};

use boot_info::standalone::Audit;
use guest_memory::{GuestMemory, PAGE_SIZE, PageSet};
use host::platform::VmHardware;

use crate::{println, time};

/// Least time that the guest has between two harvests.
const INTERVAL_NS: u64 = 5_000_000;

/// The audit of one guest.
pub struct DirtyAudit {
    kind: Audit,
    copy: Vec<u8>,
    next_ns: u64,
    harvests: usize,
    harvested: usize,
    changed: usize,
    missed: usize,
}

impl DirtyAudit {
    /// Begins with RAM as it is.
    pub fn new(kind: Audit, memory: &GuestMemory, hardware: &mut impl VmHardware) -> Self {
        let mut audit = Self {
            kind,
            copy: vec![0; memory.pages() * PAGE_SIZE],
            next_ns: 0,
            harvests: 0,
            harvested: 0,
            changed: 0,
            missed: 0,
        };
        audit.compare(memory, &PageSet::full(memory.pages()));
        let mut before = PageSet::new(memory.pages());
        hardware.harvest_dirty(&mut before);
        memory.harvest_into(&mut before);
        audit.changed = 0;
        audit
    }

    /// Harvests and compares, if it is time. The guest is not running.
    pub fn step(&mut self, memory: &GuestMemory, hardware: &mut impl VmHardware) {
        let begin_ns = time::now_ns();
        if begin_ns < self.next_ns {
            return;
        }
        let mut dirty = PageSet::new(memory.pages());
        let mut ignored = PageSet::new(memory.pages());
        match self.kind {
            Audit::Both => {
                hardware.harvest_dirty(&mut dirty);
                memory.harvest_into(&mut dirty);
            }
            Audit::HardwareOnly => {
                hardware.harvest_dirty(&mut dirty);
                memory.harvest_into(&mut ignored);
            }
            Audit::SoftwareOnly => {
                hardware.harvest_dirty(&mut ignored);
                memory.harvest_into(&mut dirty);
            }
        }
        self.harvests += 1;
        self.harvested += dirty.len();
        self.compare(memory, &dirty);
        // The guest gets as long as the comparison took, so that it gets on whatever its size.
        let end_ns = time::now_ns();
        self.next_ns = end_ns + INTERVAL_NS.max(end_ns - begin_ns);
    }

    fn compare(&mut self, memory: &GuestMemory, dirty: &PageSet) {
        let mut now = [0; PAGE_SIZE];
        for (page, then) in self.copy.chunks_exact_mut(PAGE_SIZE).enumerate() {
            memory.read_page(page, &mut now);
            if now != *then {
                self.changed += 1;
                self.missed += usize::from(!dirty.contains(page));
                then.copy_from_slice(&now);
            }
        }
    }

    /// Says what was found.
    pub fn report(&self, number: usize) {
        println!(
            "elab: guest {number} audit {:?}: {} harvests, {} pages harvested, {} pages changed, {} missed",
            self.kind, self.harvests, self.harvested, self.changed, self.missed
        );
    }
}
