//! Registers that the hypervisor exchanges only when vCPUs take turns.

use core::arch::asm;

use crate::{
    check,
    cpu::{self, cr4, set_cr4, tsc, wrmsr},
};

const OSFXSR: u64 = 1 << 9;
const OSXSAVE: u64 = 1 << 18;
const TSC_AUX: u32 = 0xc000_0103;

#[repr(C, align(64))]
struct Vectors([[u64; 2]; 16]);

fn enable() {
    set_cr4(cr4() | OSFXSR);
    if cpu::cpuid(1, 0)[2] & 1 << 26 != 0 {
        set_cr4(cr4() | OSXSAVE);
        // SAFETY: x87 and SSE are always allowed.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 3, in("edx") 0) };
    }
}

/// Fills the registers from `seed`, lets time pass, and reads them back.
fn keep(seed: u64, ticks: u64) {
    let mut vectors = Vectors([[0; 2]; 16]);
    for (index, vector) in vectors.0.iter_mut().enumerate() {
        *vector = [seed.wrapping_mul(index as u64 + 1), !seed ^ index as u64];
    }
    let mut after = Vectors([[0; 2]; 16]);
    let debug = seed & 0x7fff_ffff_ffff;
    let float = seed as u32 as i64;
    let mut float_after = 0_i64;
    wrmsr(TSC_AUX, seed & 0xffff_ffff);
    let end = tsc() + ticks;
    let (debug_after, aux): (u64, u32);
    // SAFETY: the compiler does not use these registers (soft float); buffers are large enough.
    unsafe {
        asm!(
            "mov dr0, {debug}",
            "fninit",
            "fild qword ptr [{float}]",
            "movdqa xmm0, [{from}]",
            "movdqa xmm1, [{from} + 16]",
            "movdqa xmm7, [{from} + 112]",
            "movdqa xmm8, [{from} + 128]",
            "movdqa xmm15, [{from} + 240]",
            "2:",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "cmp rax, {end}",
            "jb 2b",
            "movdqa [{to}], xmm0",
            "movdqa [{to} + 16], xmm1",
            "movdqa [{to} + 112], xmm7",
            "movdqa [{to} + 128], xmm8",
            "movdqa [{to} + 240], xmm15",
            "fistp qword ptr [{float_after}]",
            "mov {debug}, dr0",
            "rdtscp",
            debug = inout(reg) debug => debug_after,
            float = in(reg) &raw const float,
            float_after = in(reg) &raw mut float_after,
            from = in(reg) &raw const vectors,
            to = in(reg) &raw mut after,
            end = in(reg) end,
            out("rax") _, out("rdx") _, out("ecx") aux,
        );
    }
    for register in [0, 1, 7, 8, 15] {
        check!(
            after.0[register] == vectors.0[register],
            "xmm{register} was {:x?} and is {:x?}",
            vectors.0[register],
            after.0[register]
        );
    }
    check!(float_after == float, "st0 was {float} and is {float_after}");
    check!(
        debug_after == debug,
        "dr0 was {debug:#x} and is {debug_after:#x}"
    );
    check!(u64::from(aux) == seed & 0xffff_ffff, "TSC_AUX is {aux:#x}");
}

/// They work at all.
pub fn quick() {
    enable();
    keep(0x0123_4567_89ab_cdef, 1_000_000);
}

/// They keep their values for about a second, whatever other guests do meanwhile. The seed differs from
/// guest to guest.
pub fn bystander() {
    enable();
    let seed = tsc() | 1;
    let end = tsc() + 2_500_000_000;
    let mut rounds = 0_u64;
    while tsc() < end {
        keep(seed.wrapping_mul(2 * rounds + 1), 20_000_000);
        rounds += 1;
    }
    check!(rounds > 0, "no round was completed");
}
