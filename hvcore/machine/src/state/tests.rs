//! Saved states: identical after a round trip, readable for ever, refused when they are not what they claim.

use proptest::prelude::*;
use std::{format, vec, vec::Vec};

use super::*;
use crate::{
    Machine,
    testing::{TestClock, TestVcpu, machine, start_driver},
    vcpu::{Exit, Vcpu, gpr},
};

/// The sections as they would be stored: kind, version, length, bytes.
fn pack(sections: &[Section]) -> Vec<u8> {
    postcard::to_allocvec(sections).unwrap()
}

/// A machine in the middle of its life, with something in every part.
fn lived_in() -> Machine {
    let clock = TestClock::at(1000);
    let mut machine = machine(2);
    let mut vcpu = TestVcpu::new();
    vcpu.tsc = 2000;
    for (msr, value) in [
        (0x80f, 0x1ff),
        (0x832, 2 << 17 | 0xec),
        (0x830, 1 << 32 | 0x4500),
        (0x830, 1 << 32 | 0x4699),
        (0x4b56_4d01, 0x9001),
        (0x4b56_4d04, 0xa001),
        (0x83f, 0x42),
        (0x83f, 0x51),
        (0x6e0, 123_456_789),
    ] {
        vcpu.write_msr(&mut machine, 0, msr, value, &clock);
    }
    machine.serial.write(1, 1);
    machine.serial.write(4, 0x0b);
    machine.write_port(0xcf8, 4, 0x8000_0810);
    machine.io_apic.write(0, 0x18);
    machine.io_apic.write(0x10, 0x8034);
    machine.console_input(b"typed ahead");
    // A disk that its driver has set up, a request in its queue.
    start_driver(&mut machine.functions[0], 0, 0xb000);
    machine
}

#[test]
fn save_restore_save_is_identical() {
    let first = lived_in();
    let sections = first.save();
    let mut second = machine(2);
    second.restore(&sections).unwrap();
    assert_eq!(pack(&second.save()), pack(&sections));
}

/// The layout of version 1, from a machine like [`lived_in`]. If this fails, a saved type has changed without a new version: give its kind one, keep
/// reading the old one, and add a file for the new one.
#[test]
fn version_1_stays_readable() {
    let golden: Vec<Section> =
        postcard::from_bytes(include_bytes!("golden/version-1.bin")).unwrap();
    let mut machine = machine(2);
    machine.restore(&golden).unwrap();
    assert_eq!(machine.save(), golden);
}

#[test]
fn what_the_old_host_had_in_hand_is_done_by_the_new_one() {
    use crate::{DiskOp, virtio::testing::Driver};
    use guest_memory::Gpa;
    let mut first = lived_in();
    let ram = crate::testing::RAM;
    let header = [4_u32.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    first.memory().write(Gpa(0xe000), &header).unwrap();
    // Rings at 0xb000, 0xc000 and 0xd000, as the driver above said.
    let mut driver = Driver::new(first.memory(), 0xb000, 8);
    driver.add(&[(0xe000, 16, false), (0xe100, 1, true)]);
    first.ring(0);
    let request = first.next_disk_request().unwrap();
    assert_eq!(request.op, DiskOp::Flush);
    assert_eq!(first.disk_in_flight(), 1);

    let mut bytes = vec![0; ram];
    first.memory().read(Gpa(0), &mut bytes).unwrap();
    let mut second = machine(2);
    second.memory().write(Gpa(0), &bytes).unwrap();
    second.restore(&first.save()).unwrap();
    assert_eq!(second.disk_in_flight(), 1);
    let again = second.next_disk_request().unwrap();
    assert_eq!((again.disk, again.op), (0, DiskOp::Flush));
    second.complete_disk(again.id, Ok(vec![]));
    assert_eq!(
        second.memory().read_u16(Gpa(0xd002)).unwrap(),
        1,
        "given back"
    );
    assert_eq!(second.next_disk_request(), None);
}

#[test]
fn a_timer_goes_on_at_its_value_of_the_counter() {
    let clock = TestClock::at(500);
    let mut second = machine(2);
    second.restore(&lived_in().save()).unwrap();
    assert!(
        second.runnable(0, &clock),
        "until somebody has told the time"
    );
    let mut vcpu = TestVcpu::new();
    vcpu.state.rflags = 2;
    vcpu.tsc = 123_456_789 - 2_000_000;
    second.run(0, &mut vcpu, &clock);
    assert_eq!(second.next_deadline_ns(), Some(500 + 1_000_000));
}

#[test]
fn input_that_was_typed_ahead_still_interrupts() {
    let clock = TestClock::at(0);
    let mut second = machine(2);
    second.restore(&lived_in().save()).unwrap();
    let mut vcpu = TestVcpu::new();
    vcpu.set_gpr(gpr::RCX, 0x821);
    vcpu.exit(&mut second, Exit::ReadMsr, &clock);
    assert_eq!(vcpu.gpr(gpr::RAX) & 1 << (0x34 - 0x20), 1 << (0x34 - 0x20));
}

#[test]
fn what_is_not_a_state_of_this_machine_is_refused_and_changes_nothing() {
    type Damage = fn(&mut Vec<Section>);
    let cases: [(&str, Damage); 8] = [
        ("does not know", |s| s[2].version = 2),
        ("does not know", |s| s[2].kind = 99),
        ("left over", |s| {
            let last = s.last().unwrap().clone();
            s.push(last);
        }),
        ("missing", |s| {
            s.pop();
        }),
        ("missing", |s| s.swap(4, 5)),
        ("left over", |s| s[4].bytes.push(0)),
        ("damaged", |s| {
            s[0].bytes.pop();
        }),
        ("at most", |s| s[4].bytes.resize(1 << 20, 0)),
    ];
    let good = lived_in().save();
    for (expected, damage) in cases {
        let mut sections = good.clone();
        damage(&mut sections);
        let mut target = machine(2);
        let before = target.save();
        let refused = target.restore(&sections).unwrap_err();
        assert!(format!("{refused}").contains(expected), "{refused}");
        assert_eq!(target.save(), before);
    }
    let mut other = machine(3);
    let refused = other.restore(&good).unwrap_err();
    assert!(format!("{refused}").contains("2 vCPUs"), "{refused}");
}

proptest! {
    /// Bytes that changed on the way: refused or accepted, but no panic, then or later.
    #[test]
    fn damage_is_survived(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut sections = lived_in().save();
        for (section, byte, value) in changes {
            let section = section.index(sections.len());
            let bytes = &mut sections[section].bytes;
            let byte = byte.index(bytes.len());
            bytes[byte] = value;
        }
        let mut target = machine(2);
        if target.restore(&sections).is_ok() {
            let clock = TestClock::at(0);
            let saved = target.save();
            while target.next_disk_request().is_some() {}
            while target.next_frame().is_some() {}
            target.deliver_frame(0, &[0; 60]);
            let mut vcpu = TestVcpu::new();
            for index in 0..2 {
                vcpu.state.pending = None;
                target.run(index, &mut vcpu, &clock);
            }
            let mut again = machine(2);
            again.restore(&saved).unwrap();
        }
    }
}
