//! Registers that neither VMRUN nor VMLOAD switches: XCR0, the x87/SSE/AVX state, DR0 to DR3 and
//! TSC_AUX.
//!
//! The image itself uses none of them (it is compiled without floating point), so a guest's values stay
//! in the CPU while the hypervisor works, and are exchanged only when another vCPU wants to run.
//! XCR0 is read back from the CPU, never remembered from an exit: QEMU 7.2 does not intercept XSETBV, so
//! the guest changes the real register (TCG-QUIRK 7).

use alloc::{rc::Rc, vec, vec::Vec};
use core::{
    arch::asm,
    arch::x86_64::{__cpuid, __cpuid_count},
    cell::{Cell, RefCell},
};

use x86_64::registers::{
    debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3},
    model_specific::Msr,
};

const TSC_AUX: u32 = 0xc000_0103;

/// Where the XSAVE header begins, and how long it is (APM vol. 2, 11.5.2).
const HEADER: core::ops::Range<usize> = 512..576;
/// x87 is always enabled in XCR0.
const XCR0_X87: u64 = 1;
const XCR0_SSE: u64 = 1 << 1;
const XCR0_AVX: u64 = 1 << 2;

/// What this CPU can save.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Bits that XCR0 may have; 0 without XSAVE, when FXSAVE serves.
    xcr0: u64,
    /// Bytes of an image with all of them.
    size: usize,
    /// Bits that MXCSR may have.
    mxcsr: u32,
    has_tsc_aux: bool,
}

impl Features {
    /// Asks the CPU.
    pub fn detect() -> Self {
        const OSXSAVE: u32 = 1 << 27;
        const RDTSCP: u32 = 1 << 27;
        let (xcr0, size) = if __cpuid(1).ecx & OSXSAVE == 0 {
            (0, HEADER.start)
        } else {
            let leaf = __cpuid_count(0xd, 0);
            let xcr0 = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
            (xcr0, leaf.ecx as usize)
        };
        let mut features = Self {
            xcr0,
            size,
            mxcsr: 0xffff,
            has_tsc_aux: __cpuid(0x8000_0001).edx & RDTSCP != 0,
        };
        // The mask of MXCSR is only told in an image (APM vol. 2, 11.4.4); 0 stands for 0xffbf.
        let mut probe = Image::initial(features);
        probe.save(features);
        features.mxcsr =
            match u32::from_le_bytes(probe.bytes()[28..32].try_into().expect("4 bytes")) {
                0 => 0xffbf,
                mask => mask,
            };
        features
    }

    /// The nearest XCR0 that XSETBV accepts, of the components that guests are offered: a saved one
    /// comes from a peer, and the rules for other components are many.
    fn legal_xcr0(self, wanted: u64) -> u64 {
        let offered = self.xcr0 & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
        let mut legal = wanted & offered | XCR0_X87;
        if legal & XCR0_SSE == 0 {
            legal &= !XCR0_AVX;
        }
        legal
    }
}

/// XSAVE wants 64-byte alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An XSAVE image in the standard format, or an FXSAVE image.
struct Image(Vec<Line>);

impl Image {
    /// The state after a reset: FCW 0x37f, MXCSR 0x1f80, the rest zero.
    fn initial(features: Features) -> Self {
        let mut image = Self(vec![Line([0; 64]); features.size.div_ceil(64)]);
        image.0[0].0[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        image.0[0].0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        if features.xcr0 != 0 {
            // x87 and SSE come from the image; all else is in its initial state.
            image.0[HEADER.start / 64].0[0] = (XCR0_X87 | XCR0_SSE) as u8;
        }
        image
    }

    /// An image from outside, made harmless: XRSTOR faults on reserved bits.
    fn checked(features: Features, bytes: &[u8]) -> Self {
        let mut image = Self::initial(features);
        if bytes.len() < HEADER.start {
            return image;
        }
        for (line, from) in image.0.iter_mut().zip(bytes.chunks(64)) {
            line.0[..from.len()].copy_from_slice(from);
        }
        let mxcsr = &mut image.0[0].0[24..28];
        let wanted = u32::from_le_bytes((&*mxcsr).try_into().expect("4 bytes"));
        mxcsr.copy_from_slice(&(wanted & features.mxcsr).to_le_bytes());
        if features.xcr0 != 0 {
            let header = &mut image.0[HEADER.start / 64].0;
            let present = if bytes.len() < HEADER.end {
                XCR0_X87 | XCR0_SSE
            } else {
                u64::from_le_bytes(header[..8].try_into().expect("8 bytes")) & features.xcr0
            };
            header.fill(0);
            header[..8].copy_from_slice(&present.to_le_bytes());
        }
        image
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|line| line.0).collect()
    }

    /// Copies the CPU's state into the image.
    fn save(&mut self, features: Features) {
        let to = self.0.as_mut_ptr();
        if features.xcr0 == 0 {
            // SAFETY: 512 bytes, aligned to 64.
            unsafe { asm!("fxsave64 [{}]", in(reg) to, options(nostack)) };
        } else {
            write_xcr0(features.xcr0);
            // SAFETY: as large as CPUID says an image with all components is, aligned to 64.
            unsafe {
                asm!("xsave64 [{}]", in(reg) to, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
        }
    }

    /// Copies the image into the CPU.
    fn restore(&self, features: Features) {
        let from = self.0.as_ptr();
        if features.xcr0 == 0 {
            // SAFETY: 512 bytes, aligned to 64, reserved bits of MXCSR clear.
            unsafe { asm!("fxrstor64 [{}]", in(reg) from, options(nostack)) };
        } else {
            write_xcr0(features.xcr0);
            // SAFETY: aligned to 64; the header names only components of XCR0 and is zero beyond, and
            // reserved bits of MXCSR are clear: written by `save` or checked by `checked`.
            unsafe {
                asm!("xrstor64 [{}]", in(reg) from, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
        }
    }
}

fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: XGETBV of register 0 exists where OSXSAVE is set, which the callers have checked.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

fn write_xcr0(value: u64) {
    // SAFETY: the callers pass only values that `Features` allows; the image itself uses no
    // extended state.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

fn read_debug() -> [u64; 4] {
    [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()]
}

fn write_debug(values: [u64; 4]) {
    // The host's DR7 is 0x400 after each exit, so these break nowhere in the host.
    Dr0::write(values[0]);
    Dr1::write(values[1]);
    Dr2::write(values[2]);
    Dr3::write(values[3]);
}

/// One vCPU's share, while it is not in the CPU.
pub struct LazyState {
    image: RefCell<Image>,
    xcr0: Cell<u64>,
    debug: Cell<[u64; 4]>,
    tsc_aux: Cell<u64>,
}

/// Whose lazy state is in this physical CPU.
pub struct LazyRegisters {
    features: Features,
    owner: RefCell<Option<Rc<LazyState>>>,
}

impl LazyRegisters {
    /// Nobody's yet.
    pub fn new(features: Features) -> Self {
        Self {
            features,
            owner: RefCell::new(None),
        }
    }

    /// The state of a vCPU that has just been reset.
    pub fn initial(&self) -> Rc<LazyState> {
        Rc::new(LazyState {
            image: RefCell::new(Image::initial(self.features)),
            xcr0: Cell::new(XCR0_X87),
            debug: Cell::new([0; 4]),
            tsc_aux: Cell::new(0),
        })
    }

    /// Before a vCPU runs: brings its state into the CPU, if another's is there.
    pub fn acquire(&self, state: &Rc<LazyState>) {
        if self.owns(state) {
            return;
        }
        self.evict();
        state.image.borrow().restore(self.features);
        if self.features.xcr0 != 0 {
            write_xcr0(state.xcr0.get());
        }
        write_debug(state.debug.get());
        self.write_tsc_aux(state.tsc_aux.get());
        *self.owner.borrow_mut() = Some(Rc::clone(state));
    }

    /// Brings whatever is in the CPU back into memory.
    pub fn evict(&self) {
        let Some(owner) = self.owner.borrow_mut().take() else {
            return;
        };
        owner.debug.set(read_debug());
        if self.features.xcr0 != 0 {
            owner.xcr0.set(read_xcr0());
        }
        owner.image.borrow_mut().save(self.features);
    }

    fn owns(&self, state: &Rc<LazyState>) -> bool {
        self.owner
            .borrow()
            .as_ref()
            .is_some_and(|owner| Rc::ptr_eq(owner, state))
    }

    /// XCR0 of a vCPU.
    pub fn xcr0(&self, state: &Rc<LazyState>) -> u64 {
        if self.features.xcr0 != 0 && self.owns(state) {
            read_xcr0()
        } else {
            state.xcr0.get()
        }
    }

    /// Sets a vCPU's XCR0.
    pub fn set_xcr0(&self, state: &Rc<LazyState>, value: u64) {
        let value = self.features.legal_xcr0(value);
        state.xcr0.set(value);
        if self.features.xcr0 != 0 && self.owns(state) {
            write_xcr0(value);
        }
    }

    /// TSC_AUX of a vCPU. Its MSR is intercepted, so this is always the guest's.
    pub fn tsc_aux(&self, state: &LazyState) -> u64 {
        state.tsc_aux.get()
    }

    /// Sets a vCPU's TSC_AUX.
    pub fn set_tsc_aux(&self, state: &Rc<LazyState>, value: u64) {
        state.tsc_aux.set(value);
        if self.owns(state) {
            self.write_tsc_aux(value);
        }
    }

    fn write_tsc_aux(&self, value: u64) {
        if self.features.has_tsc_aux {
            // SAFETY: the MSR exists with RDTSCP, only that instruction and RDPID read it, and bits 63-32 are
            // clear, as they must be.
            unsafe { Msr::new(TSC_AUX).write(value & 0xffff_ffff) };
        }
    }

    /// DR0 to DR3 and the image, for a saved vCPU.
    pub fn export(&self, state: &Rc<LazyState>) -> ([u64; 4], Vec<u8>) {
        if self.owns(state) {
            self.evict();
        }
        (state.debug.get(), state.image.borrow().bytes())
    }

    /// Replaces everything; an empty or short image stands for the state after a reset.
    pub fn import(
        &self,
        state: &Rc<LazyState>,
        xcr0: u64,
        debug: [u64; 4],
        tsc_aux: u64,
        image: &[u8],
    ) {
        if self.owns(state) {
            self.evict();
        }
        *state.image.borrow_mut() = Image::checked(self.features, image);
        state.xcr0.set(self.features.legal_xcr0(xcr0));
        state.debug.set(debug);
        state.tsc_aux.set(tsc_aux);
    }
}
