//! Model-specific registers: which there are, and what they do.
//!
//! A register that is not listed does not exist, and touching it is #GP: emulated processors never fault
//! on unknown ones (TCG-QUIRK 9), so the list is what keeps hosts alike. Registers that the
//! hardware switches with the guest (segment bases, system call targets) never get here.

use guest_memory::Gpa;

use crate::{
    apic::{
        LocalApic,
        local::{self, Effect, Instant},
    },
    clock::ENABLED,
    machine::{Clock, Machine},
    vcpu::Vcpu,
};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const FEATURE_CONTROL: u32 = 0x3a;
const PREDICTOR_CONTROL: u32 = 0x48;
const PREDICTOR_COMMAND: u32 = 0x49;
const MICROCODE: u32 = 0x8b;
const MTRR_CAPABILITIES: u32 = 0xfe;
const MACHINE_CHECK: core::ops::RangeInclusive<u32> = 0x179..=0x17b;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CONTROL: u32 = 0x1d9;
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
const KVM_CLOCK: u32 = 0x4b56_4d01;
const KVM_PV_EOI: u32 = 0x4b56_4d04;
const EFER: u32 = 0xc000_0080;
const TSC_AUX: u32 = 0xc000_0103;
const SYSTEM_CONFIG: u32 = 0xc001_0010;
const HARDWARE_CONFIG: u32 = 0xc001_0015;
/// NB_CFG, OSVW, VM_CR and the load-store, instruction and data cache configurations: all zero.
const AMD_ZERO: [u32; 9] = [
    0xc001_001f,
    0xc001_0055,
    0xc001_0114,
    0xc001_0140,
    0xc001_0141,
    0xc001_1020,
    0xc001_1022,
    0xc001_1023,
    0xc001_1029,
];

/// Eight variable ranges, fixed ranges, write-combining.
const MTRR_CAPABILITIES_VALUE: u64 = 0x508;
/// A revision that satisfies every check for known errata.
const MICROCODE_REVISION: u64 = 0x0100_0065 << 32;
/// "The time-stamp counter counts at the rate of P0": Linux complains otherwise.
const HARDWARE_CONFIG_TSC: u64 = 1 << 24;
/// x2APIC mode, enabled, at the usual address.
const APIC_BASE_VALUE: u64 = 0xfee0_0c00;
const APIC_BASE_BOOT: u64 = 1 << 8;

const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// SCE, LME, LMA, NXE, FFXSR.
const EFER_VALID: u64 = 1 | EFER_LME | EFER_LMA | 1 << 11 | 1 << 14;
const CR0_PG: u64 = 1 << 31;

/// There is no such register, or it does not take this value: #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// What a write means for the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Go on.
    Done,
    /// The timer was set.
    TimerSet,
}

fn is_mtrr(msr: u32) -> bool {
    matches!(msr, 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f)
}

/// The memory types that PAT fields can name.
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

pub(crate) fn now(vcpu: &impl Vcpu, clock: &impl Clock) -> Instant {
    // The counter first: time that passes between the readings makes a timer late, as any delay
    // does. The other way round it would fire before the guest's counter reaches its moment.
    let tsc = vcpu.tsc();
    Instant {
        tsc,
        now_ns: clock.now_ns(),
        tsc_hz: clock.tsc_hz(),
    }
}

impl Machine {
    fn apic(&mut self, index: usize) -> &mut LocalApic {
        &mut self.processors[index].apic
    }

    pub(crate) fn read_msr(
        &mut self,
        index: usize,
        msr: u32,
        vcpu: &impl Vcpu,
        clock: &impl Clock,
    ) -> Result<u64, Refused> {
        let value = match msr {
            local::MSR_BASE..=local::MSR_LAST => {
                return self
                    .apic(index)
                    .read(msr, &now(vcpu, clock))
                    .map_err(|_| Refused);
            }
            TSC_DEADLINE => self.apic(index).tsc_deadline(),
            TSC => vcpu.tsc(),
            APIC_BASE => APIC_BASE_VALUE | if index == 0 { APIC_BASE_BOOT } else { 0 },
            EFER => vcpu.efer(),
            PAT => vcpu.pat(),
            TSC_AUX => vcpu.tsc_aux(),
            MICROCODE => MICROCODE_REVISION,
            MTRR_CAPABILITIES => MTRR_CAPABILITIES_VALUE,
            MTRR_DEFAULT => self.processors[index].mtrr_default,
            HARDWARE_CONFIG => HARDWARE_CONFIG_TSC,
            KVM_CLOCK => self.processors[index].kvm_clock,
            KVM_PV_EOI => self.processors[index].pv_eoi,
            FEATURE_CONTROL | PREDICTOR_CONTROL | MISC_ENABLE | DEBUG_CONTROL | SYSTEM_CONFIG => 0,
            m if MACHINE_CHECK.contains(&m) || is_mtrr(m) || AMD_ZERO.contains(&m) => 0,
            _ => return Err(Refused),
        };
        Ok(value)
    }

    pub(crate) fn write_msr(
        &mut self,
        index: usize,
        msr: u32,
        value: u64,
        vcpu: &mut impl Vcpu,
        clock: &impl Clock,
    ) -> Result<Written, Refused> {
        match msr {
            local::MSR_BASE..=local::MSR_LAST => {
                let now = now(vcpu, clock);
                let effect = self.apic(index).write(msr, value, &now);
                match effect.map_err(|_| Refused)? {
                    Effect::None => {}
                    Effect::EndOfLevel(vector) => {
                        let again = self.io_apic.end_of_interrupt(vector);
                        self.send(again);
                    }
                    Effect::Send(message) => self.send_from(index, &message),
                    Effect::TimerSet => return Ok(self.timer_written(index, &now)),
                }
            }
            TSC_DEADLINE => {
                let now = now(vcpu, clock);
                self.apic(index).set_tsc_deadline(value, &now);
                return Ok(self.timer_written(index, &now));
            }
            EFER => write_efer(vcpu, value)?,
            PAT if is_pat(value) => vcpu.set_pat(value),
            TSC_AUX if value >> 32 == 0 => vcpu.set_tsc_aux(value),
            // The mode cannot be left.
            APIC_BASE if value & !APIC_BASE_BOOT == APIC_BASE_VALUE => {}
            MTRR_DEFAULT => self.processors[index].mtrr_default = value & 0xcff,
            KVM_WALL_CLOCK => {
                let tsc = vcpu.tsc();
                let (guest_clock, memory) = self.guest_clock(clock);
                guest_clock
                    .write_wall_clock(memory, Gpa(value), tsc, clock.unix_ns())
                    .map_err(|_| Refused)?;
            }
            KVM_CLOCK => {
                let (guest_clock, memory) = self.guest_clock(clock);
                guest_clock.write_page(memory, value).map_err(|_| Refused)?;
                self.processors[index].kvm_clock = value;
            }
            KVM_PV_EOI => {
                let word = Gpa(value & !3);
                let refused = value & ENABLED != 0 && self.memory.offset_of(word, 4).is_err();
                if refused || value & 2 != 0 {
                    return Err(Refused);
                }
                self.processors[index].set_pv_eoi(value);
            }
            // The counters of all processors stay equal, whatever one of them writes.
            TSC => {}
            MICROCODE | PREDICTOR_CONTROL | PREDICTOR_COMMAND | MISC_ENABLE | DEBUG_CONTROL
            | SYSTEM_CONFIG | HARDWARE_CONFIG => {}
            m if MACHINE_CHECK.contains(&m) || is_mtrr(m) || AMD_ZERO.contains(&m) => {}
            _ => return Err(Refused),
        }
        Ok(Written::Done)
    }

    /// A deadline that has passed already fires at once and needs no host timer.
    fn timer_written(&mut self, index: usize, now: &Instant) -> Written {
        let apic = self.apic(index);
        apic.expire(now.now_ns, now.tsc_hz);
        match apic.deadline_ns() {
            Some(_) => Written::TimerSet,
            None => Written::Done,
        }
    }
}

/// LMA is the processor's, and LME cannot change while paging is on (APM vol. 2, 3.1.7).
fn write_efer(vcpu: &mut impl Vcpu, value: u64) -> Result<(), Refused> {
    let old = vcpu.efer();
    let paging = vcpu.cr(0) & CR0_PG != 0;
    if value & !EFER_VALID != 0 || paging && (old ^ value) & EFER_LME != 0 {
        return Err(Refused);
    }
    vcpu.set_efer(value & !EFER_LMA | old & EFER_LMA);
    Ok(())
}
