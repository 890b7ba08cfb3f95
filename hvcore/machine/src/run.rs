//! Running a vCPU: what goes in before an entry, and what each exit means.

use alloc::{format, string::String};

use crate::{
    apic,
    cpuid::Viewer,
    decode::{self, RegisterPart, Transfer},
    machine::{Clock, Machine, Outcome, ResetCause},
    msr::{self, Written},
    processor,
    state::Activity,
    vcpu::{Event, Exit, Vcpu, gpr},
    virtio::{balloon, entropy, net, transport::Device},
};

const CR4_OSXSAVE: u64 = 1 << 18;
const RFLAGS_DF: u64 = 1 << 10;
/// No hypercall is known: what KVM answers to an unknown one.
const HYPERCALL_UNKNOWN: u64 = -1000_i64 as u64;
/// Elements that a repeated INS or OUTS moves before the guest may be interrupted.
const STRING_MAX: u64 = 512;

/// Lengths of instructions without their prefixes.
mod length {
    pub const CPUID: usize = 2;
    pub const MSR: usize = 2;
    pub const CACHE_CONTROL: usize = 2;
    pub const HALT: usize = 1;
    /// Its F3 counts as a prefix.
    pub const PAUSE: usize = 1;
    pub const HYPERCALL: usize = 3;
    pub const SET_XCR: usize = 3;
}

/// What an exit's answer means for the loop: go on, or leave with this.
type Answer = Option<Outcome>;

impl Machine {
    /// Runs a vCPU: delivers what is due, enters the guest and answers its exits, until the host is needed.
    pub fn run(&mut self, index: usize, vcpu: &mut impl Vcpu, clock: &impl Clock) -> Outcome {
        self.synchronise(vcpu, clock);
        self.expire_timers(clock);
        loop {
            if let Some(reason) = &self.misbehaviour {
                return Outcome::Misbehaved(reason.clone());
            }
            let processor = &mut self.processors[index];
            if !processor.is_runnable() {
                return Outcome::Halted;
            }
            if let Activity::Startup(page) = processor.activity {
                vcpu.load(&processor::startup_state(page, self.cpuid.signature()));
            }
            processor.activity = Activity::Running;
            if let Err(error) = processor.prepare_entry(vcpu, &self.memory) {
                return self.misbehaved(format!("the word for silent ends of interrupt: {error}"));
            }
            let exit = vcpu.run();
            self.exits.count(&exit);
            self.processors[index].notice_task_priority(vcpu);
            if let Err(error) = self.processors[index].notice_silent_end(&self.memory) {
                return self.misbehaved(format!("the word for silent ends of interrupt: {error}"));
            }
            if let Some(outcome) = self.answer(index, &exit, vcpu, clock) {
                return outcome;
            }
        }
    }

    /// After a start or a restore: timers and clock pages in the units of this host. All vCPUs have one counter, so any
    /// of them can tell the time.
    fn synchronise(&mut self, vcpu: &mut impl Vcpu, clock: &impl Clock) {
        if self.synchronised {
            return;
        }
        self.synchronised = true;
        let now = msr::now(vcpu, clock);
        for processor in &mut self.processors {
            processor.apic.synchronise(&now);
        }
        let Some(guest_clock) = &mut self.clock else {
            return;
        };
        if guest_clock.tsc_hz() != now.tsc_hz {
            guest_clock.change_rate(now.tsc_hz, now.tsc);
            for processor in &self.processors {
                // Its page was RAM when the guest named it, and RAM does not shrink.
                let _ = processor.write_clock_page(guest_clock, &self.memory);
            }
        }
    }

    fn expire_timers(&mut self, clock: &impl Clock) {
        let now_ns = clock.now_ns();
        self.seen_ns = now_ns;
        self.tell_of_frames(now_ns);
        for processor in &mut self.processors {
            processor.apic.expire(now_ns, clock.tsc_hz());
        }
    }

    /// Stops the guest for good, with the reason.
    pub(crate) fn misbehaved(&mut self, reason: String) -> Outcome {
        self.misbehaviour = Some(reason.clone());
        Outcome::Misbehaved(reason)
    }

    fn step_over(&self, vcpu: &mut impl Vcpu, opcode: usize) {
        let next = decode::after(&self.memory, vcpu, opcode);
        vcpu.advance_to(next);
    }

    fn answer(
        &mut self,
        index: usize,
        exit: &Exit,
        vcpu: &mut impl Vcpu,
        clock: &impl Clock,
    ) -> Answer {
        match *exit {
            Exit::Interrupted => {
                self.seen_ns = clock.now_ns();
                return Some(Outcome::Interrupted);
            }
            Exit::InterruptWindow => {}
            Exit::Cpuid => self.answer_cpuid(index, vcpu),
            Exit::ReadMsr => {
                let msr = vcpu.gpr(gpr::RCX) as u32;
                match self.read_msr(index, msr, vcpu, clock) {
                    Ok(value) => {
                        vcpu.set_gpr(gpr::RAX, value & 0xffff_ffff);
                        vcpu.set_gpr(gpr::RDX, value >> 32);
                        self.step_over(vcpu, length::MSR);
                    }
                    Err(_) => vcpu.inject(Event::GENERAL_PROTECTION),
                }
            }
            Exit::WriteMsr => {
                let msr = vcpu.gpr(gpr::RCX) as u32;
                let value = vcpu.gpr(gpr::RAX) & 0xffff_ffff | vcpu.gpr(gpr::RDX) << 32;
                match self.write_msr(index, msr, value, vcpu, clock) {
                    Ok(written) => {
                        self.step_over(vcpu, length::MSR);
                        return (written == Written::TimerSet).then_some(Outcome::TimerSet);
                    }
                    Err(_) => vcpu.inject(Event::GENERAL_PROTECTION),
                }
            }
            Exit::Halt => {
                self.step_over(vcpu, length::HALT);
                self.processors[index].halt(vcpu.rflags());
                if self.ring_watched() {
                    return Some(Outcome::Work);
                }
            }
            Exit::Pause => {
                self.step_over(vcpu, length::PAUSE);
                return Some(Outcome::Yield);
            }
            Exit::Io {
                port,
                size,
                write,
                string: false,
                next_rip,
                ..
            } => return self.answer_io(port, size, write, next_rip, vcpu),
            Exit::Io {
                port,
                size,
                write,
                repeat,
                ..
            } => return self.answer_string_io(port, size, write, repeat, vcpu),
            Exit::NestedFault {
                gpa,
                fetch: false,
                table_walk: false,
                ..
            } => return self.answer_device_access(gpa, vcpu, clock),
            Exit::NestedFault { gpa, fetch, .. } => {
                let what = if fetch { "code" } else { "page tables" };
                return Some(self.misbehaved(format!(
                    "{what} at guest address {gpa:#x}, which is not RAM (instruction at {:#x})",
                    vcpu.rip()
                )));
            }
            Exit::Hypercall => {
                vcpu.set_gpr(gpr::RAX, HYPERCALL_UNKNOWN);
                self.step_over(vcpu, length::HYPERCALL);
            }
            Exit::SetTaskPriority => return self.answer_set_task_priority(index, vcpu),
            Exit::SetXcr => self.answer_set_xcr(vcpu),
            Exit::CacheControl => self.step_over(vcpu, length::CACHE_CONTROL),
            Exit::Undefined => vcpu.inject(Event::UNDEFINED),
            Exit::Shutdown => {
                return Some(Outcome::Reset {
                    cause: ResetCause::TripleFault,
                });
            }
            Exit::Invalid { code, info1, info2 } => {
                return Some(self.misbehaved(format!(
                    "the processor refused to run it: exit {code:#x} ({info1:#x}, {info2:#x}) at {:#x}",
                    vcpu.rip()
                )));
            }
        }
        None
    }

    fn answer_cpuid(&self, index: usize, vcpu: &mut impl Vcpu) {
        let viewer = Viewer {
            apic_id: self.processors[index].apic.id(),
            osxsave: vcpu.cr(4) & CR4_OSXSAVE != 0,
            xcr0: vcpu.xcr0(),
        };
        let (leaf, subleaf) = (vcpu.gpr(gpr::RAX) as u32, vcpu.gpr(gpr::RCX) as u32);
        let values = self.cpuid.answer(leaf, subleaf, &viewer);
        for (register, value) in [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX]
            .into_iter()
            .zip(values)
        {
            vcpu.set_gpr(register, value.into());
        }
        self.step_over(vcpu, length::CPUID);
    }

    fn answer_set_task_priority(&mut self, index: usize, vcpu: &mut impl Vcpu) -> Answer {
        match decode::move_to_control(&self.memory, vcpu) {
            Ok((from, next_rip)) => match vcpu.gpr(from) {
                class @ 0..16 => {
                    let apic = &mut self.processors[index].apic;
                    apic.set_task_priority_class(class as u8);
                    vcpu.advance_to(next_rip);
                }
                _ => vcpu.inject(Event::GENERAL_PROTECTION),
            },
            Err(error) => return Some(self.misbehaved(error.0)),
        }
        None
    }

    /// XSETBV is privileged, and XCR0 must be a combination that there is (APM vol. 2, 11.5.2).
    fn answer_set_xcr(&self, vcpu: &mut impl Vcpu) {
        let value = vcpu.gpr(gpr::RAX) & 0xffff_ffff | vcpu.gpr(gpr::RDX) << 32;
        let (x87, sse, avx) = (value & 1 != 0, value & 2 != 0, value & 4 != 0);
        let valid = vcpu.gpr(gpr::RCX) as u32 == 0
            && vcpu.cpl() == 0
            && value & !self.cpuid.xcr0_allowed() == 0
            && x87
            && (sse || !avx);
        if valid {
            vcpu.set_xcr0(value);
            self.step_over(vcpu, length::SET_XCR);
        } else {
            vcpu.inject(Event::GENERAL_PROTECTION);
        }
    }

    fn answer_io(
        &mut self,
        port: u16,
        size: u8,
        write: bool,
        next_rip: u64,
        vcpu: &mut impl Vcpu,
    ) -> Answer {
        let register = RegisterPart {
            number: gpr::RAX,
            size,
            high: false,
        };
        vcpu.advance_to(next_rip);
        if write {
            self.write_port(port, size, register.get(vcpu) as u32)
        } else {
            let value = self.read_port(port, size);
            register.set(vcpu, value.into());
            None
        }
    }

    /// INS and OUTS, a bounded number of elements at a time: RIP stays until the count is used up.
    fn answer_string_io(
        &mut self,
        port: u16,
        size: u8,
        write: bool,
        repeat: bool,
        vcpu: &mut impl Vcpu,
    ) -> Answer {
        let instruction = match decode::string_io(&self.memory, vcpu) {
            Ok(instruction) => instruction,
            Err(error) => return Some(self.misbehaved(error.0)),
        };
        let part = |number| RegisterPart {
            number,
            size: instruction.address_size,
            high: false,
        };
        let address = part(if write { gpr::RSI } else { gpr::RDI });
        let count = part(gpr::RCX);
        let base = vcpu.segment(instruction.segment).base;
        let step = u64::from(size);
        let step = if vcpu.rflags() & RFLAGS_DF != 0 {
            step.wrapping_neg()
        } else {
            step
        };
        let total = if repeat { count.get(vcpu) } else { 1 };
        for _ in 0..total.min(STRING_MAX) {
            let linear = base.wrapping_add(address.get(vcpu));
            let moved = decode::translate(&self.memory, vcpu, linear).and_then(|gpa| {
                let mut bytes = [0; 4];
                let bytes = &mut bytes[..size.into()];
                if write {
                    self.memory.read(gpa, bytes).ok()?;
                    let value = bytes.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b));
                    Some(self.write_port(port, size, value))
                } else {
                    let value = self.read_port(port, size).to_le_bytes();
                    bytes.copy_from_slice(&value[..size.into()]);
                    self.memory.write(gpa, bytes).ok()?;
                    Some(None)
                }
            });
            let Some(outcome) = moved else {
                // No demand paging under string I/O: no known guest pages such buffers.
                vcpu.inject(Event::GENERAL_PROTECTION);
                return None;
            };
            let next = address.get(vcpu).wrapping_add(step);
            address.set(vcpu, next);
            if repeat {
                let left = count.get(vcpu).wrapping_sub(1);
                count.set(vcpu, left);
            }
            if outcome.is_some() {
                return outcome;
            }
        }
        if total <= STRING_MAX {
            vcpu.advance_to(instruction.next_rip);
        }
        None
    }

    /// A load or store outside RAM.
    fn answer_device_access(
        &mut self,
        gpa: u64,
        vcpu: &mut impl Vcpu,
        clock: &impl Clock,
    ) -> Answer {
        let access = match decode::device_access(&self.memory, vcpu) {
            Ok(access) => access,
            Err(error) => {
                let reason = format!("{} (guest address {gpa:#x})", error.0);
                return Some(self.misbehaved(reason));
            }
        };
        vcpu.advance_to(access.next_rip);
        let value = match access.transfer {
            Transfer::Load { into, signed } => {
                let value = self.read_device(gpa, access.size) & decode::mask(access.size);
                let unused = 64 - u32::from(access.size) * 8;
                let extended = (value << unused) as i64 >> unused;
                into.set(vcpu, if signed { extended as u64 } else { value });
                return None;
            }
            Transfer::Store(register) => register.get(vcpu),
            Transfer::StoreConstant(value) => value,
        };
        self.write_device(gpa, access.size, value & decode::mask(access.size), clock)
    }

    fn read_device(&mut self, gpa: u64, size: u8) -> u64 {
        if let Some(offset) = offset_in(gpa, apic::io::BASE, apic::io::WINDOW) {
            return self.io_apic.read(offset).into();
        }
        match self.function_at(gpa) {
            Some((function, offset)) => self.functions[function].read(offset, size),
            // Nobody answers.
            None => u64::MAX,
        }
    }

    fn write_device(&mut self, gpa: u64, size: u8, value: u64, clock: &impl Clock) -> Answer {
        if let Some(offset) = offset_in(gpa, apic::io::BASE, apic::io::WINDOW) {
            let message = self.io_apic.write(offset, value as u32);
            self.send(message);
            return None;
        }
        let (function, offset) = self.function_at(gpa)?;
        match self.functions[function].write(offset, size, value) {
            Ok(written) => {
                self.send(written.message);
                written
                    .rung
                    .and_then(|queue| self.rung(function, queue, clock))
            }
            Err(error) => {
                let reason = format!("{}: {error}", self.function_name(function));
                Some(self.misbehaved(reason))
            }
        }
    }

    fn function_at(&self, gpa: u64) -> Option<(usize, u64)> {
        self.functions
            .iter()
            .enumerate()
            .find_map(|(i, function)| Some((i, function.config().memory_offset(gpa)?)))
    }

    /// A queue was rung: what needs no backend is done at once.
    fn rung(&mut self, function: usize, queue: usize, clock: &impl Clock) -> Answer {
        let (device, ring) = self.functions[function].device_and_queue(queue)?;
        let served = match device {
            Device::Entropy => entropy::serve(ring, &self.memory, |bytes| clock.random(bytes)),
            Device::Net(card) if queue == net::CONTROL => card.control(ring, &self.memory),
            Device::Balloon(_) => balloon::serve(queue, ring, &self.memory),
            _ => {
                self.seen_ns = clock.now_ns();
                self.ring(function);
                return Some(Outcome::Work);
            }
        };
        self.finish_queue(function, queue, served);
        None
    }
}

fn offset_in(gpa: u64, base: u64, size: u64) -> Option<u64> {
    gpa.checked_sub(base).filter(|offset| *offset < size)
}

/// How often a machine's vCPUs came out of the guest, by reason: the currency of performance here.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    pub interrupted: u64,
    pub interrupt_window: u64,
    pub cpuid: u64,
    pub read_msr: u64,
    pub write_msr: u64,
    pub halt: u64,
    pub pause: u64,
    pub io: u64,
    pub device_access: u64,
    pub other: u64,
}

impl ExitCounts {
    fn count(&mut self, exit: &Exit) {
        let counter = match exit {
            Exit::Interrupted => &mut self.interrupted,
            Exit::InterruptWindow => &mut self.interrupt_window,
            Exit::Cpuid => &mut self.cpuid,
            Exit::ReadMsr => &mut self.read_msr,
            Exit::WriteMsr => &mut self.write_msr,
            Exit::Halt => &mut self.halt,
            Exit::Pause => &mut self.pause,
            Exit::Io { .. } => &mut self.io,
            Exit::NestedFault { .. } => &mut self.device_access,
            _ => &mut self.other,
        };
        *counter += 1;
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
