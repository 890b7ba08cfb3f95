//! CR8 and the local APIC's task priority are one register, wherever the guest writes it.

use crate::{
    Machine, Outcome,
    testing::{TestClock, TestVcpu, machine},
    vcpu::{Event, Exit, Vcpu, gpr},
};

const TPR: u32 = 0x808;
const SVR: u32 = 0x80f;
const SELF_IPI: u32 = 0x83f;
/// mov cr8, rax
const MOV_CR8_RAX: [u8; 4] = [0x44, 0x0f, 0x22, 0xc0];

fn started() -> (Machine, TestVcpu, TestClock) {
    let (mut machine, mut vcpu, clock) = (machine(1), TestVcpu::new(), TestClock::at(0));
    vcpu.write_msr(&mut machine, 0, SVR, 0x1ff, &clock);
    (machine, vcpu, clock)
}

#[test]
fn each_shows_what_was_written_to_the_other() {
    let (mut machine, mut vcpu, clock) = started();
    vcpu.writes_cr8 = Some(5);
    assert_eq!(vcpu.read_msr(&mut machine, TPR, &clock), 0x50);
    vcpu.write_msr(&mut machine, 0, TPR, 0x37, &clock);
    assert_eq!(vcpu.cr8, 3);
    assert_eq!(vcpu.read_msr(&mut machine, TPR, &clock), 0x37);
}

#[test]
fn an_interrupt_that_it_held_back_comes_when_it_is_lowered() {
    let (mut machine, mut vcpu, clock) = started();
    vcpu.writes_cr8 = Some(5);
    vcpu.write_msr(&mut machine, 0, SELF_IPI, 0x51, &clock);
    assert_eq!(vcpu.delivered, []);
    assert!(vcpu.cr8_watched);
    vcpu.place(machine.memory(), &MOV_CR8_RAX);
    let behind = vcpu.state.rip + 4;
    vcpu.set_gpr(gpr::RAX, 16);
    vcpu.exit(&mut machine, Exit::SetTaskPriority, &clock);
    assert_eq!(vcpu.delivered, [Event::GENERAL_PROTECTION]);
    vcpu.set_gpr(gpr::RAX, 4);
    vcpu.exit(&mut machine, Exit::SetTaskPriority, &clock);
    assert_eq!(vcpu.delivered[1..], [Event::Interrupt(0x51)]);
    assert_eq!((vcpu.cr8, vcpu.state.rip), (4, behind));
    assert!(!vcpu.cr8_watched);
}

#[test]
fn it_survives_a_move() {
    let (mut first, mut vcpu, clock) = started();
    vcpu.writes_cr8 = Some(9);
    assert_eq!(first.run(0, &mut vcpu, &clock), Outcome::Interrupted);
    let mut second = machine(1);
    second.restore(&first.save()).unwrap();
    let mut moved = TestVcpu::new();
    moved.load(&vcpu.save());
    second.run(0, &mut moved, &clock);
    assert_eq!(moved.cr8, 9);
}
