//! What a vCPU is besides its registers: local APIC, activity, paravirtual MSRs.

use alloc::{vec, vec::Vec};

use guest_memory::{Gpa, GuestMemory};

use crate::{
    apic::{Delivery, LocalApic, Message},
    clock::GuestClock,
    state::{Activity, SavedProcessor},
    vcpu::{Event, Segment, Vcpu, VcpuState, gpr},
};

/// The bit of MSR and memory word that offers the guest to end an interrupt silently.
const PV_EOI_ENABLED: u64 = 1;
const PV_EOI_OFFER: u32 = 1;
const RFLAGS_IF: u64 = 1 << 9;

/// A vCPU apart from its registers.
#[derive(Debug)]
pub struct Processor {
    /// Its local APIC.
    pub apic: LocalApic,
    /// What it is doing.
    pub activity: Activity,
    /// A non-maskable interrupt waits.
    pub nmi_pending: bool,
    /// MSR of the paravirtual clock's page.
    pub kvm_clock: u64,
    /// MSR of the silent end of interrupt.
    pub pv_eoi: u64,
    /// `IA32_MTRR_DEF_TYPE`: kept for the guest, without effect.
    pub mtrr_default: u64,
    pv_eoi_offered: bool,
}

impl Processor {
    /// A processor after power-on: the first one runs, the others wait to be started.
    #[must_use]
    pub fn new(index: u8) -> Self {
        Self {
            apic: LocalApic::new(index.into()),
            activity: if index == 0 {
                Activity::Running
            } else {
                Activity::WaitingForStartup
            },
            nmi_pending: false,
            kvm_clock: 0,
            pv_eoi: 0,
            // Enabled, write-back: what a firmware leaves behind.
            mtrr_default: 0xc06,
            pv_eoi_offered: false,
        }
    }

    /// A message arrives.
    pub fn receive(&mut self, message: &Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.apic.request(message.vector, message.level);
            }
            Delivery::Nmi => self.nmi_pending = true,
            Delivery::Init => {
                *self = Self {
                    activity: Activity::WaitingForStartup,
                    ..Self::new(self.apic.id() as u8)
                };
            }
            Delivery::Startup => {
                if self.activity == Activity::WaitingForStartup {
                    self.activity = Activity::Startup(message.vector);
                }
            }
        }
    }

    /// Whether there is something to execute.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        match self.activity {
            Activity::Running | Activity::Startup(_) => true,
            Activity::Halted { interruptible } => {
                self.nmi_pending || interruptible && self.apic.deliverable().is_some()
            }
            Activity::WaitingForStartup => false,
        }
    }

    /// The guest executed HLT.
    pub fn halt(&mut self, rflags: u64) {
        self.activity = Activity::Halted {
            interruptible: rflags & RFLAGS_IF != 0,
        };
    }

    /// Hands the vCPU what is to be delivered at the next entry.
    ///
    /// # Errors
    /// When the guest's word for silent ends of interrupt is not RAM.
    pub fn prepare_entry(
        &mut self,
        vcpu: &mut impl Vcpu,
        memory: &GuestMemory,
    ) -> Result<(), guest_memory::OutOfRange> {
        if self.nmi_pending && vcpu.pending_event().is_none() {
            self.nmi_pending = false;
            vcpu.inject(Event::Nmi);
        }
        let (mut window, mut held_back) = (false, false);
        if self.apic.has_requests() {
            if let Some(vector) = self.apic.deliverable() {
                if vcpu.can_take_interrupt() {
                    self.apic.accepted(vector);
                    vcpu.inject(Event::Interrupt(vector));
                } else {
                    window = true;
                }
            }
            held_back = self.apic.task_priority_holds_back();
        }
        vcpu.want_interrupt_window(window);
        vcpu.set_task_priority(self.apic.task_priority_class(), held_back);
        self.offer_silent_end(memory)
    }

    /// Offers a silent end of interrupt while it makes no difference, and takes the offer back when it would.
    fn offer_silent_end(&mut self, memory: &GuestMemory) -> Result<(), guest_memory::OutOfRange> {
        let offer = self.pv_eoi & PV_EOI_ENABLED != 0 && self.apic.silent_end_allowed();
        if offer != self.pv_eoi_offered {
            self.pv_eoi_offered = offer;
            let word = if offer { PV_EOI_OFFER } else { 0 };
            memory.write(self.pv_eoi_word(), &word.to_le_bytes())?;
        }
        Ok(())
    }

    /// Looks whether the guest has ended its interrupt silently. Must come before anything else changes the local APIC.
    ///
    /// # Errors
    /// When the guest's word is not RAM.
    pub fn notice_silent_end(
        &mut self,
        memory: &GuestMemory,
    ) -> Result<(), guest_memory::OutOfRange> {
        if self.pv_eoi_offered && memory.read_u32(self.pv_eoi_word())? & PV_EOI_OFFER == 0 {
            self.pv_eoi_offered = false;
            self.apic.end_of_interrupt();
        }
        Ok(())
    }

    /// Looks what the guest has set its task priority to without coming out.
    pub fn notice_task_priority(&mut self, vcpu: &impl Vcpu) {
        self.apic.set_task_priority_class(vcpu.cr(8) as u8 & 0xf);
    }

    /// The guest says where its word for silent ends is.
    pub fn set_pv_eoi(&mut self, msr: u64) {
        self.pv_eoi = msr;
        self.pv_eoi_offered = false;
    }

    fn pv_eoi_word(&self) -> Gpa {
        Gpa(self.pv_eoi & !3)
    }

    /// Writes the page of the paravirtual clock.
    ///
    /// # Errors
    /// When it is not RAM.
    pub fn write_clock_page(
        &self,
        clock: &GuestClock,
        memory: &GuestMemory,
    ) -> Result<(), guest_memory::OutOfRange> {
        clock.write_page(memory, self.kvm_clock)
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedProcessor {
        SavedProcessor {
            apic: self.apic.save(),
            activity: self.activity,
            nmi_pending: self.nmi_pending,
            kvm_clock: self.kvm_clock,
            pv_eoi: self.pv_eoi,
            pv_eoi_offered: self.pv_eoi_offered,
            mtrr_default: self.mtrr_default,
        }
    }

    /// Goes on from a saved state.
    #[must_use]
    pub fn restore(index: u8, saved: &SavedProcessor) -> Self {
        Self {
            apic: LocalApic::restore(index.into(), &saved.apic),
            activity: saved.activity,
            nmi_pending: saved.nmi_pending,
            kvm_clock: saved.kvm_clock,
            pv_eoi: saved.pv_eoi,
            pv_eoi_offered: saved.pv_eoi_offered,
            mtrr_default: saved.mtrr_default,
        }
    }
}

/// Registers after reset, as far as a kernel that is started directly relies on them (APM vol. 2, 14.1.3).
#[must_use]
pub fn reset_state() -> VcpuState {
    VcpuState {
        rflags: 2,
        tr: Segment {
            attributes: 0x8b,
            limit: 0xffff,
            ..Segment::default()
        },
        ldtr: Segment {
            attributes: 0x82,
            limit: 0xffff,
            ..Segment::default()
        },
        idtr: Segment {
            limit: 0xffff,
            ..Segment::default()
        },
        gdtr: Segment {
            limit: 0xffff,
            ..Segment::default()
        },
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        pat: 0x0007_0406_0007_0406,
        xcr0: 1,
        xsave: initial_xsave(),
        ..VcpuState::default()
    }
}

/// Registers of a processor that was told to start at a page (APM vol. 2, 16.9).
#[must_use]
pub fn startup_state(page: u8, signature: u32) -> VcpuState {
    let data = Segment {
        attributes: 0x93,
        limit: 0xffff,
        ..Segment::default()
    };
    let mut state = VcpuState {
        cs: Segment {
            selector: u16::from(page) << 8,
            attributes: 0x9b,
            limit: 0xffff,
            base: u64::from(page) << 12,
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        cr0: 0x6000_0010,
        ..reset_state()
    };
    state.gprs[usize::from(gpr::RDX)] = signature.into();
    state
}

/// An XSAVE image in which every component is in its initial state: x87 control word and MXCSR count even so.
fn initial_xsave() -> Vec<u8> {
    let mut image = vec![0; 576];
    image[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    image
}
