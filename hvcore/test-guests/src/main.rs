//! Small guests that test the hypervisor from inside, and guests that misbehave.
//!
//! One kernel holds them all; the word `test=NAME` of its command line chooses. It is loaded as a Linux
//! kernel is, so nothing but the loader under test is needed to start it. A test that holds
//! says `ok NAME` on the serial port, one that fails says `FAILED NAME: why`; both switch the
//! machine off. What a misbehaving guest comes to is for the hypervisor to say.

#![no_std]
#![no_main]

mod bench;
mod console;
mod cpu;
mod exits;
mod extended_state;
mod interrupts;
mod memory;
mod misbehave;
mod pci;
mod smp;
mod timing;
mod virtio;

use core::panic::PanicInfo;

use console::power_off;

/// A test: its name and what it does. It fails by panicking.
type Test = (&'static str, fn());

/// Tests of a guest that behaves, run by `test=all`.
const TESTS: &[Test] = &[
    ("cpuid", exits::cpuid),
    ("msr", exits::msr),
    ("undefined", exits::undefined),
    ("control-registers", exits::control_registers),
    ("ports", exits::ports),
    ("ioapic", exits::ioapic),
    ("self-ipi", timing::self_ipi),
    ("deadline", timing::deadline),
    ("past-deadline", timing::past_deadline),
    ("halt-race", timing::halt_race),
    ("pv-eoi", timing::pv_eoi),
    ("priority", timing::priority),
    ("task-priority", timing::task_priority),
    ("clock", timing::clock),
    ("paging", memory::paging),
    ("all-ram", memory::all_ram),
    ("extended-state", extended_state::quick),
];

/// Programs that run alone.
const PROGRAMS: &[Test] = &[
    ("bench", bench::run),
    ("dirty", memory::dirty),
    ("smp", smp::start_others),
    ("bystander", extended_state::bystander),
    ("wild-msr", misbehave::wild_msr),
    ("wild-io", misbehave::wild_io),
    ("wild-mmio", misbehave::wild_mmio),
    ("bad-rings", misbehave::bad_rings),
    ("triple-fault", misbehave::triple_fault),
    ("jump-device", misbehave::jump_to_device),
    ("jump-nowhere", misbehave::jump_to_nothing),
    ("tables-nowhere", misbehave::tables_in_nothing),
    ("stack-device", misbehave::stack_in_device),
    ("string-io", misbehave::string_io),
    ("exception-storm", misbehave::exception_storm),
];

static mut CURRENT: &str = "start";

fn run((name, test): Test) {
    // SAFETY: one thread.
    unsafe { CURRENT = name };
    test();
    println!("ok {name}");
}

/// Entered by `start.s` with the boot parameters (Linux, x86/zero-page.rst).
#[unsafe(no_mangle)]
extern "C" fn guest_main(zero_page: *const u8) -> ! {
    interrupts::init();
    memory::init(zero_page);
    let wanted = command_line(zero_page)
        .split(|byte| *byte == b' ')
        .find_map(|word| word.strip_prefix(b"test="))
        .unwrap_or(b"all");
    if wanted == b"all" {
        for test in TESTS {
            run(*test);
        }
    } else {
        let test = TESTS
            .iter()
            .chain(PROGRAMS)
            .find(|(name, _)| name.as_bytes() == wanted);
        match test {
            Some(test) => run(*test),
            None => panic!("there is no such test"),
        }
    }
    power_off()
}

fn command_line(zero_page: *const u8) -> &'static [u8] {
    const CMD_LINE_PTR: usize = 0x228;
    const LENGTH_MAX: usize = 255;
    // SAFETY: the loader passes a whole zero page, whose pointer leads to a string ended by zero.
    unsafe {
        let text = zero_page.add(CMD_LINE_PTR).cast::<u32>().read_unaligned() as usize as *const u8;
        let length = (0..LENGTH_MAX)
            .find(|i| text.add(*i).read() == 0)
            .unwrap_or(LENGTH_MAX);
        core::slice::from_raw_parts(text, length)
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: one thread.
    let name = unsafe { CURRENT };
    println!("FAILED {name}: {info}");
    power_off()
}
