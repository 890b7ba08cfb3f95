//! The end of a host that cannot go on: it says why, fences itself and halts.
//!
//! Fencing is what it does not do any more: no guest entry, no frame, no disk write follow, because
//! nothing runs after this. The lease of its disks runs out, and another host may take them.

use core::{arch::asm, fmt, panic::PanicInfo};

use x86_64::instructions::{hlt, interrupts};

use crate::{screen, serial::print_regardless};

/// Return addresses printed at most.
const FRAMES_MAX: usize = 32;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    interrupts::disable();
    print_regardless(format_args!("\nelab: host panic: {info}\n"));
    print_backtrace();
    print_regardless(format_args!(
        "elab: host halted; its guests are stopped and it touches no disk\n"
    ));
    screen::show(format_args!("elab: host panic: {info}\nhost halted"));
    halt()
}

/// Ends a host that was set up in a way it cannot work: no defect of its own.
pub fn refuse(why: fmt::Arguments<'_>) -> ! {
    interrupts::disable();
    print_regardless(format_args!("elab: {why}\nelab: host halted\n"));
    screen::show(format_args!("elab: {why}\nhost halted"));
    halt()
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

/// Prints the return addresses that the frame pointers lead to, for `addr2line -e hvcore`.
fn print_backtrace() {
    let mut frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    print_regardless(format_args!("return addresses:"));
    for _ in 0..FRAMES_MAX {
        let Some((next, address)) = crate::boot::caller(frame) else {
            break;
        };
        print_regardless(format_args!(" {address:#x}"));
        frame = next;
    }
    print_regardless(format_args!("\n"));
}
