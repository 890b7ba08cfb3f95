//! A vCPU on AMD SVM.

use alloc::{boxed::Box, rc::Rc};
use core::arch::x86_64::_rdtsc;

use machine::vcpu::{Event, Exit, Gpr, Segment, SegmentName, Vcpu, VcpuState, gpr};

use super::{
    cpu::{Asid, PhysicalCpu},
    event,
    lazy::LazyState,
    npt::{FlushNeeded, NestedTables},
    vmcb::{
        INTERCEPT_CR8_WRITE, INTERRUPT_SHADOW, NESTED_PAGING, Vmcb, exit_code, int_ctl, intercept1,
        intercept2,
    },
    world::{self, Gprs},
};

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_ALWAYS: u64 = 1 << 1;
const EFER_SVME: u64 = 1 << 12;
/// Exceptions that can be raised by their own delivery: unless they exit, a guest makes the CPU
/// deliver them for ever, and no interrupt gets through to the host.
const INTERCEPT_EXCEPTIONS: u32 = 1 << DEBUG | 1 << ALIGNMENT_CHECK;
const DEBUG: u8 = 1;
const ALIGNMENT_CHECK: u8 = 17;
/// Bits of DR6 and DR7 that are fixed to one; bits 63-32 must be zero or VMRUN refuses.
const DR6_ONES: u64 = 0xffff_0ff0;
const DR7_ONES: u64 = 0x400;

/// Exits that every guest has, whatever it does.
const INTERCEPT1: u32 = intercept1::INTR
    | intercept1::NMI
    | intercept1::INIT
    | intercept1::RDPMC
    | intercept1::CPUID
    | intercept1::INVD
    | intercept1::PAUSE
    | intercept1::HLT
    | intercept1::INVLPGA
    | intercept1::IOIO_PROT
    | intercept1::MSR_PROT
    | intercept1::SHUTDOWN;
const INTERCEPT2: u32 = intercept2::VMRUN
    | intercept2::VMMCALL
    | intercept2::VMLOAD
    | intercept2::VMSAVE
    | intercept2::STGI
    | intercept2::CLGI
    | intercept2::SKINIT
    | intercept2::WBINVD
    | intercept2::MONITOR
    | intercept2::MWAIT
    | intercept2::MWAIT_ARMED
    | intercept2::XSETBV;

/// How the guest's next interruptible moment is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// Nobody asked.
    Closed,
    /// A virtual interrupt of the highest priority is pending, and its delivery is intercepted.
    Armed,
    /// The guest is in an interrupt shadow, and runs one instruction to leave it. Holds what RFLAGS.TF
    /// and DR6 were.
    Stepping { trap_flag: u64, dr6: u64 },
}

/// A virtual CPU.
pub struct SvmVcpu {
    cpu: Rc<PhysicalCpu>,
    tables: Rc<NestedTables>,
    vmcb: Box<Vmcb>,
    gprs: Gprs,
    lazy: Rc<LazyState>,
    asid: Asid,
    window_wanted: bool,
    window: Window,
    exits: u64,
}

impl SvmVcpu {
    /// A vCPU that has nothing to run yet.
    pub(super) fn new(cpu: &Rc<PhysicalCpu>, tables: &Rc<NestedTables>) -> Self {
        let mut vmcb = Box::new(Vmcb::zeroed());
        let control = &mut vmcb.control;
        control.intercept_exceptions = INTERCEPT_EXCEPTIONS;
        control.intercept1 = INTERCEPT1;
        control.intercept2 = INTERCEPT2;
        control.iopm_base = cpu.permissions.io_base();
        control.msrpm_base = cpu.permissions.msr_base();
        control.int_ctl = int_ctl::V_INTR_MASKING;
        control.nested_control = NESTED_PAGING;
        control.nested_cr3 = tables.root();
        let mut vcpu = Self {
            cpu: Rc::clone(cpu),
            tables: Rc::clone(tables),
            vmcb,
            gprs: Gprs::default(),
            lazy: cpu.lazy.initial(),
            asid: Asid::default(),
            window_wanted: false,
            window: Window::Closed,
            exits: 0,
        };
        // Saved before it ever ran, it must come back the same.
        vcpu.load(&VcpuState::default());
        vcpu
    }

    /// How often the guest has been left.
    pub(super) fn exits(&self) -> u64 {
        self.exits
    }

    /// Sees to it that no translation cached before now is used by this vCPU.
    pub(super) fn flush(&mut self, needed: FlushNeeded) {
        if needed.0 {
            self.asid = Asid::default();
        }
    }

    fn in_shadow(&self) -> bool {
        self.vmcb.control.interrupt_shadow & INTERRUPT_SHADOW != 0
    }

    /// Opens the interrupt window that was asked for, in the way that suits where the guest is now.
    fn open_window(&mut self) {
        self.close_window();
        if !self.window_wanted {
            return;
        }
        let control = &mut self.vmcb.control;
        if control.interrupt_shadow & INTERRUPT_SHADOW != 0 {
            // TCG-QUIRK(6): the shadow would be forgotten at entry and the window open between
            // STI and HLT: the guest would take the interrupt, then halt, and miss the wake-up.
            let save = &mut self.vmcb.save;
            self.window = Window::Stepping {
                trap_flag: save.rflags & RFLAGS_TF,
                dr6: save.dr6,
            };
            save.rflags |= RFLAGS_TF;
        } else {
            self.window = Window::Armed;
            control.int_ctl |=
                int_ctl::V_IRQ | int_ctl::V_IGN_TPR | (0xf << int_ctl::V_INTR_PRIO_SHIFT);
            control.intercept1 |= intercept1::VINTR;
        }
    }

    /// Takes back what [`Self::open_window`] did.
    fn close_window(&mut self) {
        let control = &mut self.vmcb.control;
        match self.window {
            Window::Closed => {}
            Window::Armed => {
                control.int_ctl &= int_ctl::V_INTR_MASKING | int_ctl::V_TPR;
                control.intercept1 &= !intercept1::VINTR;
            }
            Window::Stepping { trap_flag, dr6 } => {
                let save = &mut self.vmcb.save;
                save.rflags = save.rflags & !RFLAGS_TF | trap_flag;
                save.dr6 = dr6;
            }
        }
        self.window = Window::Closed;
    }

    /// Enters the guest once.
    fn enter(&mut self) {
        let (asid, tlb_control) = self.cpu.renew_asid(self.asid);
        self.asid = asid;
        let control = &mut self.vmcb.control;
        control.asid = asid.number();
        control.tlb_control = tlb_control;
        let (shadow_before, rip_before) = (self.in_shadow(), self.rip());
        let vmcb = core::ptr::from_mut(&mut *self.vmcb).expose_provenance() as u64;
        // SAFETY: the VMCB is a page of its own on the identity-mapped heap; its nested tables map
        // only this guest's blocks, which `tables` keeps alive, its permission maps live in `cpu`,
        // which exists only with SVM switched on. The image keeps interrupts off.
        unsafe { world::enter(&mut self.gprs, vmcb) };
        self.exits += 1;
        if shadow_before && self.rip() == rip_before {
            // TCG-QUIRK(6): forgotten at entry, it is not told at the exit either, but without an
            // instruction in between the guest is still in its shadow.
            self.vmcb.control.interrupt_shadow = INTERRUPT_SHADOW;
        }
        let control = &mut self.vmcb.control;
        // What was to be delivered has been, or is in EXITINTINFO: then it goes in again.
        control.event_inj = event::decode(control.exit_int_info).map_or(0, event::encode);
    }

    /// What the last #VMEXIT means; none when it has been dealt with here. `stepped`: a #DB is that of
    /// our own single step.
    fn exit(&mut self, stepped: bool) -> Option<Exit> {
        let control = &self.vmcb.control;
        let (code, info1, info2) = (control.exit_code, control.exit_info1, control.exit_info2);
        Some(match code {
            exit_code::INTR | exit_code::NMI => {
                crate::interrupts::take_pending();
                Exit::Interrupted
            }
            exit_code::VINTR => {
                self.window_wanted = false;
                self.close_window();
                Exit::InterruptWindow
            }
            // The window opens with the next entry.
            exit_code::EXCEPTION_DB if stepped => {
                self.vmcb.control.interrupt_shadow = 0;
                return None;
            }
            exit_code::EXCEPTION_DB => {
                self.inject(Event::Exception {
                    vector: DEBUG,
                    error: None,
                });
                return None;
            }
            exit_code::EXCEPTION_AC => {
                self.inject(Event::Exception {
                    vector: ALIGNMENT_CHECK,
                    error: Some(0),
                });
                return None;
            }
            exit_code::CR8_WRITE => Exit::SetTaskPriority,
            exit_code::CPUID => Exit::Cpuid,
            exit_code::MSR if info1 & 1 == 0 => Exit::ReadMsr,
            exit_code::MSR => Exit::WriteMsr,
            exit_code::HLT => Exit::Halt,
            exit_code::PAUSE => Exit::Pause,
            exit_code::IOIO => io_exit(info1, info2),
            exit_code::NPF => {
                if self.tables.populate(info2) {
                    return None;
                }
                // APM vol. 2, 15.25.6: the error code as for #PF, and bit 33 for a table walk.
                Exit::NestedFault {
                    gpa: info2,
                    write: info1 & 1 << 1 != 0,
                    fetch: info1 & 1 << 4 != 0,
                    table_walk: info1 & 1 << 33 != 0,
                }
            }
            exit_code::VMMCALL => Exit::Hypercall,
            exit_code::XSETBV => Exit::SetXcr,
            exit_code::INVD | exit_code::WBINVD => Exit::CacheControl,
            // There are no performance counters, so every index is a wrong one.
            exit_code::RDPMC => {
                self.inject(Event::GENERAL_PROTECTION);
                return None;
            }
            exit_code::INVLPGA
            | exit_code::VMRUN
            | exit_code::VMLOAD..=exit_code::SKINIT
            | exit_code::MONITOR..=exit_code::MWAIT_ARMED => Exit::Undefined,
            exit_code::SHUTDOWN => Exit::Shutdown,
            // TCG-QUIRK(4): the guest wrote reserved bits to a control register, for which the
            // manual has #GP. A refused entry leaves the address of our own VMRUN instead.
            _ if exit_code::INVALID.contains(&code)
                && self.vmcb.save.rip != world::vmrun_address() =>
            {
                self.vmcb.control.event_inj = 0;
                self.inject(Event::GENERAL_PROTECTION);
                return None;
            }
            _ => Exit::Invalid { code, info1, info2 },
        })
    }
}

/// An IOIO exit (APM vol. 2, 15.10.2). EXITINFO2 is the next instruction's RIP.
fn io_exit(info1: u64, next_rip: u64) -> Exit {
    Exit::Io {
        port: (info1 >> 16) as u16,
        size: (info1 >> 4 & 7) as u8,
        write: info1 & 1 == 0,
        string: info1 & 1 << 2 != 0,
        repeat: info1 & 1 << 3 != 0,
        next_rip,
    }
}

impl Vcpu for SvmVcpu {
    fn run(&mut self) -> Exit {
        self.cpu.lazy.acquire(&self.lazy);
        loop {
            self.open_window();
            self.enter();
            let stepped = matches!(self.window, Window::Stepping { trap_flag: 0, .. });
            if let Window::Stepping { .. } = self.window {
                self.close_window();
            }
            if let Some(exit) = self.exit(stepped) {
                return exit;
            }
        }
    }

    fn gpr(&self, register: Gpr) -> u64 {
        match register & 15 {
            gpr::RAX => self.vmcb.save.rax,
            gpr::RSP => self.vmcb.save.rsp,
            other => self.gprs.0[usize::from(other)],
        }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register & 15 {
            gpr::RAX => self.vmcb.save.rax = value,
            gpr::RSP => self.vmcb.save.rsp = value,
            other => self.gprs.0[usize::from(other)] = value,
        }
    }

    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn advance_to(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
        self.vmcb.control.interrupt_shadow = 0;
    }

    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    fn cr(&self, number: u8) -> u64 {
        let save = &self.vmcb.save;
        match number {
            0 => save.cr0,
            2 => save.cr2,
            3 => save.cr3,
            4 => save.cr4,
            8 => self.vmcb.control.int_ctl & int_ctl::V_TPR,
            _ => 0,
        }
    }

    fn set_task_priority(&mut self, class: u8, watched: bool) {
        let control = &mut self.vmcb.control;
        control.int_ctl = control.int_ctl & !int_ctl::V_TPR | u64::from(class & 0xf);
        control.intercept_cr = if watched { INTERCEPT_CR8_WRITE } else { 0 };
    }

    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !EFER_SVME
    }

    fn set_efer(&mut self, value: u64) {
        // TCG-QUIRK(12), and the manual's own rule: SVME must be set in the guest's EFER.
        let value = value | EFER_SVME;
        if value != self.vmcb.save.efer {
            self.vmcb.save.efer = value;
            // NXE changes what a cached translation allows.
            self.flush(FlushNeeded(true));
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let save = &self.vmcb.save;
        match name {
            SegmentName::Es => save.es,
            SegmentName::Cs => save.cs,
            SegmentName::Ss => save.ss,
            SegmentName::Ds => save.ds,
            SegmentName::Fs => save.fs,
            SegmentName::Gs => save.gs,
        }
        .into()
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn pat(&self) -> u64 {
        self.vmcb.save.g_pat
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcb.save.g_pat = value;
        self.flush(FlushNeeded(true));
    }

    fn tsc_aux(&self) -> u64 {
        self.cpu.lazy.tsc_aux(&self.lazy)
    }

    fn set_tsc_aux(&mut self, value: u64) {
        self.cpu.lazy.set_tsc_aux(&self.lazy, value);
    }

    fn xcr0(&self) -> u64 {
        self.cpu.lazy.xcr0(&self.lazy)
    }

    fn set_xcr0(&mut self, value: u64) {
        self.cpu.lazy.set_xcr0(&self.lazy, value);
    }

    fn tsc(&self) -> u64 {
        read_tsc().wrapping_add(self.vmcb.control.tsc_offset)
    }

    fn tsc_offset(&self) -> u64 {
        self.vmcb.control.tsc_offset
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
    }

    fn can_take_interrupt(&self) -> bool {
        self.vmcb.save.rflags & RFLAGS_IF != 0
            && !self.in_shadow()
            && self.pending_event().is_none()
    }

    fn inject(&mut self, event: Event) {
        self.vmcb.control.event_inj = event::encode(event);
    }

    fn pending_event(&self) -> Option<Event> {
        event::decode(self.vmcb.control.event_inj)
    }

    fn want_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
        if !wanted {
            self.close_window();
        }
    }

    fn save(&mut self) -> VcpuState {
        self.close_window();
        let (dr0_3, xsave) = self.cpu.lazy.export(&self.lazy);
        let save = &self.vmcb.save;
        let mut gprs = self.gprs.0;
        gprs[usize::from(gpr::RAX)] = save.rax;
        gprs[usize::from(gpr::RSP)] = save.rsp;
        VcpuState {
            gprs,
            rip: save.rip,
            rflags: save.rflags,
            cs: save.cs.into(),
            ds: save.ds.into(),
            es: save.es.into(),
            fs: save.fs.into(),
            gs: save.gs.into(),
            ss: save.ss.into(),
            tr: save.tr.into(),
            ldtr: save.ldtr.into(),
            gdtr: save.gdtr.into(),
            idtr: save.idtr.into(),
            cpl: save.cpl,
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: self.efer(),
            dr0_3,
            dr6: save.dr6,
            dr7: save.dr7,
            pat: save.g_pat,
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter: [save.sysenter_cs, save.sysenter_esp, save.sysenter_eip],
            tsc_aux: self.tsc_aux(),
            xcr0: self.xcr0(),
            xsave,
            interrupt_shadow: self.in_shadow(),
            pending: self.pending_event(),
            tsc: self.tsc(),
        }
    }

    fn load(&mut self, state: &VcpuState) {
        self.want_interrupt_window(false);
        self.gprs = Gprs(state.gprs);
        let save = &mut self.vmcb.save;
        save.rax = state.gprs[usize::from(gpr::RAX)];
        save.rsp = state.gprs[usize::from(gpr::RSP)];
        save.rip = state.rip;
        save.rflags = state.rflags | RFLAGS_ALWAYS;
        save.cs = state.cs.into();
        save.ds = state.ds.into();
        save.es = state.es.into();
        save.fs = state.fs.into();
        save.gs = state.gs.into();
        save.ss = state.ss.into();
        save.tr = state.tr.into();
        save.ldtr = state.ldtr.into();
        save.gdtr = state.gdtr.into();
        save.idtr = state.idtr.into();
        save.cpl = state.cpl;
        save.cr0 = state.cr0;
        save.cr2 = state.cr2;
        save.cr3 = state.cr3;
        save.cr4 = state.cr4;
        save.efer = state.efer | EFER_SVME;
        save.dr6 = state.dr6 & 0xffff_ffff | DR6_ONES;
        save.dr7 = state.dr7 & 0xffff_ffff | DR7_ONES;
        save.g_pat = state.pat;
        save.star = state.star;
        save.lstar = state.lstar;
        save.cstar = state.cstar;
        save.sfmask = state.sfmask;
        save.kernel_gs_base = state.kernel_gs_base;
        [save.sysenter_cs, save.sysenter_esp, save.sysenter_eip] = state.sysenter;
        let control = &mut self.vmcb.control;
        control.interrupt_shadow = u64::from(state.interrupt_shadow);
        control.event_inj = state.pending.map_or(0, event::encode);
        control.int_ctl = int_ctl::V_INTR_MASKING;
        self.cpu.lazy.import(
            &self.lazy,
            state.xcr0,
            state.dr0_3,
            state.tsc_aux,
            &state.xsave,
        );
        self.tables.populate_used();
        self.flush(FlushNeeded(true));
    }
}

fn read_tsc() -> u64 {
    // SAFETY: RDTSC exists on every CPU with long mode.
    unsafe { _rdtsc() }
}
