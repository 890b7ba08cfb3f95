//! The decoder: an instruction of any bytes, met in any mode, on a device register or as string I/O.

use guest_memory::Gpa;
use machine::{
    Outcome,
    vcpu::{Exit, Vcpu},
};

use crate::{
    bytes::Bytes,
    vcpu::{CODE, SetClock, SetVcpu, machine},
};

/// No instruction is longer (APM vol. 3, 1.1).
const LENGTH_MAX: u64 = 15;

/// Carried out, refused with a reason, or turned into a fault of the guest; never beyond its own end.
///
/// # Panics
/// When that does not hold.
pub fn instruction(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (mut machine, mut vcpu, clock) = (machine(), SetVcpu::new(), SetClock::default());
    let mode = bytes.u8();
    // Bits of the code segment that choose between 16, 32 and 64 bits; paging with tables of any kind.
    vcpu.state.cs.attributes = u16::from(mode & 3) << 9 | 0x9b;
    if mode & 4 != 0 {
        vcpu.state.efer = 0;
    }
    if mode & 8 != 0 {
        vcpu.state.cr0 = 0x8000_0001;
        vcpu.state.cr4 = u64::from(mode >> 4 & 1) << 5;
        vcpu.state.cr3 = 0x2000;
        let tables: Vec<u8> = bytes
            .take(32)
            .iter()
            .copied()
            .cycle()
            .take(0x4000)
            .collect();
        machine
            .memory()
            .write(Gpa(0x2000), &tables)
            .expect("it is RAM");
    }
    let gpa = match mode >> 5 {
        0 => 0xfec0_0000,
        1 => 0xe000_0000 + u64::from(bytes.u16()),
        2 => bytes.u64(),
        _ => 0xe000_8000 + u64::from(bytes.u8()),
    };
    let kind = bytes.u8();
    for register in 0..16 {
        vcpu.set_gpr(register, u64::from(bytes.u16()));
    }
    machine
        .memory()
        .write(Gpa(CODE), bytes.take(15))
        .expect("it is RAM");
    let string = kind & 1 != 0;
    vcpu.exit = Some(match kind >> 4 {
        0 => Exit::Cpuid,
        1 => Exit::SetTaskPriority,
        2 | 3 => Exit::Io {
            port: 0x3f8 + u16::from(bytes.u8()),
            size: 1 << (kind >> 1 & 3).min(2),
            write: kind & 8 != 0,
            string: true,
            repeat: string,
            next_rip: CODE,
        },
        _ => Exit::NestedFault {
            gpa,
            write: kind & 2 != 0,
            fetch: false,
            table_walk: false,
        },
    });
    match machine.run(0, &mut vcpu, &clock) {
        Outcome::Misbehaved(why) => assert!(!why.is_empty()),
        _ => assert!(vcpu.rip().wrapping_sub(CODE) <= LENGTH_MAX),
    }
}
