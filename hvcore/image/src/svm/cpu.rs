//! A physical CPU that can run guests: SVM switched on, and what its vCPUs share.

use alloc::{boxed::Box, rc::Rc};
use core::{arch::x86_64::__cpuid, cell::Cell, fmt};

use x86_64::registers::{
    control::{Cr4, Cr4Flags},
    model_specific::Msr,
};

use super::{
    lazy::{Features, LazyRegisters},
    permissions::Permissions,
    vmcb::{TLB_FLUSH_ALL, TLB_KEEP},
};

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Why this CPU cannot run guests, in words for whoever started the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// No SVM.
    NoSvm,
    /// SVM is there, but the firmware has locked it off.
    Disabled,
    /// SVM without nested paging.
    NoNestedPaging,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSvm => {
                "this CPU does not offer AMD-V (SVM); under QEMU start it with `-cpu EPYC,+svm,+npt` or `-cpu max`"
            }
            Self::Disabled => "AMD-V (SVM) is switched off by the firmware; enable it in its set-up",
            Self::NoNestedPaging => {
                "this CPU's AMD-V (SVM) has no nested paging; under QEMU add `+npt` to `-cpu`"
            }
        })
    }
}

/// Where VMRUN keeps the host's state.
#[repr(C, align(4096))]
struct HostSave([u8; 4096]);

/// An address-space identifier, valid on one CPU for one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asid {
    generation: u64,
    number: u32,
}

/// Hands out address-space identifiers. A vCPU that needs its cached translations gone takes a
/// new one; when the numbers run out, everything is flushed once and a new generation begins. So no feature
/// beyond basic SVM is needed (flush-by-ASID is not always there).
// TCG-QUIRK(10): QEMU flushes on every VMRUN and would not notice a mistake here.
struct AsidPool {
    count: u32,
    last: Cell<Asid>,
}

impl AsidPool {
    fn new(count: u32) -> Self {
        Self {
            // Number 0 is the host's.
            count: count.max(2),
            last: Cell::new(Asid {
                generation: 1,
                number: 0,
            }),
        }
    }

    /// A valid number to run with (the old one while it holds) and what TLB_CONTROL must be.
    fn renew(&self, old: Asid) -> (Asid, u8) {
        let last = self.last.get();
        if old.generation == last.generation {
            return (old, TLB_KEEP);
        }
        let (next, tlb_control) = if last.number + 1 < self.count {
            let number = last.number + 1;
            (Asid { number, ..last }, TLB_KEEP)
        } else {
            let generation = last.generation + 1;
            (
                Asid {
                    generation,
                    number: 1,
                },
                TLB_FLUSH_ALL,
            )
        };
        self.last.set(next);
        (next, tlb_control)
    }
}

impl Asid {
    /// The number for the VMCB.
    pub fn number(self) -> u32 {
        self.number
    }
}

/// A physical CPU with SVM on.
pub struct PhysicalCpu {
    /// What the guests may touch directly.
    pub permissions: Permissions,
    /// The registers that vCPUs exchange only when they take turns.
    pub lazy: LazyRegisters,
    asids: AsidPool,
    _host_save: Box<HostSave>,
}

impl PhysicalCpu {
    /// Switches SVM on.
    ///
    /// # Errors
    /// When the CPU cannot do it; nothing has changed then.
    pub fn enable() -> Result<Rc<Self>, Unsupported> {
        const SVM: u32 = 1 << 2;
        const NESTED_PAGING: u32 = 1 << 0;
        const XSAVE: u32 = 1 << 26;
        if __cpuid(0x8000_0000).eax < 0x8000_000a || __cpuid(0x8000_0001).ecx & SVM == 0 {
            return Err(Unsupported::NoSvm);
        }
        let svm = __cpuid(0x8000_000a);
        if svm.edx & NESTED_PAGING == 0 {
            return Err(Unsupported::NoNestedPaging);
        }
        // SAFETY: VM_CR exists where CPUID reports SVM (APM vol. 2, 15.4).
        if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
            return Err(Unsupported::Disabled);
        }
        if __cpuid(1).ecx & XSAVE != 0 {
            // SAFETY: the bit exists with XSAVE; it only makes XSAVE and XCR0 usable.
            unsafe { Cr4::update(|flags| *flags |= Cr4Flags::OSXSAVE) };
        }
        let host_save = Box::new(HostSave([0; 4096]));
        // SAFETY: both MSRs exist with SVM; the save area is a page of its own that lives as long as
        // guests can run, and memory is identity-mapped.
        unsafe {
            let efer = Msr::new(EFER).read();
            Msr::new(EFER).write(efer | EFER_SVME);
            Msr::new(VM_HSAVE_PA).write(core::ptr::from_ref(&*host_save).addr() as u64);
        }
        Ok(Rc::new(Self {
            permissions: Permissions::new(),
            lazy: LazyRegisters::new(Features::detect()),
            asids: AsidPool::new(svm.ebx),
            _host_save: host_save,
        }))
    }

    /// The identifier to run with next, and what TLB_CONTROL must be.
    pub fn renew_asid(&self, old: Asid) -> (Asid, u8) {
        self.asids.renew(old)
    }
}
