//! A hypervisor host without its hardware.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
mod console;
mod net;
mod scheduler;
pub mod platform;
