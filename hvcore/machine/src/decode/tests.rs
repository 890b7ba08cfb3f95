//! Device accesses as assemblers encode them.

use guest_memory::{Gpa, GuestMemory, testing::memory};
use iced_x86::code_asm::*;
use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::testing::{CODE, TestVcpu};

const RAM: usize = 0x2_0000;

fn assemble(bits: u32, build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn part(number: u8, size: u8, high: bool) -> RegisterPart {
    RegisterPart { number, size, high }
}

#[test]
fn the_accessors_of_compilers_are_understood() {
    let load = |number, size, signed| Transfer::Load {
        into: part(number, size, false),
        signed,
    };
    let cases: [(Build, Transfer, u8); 16] = [
        (|a| a.mov(eax, dword_ptr(rdx)), load(0, 4, false), 4),
        (|a| a.mov(r9, qword_ptr(rdx + 8)), load(9, 8, false), 8),
        (
            |a| a.mov(cx, word_ptr(rdx + rcx * 4 + 0x1234)),
            load(1, 2, false),
            2,
        ),
        (|a| a.mov(bl, byte_ptr(r13)), load(3, 1, false), 1),
        (|a| a.movzx(eax, byte_ptr(rdx)), load(0, 4, false), 1),
        (|a| a.movzx(r10d, word_ptr(rdx)), load(10, 4, false), 2),
        (|a| a.movsx(rax, word_ptr(rdx)), load(0, 8, true), 2),
        (|a| a.movsxd(rax, dword_ptr(rdx)), load(0, 8, true), 4),
        (
            |a| a.mov(dword_ptr(rdx), esi),
            Transfer::Store(part(6, 4, false)),
            4,
        ),
        (
            |a| a.mov(byte_ptr(rdx), ah),
            Transfer::Store(part(0, 1, true)),
            1,
        ),
        (
            |a| a.mov(byte_ptr(rdx), sil),
            Transfer::Store(part(6, 1, false)),
            1,
        ),
        (
            |a| a.mov(word_ptr(r12), ax),
            Transfer::Store(part(0, 2, false)),
            2,
        ),
        (
            |a| a.mov(dword_ptr(rdx), 0x8000_0000_u32 as i32),
            Transfer::StoreConstant(0x8000_0000),
            4,
        ),
        (|a| a.mov(byte_ptr(rdx), 7), Transfer::StoreConstant(7), 1),
        (
            |a| a.mov(word_ptr(rdx), 0x1234),
            Transfer::StoreConstant(0x1234),
            2,
        ),
        (
            |a| a.mov(qword_ptr(rdx), -1),
            Transfer::StoreConstant(u64::MAX),
            8,
        ),
    ];
    let memory = memory(RAM);
    for (build, transfer, size) in cases {
        let code = assemble(64, build);
        let mut vcpu = TestVcpu::new();
        vcpu.place(&memory, &code);
        let access = device_access(&memory, &vcpu).unwrap();
        let next_rip = CODE + code.len() as u64;
        let expected = Access {
            transfer,
            size,
            next_rip,
        };
        assert_eq!(access, expected, "{code:02x?}");
    }
}

#[test]
fn other_instructions_are_refused_by_name() {
    let memory = memory(RAM);
    let cases: [Build; 3] = [
        |a| a.add(dword_ptr(rdx), eax),
        |a| a.xchg(dword_ptr(rdx), eax),
        |a| a.movaps(xmm0, xmmword_ptr(rdx)),
    ];
    for build in cases {
        let mut vcpu = TestVcpu::new();
        vcpu.place(&memory, &assemble(64, build));
        let refused = device_access(&memory, &vcpu).unwrap_err();
        assert!(refused.0.contains("device register"), "{refused:?}");
    }
}

#[test]
fn code_is_decoded_in_the_mode_it_runs_in() {
    let memory = memory(RAM);
    let code = assemble(16, |a| a.mov(ax, word_ptr(si)));
    let mut vcpu = TestVcpu::new();
    vcpu.state.efer = 0;
    vcpu.state.cs.attributes = 0x9b;
    vcpu.place(&memory, &code);
    assert_eq!(device_access(&memory, &vcpu).unwrap().size, 2);
    let code = assemble(32, |a| a.mov(dword_ptr(esi), eax));
    vcpu.state.cs.attributes = 0xc9b;
    vcpu.place(&memory, &code);
    assert_eq!(device_access(&memory, &vcpu).unwrap().size, 4);
}

#[test]
fn string_io_names_segment_and_width() {
    let memory = memory(RAM);
    let mut vcpu = TestVcpu::new();
    // rep outsb from gs:[esi].
    vcpu.place(&memory, &[0xf3, 0x65, 0x67, 0x6e]);
    let io = string_io(&memory, &vcpu).unwrap();
    assert_eq!((io.segment, io.address_size), (SegmentName::Gs, 4));
    assert_eq!(io.next_rip, CODE + 4);
    vcpu.place(&memory, &assemble(64, |a| a.insd()));
    let io = string_io(&memory, &vcpu).unwrap();
    assert_eq!((io.segment, io.address_size), (SegmentName::Es, 8));
    vcpu.place(&memory, &[0x90]);
    assert!(string_io(&memory, &vcpu).is_err());
}

#[test]
fn prefixes_are_stepped_over() {
    let memory = memory(RAM);
    let mut vcpu = TestVcpu::new();
    vcpu.place(&memory, &[0x3e, 0x3e, 0x0f, 0x30]);
    assert_eq!(after(&memory, &vcpu, 2), CODE + 4);
    vcpu.place(&memory, &[0xf3, 0x90]);
    assert_eq!(after(&memory, &vcpu, 1), CODE + 2);
    vcpu.place(&memory, &[0x48, 0x0f, 0xa2]);
    assert_eq!(after(&memory, &vcpu, 2), CODE + 3);
}

#[test]
fn a_register_part_changes_only_what_a_mov_changes() {
    let mut vcpu = TestVcpu::new();
    for (part, expected) in [
        (part(0, 1, false), 0x1122_3344_5566_77ee),
        (part(0, 1, true), 0x1122_3344_5566_ee88),
        (part(0, 2, false), 0x1122_3344_5566_ddee),
        (part(0, 4, false), 0x0000_0000_bbcc_ddee),
        (part(0, 8, false), 0xaabb_0000_bbcc_ddee),
    ] {
        vcpu.set_gpr(0, 0x1122_3344_5566_7788);
        part.set(&mut vcpu, 0xaabb_0000_bbcc_ddee);
        assert_eq!(vcpu.gpr(0), expected);
    }
}

/// Four-level tables that map one page, a large page, and two pages that are neighbours only virtually.
fn map(memory: &GuestMemory, vcpu: &mut TestVcpu) {
    let put = |gpa: u64, value: u64| memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
    put(0x1000 + 8 * 256, 0x2003);
    put(0x2000, 0x3003);
    put(0x3000, 0x4003);
    // 2 MiB at 0, as the second entry.
    put(0x3008, 0x0083);
    put(0x4000, 0x8003);
    put(0x4008, 0xa003);
    put(0x4010, 0x0001_0000_0000_0003);
    vcpu.state.cr0 = 1 << 31 | 1;
    vcpu.state.cr3 = 0x1000;
    vcpu.state.cr4 = 1 << 5;
}

const HIGH: u64 = 0xffff_8000_0000_0000;

#[test]
fn linear_addresses_are_walked() {
    let memory = memory(RAM);
    let mut vcpu = TestVcpu::new();
    map(&memory, &mut vcpu);
    let at = |linear| translate(&memory, &vcpu, linear);
    assert_eq!(at(HIGH + 0x123), Some(Gpa(0x8123)));
    assert_eq!(at(HIGH + 0x20_0456), Some(Gpa(0x456)));
    assert_eq!(at(HIGH + 0x5000), None, "not present");
    assert_eq!(at(0), None);
    assert_eq!(
        at(HIGH + 0x2000),
        Some(Gpa(0x1_0000_0000_0000)),
        "no RAM there"
    );
}

#[test]
fn an_instruction_may_cross_pages() {
    let memory = memory(RAM);
    let mut vcpu = TestVcpu::new();
    map(&memory, &mut vcpu);
    let code = assemble(64, |a| a.mov(dword_ptr(rdx), 0x0102_0304));
    memory.write(Gpa(0x8ffd), &code[..3]).unwrap();
    memory.write(Gpa(0xa000), &code[3..]).unwrap();
    vcpu.state.rip = HIGH + 0xffd;
    let access = device_access(&memory, &vcpu).unwrap();
    assert_eq!(access.transfer, Transfer::StoreConstant(0x0102_0304));
    // The next page is no RAM: what can be fetched is not enough.
    memory.write(Gpa(0xaffd), &code[..3]).unwrap();
    vcpu.state.rip = HIGH + 0x1ffd;
    assert!(device_access(&memory, &vcpu).is_err());
}

#[test]
fn thirty_two_bit_tables_are_walked() {
    let memory = memory(RAM);
    let mut vcpu = TestVcpu::new();
    vcpu.state.efer = 0;
    vcpu.state.cr0 = 1 << 31 | 1;
    vcpu.state.cr3 = 0x1000;
    vcpu.state.cr4 = 1 << 4;
    let put = |gpa: u64, value: u32| memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
    put(0x1000, 0x2003);
    put(0x1004, 0x0083);
    put(0x2000 + 4 * 3, 0x7003);
    assert_eq!(translate(&memory, &vcpu, 0x3010), Some(Gpa(0x7010)));
    assert_eq!(translate(&memory, &vcpu, 0x40_0010), Some(Gpa(0x10)));
    assert_eq!(translate(&memory, &vcpu, 0x80_0000), None);
    // The same with PAE: four pointers, then tables of eight-byte entries.
    vcpu.state.cr4 = 1 << 5;
    put(0x1000 + 8, 0x2001);
    put(0x2000, 0x3003);
    put(0x3000, 0x6003);
    assert_eq!(translate(&memory, &vcpu, 0x4000_0020), Some(Gpa(0x6020)));
}

proptest! {
    /// Whatever the bytes at the instruction pointer are, in whatever mode: an answer, never a panic.
    #[test]
    fn any_bytes_are_survived(
        code in proptest::collection::vec(any::<u8>(), 15),
        attributes: u16, efer: u64, control: [u64; 2], root in 0_u64..0x2_1000,
        tables in proptest::collection::vec(any::<u64>(), 64),
    ) {
        let memory = memory(RAM);
        let mut vcpu = TestVcpu::new();
        vcpu.place(&memory, &code);
        for (i, entry) in tables.iter().enumerate() {
            let entry = entry & 0x1_ffff | 1;
            memory.write(Gpa(0x1000 + 8 * i as u64), &entry.to_le_bytes()).unwrap();
        }
        for paging in [false, true] {
            vcpu.state.cr0 = if paging { control[0] | 1 << 31 } else { 0 };
            vcpu.state.cr3 = root;
            vcpu.state.cr4 = control[1];
            vcpu.state.efer = efer;
            vcpu.state.cs.attributes = attributes;
            let _ = device_access(&memory, &vcpu);
            let _ = string_io(&memory, &vcpu);
            let _ = after(&memory, &vcpu, 2);
        }
    }
}
