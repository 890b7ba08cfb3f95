//! The local APIC of a vCPU, in x2APIC mode from the first instruction on (APM vol. 2, 16.9-16.13).
//!
//! x2APIC registers are MSRs, so no guest access needs an instruction decoded; xAPIC mode with its
//! memory window is therefore not offered. It knows nothing of other processors: what a write means for
//! others comes back as an [`Effect`].

use crate::{
    apic::{Delivery, Destination, Message},
    state::{SavedLocalApic, SavedVectors},
};

/// First MSR of the x2APIC register space.
pub const MSR_BASE: u32 = 0x800;
/// Last MSR of the x2APIC register space.
pub const MSR_LAST: u32 = 0x8ff;

/// Six LVT entries, version as KVM and Xen report it.
const VERSION_VALUE: u32 = 5 << 16 | 0x14;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER: usize = 0;
const SVR_ENABLED: u32 = 1 << 8;
const NS_PER_S: u128 = 1_000_000_000;

/// Registers by MSR number less [`MSR_BASE`].
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const LVT_FIRST: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// The access is not one that the register allows: #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt ended: tell the IOAPIC.
    EndOfLevel(u8),
    /// Deliver a message.
    Send(Message),
    /// The timer was set or stopped.
    TimerSet,
}

/// A reading of all clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    /// Host time.
    pub now_ns: u64,
    /// The guest's time-stamp counter.
    pub tsc: u64,
    /// Its rate.
    pub tsc_hz: u64,
}

/// A set of interrupt vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        let bit = 1 << (vector % 64);
        let word = &mut self.0[usize::from(vector / 64)];
        *word = if on { *word | bit } else { *word & !bit };
    }
    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 64)] & 1 << (vector % 64) != 0
    }
    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|w| *w != 0)?;
        Some((word as u32 * 64 + self.0[word].ilog2()) as u8)
    }
    fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }
    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
    /// One of the eight 32-bit registers that show the set.
    fn register(&self, index: u32) -> u32 {
        (self.0[index as usize / 2] >> (index % 2 * 32)) as u32
    }
}

/// How the timer counts (LVT timer bits 17-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// A local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalApic {
    // Fixed configuration.
    id: u32,
    // Volatile state.
    requested: Vectors,
    in_service: Vectors,
    level: Vectors,
    task_priority: u8,
    spurious: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    divide: u32,
    initial_count: u32,
    /// When the timer fires, as a value of the guest's counter; 0: stopped.
    deadline_tsc: u64,
    // Derived: `deadline_tsc` on the host's clock.
    deadline_ns: u64,
}

/// The logical id that x2APIC derives from the APIC id (APM vol. 2, 16.12).
#[must_use]
pub fn logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

impl LocalApic {
    /// A local APIC after reset.
    #[must_use]
    pub fn new(id: u32) -> Self {
        Self {
            id,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            task_priority: 0,
            spurious: 0xff,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            divide: 0,
            initial_count: 0,
            deadline_tsc: 0,
            deadline_ns: 0,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Takes an interrupt in. A disabled APIC takes none.
    pub fn request(&mut self, vector: u8, level: bool) {
        // Vectors below 16 are illegal (APM vol. 2, 16.6.4).
        if self.spurious & SVR_ENABLED == 0 {
            return;
        }
        if vector < 16 {
            self.errors |= 1 << 6;
            return;
        }
        self.requested.set(vector, true);
        self.level.set(vector, level);
    }

    /// The interrupt to deliver now, if its priority lets it through.
    #[must_use]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Bits 7 to 4 of the task priority, which are CR8 to the processor.
    #[must_use]
    pub fn task_priority_class(&self) -> u8 {
        self.task_priority >> 4
    }

    /// The guest wrote CR8, which clears the lower bits (APM vol. 2, 16.6.4). They stay when it wrote nothing new.
    pub fn set_task_priority_class(&mut self, class: u8) {
        if class != self.task_priority >> 4 {
            self.task_priority = class << 4;
        }
    }

    /// Whether any interrupt waits, deliverable or not: seldom, and quickly told.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.requested.is_empty()
    }

    /// Whether an interrupt waits for a lower task priority.
    #[must_use]
    pub fn task_priority_holds_back(&self) -> bool {
        self.requested
            .highest()
            .is_some_and(|vector| vector >> 4 <= self.task_priority >> 4)
    }

    /// The processor accepted the interrupt.
    pub fn accepted(&mut self, vector: u8) {
        self.requested.set(vector, false);
        self.in_service.set(vector, true);
    }

    /// Ends the highest interrupt in service; gives its vector if the IOAPIC must hear of it.
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.set(vector, false);
        self.level.contains(vector).then_some(vector)
    }

    /// Whether the guest could end its interrupt without telling anybody: one edge-triggered interrupt is in
    /// service and none waits.
    #[must_use]
    pub fn silent_end_allowed(&self) -> bool {
        self.requested.is_empty()
            && self.in_service.count() == 1
            && self
                .in_service
                .highest()
                .is_some_and(|v| !self.level.contains(v))
    }

    fn processor_priority(&self) -> u8 {
        let serving = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.task_priority & 0xf0 >= serving {
            self.task_priority
        } else {
            serving
        }
    }

    /// Reads a register by MSR number.
    ///
    /// # Errors
    /// When there is none of that number to read.
    pub fn read(&self, msr: u32, now: &Instant) -> Result<u64, Refused> {
        use register::*;
        let value = match msr.wrapping_sub(MSR_BASE) {
            ID => self.id,
            VERSION => VERSION_VALUE,
            TPR => self.task_priority.into(),
            PPR => self.processor_priority().into(),
            LDR => logical_id(self.id),
            SVR => self.spurious,
            r @ ISR..TMR => self.in_service.register(r - ISR),
            r @ TMR..IRR => self.level.register(r - TMR),
            r @ IRR..=IRR_LAST => self.requested.register(r - IRR),
            ESR => self.errors,
            ICR => return Ok(self.icr),
            r @ LVT_FIRST..=LVT_LAST => self.lvt[(r - LVT_FIRST) as usize],
            INITIAL_COUNT => self.initial_count,
            CURRENT_COUNT => self.current_count(now),
            DIVIDE => self.divide,
            _ => return Err(Refused),
        };
        Ok(value.into())
    }

    /// Writes a register by MSR number.
    ///
    /// # Errors
    /// When there is none of that number to write, or the value has reserved bits.
    pub fn write(&mut self, msr: u32, value: u64, now: &Instant) -> Result<Effect, Refused> {
        use register::*;
        let register = msr.wrapping_sub(MSR_BASE);
        if register == ICR {
            self.icr = value & !(1 << 12);
            return Ok(self.sent_by(value).map_or(Effect::None, Effect::Send));
        }
        let value = u32::try_from(value).map_err(|_| Refused)?;
        match register {
            TPR => self.task_priority = u8::try_from(value).map_err(|_| Refused)?,
            EOI if value == 0 => {
                return Ok(self
                    .end_of_interrupt()
                    .map_or(Effect::None, Effect::EndOfLevel));
            }
            SVR => {
                self.spurious = value & 0x3ff;
                if value & SVR_ENABLED == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            ESR if value == 0 => self.errors = 0,
            r @ LVT_FIRST..=LVT_LAST => {
                let disabled = self.spurious & SVR_ENABLED == 0;
                let index = (r - LVT_FIRST) as usize;
                let mode = self.timer_mode();
                self.lvt[index] = value & 0x7_a7ff | if disabled { LVT_MASKED } else { 0 };
                if index == LVT_TIMER && self.timer_mode() != mode {
                    self.stop_timer();
                    return Ok(Effect::TimerSet);
                }
            }
            INITIAL_COUNT => {
                self.initial_count = value;
                if self.timer_mode() != TimerMode::TscDeadline {
                    self.deadline_tsc = 0;
                    if value != 0 {
                        self.set_deadline(now.tsc.wrapping_add(self.period(now.tsc_hz)), now);
                    } else {
                        self.stop_timer();
                    }
                    return Ok(Effect::TimerSet);
                }
            }
            DIVIDE => self.divide = value & 0xb,
            SELF_IPI => self.request(value as u8, false),
            _ => return Err(Refused),
        }
        Ok(Effect::None)
    }

    /// The message that a write to the interrupt command register sends.
    fn sent_by(&self, icr: u64) -> Option<Message> {
        let command = icr as u32;
        let target = (icr >> 32) as u32;
        let delivery = Delivery::from_bits(command >> 8)?;
        let (assert, level) = (command & 1 << 14 != 0, command & 1 << 15 != 0);
        // INIT with level 0 only synchronised arbitration ids on old processors.
        if delivery == Delivery::Init && level && !assert {
            return None;
        }
        let destination = match command >> 18 & 3 {
            0 if target == u32::MAX => Destination::All,
            0 if command & 1 << 11 != 0 => Destination::Logical(target),
            0 => Destination::Physical(target),
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Some(Message {
            destination,
            delivery,
            vector: command as u8,
            level: false,
        })
    }

    fn timer_mode(&self) -> TimerMode {
        match self.lvt[LVT_TIMER] >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::TscDeadline,
        }
    }

    /// `IA32_TSC_DEADLINE` as the guest reads it.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        match self.timer_mode() {
            TimerMode::TscDeadline => self.deadline_tsc,
            _ => 0,
        }
    }

    /// Writes `IA32_TSC_DEADLINE`: ignored unless the timer is in that mode (APM vol. 2, 16.4.2).
    pub fn set_tsc_deadline(&mut self, tsc: u64, now: &Instant) {
        if self.timer_mode() == TimerMode::TscDeadline {
            match tsc {
                0 => self.stop_timer(),
                _ => self.set_deadline(tsc, now),
            }
        }
    }

    fn set_deadline(&mut self, tsc: u64, now: &Instant) {
        // 0 means stopped, and a counter that wrapped to 0 is centuries away.
        self.deadline_tsc = tsc.max(1);
        self.synchronise(now);
    }

    fn stop_timer(&mut self) {
        self.deadline_tsc = 0;
        self.deadline_ns = 0;
    }

    /// Finds the timer's place on the host's clock anew: after it was set, and on a new host.
    pub fn synchronise(&mut self, now: &Instant) {
        if self.deadline_tsc == 0 {
            return;
        }
        let ticks = self.deadline_tsc.saturating_sub(now.tsc);
        let wait_ns = (u128::from(ticks) * NS_PER_S).div_ceil(now.tsc_hz.max(1).into());
        let wait_ns = u64::try_from(wait_ns).unwrap_or(u64::MAX);
        self.deadline_ns = now.now_ns.saturating_add(wait_ns).max(1);
    }

    /// When the timer fires, on the host's clock.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        (self.deadline_ns != 0).then_some(self.deadline_ns)
    }

    /// Fires the timer if it is due.
    pub fn expire(&mut self, now_ns: u64, tsc_hz: u64) {
        if self.deadline_ns == 0 || now_ns < self.deadline_ns {
            return;
        }
        let entry = self.lvt[LVT_TIMER];
        if entry & LVT_MASKED == 0 {
            self.request(entry as u8, false);
        }
        if self.timer_mode() == TimerMode::Periodic && self.initial_count != 0 {
            // Periods that were missed are not made up for: a guest that lost the processor gets one
            // interrupt, as with a masked one on hardware.
            let period = self.period(tsc_hz);
            let period_ns = self.period_ns().max(1);
            let missed = (now_ns - self.deadline_ns) / period_ns + 1;
            self.deadline_tsc = self
                .deadline_tsc
                .saturating_add(period.saturating_mul(missed));
            self.deadline_ns = self
                .deadline_ns
                .saturating_add(period_ns.saturating_mul(missed));
        } else {
            self.stop_timer();
        }
    }

    /// The timer's clock is 1 GHz before the divider.
    fn period_ns(&self) -> u64 {
        // Bits 0, 1 and 3 encode 2, 4, .., 128, 1.
        let exponent = self.divide & 3 | self.divide >> 1 & 4;
        let divider = 1 << ((exponent + 1) & 7);
        u64::from(self.initial_count) * divider
    }

    fn period(&self, tsc_hz: u64) -> u64 {
        (u128::from(self.period_ns()) * u128::from(tsc_hz) / NS_PER_S) as u64
    }

    fn current_count(&self, now: &Instant) -> u32 {
        if self.timer_mode() == TimerMode::TscDeadline || self.deadline_ns == 0 {
            return 0;
        }
        let left = self.deadline_ns.saturating_sub(now.now_ns);
        let period = self.period_ns().max(1);
        (u128::from(left.min(period)) * u128::from(self.initial_count) / u128::from(period)) as u32
    }

    /// The state that travels.
    #[must_use]
    pub fn save(&self) -> SavedLocalApic {
        SavedLocalApic {
            requested: SavedVectors(self.requested.0),
            in_service: SavedVectors(self.in_service.0),
            level: SavedVectors(self.level.0),
            task_priority: self.task_priority,
            spurious: self.spurious,
            errors: self.errors,
            icr: self.icr,
            lvt: self.lvt,
            divide: self.divide,
            initial_count: self.initial_count,
            deadline_tsc: self.deadline_tsc,
        }
    }

    /// A local APIC that goes on from a saved state; [`Self::synchronise`] must follow before its timer runs.
    #[must_use]
    pub fn restore(id: u32, saved: &SavedLocalApic) -> Self {
        Self {
            id,
            requested: Vectors(saved.requested.0),
            in_service: Vectors(saved.in_service.0),
            level: Vectors(saved.level.0),
            task_priority: saved.task_priority,
            spurious: saved.spurious & 0x3ff,
            errors: saved.errors,
            icr: saved.icr,
            lvt: saved.lvt.map(|entry| entry & 0x7_a7ff),
            divide: saved.divide & 0xb,
            initial_count: saved.initial_count,
            deadline_tsc: saved.deadline_tsc,
            deadline_ns: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_000_000_000;

    fn at(now_ns: u64) -> Instant {
        Instant {
            now_ns,
            tsc: now_ns * 2,
            tsc_hz: HZ,
        }
    }

    fn enabled() -> LocalApic {
        let mut apic = LocalApic::new(0);
        apic.write(0x80f, 0x1ff, &at(0)).unwrap();
        apic
    }

    #[test]
    fn the_highest_vector_goes_first_and_blocks_its_class() {
        let mut apic = enabled();
        apic.request(0x31, false);
        apic.request(0x52, false);
        assert_eq!(apic.deliverable(), Some(0x52));
        apic.accepted(0x52);
        assert_eq!(apic.deliverable(), None);
        apic.request(0x5f, false);
        assert_eq!(apic.deliverable(), None, "same class");
        apic.request(0x61, false);
        assert_eq!(apic.deliverable(), Some(0x61));
        assert_eq!(apic.end_of_interrupt(), None);
        assert_eq!(apic.deliverable(), Some(0x61));
    }

    #[test]
    fn the_end_of_a_level_interrupt_is_reported() {
        let mut apic = enabled();
        apic.request(0x41, true);
        apic.accepted(0x41);
        assert_eq!(apic.read(0x81a, &at(0)).unwrap(), 2, "TMR shows it");
        assert_eq!(
            apic.write(0x80b, 0, &at(0)).unwrap(),
            Effect::EndOfLevel(0x41)
        );
    }

    #[test]
    fn task_priority_holds_back_what_is_not_above_it() {
        let mut apic = enabled();
        apic.write(0x808, 0x40, &at(0)).unwrap();
        apic.request(0x4f, false);
        assert_eq!(apic.deliverable(), None);
        apic.request(0x50, false);
        assert_eq!(apic.deliverable(), Some(0x50));
    }

    #[test]
    fn a_disabled_apic_takes_nothing() {
        let mut apic = LocalApic::new(0);
        apic.request(0x41, false);
        assert_eq!(apic.deliverable(), None);
    }

    #[test]
    fn a_tsc_deadline_fires_once_at_its_time() {
        let mut apic = enabled();
        apic.write(0x832, 2 << 17 | 0xec, &at(0)).unwrap();
        apic.set_tsc_deadline(2000, &at(100));
        assert_eq!(apic.deadline_ns(), Some(1000));
        apic.expire(999, HZ);
        assert_eq!(apic.deliverable(), None);
        apic.expire(1000, HZ);
        assert_eq!(apic.deliverable(), Some(0xec));
        assert_eq!(apic.deadline_ns(), None);
        assert_eq!(apic.tsc_deadline(), 0);
    }

    #[test]
    fn a_periodic_timer_skips_what_it_missed() {
        let mut apic = enabled();
        apic.write(0x83e, 0xb, &at(0)).unwrap();
        apic.write(0x832, 1 << 17 | 0x40, &at(0)).unwrap();
        apic.write(0x838, 100, &at(0)).unwrap();
        assert_eq!(apic.deadline_ns(), Some(100));
        assert_eq!(apic.read(0x839, &at(30)).unwrap(), 70);
        apic.expire(350, HZ);
        assert_eq!(apic.deliverable(), Some(0x40));
        assert_eq!(apic.deadline_ns(), Some(400));
    }

    #[test]
    fn a_silent_end_is_only_for_a_lone_edge_interrupt() {
        let mut apic = enabled();
        assert!(!apic.silent_end_allowed());
        apic.request(0x41, false);
        apic.accepted(0x41);
        assert!(apic.silent_end_allowed());
        apic.request(0x51, false);
        assert!(!apic.silent_end_allowed());
        let mut apic = enabled();
        apic.request(0x41, true);
        apic.accepted(0x41);
        assert!(!apic.silent_end_allowed());
    }

    #[test]
    fn an_icr_write_becomes_a_message() {
        let mut apic = enabled();
        let Effect::Send(message) = apic.write(0x830, 1 << 32 | 0x0008, &at(0)).unwrap() else {
            panic!("no message");
        };
        assert_eq!(message.destination, Destination::Physical(1));
        let init_deassert = 1 << 32 | 1 << 15 | 5 << 8;
        assert_eq!(
            apic.write(0x830, init_deassert, &at(0)).unwrap(),
            Effect::None
        );
    }

    #[test]
    fn absent_registers_and_reserved_bits_are_refused() {
        let mut apic = enabled();
        assert_eq!(apic.read(0x80e, &at(0)), Err(Refused));
        assert_eq!(apic.read(0x80b, &at(0)), Err(Refused), "EOI is write-only");
        assert_eq!(apic.write(0x802, 0, &at(0)), Err(Refused));
        assert_eq!(apic.write(0x80b, 1, &at(0)), Err(Refused));
        assert_eq!(apic.write(0x808, 1 << 40, &at(0)), Err(Refused));
    }
}
