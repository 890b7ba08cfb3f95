//! The bare-metal image of a hypervisor host: hardware on one side, the libraries of `hvcore/` on the
//! other.
//!
//! All `unsafe` and all assembly of the project live here, in small modules. It decides nothing that a library
//! can decide: it boots, finds memory, timers and network cards, and turns the main loop around `host::Host`.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod fw_cfg;
mod interrupts;
mod memory;
mod panic;
mod serial;
mod svm;

use boot_info::{BootInfo, config};

/// Entered by `boot/entry.s` in long mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn rust_entry(eax: u32, info: u32) -> ! {
    serial::init();
    interrupts::init();
    println!("elab: hypervisor {}", env!("CARGO_PKG_VERSION"));
    let boot =
        BootInfo::parse(&memory::Identity, eax, info).unwrap_or_else(|error| panic!("{error}"));
    memory::init(&boot);
    println!("{boot:x?} {:?}", memory::account());
    let settings = fw_cfg::read("opt/elab/config", config::SETTINGS_BYTES_MAX);
    println!("{settings:?}");
    panic::halt()
}
