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
mod mmio;
mod net;
mod panic;
mod pci;
mod random;
mod serial;
mod svm;
mod time;

use boot_info::{BootInfo, acpi, config};

/// Entered by `boot/entry.s` in long mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn rust_entry(eax: u32, info: u32) -> ! {
    serial::init();
    interrupts::init_exceptions();
    println!("elab: hypervisor {}", env!("CARGO_PKG_VERSION"));
    let boot =
        BootInfo::parse(&memory::Identity, eax, info).unwrap_or_else(|error| panic!("{error}"));
    memory::init(&boot);
    println!("{boot:x?} {:?}", memory::account());
    let settings = fw_cfg::read("opt/elab/config", config::SETTINGS_BYTES_MAX);
    println!("{settings:?}");
    let tables = boot
        .acpi
        .or_else(|| acpi::RootTable::search(&memory::Identity))
        .map(|root| acpi::Tables::read(&memory::Identity, root))
        .unwrap_or_default();
    interrupts::init_controllers(&tables);
    time::init(&tables, None);
    println!(
        "{tables:x?} {} {} {}",
        time::tsc_hz(),
        time::now_ns(),
        time::unix_ns()
    );
    let mut b = [0; 12];
    random::fill(&mut b);
    println!("{b:x?}");
    for _ in 0..5 {
        let before = time::now_ns();
        time::interrupt_at(before + 10_000_000);
        interrupts::wait();
        println!("waited {}", time::now_ns() - before);
    }
    let mut cards = net::init(pci::ConfigSpace::find(&tables));
    println!("{} cards {:x?}", cards.len(), cards.first().map(|c| c.mac));
    if let Some(card) = cards.first_mut() {
        let mut frame = [0u8; 60];
        frame[..6].fill(255);
        frame[6..12].copy_from_slice(&card.mac);
        frame[12..42].copy_from_slice(&[
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0xe1, 0xab, 0, 0, 1, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0,
            10, 0, 2, 2,
        ]);
        for _ in 0..1000 {
            for _ in 0..300 {
                card.transmitter.send(&frame);
            }
            card.transmitter.flush();
            let mut n = 0;
            while card.receiver.has_frame() {
                n += card.receiver.receive(64, |_f| {});
            }
            if !card.transmitter.wake_for_room() && !card.receiver.has_frame() {
                time::interrupt_at(time::now_ns() + 1000_000_000);
                interrupts::wait();
            }
            println!(
                "got {n} at {} room {}",
                time::now_ns(),
                card.transmitter.room()
            );
        }
    }
    panic::halt()
}
