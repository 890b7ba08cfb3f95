//! The guest's machine: everything a guest can see that is neither RAM nor the CPU's own instructions.
//!
//! A backend runs a [`vcpu::Vcpu`] on hardware; [`Machine::run`] answers its exits with an
//! interrupt controller, timers, CPUID and MSR policy, PCI, virtio devices and a serial port. Whoever
//! runs the machine serves its [backends](DiskRequest): it takes disk requests and network frames out
//! and puts completions and frames in. The crate knows no hardware, no network and no storage, has no
//! `unsafe` and no globals: bytes and clock readings go in, requests and deadlines come out, so the
//! same code runs on bare metal, in unit tests and in fuzzers.
//!
//! # How it is used
//!
//! ```text
//! let mut machine = Machine::new(&config, memory, |leaf, subleaf| platform.cpuid(leaf, subleaf));
//! vcpu[0].load(&machine.load_linux(&kernel, Some(&initrd), "console=ttyS0 root=/dev/vda1")?);
//! for v in vcpus { v.set_tsc_offset(0 - host_tsc) }       // one offset for all: the guest counts from 0
//! loop {
//!     serve next_disk_request(), next_frame(), take_console_output(), deliver_frame(), complete_disk()
//!     pick an index with runnable(index, &clock); arm the host's timer for next_deadline_ns()
//!     match machine.run(index, &mut vcpu[index], &clock) { ... }
//! }
//! ```
//!
//! # How time continues on another host
//!
//! The guest's clock is its time-stamp counter; kvmclock pages only say how to scale it. The host that
//! resumes a guest sets one TSC offset on all vCPUs, such that the counter reads the saved value plus
//! the time that passed meanwhile (in ticks of the destination's counter). Timers are saved
//! as counter values and need no conversion. Where the destination's counter has another rate, the first
//! [`Machine::run`] rewrites the kvmclock pages so that guest time goes on without a step.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod acpi;
mod apic;
mod backends;
mod clock;
mod cpuid;
mod decode;
mod frames;
#[cfg(test)]
mod fuzz_tests;
mod linux;
mod machine;
mod msr;
mod pci;
mod ports;
mod processor;
mod run;
mod serial;
pub mod state;
#[cfg(test)]
mod task_priority_tests;
#[cfg(test)]
mod testing;
pub mod vcpu;
mod virtio;

pub use machine::{
    Clock, DiskError, DiskModel, DiskOp, DiskRequest, LoadError, MAX_DEVICES, MAX_VCPUS, Machine,
    MachineConfig, NicModel, Outcome, ResetCause,
};
pub use run::ExitCounts;
pub use state::{Section, StateError};
