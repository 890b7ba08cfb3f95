//! Guests of pure chance: whatever one does, the machine neither panics nor works without end, and saves a state that
//! it can go on from.

use guest_memory::Gpa;
use proptest::prelude::*;
use std::{vec, vec::Vec};

use crate::{
    Outcome,
    testing::{CODE, RAM, TestClock, TestVcpu, cpuid, machine, start_driver},
    vcpu::{Exit, Vcpu, gpr},
};

/// Ports and addresses where something is, and some where nothing is.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        0x3f8_u16..0x400,
        0xcf8_u16..0xd00,
        0x600_u16..0x604,
        Just(0x64),
        any::<u16>()
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        0xfec0_0000_u64..0xfec0_0050,
        (0_u64..3, 0_u64..0x40).prop_map(|(i, o)| 0xe000_0000 + i * 0x8000 + o),
        0xe000_0000_u64..0xe001_8000,
        any::<u64>()
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        0x800_u32..0x840,
        0x4b56_4d00_u32..0x4b56_4d06,
        Just(0x6e0),
        Just(0xc000_0080),
        any::<u32>()
    ]
}

/// An exit and the value in the registers it looks at.
fn exit() -> impl Strategy<Value = (Exit, u64, u32)> {
    let size = prop_oneof![Just(1_u8), Just(2), Just(4)];
    let io =
        (port(), size, any::<[bool; 3]>()).prop_map(|(port, size, [write, string, repeat])| {
            Exit::Io {
                port,
                size,
                write,
                string,
                repeat,
                next_rip: CODE,
            }
        });
    let fault = (address(), any::<bool>(), 0..40).prop_map(|(gpa, write, odd)| Exit::NestedFault {
        gpa,
        write,
        fetch: odd == 0,
        table_walk: odd == 1,
    });
    let kind = prop_oneof![
        io,
        fault,
        Just(Exit::ReadMsr),
        Just(Exit::WriteMsr),
        Just(Exit::Cpuid),
        Just(Exit::Halt),
        Just(Exit::SetXcr),
        Just(Exit::Hypercall),
        Just(Exit::InterruptWindow),
    ];
    let value = prop_oneof![any::<u64>(), 0_u64..0x40, 0x4000_u64..0xf000];
    (kind, value, msr())
}

/// Instructions that access memory, so that not every device access ends the guest.
fn instruction() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        Just([0x89, 0x02, 0x90, 0x90]),
        Just([0x8b, 0x02, 0x90, 0x90]),
        Just([0x66, 0x89, 0x02, 0x90]),
        Just([0x88, 0x02, 0x90, 0x90]),
        Just([0x48, 0x89, 0x02, 0x90]),
        Just([0xf3, 0x6e, 0x90, 0x90]),
        Just([0xf3, 0x6c, 0x90, 0x90]),
        any::<[u8; 4]>(),
    ]
}

/// Three pages of rings with plausible descriptors and indices, so that some requests get far.
fn ring() -> impl Strategy<Value = Vec<u8>> {
    let descriptor = (
        prop_oneof![4 => 0x9000_u64..0xf000, 1 => any::<u64>()],
        prop_oneof![
            Just(16_u32),
            Just(512),
            Just(1),
            Just(1530),
            0_u32..64,
            any::<u32>()
        ],
        prop_oneof![
            Just(0_u16),
            Just(1),
            Just(2),
            Just(3),
            Just(4),
            any::<u16>()
        ],
        0_u16..9,
    );
    let table = proptest::collection::vec(descriptor, 8);
    (table, 0_u16..9, proptest::collection::vec(0_u16..9, 8)).prop_map(|(table, index, heads)| {
        let mut bytes = vec![0; 0x3000];
        for (i, (gpa, len, flags, next)) in table.iter().enumerate() {
            bytes[i * 16..i * 16 + 8].copy_from_slice(&gpa.to_le_bytes());
            bytes[i * 16 + 8..i * 16 + 12].copy_from_slice(&len.to_le_bytes());
            bytes[i * 16 + 12..i * 16 + 14].copy_from_slice(&flags.to_le_bytes());
            bytes[i * 16 + 14..i * 16 + 16].copy_from_slice(&next.to_le_bytes());
        }
        bytes[0x1002..0x1004].copy_from_slice(&index.to_le_bytes());
        for (i, head) in heads.iter().enumerate() {
            bytes[0x1004 + 2 * i..0x1006 + 2 * i].copy_from_slice(&head.to_le_bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_guest_is_survived(
        steps in proptest::collection::vec((exit(), instruction(), 0_usize..2), 1..120),
        ram in proptest::collection::vec(any::<u8>(), 512),
        rings in ring(),
        live: bool,
    ) {
        let clock = TestClock::at(1);
        let mut machine = machine(2);
        for page in 4..15 {
            machine.memory().write(Gpa(page << 12), &ram).unwrap();
        }
        if live {
            machine.memory().write(Gpa(0x6000), &rings).unwrap();
            start_driver(&mut machine.functions[0], 0, 0x6000);
            start_driver(&mut machine.functions[1], (rings[0] & 1).into(), 0x6000);
        }
        let mut vcpus = [TestVcpu::new(), TestVcpu::new()];
        for ((exit, value, msr), code, index) in steps {
            clock.now_ns.set(clock.now_ns.get() + 100_000);
            let vcpu = &mut vcpus[index];
            vcpu.place(machine.memory(), &code);
            vcpu.set_gpr(gpr::RAX, value);
            vcpu.set_gpr(gpr::RDX, value >> 32);
            vcpu.set_gpr(gpr::RCX, msr.into());
            vcpu.set_gpr(gpr::RSI, value);
            vcpu.set_gpr(gpr::RDI, value);
            vcpu.exits.push_back(exit);
            if let Outcome::Misbehaved(reason) = machine.run(index, vcpu, &clock) {
                prop_assert!(!reason.is_empty());
            }
            vcpu.exits.clear();
            // A guest of 256 entries in a ring has at most so many requests and frames at once.
            let requests: Vec<_> = std::iter::from_fn(|| machine.next_disk_request()).take(300).collect();
            prop_assert!(requests.len() < 300);
            for request in requests {
                machine.complete_disk(request.id, Ok(Vec::new()));
            }
            let frames = std::iter::from_fn(|| machine.next_frame()).take(300).count();
            prop_assert!(frames < 300);
            machine.deliver_frame(0, &[0; 60]);
            machine.console_input(b"x");
        }
        let sections = machine.save();
        let mut bytes = vec![0; RAM];
        machine.memory().read(Gpa(0), &mut bytes).unwrap();
        let memory = guest_memory::testing::memory(RAM);
        memory.write(Gpa(0), &bytes).unwrap();
        let mut other = crate::Machine::new(machine.config(), memory, cpuid);
        other.restore(&sections).unwrap();
        prop_assert_eq!(other.save(), sections);
    }
}
