//! The bare-metal image of a hypervisor host: hardware on one side, the libraries of `hvcore/` on the
//! other.
//!
//! All `unsafe` and all assembly of the project live here, in small modules. It decides nothing that a library
//! can decide: it boots, finds memory, timers and network cards, and turns the main loop around `host::Host`.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod interrupts;
mod memory;
mod panic;
mod serial;

/// Entered by `boot/entry.s` in long mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn rust_entry(magic: u32, info: u32) -> ! {
    serial::init();
    interrupts::init();
    println!(
        "elab: hypervisor {} ({magic:#x}, {info:#x})",
        env!("CARGO_PKG_VERSION")
    );
    panic::halt()
}
