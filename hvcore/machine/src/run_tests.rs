//! The machine as a guest's instructions meet it.

use guest_memory::Gpa;
use iced_x86::code_asm::*;
use std::{collections::BTreeSet, vec::Vec};

use super::*;
use crate::{
    frames::WATCH_NS,
    testing::{CODE, TSC_HZ, TestClock, TestVcpu, machine, start_driver},
    virtio::testing::Driver,
};

const SVR: u32 = 0x80f;
const EOI: u32 = 0x80b;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE: u32 = 0x6e0;
const PV_EOI: u32 = 0x4b56_4d04;

fn io(port: u16, size: u8, write: bool) -> Exit {
    Exit::Io {
        port,
        size,
        write,
        string: false,
        repeat: false,
        next_rip: CODE + 1,
    }
}

fn store_fault(gpa: u64) -> Exit {
    Exit::NestedFault {
        gpa,
        write: true,
        fetch: false,
        table_walk: false,
    }
}

/// A vCPU whose local APIC is switched on.
fn started(machine: &mut Machine, index: usize, clock: &TestClock) -> TestVcpu {
    let mut vcpu = TestVcpu::new();
    vcpu.place(machine.memory(), &[0x0f, 0x30]);
    vcpu.write_msr(machine, index, SVR, 0x1ff, clock);
    vcpu.state.rip = CODE;
    vcpu
}

#[test]
fn the_boot_vcpu_starts_all_others() {
    let clock = TestClock::at(0);
    let mut machine = machine(8);
    let mut boot = started(&mut machine, 0, &clock);
    for index in 1..8_usize {
        assert!(!machine.runnable(index, &clock));
        let target = (index as u64) << 32;
        boot.write_msr(&mut machine, 0, ICR, target | 0xc500, &clock);
        boot.write_msr(&mut machine, 0, ICR, target | 0x8500, &clock);
        boot.write_msr(&mut machine, 0, ICR, target | 0x4600 | 0x9a, &clock);
        assert!(machine.runnable(index, &clock), "vCPU {index}");
        let mut other = TestVcpu::default();
        assert_eq!(machine.run(index, &mut other, &clock), Outcome::Interrupted);
        assert_eq!(other.state.cs.base, 0x9_a000);
        assert_eq!(other.state.rip, 0);
        // A second start-up message is ignored.
        boot.write_msr(&mut machine, 0, ICR, target | 0x4600 | 0x10, &clock);
        machine.run(index, &mut other, &clock);
        assert_eq!(other.state.cs.base, 0x9_a000);
    }
}

#[test]
fn a_halted_vcpu_wakes_by_a_message() {
    let clock = TestClock::at(0);
    let mut machine = machine(2);
    let mut first = started(&mut machine, 0, &clock);
    assert_eq!(
        first.exit(&mut machine, Exit::Halt, &clock),
        Outcome::Halted
    );
    assert_eq!(first.state.rip, CODE + 1);
    assert!(!machine.runnable(0, &clock));
    // Message from the second to the first.
    let mut second = TestVcpu::new();
    first.state.rip = CODE;
    machine.processors[1].activity = Activity::Running;
    second.state.rip = CODE;
    second.write_msr(&mut machine, 1, ICR, 0xfd, &clock);
    assert!(machine.runnable(0, &clock));
    machine.run(0, &mut first, &clock);
    assert_eq!(first.delivered, [Event::Interrupt(0xfd)]);
}

#[test]
fn a_vcpu_that_halts_with_interrupts_off_wakes_for_an_nmi_only() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    vcpu.state.rflags = 2;
    vcpu.exit(&mut machine, Exit::Halt, &clock);
    machine.processors[0].apic.request(0x40, false);
    assert!(!machine.runnable(0, &clock));
    machine.processors[0].nmi_pending = true;
    assert_eq!(machine.run(0, &mut vcpu, &clock), Outcome::Interrupted);
    assert_eq!(vcpu.delivered, [Event::Nmi]);
}

#[test]
fn a_timer_ends_in_an_interrupt_at_its_time() {
    let clock = TestClock::at(1000);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    vcpu.tsc = 2000;
    vcpu.write_msr(&mut machine, 0, LVT_TIMER, 2 << 17 | 0xec, &clock);
    let set = vcpu.write_msr(&mut machine, 0, TSC_DEADLINE, 6000, &clock);
    assert_eq!(set, Outcome::TimerSet);
    assert_eq!(machine.next_deadline_ns(), Some(3000));
    vcpu.state.rip = CODE;
    vcpu.exit(&mut machine, Exit::Halt, &clock);
    assert!(!machine.runnable(0, &clock));
    clock.now_ns.set(3000);
    assert!(machine.runnable(0, &clock));
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(vcpu.delivered, [Event::Interrupt(0xec)]);
    assert_eq!(machine.next_deadline_ns(), None);
    let past = vcpu.write_msr(&mut machine, 0, TSC_DEADLINE, 1, &clock);
    assert_eq!(past, Outcome::Interrupted, "fires at once");
}

#[test]
fn an_interrupt_waits_for_its_window() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    vcpu.state.interrupt_shadow = true;
    machine.processors[0].apic.request(0x40, false);
    machine.run(0, &mut vcpu, &clock);
    assert!(vcpu.window && vcpu.delivered.is_empty());
    vcpu.state.interrupt_shadow = false;
    vcpu.exit(&mut machine, Exit::InterruptWindow, &clock);
    assert!(!vcpu.window);
    assert_eq!(vcpu.delivered, [Event::Interrupt(0x40)]);
}

#[test]
fn a_guest_ends_an_interrupt_by_clearing_a_bit() {
    const WORD: u64 = 0x9000;
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    vcpu.write_msr(&mut machine, 0, PV_EOI, WORD | 1, &clock);
    machine.processors[0].apic.request(0x40, false);
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(machine.memory().read_u32(Gpa(WORD)).unwrap(), 1, "offered");
    machine.memory().write(Gpa(WORD), &[0; 4]).unwrap();
    machine.run(0, &mut vcpu, &clock);
    machine.processors[0].apic.request(0x40, false);
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(vcpu.delivered.len(), 2, "the first one has ended");
    // Another one waits: the guest must write its EOI, or the second would never come.
    machine.processors[0].apic.request(0x41, false);
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(
        machine.memory().read_u32(Gpa(WORD)).unwrap(),
        0,
        "withdrawn"
    );
    vcpu.state.rip = CODE;
    vcpu.write_msr(&mut machine, 0, EOI, 0, &clock);
    assert_eq!(vcpu.delivered.last(), Some(&Event::Interrupt(0x41)));
    vcpu.state.rip = CODE;
    vcpu.write_msr(&mut machine, 0, PV_EOI, 1 << 40 | 1, &clock);
    assert_eq!(
        vcpu.delivered.last(),
        Some(&Event::GENERAL_PROTECTION),
        "no RAM there"
    );
}

#[test]
fn only_registers_that_there_are_can_be_read() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let faults = |machine: &mut Machine, exit: Exit, msr: u32| {
        let mut vcpu = TestVcpu::new();
        vcpu.place(machine.memory(), &[0x0f, 0x32]);
        vcpu.set_gpr(gpr::RCX, msr.into());
        vcpu.exit(machine, exit, &clock);
        vcpu.delivered == [Event::GENERAL_PROTECTION]
    };
    let readable: BTreeSet<u32> = (0..0x2000)
        .chain(0x4b56_4d00..0x4b56_4d10)
        .chain(0xc000_0000..0xc000_0200)
        .chain(0xc001_0000..0xc001_2000)
        .filter(|msr| !faults(&mut machine, Exit::ReadMsr, *msr))
        .collect();
    for msr in [
        0x10,
        0x1b,
        0x277,
        0x802,
        0xc000_0080,
        0xc001_0010,
        0xc001_0015,
        0x4b56_4d01,
    ] {
        assert!(readable.contains(&msr), "{msr:#x}");
    }
    // Write-only: EOI, self IPI, wall clock. Absent: machine check banks, performance counters, SVM.
    for msr in [
        0x80b,
        0x83f,
        0x4b56_4d00,
        0x400,
        0xc001_0000,
        0xc001_0117,
        0xda0,
    ] {
        assert!(!readable.contains(&msr), "{msr:#x}");
    }
    assert!(readable.len() < 120, "{}", readable.len());
    for msr in [0x802, 0xfe, 0x1234, 0xc001_0117] {
        assert!(faults(&mut machine, Exit::WriteMsr, msr), "{msr:#x}");
    }
}

#[test]
fn efer_hides_what_is_the_hypervisors() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    assert_eq!(vcpu.read_msr(&mut machine, 0xc000_0080, &clock), 0x500);
    vcpu.state.rip = CODE;
    vcpu.write_msr(&mut machine, 0, 0xc000_0080, 0x901, &clock);
    assert_eq!(vcpu.state.efer, 0xd01, "LMA stays");
    vcpu.state.rip = CODE;
    vcpu.write_msr(&mut machine, 0, 0xc000_0080, 1 << 12, &clock);
    assert_eq!(vcpu.delivered, [Event::GENERAL_PROTECTION], "SVME");
}

#[test]
fn ports_switch_off_and_restart() {
    let reset = Outcome::Reset {
        cause: ResetCause::Requested,
    };
    let cases = [
        (0x600, 0x34, Some(Outcome::PowerOff)),
        (0x600, 0x35, None),
        (0x601, 0x42, Some(reset.clone())),
        (0x601, 0x41, None),
        (0x64, 0xfe, Some(reset.clone())),
        (0xcf9, 0x06, Some(reset)),
        (0x80, 0x01, None),
    ];
    for (port, value, expected) in cases {
        let clock = TestClock::at(0);
        let mut machine = machine(1);
        let mut vcpu = TestVcpu::new();
        vcpu.set_gpr(gpr::RAX, value);
        let outcome = vcpu.exit(&mut machine, io(port, 1, true), &clock);
        assert_eq!(
            outcome,
            expected.unwrap_or(Outcome::Interrupted),
            "{port:#x} {value:#x}"
        );
    }
}

#[test]
fn an_absent_port_reads_all_ones_into_its_part_of_rax() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    for (size, expected) in [(1, 0x1_2345_67ff), (2, 0x1_2345_ffff), (4, 0xffff_ffff)] {
        let mut vcpu = TestVcpu::new();
        vcpu.set_gpr(gpr::RAX, 0x1_2345_6789);
        vcpu.exit(&mut machine, io(0x2f9, size, false), &clock);
        assert_eq!(vcpu.gpr(gpr::RAX), expected);
    }
}

#[test]
fn the_bus_shows_bridge_disk_card_and_entropy() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut read = |slot: u64| {
        let mut vcpu = TestVcpu::new();
        vcpu.set_gpr(gpr::RAX, 0x8000_0000 | slot << 11);
        vcpu.exit(&mut machine, io(0xcf8, 4, true), &clock);
        vcpu.exit(&mut machine, io(0xcfc, 4, false), &clock);
        vcpu.gpr(gpr::RAX)
    };
    let found: Vec<u64> = (0..5).map(&mut read).collect();
    assert_eq!(
        found,
        [
            0x0008_1b36,
            0x1042_1af4,
            0x1041_1af4,
            0x1044_1af4,
            0xffff_ffff
        ]
    );
}

#[test]
fn device_registers_are_read_and_written_by_instructions() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = TestVcpu::new();
    let mut execute = |build: fn(&mut CodeAssembler) -> Result<(), IcedError>, gpa, write| {
        let mut assembler = CodeAssembler::new(64).unwrap();
        build(&mut assembler).unwrap();
        vcpu.place(machine.memory(), &assembler.assemble(CODE).unwrap());
        let exit = Exit::NestedFault {
            gpa,
            write,
            fetch: false,
            table_walk: false,
        };
        vcpu.set_gpr(gpr::RAX, 0x10 + 2 * 4);
        assert_eq!(vcpu.exit(&mut machine, exit, &clock), Outcome::Interrupted);
        vcpu.gpr(gpr::RAX)
    };
    // Redirection entry of pin 4: written by two stores, read back.
    execute(|a| a.mov(dword_ptr(rdx), eax), 0xfec0_0000, true);
    execute(|a| a.mov(dword_ptr(rdx), 0x34), 0xfec0_0010, true);
    assert_eq!(
        execute(|a| a.mov(eax, dword_ptr(rdx)), 0xfec0_0010, false),
        0x34
    );
    // Nobody there.
    assert_eq!(
        execute(|a| a.mov(eax, dword_ptr(rdx)), 0xfed0_0000, false),
        0xffff_ffff
    );
    assert_eq!(
        execute(|a| a.movsx(rax, byte_ptr(rdx)), 0xfed0_0000, false),
        u64::MAX
    );
    // The disk's first register window, where a firmware would have put it.
    let queues = execute(
        |a| a.movzx(eax, word_ptr(rdx)),
        crate::pci::MEMORY_BASE + 0x12,
        false,
    );
    assert_eq!(queues, 1);
}

#[test]
fn what_cannot_be_done_for_a_guest_stops_it_with_a_reason() {
    let clock = TestClock::at(0);
    let cases = [
        (store_fault(0xfec0_0000), "Add_rm32_r32"),
        (
            Exit::NestedFault {
                gpa: 1 << 40,
                write: false,
                fetch: true,
                table_walk: false,
            },
            "code at guest address 0x10000000000",
        ),
        (
            Exit::NestedFault {
                gpa: 1 << 40,
                write: true,
                fetch: false,
                table_walk: true,
            },
            "page tables",
        ),
        (
            Exit::Invalid {
                code: 77,
                info1: 0,
                info2: 0,
            },
            "0x4d",
        ),
    ];
    for (exit, expected) in cases {
        let mut machine = machine(1);
        let mut vcpu = TestVcpu::new();
        // add [rdx], eax
        vcpu.place(machine.memory(), &[0x01, 0x02]);
        let Outcome::Misbehaved(reason) = vcpu.exit(&mut machine, exit, &clock) else {
            panic!("{exit:?}");
        };
        assert!(reason.contains(expected), "{reason}");
        assert!(machine.runnable(0, &clock));
        assert_eq!(
            machine.run(0, &mut vcpu, &clock),
            Outcome::Misbehaved(reason),
            "for good"
        );
    }
}

#[test]
fn a_triple_fault_is_a_reset_and_an_absent_instruction_a_fault() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = TestVcpu::new();
    vcpu.exit(&mut machine, Exit::Undefined, &clock);
    assert_eq!(vcpu.delivered, [Event::UNDEFINED]);
    assert_eq!(vcpu.state.rip, CODE, "a fault points at its instruction");
    let cause = ResetCause::TripleFault;
    assert_eq!(
        vcpu.exit(&mut machine, Exit::Shutdown, &clock),
        Outcome::Reset { cause }
    );
}

#[test]
fn xcr0_takes_only_what_there_is() {
    let clock = TestClock::at(0);
    for (value, ok) in [
        (7, true),
        (3, true),
        (1, true),
        (5, false),
        (2, false),
        (0x201, false),
    ] {
        let mut machine = machine(1);
        let mut vcpu = TestVcpu::new();
        vcpu.place(machine.memory(), &[0x0f, 0x01, 0xd1]);
        vcpu.set_gpr(gpr::RAX, value);
        vcpu.exit(&mut machine, Exit::SetXcr, &clock);
        assert_eq!(vcpu.state.xcr0 == value, ok, "{value:#x}");
        assert_eq!(vcpu.delivered.is_empty(), ok);
    }
}

#[test]
fn string_io_moves_memory() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = TestVcpu::new();
    vcpu.place(machine.memory(), &[0xf3, 0x6e]);
    machine.memory().write(Gpa(0x8000), &[b'x'; 600]).unwrap();
    vcpu.set_gpr(gpr::RSI, 0x8000);
    vcpu.set_gpr(gpr::RCX, 600);
    let outs = Exit::Io {
        port: 0x3f8,
        size: 1,
        write: true,
        string: true,
        repeat: true,
        next_rip: 0,
    };
    vcpu.exit(&mut machine, outs, &clock);
    assert_eq!(vcpu.gpr(gpr::RCX), 600 - STRING_MAX);
    assert_eq!(vcpu.state.rip, CODE, "not done: executed again");
    vcpu.exit(&mut machine, outs, &clock);
    assert_eq!((vcpu.gpr(gpr::RCX), vcpu.gpr(gpr::RSI)), (0, 0x8000 + 600));
    assert_eq!(vcpu.state.rip, CODE + 2);
    assert_eq!(machine.take_console_output(), [b'x'; 600]);
    // Memory that is none: a fault, no harm.
    vcpu.place(machine.memory(), &[0x6c]);
    vcpu.set_gpr(gpr::RDI, 1 << 40);
    let ins = Exit::Io {
        port: 0x3f8,
        size: 1,
        write: false,
        string: true,
        repeat: false,
        next_rip: 0,
    };
    vcpu.exit(&mut machine, ins, &clock);
    assert_eq!(vcpu.delivered, [Event::GENERAL_PROTECTION]);
}

#[test]
fn console_input_interrupts_a_guest_that_listens() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    machine.io_apic.write(0, 0x10 + 8);
    machine.io_apic.write(0x10, 0x34);
    for (register, value) in [(1, 1), (4, 8)] {
        vcpu.set_gpr(gpr::RAX, value);
        vcpu.exit(&mut machine, io(0x3f8 + register, 1, true), &clock);
    }
    machine.console_input(b"hi");
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(vcpu.delivered, [Event::Interrupt(0x34)]);
    for byte in b"hi" {
        vcpu.exit(&mut machine, io(0x3f8, 1, false), &clock);
        assert_eq!(vcpu.gpr(gpr::RAX) as u8, *byte);
    }
}

#[test]
fn guest_time_goes_on_without_a_step_where_the_counter_is_faster() {
    const PAGE: u64 = 0x9000;
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    vcpu.write_msr(&mut machine, 0, 0x4b56_4d01, PAGE | 1, &clock);
    let version = machine.memory().read_u32(Gpa(PAGE)).unwrap();
    let sections = machine.save();

    let mut other = crate::testing::machine(1);
    other.memory().write(Gpa(PAGE), &[0; 32]).unwrap();
    other.restore(&sections).unwrap();
    let faster = TestClock::at(5);
    faster.tsc_hz.set(TSC_HZ * 2);
    vcpu.tsc = TSC_HZ;
    other.run(0, &mut vcpu, &faster);
    let read = |offset| other.memory().read_u64(Gpa(PAGE + offset)).unwrap();
    assert_eq!(read(0) as u32, version + 2);
    assert_eq!(read(8), TSC_HZ, "from this value of the counter");
    assert!(read(16).abs_diff(1_000_000_000) < 10, "at this time");
}

/// A machine whose card has its transmit queue set up.
fn with_card(clock: &TestClock) -> (Machine, TestVcpu) {
    let mut machine = machine(1);
    let vcpu = started(&mut machine, 0, clock);
    start_driver(&mut machine.functions[1], 1, 0xb000);
    (machine, vcpu)
}

/// Has the guest send a frame, and the host take it.
fn send_frame(machine: &mut Machine) {
    let mut driver = Driver::new(machine.memory(), 0xb000, 8);
    driver.add(&[(0x8000, 72, false)]);
    machine.ring(1);
    assert!(machine.next_frame().is_some());
    assert!(machine.next_frame().is_none());
}

#[test]
fn a_guest_is_told_late_that_a_frame_has_left() {
    let clock = TestClock::at(1000);
    let (mut machine, mut vcpu) = with_card(&clock);
    machine.run(0, &mut vcpu, &clock);
    send_frame(&mut machine);
    assert_eq!(machine.run(0, &mut vcpu, &clock), Outcome::Interrupted);
    assert!(vcpu.delivered.is_empty());
    assert_eq!(vcpu.exit(&mut machine, Exit::Halt, &clock), Outcome::Work);
    assert!(machine.next_frame().is_none());
    let at = machine.next_deadline_ns().unwrap();
    assert!(!machine.runnable(0, &clock));
    clock.now_ns.set(at);
    assert!(machine.runnable(0, &clock));
    machine.run(0, &mut vcpu, &clock);
    assert_eq!(vcpu.delivered, [Event::Interrupt(0x61)]);
    assert_eq!(machine.next_deadline_ns(), None);
}

#[test]
fn a_guest_that_has_looked_for_itself_is_not_told() {
    let clock = TestClock::at(1000);
    let (mut machine, mut vcpu) = with_card(&clock);
    machine.run(0, &mut vcpu, &clock);
    send_frame(&mut machine);
    // The driver has seen the first one and wants to hear of one far ahead.
    machine.memory().write(Gpa(0xc000 + 20), &[7, 0]).unwrap();
    clock.now_ns.set(1 << 40);
    machine.run(0, &mut vcpu, &clock);
    assert!(machine.next_frame().is_none());
    assert_eq!(machine.next_deadline_ns(), None);
    assert!(vcpu.delivered.is_empty());
}

#[test]
fn what_a_guest_was_not_told_before_a_move_it_is_told_after() {
    let clock = TestClock::at(1000);
    let (mut first, mut vcpu) = with_card(&clock);
    send_frame(&mut first);
    let mut bytes = std::vec![0; crate::testing::RAM];
    first.memory().read(Gpa(0), &mut bytes).unwrap();
    let mut second = machine(1);
    second.memory().write(Gpa(0), &bytes).unwrap();
    second.restore(&first.save()).unwrap();
    second.run(0, &mut vcpu, &clock);
    assert_eq!(vcpu.delivered, [Event::Interrupt(0x61)]);
}

#[test]
fn a_busy_guest_need_not_ring_for_each_frame() {
    let clock = TestClock::at(1000);
    let (mut machine, mut vcpu) = with_card(&clock);
    // What the guest compares its index with before it rings.
    let ring_after = |machine: &Machine| machine.memory().read_u16(Gpa(0xd000 + 68)).unwrap();
    machine.run(0, &mut vcpu, &clock);
    send_frame(&mut machine);
    assert_eq!(ring_after(&machine), 0, "not asked to");
    // The next frame is found without a ring.
    let mut driver = Driver::new(machine.memory(), 0xb000, 8);
    driver.add(&[(0x8000, 72, false)]);
    driver.add(&[(0x8000, 72, false)]);
    clock.now_ns.set(500_000);
    machine.run(0, &mut vcpu, &clock);
    assert!(machine.next_frame().is_some() && machine.next_frame().is_none());
    // Quiet for long enough: it must ring again.
    let at = machine.next_deadline_ns().unwrap();
    assert_eq!(at, 500_000 + WATCH_NS);
    clock.now_ns.set(at);
    machine.run(0, &mut vcpu, &clock);
    assert!(machine.next_frame().is_none());
    assert_eq!(ring_after(&machine), 2);
}

#[test]
fn what_a_guest_has_sent_before_it_halts_is_found() {
    let clock = TestClock::at(1000);
    let (mut machine, mut vcpu) = with_card(&clock);
    machine.run(0, &mut vcpu, &clock);
    send_frame(&mut machine);
    let mut driver = Driver::new(machine.memory(), 0xb000, 8);
    driver.add(&[(0x8000, 72, false)]);
    driver.add(&[(0x8000, 72, false)]);
    assert_eq!(vcpu.exit(&mut machine, Exit::Halt, &clock), Outcome::Work);
    assert!(machine.next_frame().is_some() && machine.next_frame().is_none());
    assert_eq!(
        machine.memory().read_u16(Gpa(0xd000 + 68)).unwrap(),
        2,
        "it must ring again"
    );
    assert!(!machine.runnable(0, &clock));
}

#[test]
fn a_request_of_a_driver_that_went_away_is_forgotten() {
    let clock = TestClock::at(0);
    let mut machine = machine(1);
    let mut vcpu = started(&mut machine, 0, &clock);
    start_driver(&mut machine.functions[0], 0, 0xb000);
    machine.memory().write(Gpa(0x8000), &[4, 0, 0, 0]).unwrap();
    let mut driver = Driver::new(machine.memory(), 0xb000, 8);
    driver.add(&[(0x8000, 16, false), (0x8100, 1, true)]);
    machine.ring(0);
    let request = machine.next_disk_request().unwrap();
    // The disk may no longer touch memory.
    machine.functions[0].write_config(4, 2, 0);
    machine.complete_disk(request.id, Ok(Vec::new()));
    assert_eq!(machine.disk_in_flight(), 0);
    assert_eq!(machine.memory().read_u16(Gpa(0xd002)).unwrap(), 0);
    assert_eq!(machine.run(0, &mut vcpu, &clock), Outcome::Interrupted);
}
