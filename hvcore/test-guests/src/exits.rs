//! Instructions that the hypervisor answers.

use core::arch::asm;

use crate::{
    check,
    cpu::{self, Fault, PROTECTION, UNDEFINED, attempt, rdmsr, wrmsr},
};

const LSTAR: u32 = 0xc000_0082;
const FS_BASE: u32 = 0xc000_0100;
const EFER: u32 = 0xc000_0080;
const EFER_LMA: u64 = 1 << 10;
const EFER_SVME: u64 = 1 << 12;
const TSC_AUX: u32 = 0xc000_0103;
/// The performance counters that no guest has.
const PERF_CTL0: u32 = 0xc001_0000;
const NO_SUCH_MSR: u32 = 0xdead_beef;

/// The machine says what it is, and hides what a guest must not use.
pub fn cpuid() {
    let [_, ebx, ecx, edx] = cpu::cpuid(0x4000_0000, 0);
    let mut signature = [0; 12];
    for (bytes, word) in signature.chunks_exact_mut(4).zip([ebx, ecx, edx]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    check!(&signature[..9] == b"KVMKVMKVM", "signature {signature:?}");
    let [_, _, ecx, _] = cpu::cpuid(1, 0);
    for (bit, name) in [(21, "x2APIC"), (24, "TSC deadline"), (31, "hypervisor")] {
        check!(ecx & 1 << bit != 0, "{name} is not offered");
    }
    check!(ecx & 1 << 3 == 0, "MONITOR is offered");
    let [_, _, ecx, _] = cpu::cpuid(0x8000_0001, 0);
    check!(ecx & 1 << 2 == 0, "SVM is offered");
    // A prefix makes the instruction longer: nobody may assume two bytes.
    let after: u32;
    // SAFETY: CPUID with a redundant operand-size prefix; rbx is kept.
    unsafe {
        asm!(
            "push rbx", ".byte 0x66", "cpuid", "pop rbx", "mov {0:e}, 0x1234",
            out(reg) after, inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _,
        );
    }
    check!(after == 0x1234, "lost its way after a prefixed CPUID");
}

/// MSRs that pass through keep their values, policed ones are policed, missing ones fault.
pub fn msr() {
    for (number, value) in [(LSTAR, 0x1234_5678), (FS_BASE, 0xffff_8000_0000_1000)] {
        wrmsr(number, value);
        check!(
            rdmsr(number) == value,
            "{number:#x} reads {:#x}",
            rdmsr(number)
        );
    }
    let efer = rdmsr(EFER);
    check!(efer & EFER_LMA != 0, "EFER reads {efer:#x} in long mode");
    check!(efer & EFER_SVME == 0, "EFER shows SVME");
    let refused = attempt(|| wrmsr(EFER, efer | EFER_SVME));
    check!(refused == Err(PROTECTION), "SVME could be set: {refused:?}");
    wrmsr(TSC_AUX, 0x77);
    let aux: u32;
    // SAFETY: RDTSCP only reads.
    unsafe { asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
    check!(aux == 0x77, "RDTSCP gives {aux:#x}");
    for number in [PERF_CTL0, NO_SUCH_MSR] {
        let read = attempt(|| rdmsr(number));
        check!(read == Err(PROTECTION), "reading {number:#x}: {read:?}");
        let write = attempt(|| wrmsr(number, 0));
        check!(write == Err(PROTECTION), "writing {number:#x}: {write:?}");
    }
}

/// Instructions this machine does not have.
pub fn undefined() {
    let expect = |name: &str, got: Result<(), Fault>, fault: Fault| {
        check!(got == Err(fault), "{name}: {got:?}");
    };
    // SAFETY: each either faults or would change only this guest.
    unsafe {
        expect(
            "VMRUN",
            attempt(|| asm!("vmrun rax", in("rax") 0x1000)),
            UNDEFINED,
        );
        expect(
            "VMLOAD",
            attempt(|| asm!("vmload rax", in("rax") 0x1000)),
            UNDEFINED,
        );
        expect(
            "VMSAVE",
            attempt(|| asm!("vmsave rax", in("rax") 0x1000)),
            UNDEFINED,
        );
        expect("STGI", attempt(|| asm!("stgi")), UNDEFINED);
        expect("CLGI", attempt(|| asm!("clgi")), UNDEFINED);
        expect(
            "SKINIT",
            attempt(|| asm!("skinit eax", in("eax") 0x1000)),
            UNDEFINED,
        );
        expect(
            "MONITOR",
            attempt(|| asm!("monitor", in("rax") 0x1000, in("ecx") 0, in("edx") 0)),
            UNDEFINED,
        );
        expect(
            "MWAIT",
            attempt(|| asm!("mwait", in("eax") 0, in("ecx") 0)),
            UNDEFINED,
        );
        expect(
            "RDPMC",
            attempt(|| asm!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _)),
            PROTECTION,
        );
        asm!("wbinvd");
        asm!("pause");
    }
}

/// Reserved bits fault, and the guest lives on.
pub fn control_registers() {
    let cr4 = cpu::cr4();
    let reserved = attempt(|| cpu::set_cr4(cr4 | 1 << 31));
    check!(
        reserved == Err(PROTECTION),
        "reserved bit of CR4: {reserved:?}"
    );
    check!(cpu::cr4() == cr4, "CR4 changed to {:#x}", cpu::cr4());
    if cpu::cpuid(1, 0)[2] & 1 << 26 != 0 {
        cpu::set_cr4(cr4 | 1 << 18);
        // SAFETY: sets XCR0 to a value that is not allowed (x87 cannot be off).
        let bad = attempt(|| unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") 0, in("edx") 0);
        });
        check!(bad == Err(PROTECTION), "XCR0 = 0: {bad:?}");
        check!(
            cpu::cpuid(1, 0)[2] & 1 << 27 != 0,
            "CPUID does not show OSXSAVE"
        );
        cpu::set_cr4(cr4);
    }
}

/// Ports where nothing is read as ones and swallow writes.
pub fn ports() {
    const EMPTY: u16 = 0x2e8;
    check!(
        cpu::inb(EMPTY) == 0xff,
        "a byte reads {:#x}",
        cpu::inb(EMPTY)
    );
    check!(
        cpu::inw(EMPTY) == 0xffff,
        "a word reads {:#x}",
        cpu::inw(EMPTY)
    );
    check!(
        cpu::inl(EMPTY) == 0xffff_ffff,
        "a long reads {:#x}",
        cpu::inl(EMPTY)
    );
    cpu::outb(EMPTY, 1);
    cpu::outl(EMPTY, 1);
    // A narrow IN leaves the rest of the register alone.
    let rax: u64;
    // SAFETY: reads a port.
    unsafe { asm!("in al, dx", in("dx") EMPTY, inout("rax") 0x1122_3344_5566_7700_u64 => rax) };
    check!(rax == 0x1122_3344_5566_77ff, "IN AL left RAX {rax:#x}");
}

/// Device memory, by the forms of MOV that drivers use.
pub fn ioapic() {
    const IOAPIC: u64 = 0xfec0_0000;
    const WINDOW: u64 = 0x10;
    const VERSION: u32 = 1;
    /// The console's input must be there.
    const SERIAL_LINE: u32 = 4;
    let (version, sib, extended): (u32, u32, u32);
    // SAFETY: register select and window of the IOAPIC.
    unsafe {
        asm!(
            "mov dword ptr [{base}], {select}",
            "mov {plain:e}, [{base} + 0x10]",
            "mov {sib:e}, [{base} + {index} * 4]",
            "mov r11d, [{base} + {index} * 4 + 0]",
            "mov {extended:e}, r11d",
            base = in(reg) IOAPIC,
            index = in(reg) WINDOW / 4,
            select = const VERSION,
            plain = out(reg) version,
            sib = out(reg) sib,
            extended = out(reg) extended,
            out("r11") _,
        );
    }
    check!(
        version & 0xff >= 0x11,
        "version register reads {version:#x}"
    );
    check!(
        version >> 16 & 0xff >= SERIAL_LINE,
        "too few inputs: {version:#x}"
    );
    check!(
        sib == version && extended == version,
        "forms of MOV disagree: {version:#x} {sib:#x} {extended:#x}"
    );
}
