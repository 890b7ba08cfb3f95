//! The bare-metal image of a hypervisor host: hardware on one side, the libraries of `hvcore/` on the
//! other.
//!
//! All `unsafe` and all assembly of the project live here, in small modules. It decides nothing that a library
//! can decide: it boots, finds memory, timers and network cards, and turns the main loop around `host::Host`.
//! One physical CPU, one loop, interrupts off but while a guest runs or the CPU halts: so there are no
//! races to think of, and nothing polls.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod event_loop;
mod fw_cfg;
mod interrupts;
mod memory;
mod mmio;
mod net;
mod panic;
mod pci;
mod platform;
mod random;
mod screen;
mod serial;
mod standalone;
mod svm;
mod time;

use alloc::{rc::Rc, string::String, vec::Vec};
use core::arch::x86_64::__cpuid;

use boot_info::{
    BootInfo,
    acpi::{RootTable, Tables},
    config::{SETTINGS_BYTES_MAX, Settings},
};
use host::{HostConfig, platform::Nic};
use host_protocol::auth::PoolKey;

use net::Card;
use platform::BareMetal;
use svm::PhysicalCpu;

/// The fw_cfg file with the host's settings.
const SETTINGS_FILE: &str = "opt/elab/config";

/// Entered by `boot/entry.s` in long mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn rust_entry(eax: u32, info: u32) -> ! {
    serial::init();
    interrupts::init_exceptions();
    println!("elab: hypervisor {}", env!("CARGO_PKG_VERSION"));
    // First of all, since without 1 GiB pages little memory is mapped.
    let cpu = PhysicalCpu::enable().unwrap_or_else(|why| panic::refuse(format_args!("{why}")));
    if !has_gigabyte_pages() {
        panic::refuse(format_args!(
            "this CPU has no 1 GiB pages, which the host's own memory map needs"
        ));
    }
    let boot = BootInfo::parse(&memory::Identity, eax, info)
        .unwrap_or_else(|why| panic::refuse(format_args!("{why}")));
    memory::init(&boot);
    let tables = boot
        .acpi
        .or_else(|| RootTable::search(&memory::Identity))
        .map(|root| Tables::read(&memory::Identity, root))
        .unwrap_or_default();
    let settings = settings(&boot.command_line);
    interrupts::init_controllers(&tables);
    time::init(
        &tables,
        settings.as_ref().and_then(|settings| settings.tsc_hz),
    );
    let (_, free) = memory::account();
    println!(
        "elab: {} MiB for VMs, time-stamp counter {} Hz",
        free >> 20,
        time::tsc_hz()
    );
    match settings {
        Some(settings) => run_in_pool(cpu, settings, &tables),
        None => run_alone(&cpu, &boot, &tables),
    }
}

/// As a host of a pool, for ever.
fn run_in_pool(cpu: Rc<PhysicalCpu>, settings: Settings, tables: &Tables) -> ! {
    let cards = net::init(pci::ConfigSpace::find(tables));
    if cards.len() < Nic::ALL.len() {
        panic::refuse(format_args!(
            "found {} of {} virtio network cards (management, storage, session); add the missing ones",
            cards.len(),
            Nic::ALL.len()
        ));
    }
    let (halves, receivers): (Vec<_>, Vec<_>) = cards
        .into_iter()
        .map(
            |Card {
                 mac,
                 receiver,
                 transmitter,
             }| ((mac, transmitter), receiver),
        )
        .unzip();
    let platform = BareMetal::new(cpu, halves, tables.power_off);
    let config = HostConfig {
        name: settings.name,
        version: String::from(env!("CARGO_PKG_VERSION")),
        management: (settings.management.address, settings.management.prefix),
        storage: (settings.storage.address, settings.storage.prefix),
        nfs: (settings.nfs.address, settings.nfs.port),
        export: settings.export,
        key: PoolKey::new(settings.key),
        mtu: settings.mtu,
    };
    println!("elab: host {} is up", config.name);
    event_loop::run(config, platform, receivers)
}

/// With guests from boot modules, until they have ended.
fn run_alone(cpu: &Rc<PhysicalCpu>, boot: &BootInfo, tables: &Tables) -> ! {
    let guests = boot_info::standalone::parse(&boot.command_line)
        .unwrap_or_else(|why| panic::refuse(format_args!("{why}")));
    let modules: Vec<&[u8]> = boot.modules.iter().map(memory::module_bytes).collect();
    standalone::run(cpu, guests, &modules);
    platform::power_off(tables.power_off)
}

/// The launcher's settings, if it gave any.
fn settings(command_line: &str) -> Option<Settings> {
    let (source, text) = match fw_cfg::read(SETTINGS_FILE, SETTINGS_BYTES_MAX) {
        Some(bytes) => (SETTINGS_FILE, String::from_utf8_lossy(&bytes).into_owned()),
        None if Settings::present(command_line) => ("the command line", command_line.into()),
        None => return None,
    };
    let settings = Settings::parse(&text)
        .unwrap_or_else(|why| panic::refuse(format_args!("in the settings from {source}: {why}")));
    Some(settings)
}

/// Whether the CPU has the pages that `boot/entry.s` maps all memory with.
fn has_gigabyte_pages() -> bool {
    const GIGABYTE_PAGES: u32 = 1 << 26;
    __cpuid(0x8000_0001).edx & GIGABYTE_PAGES != 0
}
