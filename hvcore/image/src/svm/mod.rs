//! AMD SVM: the only place that knows how this CPU runs guests.
//!
//! The rest of the hypervisor sees `machine::vcpu::Vcpu` and `host::platform::VmHardware`; nothing here
//! knows devices, CPUID policy or instruction semantics.
//!
//! | file | what |
//! |---|---|
//! | `cpu` | switching SVM on, address-space identifiers |
//! | `vmcb` | the control block's layout |
//! | `permissions` | which MSRs and ports pass through |
//! | `world` | the world switch |
//! | `lazy` | registers exchanged only when vCPUs take turns |
//! | `event` | injection and re-injection |
//! | `vcpu` | a vCPU: entry, exit, state in and out |
//! | `npt`, `ram` | guest memory: mapping, dirty log, access |
//!
//! Deviations of QEMU's emulation from the manual are marked `TCG-QUIRK(n)`; the table is in
//! ARCHITECTURE.md.

mod cpu;
mod event;
mod lazy;
mod npt;
mod permissions;
mod ram;
mod vcpu;
mod vmcb;
mod world;

use alloc::{boxed::Box, rc::Rc, sync::Arc, vec::Vec};

use guest_memory::{GuestMemory, PAGE_SIZE, PageSet};
use host::platform::{NoMemory, VmHardware};

pub use cpu::PhysicalCpu;
use npt::NestedTables;
use ram::{BLOCK_SIZE, Blocks, GuestRam};
pub use vcpu::SvmVcpu;

/// The hardware half of one VM.
pub struct SvmVm {
    tables: Rc<NestedTables>,
    vcpus: Vec<SvmVcpu>,
}

impl SvmVm {
    /// Builds a VM whose RAM reads as zero and whose vCPUs wait for `Vcpu::load`.
    ///
    /// # Errors
    /// When it does not fit; nothing stays taken then.
    pub fn build(
        cpu: &Rc<PhysicalCpu>,
        memory: u64,
        vcpus: usize,
    ) -> Result<(Self, GuestMemory), NoMemory> {
        // Two pages a vCPU: its VMCB, and its XSAVE image with the rest.
        let overhead = NestedTables::overhead(memory) + (2 * PAGE_SIZE * vcpus) as u64;
        let needed = memory.next_multiple_of(BLOCK_SIZE) + overhead;
        let (_, free) = crate::memory::account();
        let refused = NoMemory { needed, free };
        if needed > free {
            return Err(refused);
        }
        let blocks = Blocks::take(memory).ok_or(refused)?;
        let tables = NestedTables::build(Arc::clone(&blocks)).ok_or(refused)?;
        let tables = Rc::new(tables);
        let vm = Self {
            vcpus: (0..vcpus).map(|_| SvmVcpu::new(cpu, &tables)).collect(),
            tables,
        };
        Ok((vm, GuestMemory::new(Box::new(GuestRam(blocks)))))
    }
}

impl VmHardware for SvmVm {
    type Vcpu = SvmVcpu;

    fn vcpu(&mut self, index: usize) -> &mut SvmVcpu {
        &mut self.vcpus[index]
    }

    fn exits(&self) -> u64 {
        self.vcpus.iter().map(SvmVcpu::exits).sum()
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) {
        let flush = self.tables.harvest(into);
        for vcpu in &mut self.vcpus {
            vcpu.flush(flush);
        }
    }
}
