//! What CPUID tells the guest.
//!
//! A leaf is the physical one with the features that this machine does not carry masked out, so an
//! unknown new feature stays hidden: an allow list, not a deny list. The table is part of
//! the saved state: a guest sees the same processor wherever it goes, and a host that lacks one of its features
//! refuses it.

use alloc::vec::Vec;

use crate::state::{SavedCpuid, SavedLeaf};

/// KVM's signature and the paravirtual features that this machine has. Without them Linux refuses x2APIC
/// mode where no interrupt remapping exists, and calibrates its clock against timers there are none of.
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
/// Bits of leaf 0x40000001 (Linux, Documentation/virt/kvm/x86/cpuid.rst): no delay after port accesses,
/// clock source by the second pair of MSRs, silent end of interrupt, stable clock.
const FEATURE_NOP_IO_DELAY: u32 = 1 << 1;
const FEATURE_CLOCK: u32 = 1 << 3;
const FEATURE_PV_EOI: u32 = 1 << 6;
const FEATURE_CLOCK_STABLE: u32 = 1 << 24;

const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;

/// SSE3, PCLMUL, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// All up to SSE2 but machine check (7, 14), which has no banks here.
const LEAF1_EDX: u32 = 0x0783_fbff & !(1 << 7) & !(1 << 14);
/// The APIC timer always runs, as an emulated one does. Without this bit Linux expects it to stop in deep
/// sleep, finds no other timer to wake it, and keeps a periodic tick for ever, also when idle.
const LEAF6_EAX_ARAT: u32 = 1 << 2;
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const LEAF7_EBX: u32 = 1
    | 1 << 3
    | 1 << 5
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 23
    | 1 << 24
    | 1 << 29;
/// UMIP, GFNI, VAES, VPCLMULQDQ, RDPID. No LA57: the software walk has four levels; no PKU: its register
/// is not part of a vCPU's state.
const LEAF7_ECX: u32 = 1 << 2 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 22;
/// Fast short REP MOV.
const LEAF7_EDX: u32 = 1 << 4;
/// XSAVEOPT, XSAVEC, XGETBV with ECX=1. No XSAVES: it needs IA32_XSS.
const LEAF_D1_EAX: u32 = 0x7;
/// LAHF, CMP_LEGACY (several processors are cores), CR8, ABM, SSE4A, misaligned SSE, PREFETCHW.
const EXTENDED1_ECX: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
/// As leaf 1, SYSCALL, NX, MMX extensions, FFXSR, 1-GiB pages, RDTSCP, long mode.
const EXTENDED1_EDX: u32 =
    (LEAF1_EDX & 0x0183_f3ff) | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 29;
/// x87, SSE, AVX.
pub const XCR0_SUPPORTED: u64 = 0x7;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaf {
    leaf: u32,
    subleaf: u32,
    /// eax, ebx, ecx, edx.
    values: [u32; 4],
}

/// What of a vCPU shows in CPUID.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    /// APIC id.
    pub apic_id: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// The CPUID table of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rows: Vec<Leaf>,
    vcpus: u32,
}

impl Policy {
    /// The table for a machine of `vcpus` on this physical CPU.
    #[must_use]
    pub fn new(vcpus: u8, physical: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let mut policy = Self {
            rows: Vec::new(),
            vcpus: vcpus.into(),
        };
        policy.basic(&physical);
        policy.extended(&physical);
        policy.add(
            HYPERVISOR,
            0,
            [
                HYPERVISOR_FEATURES,
                u32::from_le_bytes(*b"KVMK"),
                u32::from_le_bytes(*b"VMKV"),
                u32::from_le_bytes(*b"M\0\0\0"),
            ],
        );
        let features = FEATURE_NOP_IO_DELAY | FEATURE_CLOCK | FEATURE_PV_EOI | FEATURE_CLOCK_STABLE;
        policy.add(HYPERVISOR_FEATURES, 0, [features, 0, 0, 0]);
        policy
    }

    fn basic(&mut self, physical: &impl Fn(u32, u32) -> [u32; 4]) {
        let [highest, b, c, d] = physical(0, 0);
        self.add(0, 0, [highest.min(0xd), b, c, d]);
        let [a, b, c, d] = physical(1, 0);
        self.add(
            1,
            0,
            [
                a,
                b & 0xff00 | self.vcpus << 16,
                c & LEAF1_ECX | LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR,
                // HTT: the logical processor count is meant.
                d & LEAF1_EDX | u32::from(self.vcpus > 1) << 28,
            ],
        );
        if highest >= 6 {
            self.add(6, 0, [LEAF6_EAX_ARAT, 0, 0, 0]);
        }
        if highest >= 7 {
            let [_, b, c, d] = physical(7, 0);
            self.add(7, 0, [0, b & LEAF7_EBX, c & LEAF7_ECX, d & LEAF7_EDX]);
        }
        if highest >= 0xb {
            // Two levels: one thread a core, all cores in one package. ecx and edx are the viewer's.
            self.add(0xb, 0, [0, 1, 1 << 8, 0]);
            let bits = self.vcpus.next_power_of_two().ilog2();
            self.add(0xb, 1, [bits, self.vcpus, 2 << 8 | 1, 0]);
        }
        if highest >= 0xd && c & 1 << 26 != 0 {
            let [a, _, _, _] = physical(0xd, 0);
            self.add(0xd, 0, [a & XCR0_SUPPORTED as u32, 0, 0, 0]);
            let [a, _, _, _] = physical(0xd, 1);
            self.add(0xd, 1, [a & LEAF_D1_EAX, 0, 0, 0]);
            let [a, b, c, _] = physical(0xd, 2);
            self.add(0xd, 2, [a, b, c, 0]);
        }
    }

    fn extended(&mut self, physical: &impl Fn(u32, u32) -> [u32; 4]) {
        let [highest, b, c, d] = physical(0x8000_0000, 0);
        let highest = highest.clamp(0x8000_0000, 0x8000_0008);
        self.add(0x8000_0000, 0, [highest, b, c, d]);
        for leaf in 0x8000_0001..=highest {
            let [a, b, c, d] = physical(leaf, 0);
            let values = match leaf {
                0x8000_0001 => [a, 0, c & EXTENDED1_ECX, d & EXTENDED1_EDX],
                // No invariant TSC: a guest then keeps kvmclock, which bears hosts of different rates.
                0x8000_0007 => [0; 4],
                // Address widths; ecx is the core count, told by leaf 0xb.
                0x8000_0008 => [a & 0xffff, 0, 0, 0],
                // Brand string, caches and TLBs.
                _ => [a, b, c, d],
            };
            self.add(leaf, 0, values);
        }
    }

    fn add(&mut self, leaf: u32, subleaf: u32, values: [u32; 4]) {
        self.rows.push(Leaf {
            leaf,
            subleaf,
            values,
        });
    }

    fn row(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.rows
            .iter()
            .find(|row| row.leaf == leaf && row.subleaf == subleaf)
            .map_or([0; 4], |row| row.values)
    }

    /// Answers CPUID.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32, viewer: &Viewer) -> [u32; 4] {
        let indexed = matches!(leaf, 7 | 0xb | 0xd);
        let [a, b, c, d] = self.row(leaf, if indexed { subleaf } else { 0 });
        match leaf {
            1 => {
                let osxsave = if viewer.osxsave { LEAF1_ECX_OSXSAVE } else { 0 };
                [a, b | viewer.apic_id << 24, c | osxsave, d]
            }
            // Past the last level: type "invalid", the subleaf echoed.
            0xb if subleaf > 1 => [0, 0, subleaf & 0xff, viewer.apic_id],
            0xb => [a, b, c, viewer.apic_id],
            0xd if subleaf == 0 => {
                let all = self.xsave_size(XCR0_SUPPORTED);
                [a, self.xsave_size(viewer.xcr0), all, 0]
            }
            0xd if subleaf == 1 => [a, self.xsave_size(viewer.xcr0), 0, 0],
            _ => [a, b, c, d],
        }
    }

    /// Bytes of an XSAVE area for these components: legacy region, header, and AVX at its offset.
    fn xsave_size(&self, xcr0: u64) -> u32 {
        let [features, ..] = self.row(0xd, 0);
        let [size, offset, ..] = self.row(0xd, 2);
        if features & 4 != 0 && xcr0 & 4 != 0 {
            offset + size
        } else {
            576
        }
    }

    /// Bits that XSETBV may set.
    #[must_use]
    pub fn xcr0_allowed(&self) -> u64 {
        self.row(0xd, 0)[0].into()
    }

    /// Family, model and stepping, which a processor finds in `edx` when it starts.
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.row(1, 0)[0]
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedCpuid {
        let row = |r: &Leaf| SavedLeaf {
            leaf: r.leaf,
            subleaf: r.subleaf,
            values: r.values,
        };
        SavedCpuid {
            rows: self.rows.iter().map(row).collect(),
        }
    }

    /// A saved table, if this host's processor (whose own table this is) has all its features.
    ///
    /// # Errors
    /// The first leaf with a feature that is missing here.
    pub fn restore(&self, saved: &SavedCpuid) -> Result<Self, u32> {
        let rows: Vec<Leaf> = saved
            .rows
            .iter()
            .map(|r| Leaf {
                leaf: r.leaf,
                subleaf: r.subleaf,
                values: r.values,
            })
            .collect();
        // Which of the four words of a leaf are feature bits.
        let features: [(u32, u32, [bool; 4]); 5] = [
            (1, 0, [false, false, true, true]),
            (7, 0, [false, true, true, true]),
            (0xd, 0, [true, false, false, false]),
            (0xd, 1, [true, false, false, false]),
            (0x8000_0001, 0, [false, false, true, true]),
        ];
        let table = Self {
            rows,
            vcpus: self.vcpus,
        };
        for (leaf, subleaf, words) in features {
            let (theirs, ours) = (table.row(leaf, subleaf), self.row(leaf, subleaf));
            let missing = (0..4).any(|i| words[i] && theirs[i] & !ours[i] != 0);
            if missing {
                return Err(leaf);
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with every feature there is.
    fn everything(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0, _) => [0x20, 0, 0, 0],
            (0x8000_0000, _) => [0x8000_0021, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            _ => [u32::MAX; 4],
        }
    }

    const VIEWER: Viewer = Viewer {
        apic_id: 1,
        osxsave: false,
        xcr0: 1,
    };

    #[test]
    fn what_the_machine_lacks_is_hidden() {
        let policy = Policy::new(2, everything);
        let [_, b, c, d] = policy.answer(1, 0, &VIEWER);
        assert_eq!(b >> 24, 1, "APIC id");
        assert_eq!(b >> 16 & 0xff, 2, "logical processors");
        assert_eq!(c & 1 << 3, 0, "MONITOR");
        assert_eq!(c & 1 << 5, 0, "VMX");
        assert_eq!(c & 1 << 17, 0, "PCID is left out: emulators lack it");
        assert_eq!(c & LEAF1_ECX_OSXSAVE, 0);
        assert_eq!(d & (1 << 7 | 1 << 14), 0, "machine check");
        assert_eq!(policy.answer(7, 0, &VIEWER)[2] & 1 << 16, 0, "LA57");
        assert_eq!(policy.answer(7, 0, &VIEWER)[2] & 1 << 3, 0, "PKU");
        assert_eq!(policy.answer(0x8000_0001, 0, &VIEWER)[2] & 1 << 2, 0, "SVM");
        assert_eq!(policy.answer(0x8000_000a, 0, &VIEWER), [0; 4]);
        assert_eq!(policy.answer(0x15, 0, &VIEWER), [0; 4]);
    }

    #[test]
    fn what_linux_needs_is_there() {
        let policy = Policy::new(1, |_, _| [0; 4]);
        let c = policy.answer(1, 0, &VIEWER)[2];
        assert_eq!(c & LEAF1_ECX_X2APIC, LEAF1_ECX_X2APIC);
        assert_eq!(c & LEAF1_ECX_TSC_DEADLINE, LEAF1_ECX_TSC_DEADLINE);
        let [a, b, c, d] = policy.answer(0x4000_0000, 0, &VIEWER);
        let name = [b, c, d].map(u32::to_le_bytes).concat();
        assert_eq!((a, &name[..9]), (0x4000_0001, &b"KVMKVMKVM"[..]));
    }

    #[test]
    fn the_apic_timer_is_said_to_run_always_whatever_the_processor_does() {
        let policy = Policy::new(1, |leaf, subleaf| match leaf {
            6 => [0; 4],
            _ => everything(leaf, subleaf),
        });
        assert_eq!(policy.answer(6, 0, &VIEWER), [LEAF6_EAX_ARAT, 0, 0, 0]);
    }

    #[test]
    fn the_xsave_area_follows_xcr0() {
        let policy = Policy::new(1, everything);
        assert_eq!(policy.answer(0xd, 0, &VIEWER)[1..3], [576, 832]);
        let avx = Viewer { xcr0: 7, ..VIEWER };
        assert_eq!(policy.answer(0xd, 0, &avx)[1], 832);
        assert_eq!(policy.xcr0_allowed(), 7);
    }

    #[test]
    fn a_guest_with_more_features_than_the_host_is_refused() {
        let rich = Policy::new(1, everything);
        let poor = Policy::new(1, |leaf, subleaf| match leaf {
            1 => [0; 4],
            _ => everything(leaf, subleaf),
        });
        assert_eq!(poor.restore(&rich.save()), Err(1));
        assert_eq!(
            rich.restore(&poor.save()).unwrap().answer(1, 0, &VIEWER),
            poor.answer(1, 0, &VIEWER)
        );
    }
}
