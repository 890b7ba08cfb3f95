//! A host that stands alone: it runs guests from boot modules, with no pool, no network and no disks.
//!
//! It serves bring-up, the test guests and the benchmarks: the same backend, the same machine, and a
//! loop small enough that what is measured is theirs. The consoles of all guests share the serial port;
//! what is typed goes to the first guest. When the last guest has ended, so does the host.

mod audit;
mod relocation;

use alloc::{
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};

use audit::DirtyAudit;
use boot_info::standalone::{Guest, split_kernel};
use host::platform::VmHardware;
use machine::{Clock, Machine, MachineConfig, Outcome, vcpu::Vcpu};
use relocation::relocate;

use crate::{
    interrupts, println, random, serial,
    svm::{PhysicalCpu, SvmVm},
    time,
};

/// How long a vCPU runs while another one waits.
const SLICE_NS: u64 = 2_000_000;
/// A guest that restarts for ever is a failure, not a guest.
const RESTARTS_MAX: u32 = 3;

/// The host's clocks and randomness, as the machine wants them.
struct HostClock;

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
    fn tsc_hz(&self) -> u64 {
        time::tsc_hz()
    }
    fn unix_ns(&self) -> u64 {
        time::unix_ns()
    }
    fn random(&self, buf: &mut [u8]) {
        random::fill(buf);
    }
}

/// A guest and what it was made from.
struct Running {
    number: usize,
    guest: Guest,
    hardware: SvmVm,
    machine: Machine,
    audit: Option<DirtyAudit>,
    moves: u32,
    /// When it moves to another VM, if it does.
    next_move_ns: Option<u64>,
    /// The part of a console line that is not yet complete.
    line: Vec<u8>,
    next_vcpu: usize,
    restarts: u32,
}

/// What becomes of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    GoOn,
    Restart,
    Ended,
}

/// The kernel and initial RAM disk of all guests.
#[derive(Clone, Copy)]
struct Boot<'a> {
    kernel: &'a [u8],
    initrd: Option<&'a [u8]>,
}

/// A VM for a guest, with nothing in it yet.
fn build(cpu: &Rc<PhysicalCpu>, guest: &Guest) -> Result<(SvmVm, Machine), String> {
    let (hardware, memory) = SvmVm::build(cpu, guest.memory, guest.vcpus).map_err(|no| {
        format!(
            "it needs {} bytes of memory, and {} are free",
            no.needed, no.free
        )
    })?;
    let config = MachineConfig {
        vcpus: guest.vcpus as u8,
        disks: Vec::new(),
        nics: Vec::new(),
        balloon: false,
    };
    Ok((hardware, Machine::new(&config, memory, cpuid)))
}

fn start(
    cpu: &Rc<PhysicalCpu>,
    number: usize,
    guest: Guest,
    restarts: u32,
    boot: Boot<'_>,
) -> Result<Running, String> {
    let (mut hardware, mut machine) = build(cpu, &guest)?;
    let state = machine
        .load_linux(boot.kernel, boot.initrd, &guest.command_line)
        .map_err(|error| error.to_string())?;
    let offset = time::tsc().wrapping_neg();
    for index in 0..guest.vcpus {
        hardware.vcpu(index).set_tsc_offset(offset);
    }
    hardware.vcpu(0).load(&state);
    let audit = guest
        .audit
        .map(|kind| DirtyAudit::new(kind, machine.memory(), &mut hardware));
    Ok(Running {
        number,
        hardware,
        machine,
        audit,
        moves: 0,
        next_move_ns: guest.move_every_ns.map(|every| time::now_ns() + every),
        line: Vec::new(),
        next_vcpu: 0,
        restarts,
        guest,
    })
}

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// Runs the guests until all have ended. `modules` are a kernel and, if there are two, its initial RAM
/// disk; a single module may hold both.
pub fn run(cpu: &Rc<PhysicalCpu>, guests: Vec<Guest>, modules: &[&[u8]]) {
    let boot = match modules {
        [] => {
            println!("elab: no guest kernel among the boot modules; nothing to do");
            return;
        }
        [single] => {
            let (kernel, initrd) = split_kernel(single);
            Boot { kernel, initrd }
        }
        [kernel, initrd, ..] => Boot {
            kernel,
            initrd: Some(initrd),
        },
    };
    let alone = guests.len() == 1;
    let mut running = Vec::new();
    for (index, guest) in guests.into_iter().enumerate() {
        match start(cpu, index + 1, guest, 0, boot) {
            Ok(guest) => running.push(guest),
            Err(why) => println!("elab: guest {} does not start: {why}", index + 1),
        }
    }
    let mut turn = 0;
    while !running.is_empty() {
        // Whatever announced itself is looked at below; left pending, it would end the next slice before it begins.
        interrupts::take_pending();
        while let Some(byte) = serial::receive() {
            running[0].machine.console_input(&[byte]);
        }
        turn += 1;
        let count = running.len();
        let Some(index) = (0..count)
            .map(|i| (turn + i) % count)
            .find(|i| running[*i].next_runnable().is_some())
        else {
            let deadline = running.iter().filter_map(Running::deadline).min();
            time::interrupt_at(deadline.unwrap_or(u64::MAX));
            interrupts::wait();
            continue;
        };
        let competitors: usize = running.iter().map(Running::runnable_vcpus).sum();
        // A timer that is due already makes its vCPU runnable, and that one competes.
        let now = time::now_ns();
        let deadlines = running.iter().filter_map(Running::deadline);
        let deadline = deadlines.filter(|at| *at > now).min();
        let watched = running[index].audit.is_some() || running[index].next_move_ns.is_some();
        let slice = (competitors > 1 || watched).then_some(now + SLICE_NS);
        time::interrupt_at(deadline.into_iter().chain(slice).min().unwrap_or(u64::MAX));
        let outcome = running[index].turn();
        // The slice is over, and so is its timer: what follows may take longer than the rest of it.
        time::stop_timer();
        running[index].print_console(alone);
        if let Err(why) = running[index].move_if_due(cpu) {
            println!("elab: guest {} does not move: {why}", running[index].number);
        }
        let after = running[index].after(outcome);
        if after == After::GoOn {
            continue;
        }
        let mut ended = running.remove(index);
        ended.flush_console(alone);
        if let Some(audit) = &ended.audit {
            audit.report(ended.number);
        }
        if ended.moves > 0 {
            println!(
                "elab: guest {} was moved {} times",
                ended.number, ended.moves
            );
        }
        let Running {
            number,
            guest,
            restarts,
            ..
        } = ended;
        // The old guest's memory is free by now.
        if after == After::Restart {
            match start(cpu, number, guest, restarts + 1, boot) {
                Ok(again) => running.insert(index, again),
                Err(why) => println!("elab: guest {number} does not restart: {why}"),
            }
        }
    }
}

impl Running {
    /// The next vCPU in turn that has something to do.
    fn next_runnable(&self) -> Option<usize> {
        let count = self.guest.vcpus;
        (0..count)
            .map(|i| (self.next_vcpu + i) % count)
            .find(|i| self.machine.runnable(*i, &HostClock))
    }

    fn runnable_vcpus(&self) -> usize {
        (0..self.guest.vcpus)
            .filter(|i| self.machine.runnable(*i, &HostClock))
            .count()
    }

    fn deadline(&self) -> Option<u64> {
        self.machine.next_deadline_ns()
    }

    /// Runs one vCPU.
    fn turn(&mut self) -> Outcome {
        let Some(index) = self.next_runnable() else {
            return Outcome::Halted;
        };
        let outcome = self
            .machine
            .run(index, self.hardware.vcpu(index), &HostClock);
        if let Some(audit) = &mut self.audit {
            audit.step(self.machine.memory(), &mut self.hardware);
        }
        // A vCPU that only rang something or set its timer keeps its turn.
        self.next_vcpu = match outcome {
            Outcome::Work | Outcome::TimerSet => index,
            _ => (index + 1) % self.guest.vcpus,
        };
        outcome
    }

    /// Moves the guest to a new VM, if it is time.
    fn move_if_due(&mut self, cpu: &Rc<PhysicalCpu>) -> Result<(), String> {
        let (Some(every), Some(at)) = (self.guest.move_every_ns, self.next_move_ns) else {
            return Ok(());
        };
        if time::now_ns() < at {
            return Ok(());
        }
        // After a failure there is no second try.
        self.next_move_ns = None;
        let old = (&mut self.hardware, &self.machine);
        (self.hardware, self.machine) = relocate(cpu, &self.guest, old)?;
        self.moves += 1;
        self.next_move_ns = Some(time::now_ns() + every);
        Ok(())
    }

    /// What an outcome means for the guest's life.
    fn after(&self, outcome: Outcome) -> After {
        let number = self.number;
        match outcome {
            Outcome::Interrupted
            | Outcome::Halted
            | Outcome::Yield
            | Outcome::Work
            | Outcome::TimerSet => After::GoOn,
            Outcome::PowerOff => {
                let exits = self.hardware.exits();
                println!("elab: guest {number} switched itself off after {exits} exits");
                After::Ended
            }
            Outcome::Misbehaved(why) => {
                println!("elab: guest {number} was stopped: {why}");
                After::Ended
            }
            Outcome::Reset { cause } if self.restarts < RESTARTS_MAX => {
                println!("elab: guest {number} restarts: {cause:?}");
                After::Restart
            }
            Outcome::Reset { cause } => {
                println!(
                    "elab: guest {number} was stopped: it restarts again and again ({cause:?})"
                );
                After::Ended
            }
        }
    }

    /// Passes the console on: as it comes for a guest that is alone, else by whole lines that say whose they are.
    fn print_console(&mut self, alone: bool) {
        let output = self.machine.take_console_output();
        if alone {
            serial::write_bytes(&output);
            return;
        }
        self.line.extend(output);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            println!(
                "{}> {}",
                self.number,
                String::from_utf8_lossy(&line).trim_end()
            );
        }
    }

    fn flush_console(&mut self, alone: bool) {
        self.print_console(alone);
        if !self.line.is_empty() {
            println!("{}> {}", self.number, String::from_utf8_lossy(&self.line));
        }
    }
}
