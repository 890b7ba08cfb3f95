//! The guest's own page tables, walked in software to fetch an instruction (APM vol. 2, 5.2-5.4).
//!
//! Emulated hardware gives no instruction bytes with an exit (TCG-QUIRK 1), so they are
//! read from RAM. The walk sets no accessed bits: the processor has just fetched from there.

use guest_memory::{Gpa, GuestMemory};

use crate::vcpu::{SegmentName, Vcpu};

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Longest instruction (APM vol. 3, 1.1).
pub const INSTRUCTION_MAX: usize = 15;

/// Translates a linear address; `None` when a table says "not present" or is not in RAM.
#[must_use]
pub fn translate(memory: &GuestMemory, vcpu: &impl Vcpu, linear: u64) -> Option<Gpa> {
    if vcpu.cr(0) & CR0_PG == 0 {
        return Some(Gpa(linear));
    }
    let cr3 = vcpu.cr(3);
    let cr4 = vcpu.cr(4);
    if vcpu.efer() & EFER_LMA != 0 {
        walk(memory, cr3 & ADDRESS, linear, 39)
    } else if cr4 & CR4_PAE != 0 {
        let pointer = memory
            .read_u64(Gpa((cr3 & 0xffff_ffe0) + (linear >> 30 & 3) * 8))
            .ok()?;
        (pointer & PRESENT != 0).then_some(())?;
        walk(memory, pointer & ADDRESS, linear, 21)
    } else {
        walk_legacy(memory, cr3, linear, cr4 & CR4_PSE != 0)
    }
}

/// Tables of 512 eight-byte entries, the first indexed by the nine bits of `linear` from `shift` on.
fn walk(memory: &GuestMemory, mut table: u64, linear: u64, mut shift: u32) -> Option<Gpa> {
    loop {
        let index = linear >> shift & 0x1ff;
        let entry = memory.read_u64(Gpa(table + index * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || (entry & LARGE != 0 && shift <= 30) {
            let within = (1 << shift) - 1;
            return Some(Gpa(entry & ADDRESS & !within | linear & within));
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// Two levels of 1024 four-byte entries.
fn walk_legacy(memory: &GuestMemory, cr3: u64, linear: u64, large_pages: bool) -> Option<Gpa> {
    let directory = cr3 & 0xffff_f000;
    let entry = memory
        .read_u32(Gpa(directory + (linear >> 22 & 0x3ff) * 4))
        .ok()?;
    let entry = u64::from(entry);
    if entry & PRESENT == 0 {
        return None;
    }
    if large_pages && entry & LARGE != 0 {
        return Some(Gpa(entry & 0xffc0_0000 | linear & 0x3f_ffff));
    }
    let table = entry & 0xffff_f000;
    let entry = memory
        .read_u32(Gpa(table + (linear >> 12 & 0x3ff) * 4))
        .ok()?;
    let entry = u64::from(entry);
    (entry & PRESENT != 0).then_some(Gpa(entry & 0xffff_f000 | linear & 0xfff))
}

/// The bytes at the instruction pointer and how many of them could be fetched.
#[must_use]
pub fn fetch(memory: &GuestMemory, vcpu: &impl Vcpu) -> ([u8; INSTRUCTION_MAX], usize) {
    let linear = vcpu.segment(SegmentName::Cs).base.wrapping_add(vcpu.rip());
    let mut bytes = [0; INSTRUCTION_MAX];
    let mut fetched = 0;
    while fetched < INSTRUCTION_MAX {
        let at = linear.wrapping_add(fetched as u64);
        let in_page = (0x1000 - (at & 0xfff)) as usize;
        let end = INSTRUCTION_MAX.min(fetched + in_page);
        let read = translate(memory, vcpu, at)
            .is_some_and(|gpa| memory.read(gpa, &mut bytes[fetched..end]).is_ok());
        if !read {
            break;
        }
        fetched = end;
    }
    (bytes, fetched)
}
